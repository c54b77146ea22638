import { assert, assertEquals, assertLess, assertRejects, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { codebookAssign, kmeans } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { nearest, row } from "../support/reference.ts";

testOnDevices("codebookAssign finds the nearest codeword, seed 9", (device) => {
  const random = new Random(9);
  for (const [count, dim, codewords] of [[1, 1, 1], [70, 3, 17], [333, 4, 256], [41, 8, 4096], [20, 16, 63]]) {
    const p = random.normals(count * dim), book = random.normals(codewords * dim);
    using points = Tensor.from(device, p, [count, dim]);
    using codebook = Tensor.from(device, book, [codewords, dim]);
    using codes = Tensor.empty(device, "i32", [count]);
    codebookAssign(codes, points, codebook);
    codes.read().forEach((code, n) => {
      const point = row(p, n, dim), { index, margin } = nearest(point, book);
      assert(code === index || margin < 1e-5, `point ${n} of [${count}, ${dim}]: ${code}, expected ${index}`);
    });
  }
});

testOnDevices("codebookAssign takes the lowest index among equals", (device) => {
  using points = Tensor.from(device, [0, 4, -5, 1], [4, 1]);
  using codebook = Tensor.from(device, [9, 1, -1, 1, -1], [5, 1]);
  using codes = Tensor.empty(device, "i32", [4]);
  codebookAssign(codes, points, codebook);
  assertEquals(Array.from(codes.read()), [1, 1, 2, 1]);
});

testOnDevices("codebookAssign names what it refuses", (device) => {
  using points = Tensor.zeros(device, "f32", [4, 3]);
  using codebook = Tensor.zeros(device, "f32", [8, 2]);
  using deep = Tensor.zeros(device, "f32", [8, 17]);
  using codes = Tensor.zeros(device, "i32", [4]);
  assertThrows(
    () => codebookAssign(codes, points, codebook),
    VecInferError,
    "codebookAssign: points: expected f32 [4, 2]",
  );
  assertThrows(() => codebookAssign(codes, deep, deep), VecInferError, "a whole number from 1 to 16, found 17");
});

/** (Weighted) mean squared distance to the nearest codeword. */
function distortion(points: Float32Array, codebook: Float32Array, dim: number, weights?: Float32Array): number {
  let sum = 0, total = 0;
  for (let n = 0; n * dim < points.length; n++) {
    const point = row(points, n, dim), { index } = nearest(point, codebook), weight = weights?.[n] ?? 1;
    for (let i = 0; i < dim; i++) sum += weight * (point[i] - codebook[index * dim + i]) ** 2;
    total += weight;
  }
  return sum / total;
}

testOnDevices("kmeans finds separate clusters, from any seed, seed 10", async (device) => {
  const random = new Random(10), clusters = 16, each = 20;
  const centers = Array.from({ length: clusters }, (_, c) => [100 * (c % 4), 100 * Math.floor(c / 4), 7]);
  const p = Float32Array.from(
    random.permutation(clusters * each).flatMap((n) => centers[n % clusters].map((x) => x + random.normal())),
  );
  using points = Tensor.from(device, p, [clusters * each, 3]);
  using codebook = Tensor.empty(device, "f32", [clusters, 3]);
  for (const seed of [0, 1, -7]) {
    await kmeans(codebook, points, { seed });
    const found = codebook.read<Float32Array>();
    assertLess(distortion(p, found, 3), 4, `seed ${seed}`); // 3 dimensions of variance 1
  }
});

testOnDevices("kmeans reports distortions that fall, and repeats, seed 11", async (device) => {
  const random = new Random(11), count = 2000, dim = 4, codewords = 64;
  const p = random.normals(count * dim), w = random.normals(count).map((x) => x * x);
  using points = Tensor.from(device, p, [count, dim]);
  using weights = Tensor.from(device, w);
  using codebook = Tensor.empty(device, "f32", [codewords, dim]);
  const progress: number[] = [];
  const distortions = await kmeans(codebook, points, {
    weights,
    iterations: 8,
    seed: 3,
    onProgress: (done, total, value) => {
      assertEquals([done, total], [progress.length + 1, 8]);
      progress.push(value);
    },
  });
  assertEquals(progress, distortions);
  for (let i = 1; i < distortions.length; i++) assertLess(distortions[i], distortions[i - 1]);
  const trained = codebook.read<Float32Array>(), last = distortion(p, trained, dim, w);
  assertLess(last, distortions.at(-1)!);
  await kmeans(codebook, points, { weights, iterations: 8, seed: 3 });
  assertEquals(codebook.read(), trained);
  // The reported distortion is that of the codebook before the iteration.
  const next = await kmeans(codebook, points, { weights, iterations: 9, seed: 3 });
  assertAllClose(next.slice(0, 8), distortions);
  assertAllClose([next[8]], [last], { relative: 1e-5 });
});

testOnDevices("kmeans leaves points of weight 0 out", async (device) => {
  using points = Tensor.from(device, [0, 1, 1000, 5, 6, 2000], [6, 1]);
  using weights = Tensor.from(device, [1, 1, 0, 1, 1, 0]);
  using codebook = Tensor.empty(device, "f32", [2, 1]);
  await kmeans(codebook, points, { weights });
  assertAllClose(codebook.read().sort(), [0.5, 5.5], { absolute: 1e-6 });
});

testOnDevices("kmeans stops when asked, and names what it refuses", async (device) => {
  using points = Tensor.zeros(device, "f32", [4, 2]);
  using codebook = Tensor.zeros(device, "f32", [5, 2]);
  await assertRejects(() => kmeans(codebook, points), VecInferError, "kmeans: points: expected 5 or more");
  const controller = new AbortController(), book = codebook.rows(0, 2);
  const steps: number[] = [];
  const run = () =>
    kmeans(book, points, {
      signal: controller.signal,
      onProgress: (done) => {
        steps.push(done);
        controller.abort(new Error("enough"));
      },
    });
  await assertRejects(run, Error, "enough");
  assertEquals(steps, [1]);
});
