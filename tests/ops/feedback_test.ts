import { assert, assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { errorFeedback, transformedMetric } from "../../lib/engine/feedback.ts";
import { KvLayer, Quantizer } from "../../lib/ops/mod.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { cpu, testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { hadamard } from "../support/reference.ts";
import { test } from "node:test";

/** A symmetric positive definite matrix with one direction that counts far more, as a query's mean does. */
function metric(random: Random, n: number): Float64Array {
  const out = new Float64Array(n * n), mean = random.normals(n, 2);
  for (let k = 0; k < 2 * n; k++) {
    const x = random.normals(n);
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) out[i * n + j] += (x[i] + mean[i]) * (x[j] + mean[j]) / n;
  }
  return out;
}

/** The value that vi_quantizer_feedback's formula gives for x~, and how near the choice of a codeword was to another. */
function coded(
  x: Float32Array,
  codebook: Float32Array,
  feedback: Float64Array,
  subDim: number,
  tokenScale: boolean,
): { values: number[]; margin: number } {
  const n = x.length, words = codebook.length / subDim;
  const rms = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / n);
  const level = 16 * Math.log2(rms), u = Math.min(255, Math.max(0, Math.round(level) + 128));
  const scale = tokenScale ? 2 ** ((u - 128) / 16) : 1, y = Array.from(x, (value) => value / scale), c: number[] = [];
  let margin = tokenScale ? Math.abs(level - Math.floor(level) - 0.5) : 1;
  for (let begin = 0; begin < n; begin += subDim) {
    const target = Array.from({ length: subDim }, (_, k) => {
      let t = y[begin + k];
      for (let i = 0; i < begin; i++) t += (y[i] - c[i]) * feedback[i * n + begin + k];
      return t;
    });
    let [best, second, code] = [Infinity, Infinity, 0];
    for (let w = 0; w < words; w++) {
      let distance = 0;
      for (let k = 0; k < subDim; k++) distance += (target[k] - codebook[w * subDim + k]) ** 2;
      if (distance < best) [best, second, code] = [distance, best, w];
      else if (distance < second) second = distance;
    }
    margin = Math.min(margin, second - best);
    for (let k = 0; k < subDim; k++) c.push(codebook[code * subDim + k]);
  }
  return { values: c.map((value) => scale * value), margin };
}

testOnDevices("vi_quantize with feedback against float64, seed 60", (device) => {
  const random = new Random(60), kvHeads = 2;
  for (const headDim of [64, 128]) {
    const formats = [[2, 8], [4, 12], [4, 10], [4, 8], [4, 6], [8, 12], [8, 8]] as const;
    for (const [index, [subDim, bits]] of formats.entries()) {
      const tokenScale = index % 2 === 0, size = headDim * headDim, words = 2 ** bits;
      const matrices = Array.from({ length: kvHeads }, () => {
        const part = errorFeedback(metric(random, headDim), headDim, subDim);
        return part.map((x) => Math.fround(x));
      });
      using feedback = Tensor.from(device, Float32Array.from(matrices.flatMap((m) => [...m])), [kvHeads, size]);
      using codebooks = Tensor.from(device, random.normals(words * subDim), [1, words, subDim]);
      const side = { kvHeads, headDim, subDim, bits, codebooks, tokenScale };
      using keys = new Quantizer(device, { ...side, feedback });
      using values = new Quantizer(device, side);
      using rounded = Tensor.empty(device, "f32", [words, subDim]);
      keys.codebook(rounded);
      const codebook = rounded.read() as Float32Array;
      using keyPages = Tensor.empty(device, "u8", [2, keys.pageBytes]);
      using valuePages = Tensor.empty(device, "u8", [2, values.pageBytes]);
      using pageTable = Tensor.from(device, Int32Array.of(1, 0), [1, 2]);
      using exactFrom = Tensor.zeros(device, "i32", [1]);
      const memory = { keyPages, valuePages, pageTable, exactFrom, sinks: 0, window: 0, recent: 0 };
      using layer = new KvLayer(device, { keys, values, ...memory });
      let compared = 0;
      for (const rows of [3, 70]) {
        const x = random.normals(rows * kvHeads * headDim, 1.5);
        using input = Tensor.from(device, x, [rows, kvHeads * headDim]);
        using slots = Tensor.zeros(device, "i32", [rows]);
        using positions = Tensor.from(device, Int32Array.from({ length: rows }, (_, i) => i));
        layer.quantize(input, input, slots, positions);
        using back = Tensor.empty(device, "f32", [rows, kvHeads * headDim]);
        using others = Tensor.empty(device, "f32", [rows, kvHeads * headDim]);
        layer.dequantize(back, others, 0, 0, rows);
        const got = back.read() as Float32Array;
        for (let row = 0; row < rows; row++) {
          for (let head = 0; head < kvHeads; head++) {
            const at = (row * kvHeads + head) * headDim, vector = x.subarray(at, at + headDim);
            const { values, margin } = coded(vector, codebook, matrices[head], subDim, tokenScale);
            if (margin < 1e-4) continue;
            compared++;
            const what = `d${subDim}b${bits} ${headDim} row ${row} of ${rows}`;
            assertAllClose(got.subarray(at, at + headDim), values, { absolute: 1e-4 }, what);
          }
        }
      }
      assert(compared > 20, `d${subDim}b${bits}: ${compared} vectors of ${73 * kvHeads} were clear`);
    }
  }
});

