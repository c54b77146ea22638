import { assert } from "@std/assert";
import { test } from "node:test";
import { hadamard, inverse, product, transposed } from "../../lib/cache/matrix.ts";
import { fitTransform } from "../../lib/calibration/fit.ts";
import { codebookAssign, kmeans } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { cpu } from "../support/device.ts";
import { Random } from "../support/random.ts";

const n = 64, seed = Date.now() % 2 ** 31;

/** Rows whose channels go together and differ in size, as keys' do, and their second moment. */
function sample(random: Random, count: number): { rows: Float32Array; moment: Float64Array } {
  const mix = random.normals(n * n), rows = new Float32Array(count * n), moment = new Float64Array(n * n);
  for (let r = 0; r < count; r++) {
    const x = random.normals(n);
    for (let j = 0; j < n; j++) {
      const size = x[j] * 2 ** (-5 * j / n);
      for (let i = 0; i < n; i++) rows[r * n + i] += size * mix[j * n + i];
    }
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) moment[i * n + j] += rows[r * n + i] * rows[r * n + j] / count;
    }
  }
  return { rows, moment };
}

/** The matrix with `part` of its mean diagonal on its diagonal, as the fit takes it. */
function damped(matrix: Float64Array, part: number): Float64Array {
  const trace = matrix.reduce((sum, x, i) => i % (n + 1) === 0 ? sum + x : sum, 0) / n;
  return matrix.map((x, i) => x + (i % (n + 1) === 0 ? part * trace : 0));
}

test(`a fitted transform makes errors cost alike and sub-vectors alike, seed ${seed}`, () => {
  const random = new Random(seed), { moment } = sample(random, 500), { moment: metric } = sample(random, 500);
  for (const subDim of [2, 4, 8]) {
    const a = fitTransform(metric, moment, n, subDim), back = inverse(a, n)!, groups = n / subDim;
    // An error d of x~ is d A^-1 of x: it costs d (A^-1 M A^-T) d^T, which is |d|^2 up to a factor but for M's damping.
    const cost = product(product(back, damped(metric, 0.1), n), transposed(back, n), n);
    const expected = cost.map((_, i) => i % (n + 1) === 0 ? cost[0] : 0);
    assertAllClose(cost, expected, { absolute: 1e-8 * cost[0] });
    const there = product(product(transposed(a, n), damped(moment, 1e-4), n), a, n);
    const power = Array.from({ length: n }, (_, i) => there[i * n + i]);
    for (let level = 0; level < subDim; level++) {
      const own = Array.from({ length: groups }, (_, group) => power[group * subDim + level]);
      assertAllClose(own, own.map(() => own[0]), { relative: 1e-6 }, `level ${level}`);
      assert(level === 0 || own[0] <= power[level - 1]);
    }
    assertAllClose([power.reduce((sum, x) => sum + x, 0) / n], [1], { relative: 1e-2 });
  }
});

test(`codes of a fitted transform cost less than those of a Hadamard transform, seed ${seed}`, async () => {
  const random = new Random(seed), { rows, moment } = sample(random, 4000), { moment: metric } = sample(random, 500);
  const costs: number[] = [];
  for (const matrix of [fitTransform(metric, moment, n, 4), hadamard(n)]) {
    const count = rows.length / n, there = new Float32Array(rows.length), back = inverse(matrix, n)!;
    for (let r = 0; r < count; r++) {
      for (let j = 0; j < n; j++) {
        for (let i = 0; i < n; i++) there[r * n + i] += rows[r * n + j] * matrix[j * n + i];
      }
    }
    using points = Tensor.from(cpu, there, [there.length / 4, 4]);
    using codebook = Tensor.empty(cpu, "f32", [256, 4]);
    await kmeans(codebook, points, { iterations: 10 });
    using found = Tensor.empty(cpu, "i32", [there.length / 4, 1]);
    codebookAssign(found, points, codebook);
    const codes = found.read<Int32Array>(), words = codebook.read<Float32Array>();
    let cost = 0;
    for (let r = 0; r < count; r += 20) {
      const wrong = Array.from({ length: n }, (_, i) => {
        const at = r * n + i;
        return there[at] - words[codes[Math.floor(at / 4)] * 4 + i % 4];
      });
      const e = Array.from({ length: n }, (_, i) => wrong.reduce((sum, x, j) => sum + x * back[j * n + i], 0));
      for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) cost += e[i] * metric[i * n + j] * e[j];
    }
    costs.push(cost);
  }
  assert(costs[0] < 0.6 * costs[1], `${costs[0]} with a fitted transform, ${costs[1]} with Hadamard`);
});
