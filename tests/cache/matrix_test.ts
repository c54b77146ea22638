import { assert, assertEquals, assertThrows } from "@std/assert";
import { test } from "node:test";
import { cholesky, eigen, hadamard, inverse, product, transformMatrices, transposed } from "../../lib/cache/matrix.ts";
import { assertAllClose } from "../support/close.ts";
import { Random } from "../support/random.ts";
import { hadamard as reference } from "../support/reference.ts";

const n = 64, seed = Date.now() % 2 ** 31;

function identity(size: number): Float64Array {
  return Float64Array.from({ length: size * size }, (_, i) => Math.floor(i / size) === i % size ? 1 : 0);
}

/** x^T x over some random rows, with directions of very different size. */
function moment(random: Random): Float64Array {
  const out = new Float64Array(n * n);
  for (let k = 0; k < 2 * n; k++) {
    const x = Array.from(random.normals(n), (value, i) => value * 2 ** (-8 * i / n));
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) out[i * n + j] += x[i] * x[j];
  }
  return out;
}

test(`inverse, Cholesky factor and eigenvectors give the matrix back, seed ${seed}`, () => {
  const random = new Random(seed), any = Float64Array.from(near(random, 1)), m = moment(random);
  assertAllClose(product(any, inverse(any, n)!, n), identity(n), { absolute: 1e-8 });
  const lower = cholesky(m, n), { values, vectors } = eigen(m, n);
  assertAllClose(product(lower, transposed(lower, n), n), m, { absolute: 1e-9, relative: 1e-12 });
  assert(lower.every((x, i) => i % n <= Math.floor(i / n) || x === 0));
  assertAllClose(product(vectors, transposed(vectors, n), n), identity(n), { absolute: 1e-10 });
  const scaled = vectors.map((x, i) => x * values[Math.floor(i / n)]);
  assertAllClose(product(transposed(vectors, n), scaled, n), m, { absolute: 1e-9 });
  assert(values.every((x, i) => i === 0 || x <= values[i - 1]));
});

test("the Hadamard matrix is that of the transform", () => {
  for (const size of [1, 8, 64]) {
    const matrix = hadamard(size);
    for (let row = 0; row < size; row++) {
      const unit = Array.from({ length: size }, (_, i) => i === row ? 1 : 0);
      assertAllClose(matrix.subarray(row * size, (row + 1) * size), reference(unit), { absolute: 1e-12 });
    }
  }
});

/** Matrices near the identity, which have inverses, [heads, n, n]. */
function near(random: Random, heads: number): Float32Array {
  const noise = random.normals(heads * n * n, 0.5 / Math.sqrt(n));
  return noise.map((x, i) => x + (i % (n * n) % (n + 1) === 0 ? 1 + random.uniform() : 0));
}

test(`the queries' matrix keeps products, the inverse brings vectors back, seed ${seed}`, () => {
  const random = new Random(seed), heads = 2, size = n * n, all = transformMatrices(near(random, heads), n);
  const times = (x: ArrayLike<number>, at: number) => {
    const out = new Array<number>(n).fill(0);
    for (let j = 0; j < n; j++) for (let i = 0; i < n; i++) out[i] += x[j] * all[at + j * n + i];
    return out;
  };
  const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a).reduce((sum, x, i) => sum + x * b[i], 0);
  for (let head = 0; head < heads; head++) {
    const k = random.normals(n), q = random.normals(n), there = times(k, head * size);
    assertAllClose([dot(there, times(q, (heads + head) * size))], [dot(k, q)], { absolute: 1e-3 });
    assertAllClose(times(there, (2 * heads + head) * size), k, { absolute: 1e-3 });
  }
});

test("a matrix without an inverse is refused, and one that only rounding gives one", () => {
  assertEquals(inverse(new Float64Array(n * n), n), undefined);
  const any = Float64Array.from(near(new Random(1), 1));
  assertEquals(inverse(any.map((x, i) => i < n ? any[n + i] / 3 + any[2 * n + i] / 7 : x), n), undefined);
  assertThrows(() => transformMatrices(new Float32Array(2 * n * n), n), RangeError, "KV head 0 has no inverse");
});
