import { assert, assertEquals } from "@std/assert";
import { test } from "node:test";
import { residualCoder, trellisCoder } from "../../../bench/research/coders.ts";
import { Random } from "../../support/random.ts";

const distance = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).reduce((sum, x, i) => sum + (x - b[i]) ** 2, 0);

test("a trellis finds the nearest of all paths, and says which, seed 3", () => {
  const random = new Random(3);
  for (const [d, bits, total] of [[4, 8, 4096], [8, 8, 2048], [4, 6, 4096], [4, 10, 4096], [2, 8, 8192]]) {
    const words = Float64Array.from(random.normals(total * d)), coder = trellisCoder(words, d, bits);
    const codes = 2 ** bits, states = total / codes, word = (w: number) => words.subarray(w * d, w * d + d);
    const given = Float64Array.from(random.normals(2 * d)), coded = given.slice(), used = new Int32Array(2);
    coder.code(coded, used);
    const near = Array.from({ length: total }, (_, w) => distance(word(w), given.subarray(d)));
    let least = Infinity;
    for (let first = 0; first < codes; first++) { // from state 0
      const before = distance(word(first), given.subarray(0, d)), begin = first % states * codes;
      for (let second = begin; second < begin + codes; second++) least = Math.min(least, before + near[second]);
    }
    assert(Math.abs(distance(coded, given) - least) < 1e-9, `d${d}b${bits}`);
    assertEquals([...coded], [...word(used[0]), ...word(used[1])]);
    assertEquals([used[0] >> bits, used[1] >> bits], [0, used[0] % states]);
  }
});

test("two stages are a sum of two codewords, no worse than one after the other, seed 4", () => {
  const random = new Random(4), words = Float64Array.from(random.normals(512 * 8)), coder = residualCoder(words, 8);
  const word = (w: number) => words.subarray(w * 8, w * 8 + 8);
  const nearest = (x: ArrayLike<number>, begin: number) =>
    Array.from({ length: 256 }, (_, i) => begin + i).reduce((a, b) =>
      distance(x, word(a)) <= distance(x, word(b)) ? a : b
    );
  for (let trial = 0; trial < 20; trial++) {
    const given = Float64Array.from(random.normals(16)), coded = given.slice(), used = new Int32Array(4);
    coder.code(coded, used);
    for (let sub = 0; sub < 2; sub++) {
      const x = given.subarray(sub * 8, sub * 8 + 8), [first, second] = used.subarray(sub * 2, sub * 2 + 2);
      const own = coded.subarray(sub * 8, sub * 8 + 8);
      assert(first < 256 && second >= 256);
      assertEquals([...own], [...word(first)].map((y, i) => y + word(second)[i]));
      const greedy = nearest(x, 0), rest = x.map((y, i) => y - word(greedy)[i]);
      assert(distance(own, x) <= distance(word(nearest(rest, 256)), rest) + 1e-9);
    }
  }
});
