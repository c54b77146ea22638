import { assert, assertEquals, assertThrows } from "@std/assert";
import { test } from "node:test";
import { lloydMax, randomRotation } from "../../lib/compare/turboquant.ts";
import { methodOf, METHODS, type ReferenceMethod } from "../../lib/calibration/mod.ts";
import { type CacheShape } from "../../lib/ops/mod.ts";
import { assertAllClose } from "../support/close.ts";
import { Random } from "../support/random.ts";
import { attention, dot } from "../support/reference.ts";

const shape: CacheShape = { layers: 3, kvHeads: 2, headDim: 64 }, width = 128;

/** What a method gives back of random tokens, its groups in order. Channels differ in size, as those of keys do. */
function reconstruct(name: string, count: number, seed: number, spoil?: (keys: Float32Array) => void, layer = 2) {
  const method = methodOf(name) as ReferenceMethod, random = new Random(seed);
  const size = Float32Array.from({ length: width }, () => 2 ** random.integer(-1, 3));
  const make = () => Float32Array.from({ length: count * width }, (_, i) => random.normal() * size[i % width] + 0.5);
  const keys = make(), values = make();
  spoil?.(keys);
  const given = { keys: keys.slice(), values: values.slice() }, run = method.reconstructor(shape, layer);
  for (let first = 0; first < count; first += method.group) {
    const part = (x: Float32Array) => x.subarray(first * width, (first + method.group) * width);
    run({ first, count: method.group, keys: part(given.keys), values: part(given.values) });
  }
  return { keys, values, given };
}

const f16 = (x: number) => new Float16Array([x])[0];

/** Requires that `found` are the nearest of the steps of the range of `from`; either of two where float32 can't tell. */
function assertSteps(from: number[], found: number[], bits: number, name: string): void {
  const sorted = [...from].sort((a, b) => a - b), low = f16(sorted[0]), n = 2 ** bits - 1;
  const step = f16((sorted[sorted.length - 1] - low) / n);
  const levels = Array.from({ length: n + 1 }, (_, i) => low + i * step);
  from.forEach((x, i) => {
    const least = Math.min(...levels.map((level) => Math.abs(level - x)));
    const nearest = levels.filter((level) => Math.abs(level - x) <= least + 1e-5 * Math.max(1, Math.abs(x)));
    assert(
      nearest.some((level) => Math.abs(level - found[i]) <= 1e-6 * Math.max(1, Math.abs(level))),
      `${name}: ${x} became ${found[i]}, not ${nearest}`,
    );
  });
}

for (const [name, bits, group] of [["kivi:b2g32", 2, 32], ["kivi:g128", 2, 128], ["kivi:b4g64", 4, 64]] as const) {
  test(`${name}: keys a channel, values a token, each in its own range, seed 70`, () => {
    const { keys, values, given } = reconstruct(name, 256, 70);
    for (let first = 0; first < 256; first += group) {
      for (const channel of [0, 5, 63, 64, 127]) {
        const column = (x: Float32Array) => Array.from({ length: group }, (_, t) => x[(first + t) * width + channel]);
        assertSteps(column(keys), column(given.keys), bits, `channel ${channel} from ${first}`);
      }
    }
    const run = Math.min(group, 64);
    for (const token of [0, 31, 200, 255]) {
      for (let from = token * width; from < (token + 1) * width; from += run) {
        const part = (x: Float32Array) => Array.from(x.subarray(from, from + run));
        assertSteps(part(values), part(given.values), bits, `values from ${from}`);
      }
    }
  });
}

test("kivi with 8 bits is close to exact, and constant channels are kept, seed 71", () => {
  const { keys, values, given } = reconstruct("kivi:b8g64", 128, 71, (k) => {
    for (let t = 0; t < 128; t++) k[t * width + 7] = 2.5;
  });
  for (const [x, y] of [[keys, given.keys], [values, given.values]]) {
    const error = x.reduce((sum, v, i) => sum + (v - y[i]) ** 2, 0), energy = dot(x, x);
    assert(Math.sqrt(error / energy) < 0.01, `relative error ${Math.sqrt(error / energy)}`);
  }
  for (let t = 0; t < 128; t++) assertEquals(given.keys[t * width + 7], 2.5);
});

