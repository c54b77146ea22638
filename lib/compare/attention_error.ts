/**
 * What a cache does to the output of attention, layer by layer, with nothing of the model between.
 *
 * @module
 */

import { Tensor } from "../tensor.ts";
import { attention } from "../ops/ops.ts";
import type { KvCache } from "../cache/cache.ts";
import { type Model, stepRows } from "../models/model.ts";
import type { EvaluateOptions } from "../calibration/quality.ts";
import { settle } from "./reference.ts";

/**
 * The relative error of attention's output of each layer, sqrt(sum |o - o_exact|^2 / sum |o_exact|^2) over all tokens of
 * the passages: each cache gets the same queries, keys and values, those of the model with the bf16 cache `reference`.
 * Returns [cache][layer].
 */
export async function attentionErrors(
  model: Model,
  reference: KvCache,
  caches: readonly KvCache[],
  passages: readonly Int32Array[],
  options: EvaluateOptions = {},
): Promise<number[][]> {
  const { device } = model, { heads, layers } = model.config, rows = stepRows(device, [reference, ...caches]);
  using step = model.step(rows);
  using out = Tensor.empty(device, "f32", [rows, heads * model.config.headDim]);
  using slots = Tensor.zeros(device, "i32", [rows]);
  const errors = caches.map(() => new Float64Array(layers)), norms = new Float64Array(layers);
  const total = passages.reduce((sum, { length }) => sum + length, 0);
  let done = 0;
  for (const passage of passages) {
    using exact = reference.sequence();
    using owned = new DisposableStack();
    const sequences = caches.map((cache) => owned.use(cache.sequence()));
    step.slots.write(new Int32Array(rows).fill(exact.slot));
    for (let begin = 0; begin < passage.length; begin += rows) {
      const count = Math.min(rows, passage.length - begin);
      step.ids.write(passage.subarray(begin, begin + count));
      step.positions.write(Int32Array.from({ length: count }, (_, i) => begin + i));
      for (const sequence of [exact, ...sequences]) sequence.extend(count);
      model.forwardObserved(step, reference, count, (layer) => {
        const expected = step.attention.rows(0, count).read<Float32Array>();
        norms[layer] += expected.reduce((sum, x) => sum + x * x, 0);
        caches.forEach((cache, c) => {
          slots.write(new Int32Array(rows).fill(sequences[c].slot));
          cache.layers[layer].quantize(step.keys, step.values, slots, step.positions, {
            rows: count,
            stride: step.qkv.width,
          });
          attention(out, step.qkv, cache.layers[layer], slots, step.positions, {
            ...model.scores(layer),
            rows: count,
            heads,
            stride: step.qkv.width,
          });
          const found = out.rows(0, count).read<Float32Array>();
          errors[c][layer] += found.reduce((sum, x, i) => sum + (x - expected[i]) ** 2, 0);
        });
      });
      caches.forEach((cache, c) => settle(cache, sequences[c], begin));
      options.onProgress?.(done += count, total);
      await new Promise((resolve) => setTimeout(resolve, 0));
      options.signal?.throwIfAborted();
    }
  }
  return errors.map((error) => Array.from(error, (sum, layer) => Math.sqrt(sum / norms[layer])));
}
