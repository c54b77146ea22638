/**
 * What a quantized cache costs in quality: perplexity, KL divergence and top-1 agreement against the bf16 cache.
 *
 * @module
 */

import { Tensor } from "../tensor.ts";
import { compareLogits } from "../ops/ops.ts";
import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import { type Model, stepRows } from "../models/model.ts";

/** The quality of one cache over all passages. */
export interface Quality {
  /** exp of the mean negative log-likelihood. */
  perplexity: number;
  /** Mean KL(bf16 || this cache) of the next-token distributions, in nats. */
  kl: number;
  /** Share of positions where both have the same most probable token. */
  top1: number;
  /** Predictions counted. */
  tokens: number;
  /** Negative log-likelihood of each passage, in nats a token. */
  nll: number[];
}

/** Options of {@linkcode evaluate}. */
export interface EvaluateOptions {
  /** Called with predictions done and in all, over all caches. */
  onProgress?: (done: number, total: number) => void;
  /** Stops between steps. */
  signal?: AbortSignal;
}

/** Called once the tokens from position `from` on are stored in a sequence of `cache`, before the next step reads them. */
export type AfterStep = (cache: KvCache, sequence: Sequence, from: number) => void;

/** Sums over the predictions of one cache. */
interface Sums {
  nll: number;
  kl: number;
  top1: number;
  /** nll of the passage at hand. */
  passage: number;
  /** nll of each passage, in nats a token. */
  readonly passages: number[];
}

/**
 * Teacher forcing: each passage of n + 1 tokens gives n predictions, every query sees the passage's earlier tokens as a
 * decode step would (sinks and the newest tokens exactly, the others from their codes). All caches run in lockstep with
 * `reference`, the bf16 cache, so that no passage's logits are kept. Results are in the order of `caches`, the reference's first.
 */
export async function evaluate(
  model: Model,
  reference: KvCache,
  caches: readonly KvCache[],
  passages: readonly Int32Array[],
  options: EvaluateOptions & { afterStep?: AfterStep } = {},
): Promise<Quality[]> {
  const { device, config } = model, all = [reference, ...caches], { afterStep } = options;
  const rows = stepRows(device, all);
  using step = model.step(rows);
  using exact = Tensor.empty(device, "f32", [rows, config.vocabularySize]);
  using targets = Tensor.empty(device, "i32", [rows]);
  using measures = Tensor.empty(device, "f32", [rows, 3]);
  const sums = all.map((): Sums => ({ nll: 0, kl: 0, top1: 0, passage: 0, passages: [] }));
  const predictions = passages.reduce((sum, passage) => sum + passage.length - 1, 0);
  let done = 0;
  for (const passage of passages) {
    using owned = new DisposableStack();
    const length = passage.length - 1, sequences = all.map((cache) => owned.use(cache.sequence()));
    for (let begin = 0; begin < length; begin += rows) {
      const count = Math.min(rows, length - begin);
      step.ids.write(passage.subarray(begin, begin + count));
      step.positions.write(Int32Array.from({ length: count }, (_, i) => begin + i));
      targets.write(passage.subarray(begin + 1, begin + 1 + count));
      for (let c = 0; c < all.length; c++) {
        step.slots.write(new Int32Array(count).fill(sequences[c].slot));
        sequences[c].extend(count);
        model.forward(step, all[c], count);
        afterStep?.(all[c], sequences[c], begin);
        if (c === 0) exact.copyFrom(step.logits);
        compareLogits(measures, step.logits, exact, targets, { rows: count });
        addMeasures(sums[c], measures.read(), count);
        done += count;
        options.onProgress?.(done, predictions * all.length);
      }
      await new Promise((resolve) => setTimeout(resolve, 0));
      options.signal?.throwIfAborted();
    }
    for (const sum of sums) {
      sum.nll += sum.passage;
      sum.passages.push(sum.passage / length);
      sum.passage = 0;
    }
  }
  return sums.map(({ nll, kl, top1, passages }) => ({
    perplexity: Math.exp(nll / predictions),
    kl: kl / predictions,
    top1: top1 / predictions,
    tokens: predictions,
    nll: passages,
  }));
}

/** Adds the first rows of [KL, top-1, nll] to the sums. */
function addMeasures(sums: Sums, values: Float32Array, rows: number): void {
  for (let r = 0; r < rows; r++) {
    sums.kl += values[3 * r];
    sums.top1 += values[3 * r + 1];
    sums.passage += values[3 * r + 2];
  }
}