test("ott keeps the smallest keys seen so far to the bit, until 32 were pushed out, seed 72", () => {
  // Keys get smaller from group to group, so that each group pushes 3 tokens out of the pool.
  const groups = 14, count = groups * 32, random = new Random(72);
  const { keys, values, given } = reconstruct("ott:g32", count, 72, (k) => {
    for (let t = 0; t < count; t++) {
      const factor = (1 + random.uniform()) * 0.8 ** Math.floor(t / 32);
      for (let i = 0; i < width; i++) k[t * width + i] *= factor;
    }
  });
  for (let head = 0; head < 2; head++) {
    const row = (x: Float32Array, t: number) =>
      Array.from(x.subarray(t * width + head * 64, t * width + head * 64 + 64));
    const norm = (t: number) => dot(row(keys, t), row(keys, t));
    let pushed = 0, pool: number[] = [];
    for (let g = 0; g < groups; g++) {
      const tokens = Array.from({ length: 32 }, (_, i) => 32 * g + i);
      // Tracing ends where another 3 would be more than 32.
      const next = pushed + 3 > 32 ? pool : [...pool, ...tokens].sort((a, b) => norm(a) - norm(b)).slice(0, 3);
      pushed += pool.filter((t) => !next.includes(t)).length;
      pool = next;
      const exact = tokens.filter((t) => pool.includes(t));
      for (const t of tokens) {
        const same = (x: Float32Array, y: Float32Array) => row(x, t).every((v, i) => v === row(y, t)[i]);
        assertEquals(
          same(keys, given.keys) && same(values, given.values),
          exact.includes(t),
          `head ${head} token ${t}`,
        );
      }
      // The others are coded in the range of the others.
      const rest = tokens.filter((t) => !exact.includes(t)), channel = head * 64 + 11;
      const column = (x: Float32Array) => rest.map((t) => x[t * width + channel]);
      assertSteps(column(keys), column(given.keys), 2, `head ${head} group ${g}`);
    }
    assert(pushed >= 30, `${pushed} pushed out`);
  }
});

test("ott traces nothing in the first two layers: there it is kivi, seed 73", () => {
  for (const layer of [0, 1]) {
    const [ott, kivi] = ["ott:g64", "kivi:g64"].map((name) => reconstruct(name, 128, 73, undefined, layer).given);
    assertEquals(ott, kivi);
  }
  assert(
    reconstruct("ott:g64", 128, 73).given.keys.some((x, i) => x !== reconstruct("kivi:g64", 128, 73).given.keys[i]),
  );
});

test("the levels of lloydMax are those of the literature (Max 1960)", () => {
  assertAllClose(lloydMax(1), [-0.7979, 0.7979], { absolute: 2e-4 });
  assertAllClose(lloydMax(2), [-1.510, -0.4528, 0.4528, 1.510], { absolute: 5e-4 });
  assertAllClose(lloydMax(3), [-2.152, -1.344, -0.756, -0.2451, 0.2451, 0.756, 1.344, 2.152], { absolute: 1e-3 });
});

test("randomRotation is orthonormal, and not the identity", () => {
  const rotation = randomRotation(64, 5);
  for (let i = 0; i < 64; i++) {
    for (let j = 0; j <= i; j++) {
      assertAllClose([dot(rotation[i], rotation[j])], [Number(i === j)], { absolute: 1e-12 });
    }
  }
  assert(Math.max(...rotation.map((row, i) => Math.abs(row[i]))) < 0.7);
});

test("turboquant is rotation, nearest level and rotation back, with the error known for N(0, 1), seed 74", () => {
  const { keys, values, given } = reconstruct("turboquant:b2", 64, 74), rotation = randomRotation(64, 1);
  const levels = lloydMax(2);
  for (const [x, y] of [[keys, given.keys], [values, given.values]]) {
    let error = 0, energy = 0, doubtful = 0;
    for (let at = 0; at < x.length; at += 64) {
      const vector = x.subarray(at, at + 64), rms = f16(Math.sqrt(dot(vector, vector) / 64));
      const coded = rotation.map((row) => {
        const z = dot(row, vector) / rms,
          [first, second] = [...levels].sort((a, b) => Math.abs(a - z) - Math.abs(b - z));
        if (Math.abs(Math.abs(first - z) - Math.abs(second - z)) < 1e-5) doubtful++;
        return first * rms;
      });
      const back = Array.from({ length: 64 }, (_, j) => coded.reduce((sum, c, i) => sum + c * rotation[i][j], 0));
      if (doubtful === 0) assertAllClose(y.subarray(at, at + 64), back, { absolute: 1e-4 });
      doubtful = 0;
      for (let i = 0; i < 64; i++) {
        error += (y[at + i] - vector[i]) ** 2;
        energy += vector[i] ** 2;
      }
    }
    // 0.1175 for a normal variable; a little more or less for 64 channels of a sphere.
    assert(error / energy > 0.1 && error / energy < 0.135, `${error / energy}`);
  }
});

test("clustering with ratio 1 is exact, and merges twins first, seed 75", () => {
  const { keys, values, given } = reconstruct("clustering:r1", 128, 75);
  assertEquals([given.keys, given.values], [keys, values]);
  const twins = reconstruct("clustering:r2", 128, 75, (k) => {
    for (let t = 0; t < 128; t += 2) k.copyWithin((t + 1) * width, t * width, (t + 1) * width);
  });
  assertAllClose(twins.given.keys, twins.keys, { relative: 1e-6 });
  for (let t = 0; t < 128; t += 2) {
    for (let i = 0; i < width; i++) {
      const mean = (twins.values[t * width + i] + twins.values[(t + 1) * width + i]) / 2;
      assertAllClose([twins.given.values[t * width + i], twins.given.values[(t + 1) * width + i]], [mean, mean], {
        relative: 1e-6,
        absolute: 1e-6,
      });
    }
  }
});

