/**
 * Key retrieval: a fact planted in a long text, at ten depths, and asked for at its end.
 *
 * @module
 */

import type { KvCache } from "../cache/cache.ts";
import type { Model } from "../models/model.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { argmax } from "./drift.ts";
import type { EvaluateOptions } from "../calibration/quality.ts";
import { settle } from "./reference.ts";

/** Depths of the fact: 0, 0.1, ... 0.9 of the text. */
export const DEPTHS: number = 10;

/** A text with a fact in it, the question, and the answer. */
export interface Planted {
  /** Text with the fact; read as a prompt. */
  prompt: number[];
  /** The fact's beginning again; read over the cache. */
  question: number[];
  /** What follows in the fact. */
  answer: number[];
}

/** Plants a fact at each depth of a text of `filler` tokens. Each depth has another number, from the seed. */
export function plant(tokenizer: Tokenizer, filler: Int32Array, seed: number = 0): Planted[] {
  const encode = (text: string) => Array.from(tokenizer.encode(text, { addSpecialTokens: false }));
  return Array.from({ length: DEPTHS }, (_, i) => {
    // Digits without an order that a model could guess.
    const digits = String(10000 + ((i + 1) * 27644437 + seed * 7919) % 90000);
    const question = encode("\nThe access code of the archive is"), answer = encode(` ${digits}`), end = encode(".\n");
    const at = Math.floor(filler.length * i / DEPTHS);
    const before = Array.from(filler.subarray(0, Math.max(1, at))),
      after = Array.from(filler.subarray(Math.max(1, at)));
    return { prompt: [...before, ...question, ...answer, ...end, ...after], question, answer };
  });
}

/**
 * Whether each cache finds each planted fact: the text is read as a prompt, the question over the cache, and every token of
 * the answer must be the most probable one after those before it. Returns [cache][depth].
 */
export async function retrieves(
  model: Model,
  caches: readonly KvCache[],
  planted: readonly Planted[],
  options: EvaluateOptions = {},
): Promise<boolean[][]> {
  const out: boolean[][] = caches.map(() => []),
    longest = Math.max(...planted.map((p) => p.question.length + p.answer.length));
  using step = model.step(longest);
  let done = 0;
  for (const { prompt, question, answer } of planted) {
    for (const [c, cache] of caches.entries()) {
      using sequence = cache.sequence();
      model.prefill(step.logits, sequence, prompt, { signal: options.signal });
      settle(cache, sequence, 0);
      const ids = [...question, ...answer.slice(0, -1)], begin = sequence.length;
      step.ids.write(Int32Array.from(ids));
      step.positions.write(Int32Array.from(ids, (_, i) => begin + i));
      step.slots.write(new Int32Array(ids.length).fill(sequence.slot));
      sequence.extend(ids.length);
      model.forward(step, cache, ids.length);
      const logits = step.logits.read<Float32Array>(), width = model.config.vocabularySize;
      out[c].push(answer.every((id, i) => {
        const row = question.length - 1 + i;
        return argmax(logits.subarray(row * width, (row + 1) * width)) === id;
      }));
      options.onProgress?.(++done, planted.length * caches.length);
      await new Promise((resolve) => setTimeout(resolve, 0));
      options.signal?.throwIfAborted();
    }
  }
  return out;
}
