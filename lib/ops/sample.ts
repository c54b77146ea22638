/** Drawing tokens, and measures over logits. @module */
import { VI_SAMPLE_SETTINGS } from "../ffi/symbols.ts";
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectRows, mismatch, optional, type RowsOptions } from "./check.ts";

/** Floats a row of the settings of {@linkcode sample}. */
export const SAMPLE_SETTINGS: number = VI_SAMPLE_SETTINGS;

/** What {@linkcode sample} draws with. */
export interface SampleOptions extends RowsOptions {
  /**
   * f32 [rows, 8]: temperature (0 is greedy), top_k (0 is all), top_p, min_p, repetition penalty (1 is none), presence
   * penalty, frequency penalty, unused.
   */
  readonly settings: Tensor;
  /** i32 [rows]. */
  readonly seeds: Tensor;
  /** i32 [rows]; with the seed it decides what is drawn. */
  readonly positions: Tensor;
  /** Receives log softmax of the raw logits at the drawn ids, f32 [rows]. */
  readonly logprobs?: Tensor | null;
  /** i32 [rows, vocabulary]: twice the times a token was generated, plus 1 if the prompt has it. The drawn one's grows by 2. */
  readonly counts?: Tensor | null;
  /** f32 [rows, vocabulary], added to the logits; -Infinity forbids. */
  readonly bias?: Tensor | null;
}

/**
 * Draws an id a row: penalties, temperature, top-k, top-p and min-p, in this order; then by inverse CDF. ids i32 [rows],
 * logits f32 [rows, vocabulary], which do not change. A row of NaN, or without a finite largest one after bias and penalties,
 * gets the id -1 and the log-probability NaN.
 */
export function sample(ids: Tensor, logits: Tensor, options: SampleOptions): void {
  const { device } = ids, { rows = logits.length, settings, seeds, positions, logprobs, counts, bias } = options;
  const { width: vocabulary } = logits;
  expectInteger("sample", "rows", rows);
  expectRows("sample", "ids", ids, device, "i32", rows, 1);
  expectRows("sample", "logits", logits, device, "f32", rows, vocabulary);
  expectRows("sample", "settings", settings, device, "f32", rows, VI_SAMPLE_SETTINGS);
  expectRows("sample", "seeds", seeds, device, "i32", rows, 1);
  expectRows("sample", "positions", positions, device, "i32", rows, 1);
  if (logprobs) expectRows("sample", "logprobs", logprobs, device, "f32", rows, 1);
  if (counts) expectRows("sample", "counts", counts, device, "i32", rows, vocabulary);
  if (bias) expectRows("sample", "bias", bias, device, "f32", rows, vocabulary);
  const status = device.native.vi_sample(
    device.context,
    ids.pointer,
    optional(logprobs),
    logits.pointer,
    optional(counts),
    optional(bias),
    settings.pointer,
    seeds.pointer,
    positions.pointer,
    rows,
    vocabulary,
  );
  if (status !== 0) device.check("vi_sample", status);
}

/** Options of {@linkcode logProbabilities}. */
export interface LogProbabilitiesOptions extends RowsOptions {
  /** i32 [rows]: the ids that `outTargets` is about. */
  readonly targets?: Tensor | null;
  /** Receives the log-probabilities of `targets`, f32 [rows]. */
  readonly outTargets?: Tensor | null;
  /** Receives the highest log-probabilities in order, f32 [rows, top]. */
  readonly outValues?: Tensor | null;
  /** Receives their ids, i32 [rows, top]. */
  readonly outIds?: Tensor | null;
}

/** Log-probabilities under logits f32 [rows, vocabulary]: of given ids, and the highest ones. */
export function logProbabilities(logits: Tensor, options: LogProbabilitiesOptions): void {
  const { device, width: vocabulary } = logits,
    { rows = logits.length, targets, outTargets, outValues, outIds } = options;
  const op = "logProbabilities", top = outValues?.width ?? 0;
  expectInteger(op, "rows", rows);
  expectRows(op, "logits", logits, device, "f32", rows, vocabulary);
  if (!targets !== !outTargets) throw mismatch(op, "targets", "targets and outTargets together", "one of them");
  if (!outValues !== !outIds) throw mismatch(op, "outValues", "outValues and outIds together", "one of them");
  if (targets) expectRows(op, "targets", targets, device, "i32", rows, 1);
  if (outTargets) expectRows(op, "outTargets", outTargets, device, "f32", rows, 1);
  if (outValues) expectRows(op, "outValues", outValues, device, "f32", rows, top);
  if (outIds) expectRows(op, "outIds", outIds, device, "i32", rows, top);
  const status = device.native.vi_log_probabilities(
    device.context,
    optional(outTargets),
    optional(outValues),
    optional(outIds),
    logits.pointer,
    optional(targets),
    rows,
    vocabulary,
    top,
  );
  if (status !== 0) device.check("vi_log_probabilities", status);
}

/**
 * Compares logits with reference logits, both f32 [rows, vocabulary]. out f32 [rows, 3]: KL(softmax(reference) ||
 * softmax(logits)) in nats; 1 where both have the same largest logit, else 0; -log softmax(logits)[targets[r]].
 */
export function compareLogits(
  out: Tensor,
  logits: Tensor,
  reference: Tensor,
  targets: Tensor,
  options: RowsOptions = {},
): void {
  const { device } = out, { rows = logits.length } = options, { width: vocabulary } = logits;
  expectInteger("compareLogits", "rows", rows);
  expectRows("compareLogits", "out", out, device, "f32", rows, 3);
  expectRows("compareLogits", "logits", logits, device, "f32", rows, vocabulary);
  expectRows("compareLogits", "reference", reference, device, "f32", rows, vocabulary);
  expectRows("compareLogits", "targets", targets, device, "i32", rows, 1);
  const status = device.native.vi_compare(
    device.context,
    out.pointer,
    logits.pointer,
    reference.pointer,
    targets.pointer,
    rows,
    vocabulary,
  );
  if (status !== 0) device.check("vi_compare", status);
}
