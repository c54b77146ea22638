import { assert, assertEquals, assertThrows } from "@std/assert";
import { type Device, VecInferError } from "../../lib/device.ts";
import { compareLogits, logProbabilities, sample, SAMPLE_SETTINGS } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { logSoftmax, row, uniform } from "../support/reference.ts";

/** One row of `sample`: the id, and how near the draw came to a border where rounding may decide. */
function draw(
  logits: number[],
  [temperature, topK, topP, minP, repetition, presence, frequency]: number[],
  u: number,
  counts?: number[],
  bias?: number[],
): { id: number; margin: number } {
  const x = logits.map((value, i) => {
    let out = value + (bias?.[i] ?? 0);
    const count = counts?.[i] ?? 0, generated = Math.floor(count / 2);
    if (count > 0) out = out > 0 ? out / repetition : out * repetition;
    return out - presence * Number(generated > 0) - frequency * generated;
  });
  const order = x.map((_, i) => i).sort((a, b) => x[b] - x[a] || a - b);
  if (temperature === 0) return { id: order[0], margin: x[order[0]] - x[order[1]] };
  const p = logSoftmax(x.map((value) => value / temperature)).map(Math.exp);
  let kept = topK > 0 ? order.slice(0, topK) : order, margin = Infinity;
  if (topP < 1) {
    let mass = 0, count = 0;
    while (count < kept.length && mass < topP) {
      mass += p[kept[count++]];
      margin = Math.min(margin, Math.abs(mass - topP));
    }
    kept = kept.slice(0, count);
  }
  kept = kept.filter((id) => {
    if (minP > 0) margin = Math.min(margin, Math.abs(p[id] - minP * p[order[0]]) / p[order[0]]);
    return p[id] >= minP * p[order[0]];
  }).sort((a, b) => a - b);
  const total = kept.reduce((sum, id) => sum + p[id], 0);
  let mass = 0;
  for (const id of kept) {
    mass += p[id] / total;
    margin = Math.min(margin, Math.abs(mass - u));
    if (mass > u) return { id, margin };
  }
  return { id: kept.at(-1)!, margin };
}

/** Tensors for `rows` rows with the same settings. */
function settingsOf(device: Device, rows: number, settings: number[]): Tensor {
  const all = Array.from({ length: rows }, () => [...settings, 0]).flat();
  return Tensor.from(device, all, [rows, SAMPLE_SETTINGS]);
}

testOnDevices("sample draws what the reference draws, seed 50", (device) => {
  const random = new Random(50), rows = 70;
  for (const vocabulary of [2, 101, 1009]) {
    const values = random.normals(rows * vocabulary, 2),
      offsets = random.normals(rows * vocabulary).map((x) => x > 1.5 ? -Infinity : x);
    offsets.forEach((_, i) => i % vocabulary < 2 && (offsets[i] = 0));
    const before = random.integers(rows * vocabulary, -5, 5).map((count) => Math.max(0, count));
    const seed = random.integers(rows, -(2 ** 31), 2 ** 31 - 1), at = random.integers(rows, 0, 100000);
    using logits = Tensor.from(device, values, [rows, vocabulary]);
    using bias = Tensor.from(device, offsets, [rows, vocabulary]);
    using seeds = Tensor.from(device, seed);
    using positions = Tensor.from(device, at);
    using ids = Tensor.empty(device, "i32", [rows]);
    using logprobs = Tensor.empty(device, "f32", [rows]);
    for (
      const numbers of [
        [0, 0, 1, 0, 1, 0, 0],
        [0, 0, 1, 0, 1.3, 0.4, 0.2],
        [1, 0, 1, 0, 1, 0, 0],
        [0.7, 40, 1, 0, 1, 0, 0],
        [1.3, 0, 0.8, 0, 1, 0, 0],
        [0.9, 0, 1, 0.1, 1, 0, 0],
        [0.8, 50, 0.9, 0.02, 1.2, 0.5, 0.3],
        [1, 1, 1, 0, 1, 0, 0],
      ]
    ) {
      using settings = settingsOf(device, rows, numbers);
      using counts = Tensor.from(device, before, [rows, vocabulary]);
      for (const full of [false, true]) {
        if (full) sample(ids, logits, { settings, seeds, positions, logprobs, counts, bias });
        else sample(ids, logits, { settings, seeds, positions, logprobs });
        const found = ids.read<Int32Array>(), name = `vocabulary ${vocabulary}, settings ${numbers}, full ${full}`;
        let doubtful = 0;
        found.forEach((id, r) => {
          const own = [before, offsets].map((x) => full ? row(x, r, vocabulary) : undefined);
          const expected = draw(row(values, r, vocabulary), numbers, uniform(seed[r], at[r]), ...own);
          if (expected.margin < 1e-6) doubtful++;
          else assertEquals(id, expected.id, `${name}, row ${r}`);
        });
        assert(doubtful <= 3, `${name}: ${doubtful} draws were too close to call`);
        const expected = Array.from(found, (id, r) => logSoftmax(row(values, r, vocabulary))[id]);
        assertAllClose(logprobs.read(), expected, { absolute: 1e-5, relative: 1e-5 }, name);
        if (!full) continue;
        const after = before.slice();
        found.forEach((id, r) => after[r * vocabulary + id] += 2);
        assertEquals(counts.read(), after, name);
      }
    }
    assertEquals(logits.read(), values);
  }
});

