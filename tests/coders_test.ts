import { assert, assertEquals } from "@std/assert";
import { test } from "node:test";
import { residualCoder, trellisCoder } from "../bench/coders.ts";
import { Random } from "./support/random.ts";

const distance = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).reduce((sum, x, i) => sum + (x - b[i]) ** 2, 0);

test("a trellis finds the nearest of all paths, and says which, seed 3", () => {
  const random = new Random(3), words = Float64Array.from(random.normals(4096 * 4)), coder = trellisCoder(words);
  const word = (w: number) => words.subarray(w * 4, w * 4 + 4);
  for (let trial = 0; trial < 4; trial++) {
    const given = Float64Array.from(random.normals(8)), coded = given.slice(), used = new Int32Array(2);
    coder.code(coded, used);
    let least = Infinity;
    for (let first = 0; first < 256; first++) { // from state 0
      for (let k = 0; k < 256; k++) {
        const second = first % 16 * 256 + k;
        least = Math.min(least, distance([...word(first), ...word(second)], given));
      }
    }
    assert(Math.abs(distance(coded, given) - least) < 1e-9, `trial ${trial}`);
    assertEquals([...coded], [...word(used[0]), ...word(used[1])]);
    assertEquals([used[0] >> 8, used[1] >> 8], [0, used[0] % 16]);
  }
});

test("two stages are a sum of two codewords, no worse than one after the other, seed 4", () => {
  const random = new Random(4), words = Float64Array.from(random.normals(512 * 8)), coder = residualCoder(words);
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