test("clustering at ratio 2 joins each second token to the most similar of the others, seed 76", () => {
  const { keys, values, given } = reconstruct("clustering:r2", 128, 76);
  for (let chunk = 0; chunk < 128; chunk += 64) {
    for (let head = 0; head < 2; head++) {
      const row = (x: Float32Array, t: number) =>
        Array.from(x.subarray((chunk + t) * width + head * 64, (chunk + t) * width + head * 64 + 64));
      const members = Array.from({ length: 32 }, (_, i) => [2 * i]);
      for (let t = 1; t < 64; t += 2) {
        const cosines = members.map((_, i) => {
          const [a, b] = [row(keys, t), row(keys, 2 * i)];
          return dot(a, b) / Math.hypot(...a) / Math.hypot(...b);
        });
        members[cosines.indexOf(Math.max(...cosines))].push(t);
      }
      for (const cluster of members) {
        for (const [x, y] of [[keys, given.keys], [values, given.values]]) {
          const mean = Array.from(
            { length: 64 },
            (_, i) => cluster.reduce((sum, t) => sum + row(x, t)[i], 0) / cluster.length,
          );
          for (const t of cluster) assertAllClose(row(y, t), mean, { absolute: 1e-5 }, `token ${chunk + t}`);
        }
      }
    }
  }
});

test("clusters with log n added to their score are what rows of centroids are, seed 77", () => {
  const { keys, values, given } = reconstruct("clustering:r8", 64, 77), random = new Random(78);
  const heads = (x: Float32Array) =>
    Array.from({ length: 64 }, (_, t) => Array.from(x.subarray(t * width, t * width + 64)));
  const k = heads(given.keys), v = heads(given.values), clusters = new Map<string, { size: number; at: number }>();
  k.forEach((row, t) => {
    const cluster = clusters.get(row.join()) ?? { size: 0, at: t };
    clusters.set(row.join(), { ...cluster, size: cluster.size + 1 });
  });
  assertEquals(clusters.size, 8);
  // Means of all members: the sums of a chunk stay.
  for (let i = 0; i < 64; i++) {
    for (const [x, y] of [[keys, given.keys], [values, given.values]]) {
      const sum = (a: Float32Array) => heads(a).reduce((total, row) => total + row[i], 0);
      assertAllClose([sum(y)], [sum(x)], { absolute: 1e-3 });
    }
  }
  const q = random.normals(64, 0.3), all = [...clusters.values()];
  // The 65th channel carries log n: q has 1 there, so that it is added to the score.
  const merged = attention(
    [...q, 1],
    all.map(({ at, size }) => [...k[at], Math.log(size)]),
    all.map(({ at }) => v[at]),
    1,
  );
  assertAllClose(attention(q, k, v, 1), merged, { absolute: 1e-6 });
});

test("bytes count codes, scales, outliers and exact tokens", () => {
  const bits = (name: string, tokens: number, exact = { sinks: 0, window: 0 }) =>
    (methodOf(name) as ReferenceMethod).bytes({ layers: 4, kvHeads: 2, headDim: 128 }, tokens, exact) * 8 /
    (tokens * 4 * 2 * 128 * 2);
  const long = 1e12,
    near = (name: string, expected: number) => assertAllClose([bits(name, long)], [expected], { absolute: 1e-6 });
  near("kivi:g32", 3);
  near("kivi:g64", 2.5);
  near("kivi:g128", 2.25);
  near("ott:g128", 2.25);
  near("turboquant:b2", 2 + 16 / 128);
  near("clustering:r4", 4 + 8 / 128 / 2 / 4);
  assertEquals(bits("turboquant:b2", 100, { sinks: 0, window: 128 }), 16);
  const half = bits("kivi:g32", 1024, { sinks: 12, window: 500 });
  assertEquals(half, 16 * 0.5 + 3 * 0.5);
  // 35 outliers of 128 + 128 bf16 channels and their place, in 2 of 4 layers.
  assertAllClose([bits("ott:g128", 1e5) - bits("kivi:g128", 1e5)], [35 * (256 * 2 + 4) * 8 / 2 / 256 / 1e5], {
    absolute: 1e-9,
  });
});

test("methodOf names what it does not know", () => {
  for (const name of METHODS) assert(methodOf(name).paper.length > 0);
  assertThrows(() => methodOf("kiwi"), RangeError, 'method "kiwi" is unknown; methods are calibrated');
  assertThrows(() => methodOf("kivi:g33"), RangeError, "g 32 64 128");
  assertThrows(() => methodOf("kivi:32"), RangeError, "kivi:32");
  assertThrows(() => methodOf("cq:fast"), RangeError, "settings are cq, cq:plain");
  assertThrows(() => methodOf("data-free:x"), RangeError, "no settings");
});
