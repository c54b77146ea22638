/**
 * From a text to a calibration of a model.
 *
 * @module
 */

import type { Calibration } from "../cache/calibration.ts";
import { type Format, FORMATS } from "../cache/format.ts";
import { growingLayers } from "../cache/ring.ts";
import { checkHeadDim, type KvConfig, kvConfig, presetScheme, type Scheme, type Side } from "../cache/scheme.ts";
import type { Model } from "../models/model.ts";
import { Activations } from "./activations.ts";
import type { TrainingOptions } from "./codebook.ts";
import { allocate, sensitivity } from "./sensitivity.ts";
import { needsImportance, train } from "./train.ts";

/**
 * Formats that layers choose from under {@linkcode Scheme.bits}: those of up to 10 bits, which attention reads fastest, and whose
 * codebooks are small enough for each KV head to have its own. Without d4b6: its codes of 6 bits take both libraries longer than those of
 * 8 to read, so that time goes up with the bits that it saves.
 */
export const LAYER_FORMATS: readonly Format[] = [FORMATS.d8b8, FORMATS.d4b8, FORMATS.d4b10, FORMATS.d2b8];

/** Passages that the sensitivity of layers is measured on, their tokens, and what the codebooks there are trained by, at most. */
const SENSITIVITY = { passages: 2, tokens: 1024, samples: 50000, iterations: 8 };

/** Whether a side's transform is fitted to the model. */
export function isFitted({ keys, values }: Scheme): boolean {
  return keys.transform === "fitted" || values.transform === "fitted";
}

/** A scheme with these formats of layers. */
export function withLayerFormats(
  scheme: Scheme,
  formats: { readonly keys?: readonly Format[]; readonly values?: readonly Format[] } = {},
): Scheme {
  const changed = (side: Side) => formats[side] ? { ...scheme[side], layerFormats: formats[side] } : scheme[side];
  return { ...scheme, keys: changed("keys"), values: changed("values") };
}

/**
 * Trains the calibration of `config` for a model on passages of tokens. The same inputs and seed give the same bytes.
 *
 * For fitted transforms passages shorter than the model's context stand for all of it: each token is moved to another place there. Slow pairs
 * of channels hardly turn within a passage, and what is fitted to them there is wrong further on (docs/ablation.md has figures).
 */
export async function calibrate(
  model: Model,
  config: KvConfig,
  passages: readonly Int32Array[],
  scheme: Scheme = presetScheme(config.name),
  options: TrainingOptions = {},
): Promise<Calibration> {
  const { skip, signal } = options, { device, cacheShape: shape } = model;
  checkHeadDim(config, shape.headDim);
  if (growingLayers(shape).length === 0) {
    throw new RangeError(
      "calibration: all layers of this model have a sliding window, which is kept in bf16: nothing is coded",
    );
  }
  using activations = await Activations.capture(model, passages, {
    skip,
    context: isFitted(scheme) ? model.config.contextLength : undefined,
    window: config.window,
    importance: needsImportance(scheme),
    signal,
  });
  if (scheme.bits === undefined) return await train(device, activations, config, scheme, options);
  const at = FORMATS.d4b8, steps = 2 * growingLayers(shape).length;
  const { samples = Infinity, iterations = Infinity } = options;
  const base = await train(device, activations, kvConfig(at.name), scheme, {
    ...options,
    samples: Math.min(samples, SENSITIVITY.samples),
    iterations: Math.min(iterations, SENSITIVITY.iterations),
    onProgress: undefined,
  });
  const compared = passages.slice(0, SENSITIVITY.passages).map((tokens) => tokens.subarray(0, SENSITIVITY.tokens));
  const progress = (before: number) => (done: number) => options.onProgress?.(before + done, 2 * steps);
  const measured = await sensitivity(model, base, compared, { signal, onProgress: progress(0) });
  const formats = allocate(shape, measured, at, scheme.bits, LAYER_FORMATS);
  const onProgress = progress(steps);
  return await train(device, activations, config, withLayerFormats(scheme, formats), { ...options, onProgress });
}