testOnDevices("sample follows the distribution, seed 51", (device) => {
  const rows = 4000, p = [0.5, 0.25, 0.15, 0.1];
  using logits = Tensor.from(device, Array.from({ length: rows }, () => p.map(Math.log)).flat(), [rows, 4]);
  using settings = settingsOf(device, rows, [1, 0, 1, 0, 1, 0, 0]);
  using seeds = Tensor.from(device, new Int32Array(rows).fill(51));
  using positions = Tensor.from(device, Int32Array.from({ length: rows }, (_, i) => i));
  using ids = Tensor.empty(device, "i32", [rows]);
  sample(ids, logits, { settings, seeds, positions });
  const found = [0, 0, 0, 0];
  for (const id of ids.read()) found[id]++;
  assertAllClose(found.map((count) => count / rows), p, { absolute: 0.04 }); // five standard errors
});

testOnDevices("sample does not draw where nothing can be drawn, and draws in the other rows", (device) => {
  const none = -Infinity;
  using logits = Tensor.from(device, [1, NaN, 2, 1, 2, 0, none, none, none, Infinity, 1, 2, 3, 2, 1], [5, 3]);
  using settings = settingsOf(device, 5, [0, 0, 1, 0, 1, 0, 0]);
  using seeds = Tensor.zeros(device, "i32", [5]);
  using ids = Tensor.zeros(device, "i32", [5]);
  using logprobs = Tensor.zeros(device, "f32", [5]);
  using counts = Tensor.zeros(device, "i32", [5, 3]);
  sample(ids, logits, { settings, seeds, positions: seeds, logprobs, counts });
  assertEquals([...ids.read()], [-1, 1, -1, -1, 0]);
  assertEquals([...logprobs.read<Float32Array>()].map(Number.isNaN), [true, false, true, true, false]);
  assertEquals([...counts.read()], [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]);
});

testOnDevices("logProbabilities of targets and of the most probable, seed 52", (device) => {
  const random = new Random(52);
  for (const [rows, vocabulary, top] of [[1, 1, 1], [70, 333, 5], [3, 4096, 20]]) {
    const values = random.normals(rows * vocabulary, 3), wanted = random.integers(rows, 0, vocabulary - 1);
    using logits = Tensor.from(device, values, [rows, vocabulary]);
    using targets = Tensor.from(device, wanted);
    using outTargets = Tensor.empty(device, "f32", [rows]);
    using outValues = Tensor.empty(device, "f32", [rows, top]);
    using outIds = Tensor.empty(device, "i32", [rows, top]);
    logProbabilities(logits, { targets, outTargets, outValues, outIds });
    const all = Array.from({ length: rows }, (_, r) => logSoftmax(row(values, r, vocabulary)));
    const best = all.map((x) => x.map((_, i) => i).sort((a, b) => x[b] - x[a] || a - b).slice(0, top));
    const close = { absolute: 1e-5, relative: 1e-5 };
    assertAllClose(outTargets.read(), all.map((x, r) => x[wanted[r]]), close);
    assertEquals(Array.from(outIds.read()), best.flat());
    assertAllClose(outValues.read(), best.flatMap((ids, r) => ids.map((id) => all[r][id])), close);
    outTargets.fill(0);
    logProbabilities(logits, { targets, outTargets });
    assertAllClose(outTargets.read(), all.map((x, r) => x[wanted[r]]), close);
  }
});

testOnDevices("compareLogits, seed 53", (device) => {
  const random = new Random(53);
  for (const [rows, vocabulary] of [[1, 2], [33, 257], [5, 4096]]) {
    const p = random.normals(rows * vocabulary, 2), q = p.map((x) => x + 0.7 * random.normal());
    const wanted = random.integers(rows, 0, vocabulary - 1);
    using logits = Tensor.from(device, q, [rows, vocabulary]);
    using reference = Tensor.from(device, p, [rows, vocabulary]);
    using targets = Tensor.from(device, wanted);
    using out = Tensor.empty(device, "f32", [rows, 3]);
    compareLogits(out, logits, reference, targets);
    const expected = Array.from({ length: rows }, (_, r) => {
      const [a, b] = [p, q].map((x) => logSoftmax(row(x, r, vocabulary)));
      const largest = (x: number[]) => x.indexOf(Math.max(...x));
      const kl = a.reduce((sum, value, i) => sum + Math.exp(value) * (value - b[i]), 0);
      return [kl, Number(largest(a) === largest(b)), -b[wanted[r]]];
    }).flat();
    assertAllClose(out.read(), expected, { absolute: 2e-5, relative: 2e-5 }, `[${rows}, ${vocabulary}]`);
  }
});

testOnDevices("sample and its like name what they refuse", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 8]);
  using ids = Tensor.zeros(device, "i32", [2]);
  const options = { settings: x, seeds: ids, positions: ids };
  sample(ids, x, options);
  assertThrows(() => sample(x, x, options), VecInferError, "sample: ids: expected i32 [2]");
  assertThrows(() => sample(ids, x, { ...options, counts: x }), VecInferError, "sample: counts: expected i32 [2, 8]");
  assertThrows(
    () => sample(ids, x, { ...options, settings: ids }),
    VecInferError,
    "sample: settings: expected f32 [2, 8]",
  );
  assertThrows(() => logProbabilities(x, { targets: ids }), VecInferError, "targets and outTargets together");
  assertThrows(() => compareLogits(x, x, x, ids), VecInferError, "compareLogits: out: expected f32 [2, 3]");
});
