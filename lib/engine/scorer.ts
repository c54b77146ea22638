/**
 * Ways to read a prompt for what is in it, not for what follows: the log-probability of each token, and an embedding of all.
 *
 * @module
 */

import { Tensor } from "../tensor.ts";
import { logProbabilities } from "../ops/ops.ts";
import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import { type Model, stepRows } from "../models/model.ts";
import { type Pooling } from "./request.ts";
import { type DrawnToken, TOP_LOGPROBS } from "./runner.ts";

/** What a model makes of a token that is given. */
export interface ScoredToken extends Omit<DrawnToken, "logprob"> {
  /** Its log-probability; null for the first, before which there is nothing. */
  logprob: number | null;
}

/** How {@linkcode scorePrompt} reads. */
export interface ScoreOptions {
  /** Most probable tokens in the place of each, 0 to {@linkcode TOP_LOGPROBS}. */
  top: number;
  /** Receives the logits of what follows the prompt, f32 [1, vocabulary]. */
  logits: Tensor;
  /** Gets the tokens in order, some at a time. */
  emit: (tokens: ScoredToken[]) => void;
}

/**
 * Teacher forcing: reads a prompt into an empty sequence as steps of generation would, each token seeing those before it from the cache
 * (sinks and window exactly, the others from their codes). Yields after each step. Left early, the sequence holds a part of the prompt.
 */
export function* scorePrompt(
  model: Model,
  cache: KvCache,
  sequence: Sequence,
  ids: readonly number[],
  { top, logits, emit }: ScoreOptions,
): Generator<void, void, void> {
  const { device, config: { vocabularySize } } = model, rows = Math.min(ids.length, stepRows(device, [cache]));
  const width = Math.min(top, TOP_LOGPROBS, vocabularySize);
  using step = model.step(rows);
  using targets = Tensor.zeros(device, "i32", [rows]);
  using logprobs = Tensor.empty(device, "f32", [rows]);
  using topValues = width > 0 ? Tensor.empty(device, "f32", [rows, width]) : undefined;
  using topIds = width > 0 ? Tensor.empty(device, "i32", [rows, width]) : undefined;
  emit([{ id: ids[0], logprob: null, top: [] }]);
  for (let begin = 0; begin < ids.length; begin += rows) {
    const count = Math.min(rows, ids.length - begin), known = ids.slice(begin + 1, begin + 1 + count);
    step.ids.write(Int32Array.from(ids.slice(begin, begin + count)));
    step.positions.write(Int32Array.from({ length: count }, (_, i) => begin + i));
    step.slots.write(new Int32Array(count).fill(sequence.slot));
    targets.write(Int32Array.from(known));
    sequence.extend(count);
    model.forward(step, cache, count);
    logProbabilities(step.logits, { rows: count, targets, outTargets: logprobs, outValues: topValues, outIds: topIds });
    const values = logprobs.read<Float32Array>();
    const tops = [topValues?.read<Float32Array>(), topIds?.read<Int32Array>()] as const;
    emit(known.map((id, row) => ({ id, logprob: values[row], top: topOf(tops, row, width) })));
    if (begin + count === ids.length) logits.copyFrom(step.logits.rows(count - 1, 1));
    yield;
  }
}

function topOf(
  [values, ids]: readonly [Float32Array | undefined, Int32Array | undefined],
  row: number,
  width: number,
): DrawnToken["top"] {
  if (!values || !ids) return [];
  return Array.from({ length: width }, (_, i) => ({ id: ids[row * width + i], logprob: values[row * width + i] }));
}

/**
 * Reads a prompt into an empty sequence at once, exactly, and gives an embedding of it: its tokens' hidden states after the last norm, the
 * mean or the last one's, divided by the length; f32 [hidden]. Yields between parts.
 */
export function* embedPrompt(
  model: Model,
  sequence: Sequence,
  ids: readonly number[],
  pooling: Pooling,
): Generator<void, Float32Array, void> {
  const width = model.config.hiddenSize, sum = new Float64Array(width);
  const observeHidden = (hidden: Tensor): void => {
    const values = hidden.read<Float32Array>();
    if (pooling === "last") sum.set(values.subarray(values.length - width));
    else for (let i = 0; i < values.length; i++) sum[i % width] += values[i];
  };
  yield* model.prefillParts(null, sequence, ids, { observeHidden });
  const length = Math.hypot(...sum);
  return Float32Array.from(sum, (value) => length > 0 ? value / length : 0);
}
