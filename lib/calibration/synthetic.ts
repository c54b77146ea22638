/**
 * Calibrations of synthetic models, for measuring speed and memory.
 *
 * @module
 */

import type { Calibration, LayerCalibration, SideCalibration } from "../cache/calibration.ts";
import type { CacheShape } from "../cache/bytes.ts";
import { type Format, FORMATS } from "../cache/format.ts";
import { gaussianCodebook } from "../cache/gaussian.ts";
import { hadamard } from "../cache/matrix.ts";
import { growingLayers } from "../cache/ring.ts";
import { codebookCounts, type KvConfig, layerFormat, presetScheme, type Scheme, type Side } from "../cache/scheme.ts";
import type { Model } from "../models/model.ts";
import { syntheticPrompt } from "../models/synthetic.ts";
import { calibrate, isFitted, LAYER_FORMATS } from "./calibrate.ts";
import { allocate } from "./sensitivity.ts";

/**
 * A calibration for `config` of a synthetic model; `origin` says so. By the paper's scheme it is trained on keys and values that the
 * model makes of 2048 random tokens. For fitted transforms it is drawn, as fitting takes minutes and what is fitted to random
 * weights is no better: the Hadamard matrix stands in for fitted ones, dense as they are, codebooks are data-free ones, one
 * a KV head, and formats a layer come from {@linkcode syntheticSensitivity}. So it costs the time and memory of a fitted one.
 */
export async function syntheticCalibration(model: Model, config: KvConfig, signal?: AbortSignal): Promise<Calibration> {
  const scheme = presetScheme(config.name);
  // Where all layers have a window there is nothing to code.
  if (growingLayers(model.cacheShape).length === 0) return uncoded(config, scheme);
  if (isFitted(scheme)) return drawn(model.cacheShape, config, scheme);
  const prompt = syntheticPrompt(model.config, 2048);
  const { keys, values } = await calibrate(model, config, [prompt], scheme, {
    samples: 65536,
    iterations: 8,
    signal,
  });
  for (const side of [keys, values]) if (side.format.bits < 16) side.origin = "synthetic activations";
  return { keys, values };
}

function uncoded(config: KvConfig, scheme: Scheme): Calibration {
  const side = (name: Side): SideCalibration => ({ format: config[name], ...scheme[name], layers: [], origin: "none" });
  return { keys: side("keys"), values: side("values") };
}

function drawn(shape: CacheShape, config: KvConfig, scheme: Scheme): Calibration {
  const { kvHeads, headDim, layers } = shape;
  const formats = scheme.bits === undefined
    ? undefined
    : allocate(shape, syntheticSensitivity(layers), FORMATS.d4b8, scheme.bits, LAYER_FORMATS);
  const matrix = new Float32Array(kvHeads * headDim * headDim), dense = hadamard(headDim);
  for (let head = 0; head < kvHeads; head++) matrix.set(dense, head * dense.length);
  const calibrationOf = (side: Side): SideCalibration => {
    const layerFormats = formats?.[side], codebooks = new Map<Format, Float32Array>();
    const own = { ...scheme[side], ...(layerFormats && { layerFormats }) };
    const codebookOf = (format: Format) => {
      const one = gaussianCodebook(format.name), { heads } = codebookCounts(own.codebooks, shape, format);
      const all = new Float32Array(heads * one.length);
      for (let head = 0; head < heads; head++) all.set(one, head * one.length);
      return all;
    };
    const byLayer: LayerCalibration[] = [];
    for (const layer of growingLayers(shape)) {
      const format = layerFormat(own, config[side], layer);
      if (!codebooks.has(format)) codebooks.set(format, codebookOf(format));
      byLayer[layer] = { codebook: codebooks.get(format)!, matrix };
    }
    return { format: config[side], ...own, layers: byLayer, origin: "synthetic, drawn" };
  };
  return { keys: calibrationOf("keys"), values: calibrationOf("values") };
}

/**
 * Sensitivities spread as those of smollm2-135m are: log-normal, of deviation 1.05 for keys and 0.85 for values, which have
 * e^-0.75 of the keys' (`bench/results/cpu-ablation-4096.json`). Normal quantiles by the logistic function's, within a seventh.
 */
function syntheticSensitivity(layers: number): { keys: number[]; values: number[] } {
  const quantile = (index: number) => Math.log((index + 0.5) / (layers - index - 0.5)) / 1.7;
  const spread = (shift: number, deviation: number, step: number) =>
    Array.from({ length: layers }, (_, layer) => Math.exp(shift + deviation * quantile(layer * step % layers)));
  // A step without a common divisor, so that the two are not in the same order.
  const step = [7, 5, 3].find((step) => layers % step !== 0) ?? 1;
  return { keys: spread(0, 1.05, 1), values: spread(-0.75, 0.85, step) };
}
