/**
 * How far free generation over a cache drifts from that over the bf16 cache.
 *
 * @module
 */

import type { KvCache } from "../cache/cache.ts";
import type { Model } from "../models/model.ts";
import type { EvaluateOptions } from "../calibration/quality.ts";
import { settle } from "./reference.ts";

/** Drift of one cache, of one prompt. */
export interface Drift {
  /** The first token that differs, from 0; the number of tokens where none does. */
  first: number;
  /** Share of tokens that are the same at the same place. */
  agreement: number;
}

/** The most probable token of each step after a prompt. */
export async function greedy(
  model: Model,
  cache: KvCache,
  prompt: ArrayLike<number>,
  count: number,
  signal?: AbortSignal,
): Promise<number[]> {
  using sequence = cache.sequence();
  using step = model.step(1);
  model.prefill(step.logits, sequence, prompt, { signal });
  settle(cache, sequence, 0);
  step.slots.write(Int32Array.of(sequence.slot));
  const out = [argmax(step.logits.read<Float32Array>())];
  while (out.length < count) {
    step.ids.write(Int32Array.of(out[out.length - 1]));
    step.positions.write(Int32Array.of(sequence.length));
    sequence.extend(1);
    model.forward(step, cache, 1);
    settle(cache, sequence, sequence.length - 1);
    out.push(argmax(step.logits.read<Float32Array>()));
    if (out.length % 16 === 0) await new Promise((resolve) => setTimeout(resolve, 0));
    signal?.throwIfAborted();
  }
  return out;
}

/** Index of the largest, the lowest among equals. */
export function argmax(x: Float32Array): number {
  let best = 0;
  for (let i = 1; i < x.length; i++) if (x[i] > x[best]) best = i;
  return best;
}

/** Continues each prompt by `count` tokens, greedily, with each cache and with `reference`. Returns [cache][prompt]. */
export async function drifts(
  model: Model,
  reference: KvCache,
  caches: readonly KvCache[],
  prompts: readonly Int32Array[],
  count: number,
  options: EvaluateOptions = {},
): Promise<Drift[][]> {
  const out: Drift[][] = caches.map(() => []), total = prompts.length * (caches.length + 1) * count;
  let done = 0;
  for (const prompt of prompts) {
    const expected = await greedy(model, reference, prompt, count, options.signal);
    options.onProgress?.(done += count, total);
    for (const [c, cache] of caches.entries()) {
      const found = await greedy(model, cache, prompt, count, options.signal);
      const differs = found.findIndex((id, i) => id !== expected[i]);
      const same = found.filter((id, i) => id === expected[i]).length;
      out[c].push({ first: differs < 0 ? count : differs, agreement: same / count });
      options.onProgress?.(done += count, total);
    }
  }
  return out;
}