test("errorFeedback splits the metric: e^T M e = sum_j |G_jj (t_j - c_j)|^2, and codes by it have less of it, seed 61", () => {
  const random = new Random(61), n = 64, subDim = 4, codebook = random.normals(256 * subDim);
  const m = metric(random, n), feedback = errorFeedback(m, n, subDim), plain = new Float64Array(n * n);
  let [with_, without] = [0, 0];
  for (let turn = 0; turn < 40; turn++) {
    const x = random.normals(n);
    const cost = (c: number[]) => {
      let sum = 0;
      for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) sum += (x[i] - c[i]) * m[i * n + j] * (x[j] - c[j]);
      return sum;
    };
    with_ += cost(coded(x, codebook, feedback, subDim, false).values);
    without += cost(coded(x, codebook, plain, subDim, false).values);
  }
  assert(with_ < 0.6 * without, `error ${with_} with feedback, ${without} without`);
});

test("transformedMetric is H diag(smooth) M diag(smooth) H, seed 62", () => {
  const random = new Random(62), n = 64, m = metric(random, n);
  const smooth = Float32Array.from({ length: n }, () => 0.5 + random.uniform());
  const there = transformedMetric(m, n, { hadamard: true, smooth }), e = Array.from(random.normals(n));
  const quadratic = (matrix: Float64Array, v: number[]) => {
    let sum = 0;
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) sum += v[i] * matrix[i * n + j] * v[j];
    return sum;
  };
  const back = hadamard(e).map((value, i) => value * smooth[i]);
  assertAllClose([quadratic(there, e)], [quadratic(m, back)], { relative: 1e-9 });
});

test("vi_quantizer_feedback refuses bf16, NaN and a quantizer in use", () => {
  const kvHeads = 1, headDim = 64, size = headDim * headDim;
  using zeros = Tensor.zeros(cpu, "f32", [size]);
  assertThrows(
    () => new Quantizer(cpu, { kvHeads, headDim, subDim: 1, bits: 16, feedback: zeros }),
    VecInferError,
    "16 bits",
  );
  using codebooks = Tensor.zeros(cpu, "f32", [1, 256, 4]);
  using wrong = Tensor.from(cpu, new Float32Array(size).fill(NaN));
  const side = { kvHeads, headDim, subDim: 4, bits: 8, codebooks };
  assertThrows(() => new Quantizer(cpu, { ...side, feedback: wrong }), VecInferError, "NaN");
  using quantizer = new Quantizer(cpu, { ...side, feedback: zeros });
  assertEquals(quantizer.alive, true);
});
