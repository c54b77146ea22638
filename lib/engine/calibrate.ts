/**
 * Training of a cache's transforms and codebooks on a model's own keys and values (VecInfer, arXiv 2510.06175).
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { kmeans } from "../ops/mod.ts";
import { type Calibration, exactSide, type SideCalibration } from "../cache/calibration.ts";
import { type CacheShape, type Format, FORMATS, type KvConfig, kvConfig, layerFormat } from "../cache/format.ts";
import type { Llama } from "../models/llama.ts";
import { Activations } from "./activations.ts";
import { allocate, sensitivity } from "./sensitivity.ts";
import { errorFeedback, transformedMetric } from "./feedback.ts";

/** What the codebooks are trained for, beyond the formats. The defaults are the paper's. */
export interface Recipe {
  /**
   * Smooth factors a channel, for the keys: true for the paper's sqrt(max |k_i|), "fitted" for
   * (E k_i^2 / E q_i^2)^(1/4), which minimizes the error of q . k where the error of the codes is white. Default true.
   */
  smooth?: boolean | "fitted";
  /** Walsh-Hadamard transform of keys. Default true. */
  keyHadamard?: boolean;
  /** Walsh-Hadamard transform of values. Default false, as in the paper. */
  valueHadamard?: boolean;
  /** An 8-bit scale a token and KV head, for keys and values, or for one side alone. Default false. */
  tokenScale?: boolean | "keys" | "values";
  /**
   * Error feedback: keys are coded for the least error of their products with the queries, values for the least error after the
   * output projection; true for both. The codes cost the same bits. Default false.
   */
  feedback?: boolean | "keys" | "values";
  /**
   * Sub-vectors count by what their error does to the attention's output: centroids are means weighted by the importance of the
   * token in its KV head, sum p_t^2 |v_t - o|^2 for keys and sum p_t^2 for values over some queries, with probabilities p and output
   * o of attention, in parts of the layer's mean and at least a hundredth of it. Where there is a token scale, times its
   * square. The codes cost the same bits. Default false.
   */
  importance?: boolean;
  /** One codebook a KV head rather than one a layer. Default false. */
  perHead?: boolean;
  /** One codebook a format, for all layers and heads. Default false. */
  shared?: boolean;
  /** Mean bits a channel of the codes that {@linkcode calibrate} spreads over layers, keys and values by their sensitivity. */
  layerBits?: number;
  /** Formats of the layers, where they are not all those of the configuration. */
  layerFormats?: { readonly keys?: readonly Format[]; readonly values?: readonly Format[] };
  /**
   * Positions that keys and queries are spread over by turning them on (see {@linkcode CaptureOptions.positions}), at most the
   * model's context. Default: those of the windows.
   */
  positions?: number;
  /** First positions of each window that calibration leaves out, as sinks are kept exactly. Default 4. */
  skip?: number;
  /** Sub-vectors that a codebook is trained on, at most. Default 200000. */
  samples?: number;
  /** Lloyd iterations. Default 20. */
  iterations?: number;
  /** Of sampling and k-means. Default 0. */
  seed?: number;
}

/** The names of {@linkcode recipeOf}. */
export const RECIPES: readonly string[] = ["vecinfer", "vecinfer+"];

/**
 * The paper's recipe, or `vecinfer+`, which the ablation in `docs/ablation.md` found best: fitted smooth factors and error feedback
 * for the keys, spread over 4096 positions, and with `layerBits` token scales, Hadamard for the values, codebooks that all layers
 * share and formats a layer; without (at one bit there is no room for them) values as they are and a codebook a KV head.
 */
export function recipeOf(name: string, layerBits?: number): Recipe {
  if (name === "vecinfer") return {};
  if (name !== "vecinfer+") throw new RangeError(`recipe "${name}" is unknown; recipes are ${RECIPES.join(", ")}`);
  const keys: Recipe = { smooth: "fitted", feedback: "keys", positions: 4096 };
  return layerBits === undefined
    ? { ...keys, perHead: true }
    : { ...keys, tokenScale: true, valueHadamard: true, shared: true, layerBits };
}

/** Formats of up to 10 bits, which attention reads, and the encoder finds, fastest. */
const FAST_FORMATS = ["d8b8", "d4b8", "d4b10", "d2b8"].map((name) => FORMATS[name]);

/**
 * Formats that layers choose from under {@linkcode Recipe.layerBits}. Below 1.5 bits all, as the paper's recipe at 1.5 bits has 12-bit
 * codes throughout; above none of 12 bits: error feedback searches their 4096 codewords one sub-vector after the other, for every
 * token, and they are the slowest to read.
 */
function layerChoices(layerBits: number): { keys: readonly Format[]; values: readonly Format[] } {
  const formats = layerBits < 1.5 ? [...FAST_FORMATS, FORMATS.d8b12, FORMATS.d4b12] : FAST_FORMATS;
  return { keys: formats, values: formats };
}

/** Windows that the sensitivity of layers is measured on, and their tokens at most. */
const SENSITIVITY = { windows: 2, tokens: 1024 };

/** Options of {@linkcode calibrate}. */
export interface CalibrateOptions {
  /** Called as layers are compared and codebooks are done. */
  onProgress?: (done: number, total: number) => void;
  /** Stops between k-means iterations. */
  signal?: AbortSignal;
}

/** Deterministic stream of uniform numbers in [0, 1) (xorshift32). */
function uniform(seed: number): () => number {
  let state = (seed * 2654435761 + 1013904223) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/** Trains the calibration of `config` for a model on windows of tokens. The same inputs and seed give the same bytes. */
export async function calibrate(
  model: Llama,
  config: KvConfig,
  windows: readonly Int32Array[],
  recipe: Recipe = {},
  options: CalibrateOptions = {},
): Promise<Calibration> {
  const { layerBits, skip, importance: weights } = recipe, { signal } = options;
  const positions = recipe.positions && Math.min(recipe.positions, model.config.contextLength);
  using activations = await Activations.capture(model, windows, { skip, positions, weights, signal });
  const steps = 2 * activations.shape.layers;
  if (layerBits === undefined) return await train(model.device, activations, config, recipe, options);
  const total = 2 * steps, at = kvConfig("d4b8");
  const base = await train(model.device, activations, at, recipe, { signal });
  const compared = windows.slice(0, SENSITIVITY.windows).map((window) => window.subarray(0, SENSITIVITY.tokens));
  const onProgress = (done: number) => options.onProgress?.(done, total);
  const measured = await sensitivity(model, base, compared, { signal, onProgress });
  const layerFormats = allocate(activations.shape, measured, at, layerBits, layerChoices(layerBits));
  const codebooks = { signal, onProgress: (done: number) => options.onProgress?.(steps + done, total) };
  return await train(model.device, activations, config, { ...recipe, layerFormats }, codebooks);
}

/**
 * Trains the calibration of `config` from a model's activations. Throws RangeError where they have too few tokens, or were captured
 * without the weights that the recipe's `importance` needs.
 */
export async function train(
  device: Device,
  activations: Activations,
  config: KvConfig,
  recipe: Recipe = {},
  options: CalibrateOptions = {},
): Promise<Calibration> {
  const { layers, kvHeads } = activations.shape, sides: SideCalibration[] = [];
  let done = 0;
  for (const which of ["keys", "values"] as const) {
    const format = config[which], isKeys = which === "keys", layerFormats = recipe.layerFormats?.[which];
    if (format.bits === 16) {
      sides.push(exactSide());
      options.onProgress?.(done += layers, 2 * layers);
      continue;
    }
    const { tokenScale = false } = recipe;
    const side: SideCalibration = {
      format,
      hadamard: isKeys ? recipe.keyHadamard ?? true : recipe.valueHadamard ?? false,
      tokenScale: tokenScale === which || tokenScale === true,
      smooth: isKeys && (recipe.smooth ?? true) !== false,
      codebookHeads: recipe.perHead && !recipe.shared ? kvHeads : 1,
      codebookParts: 1,
      layers: [],
      origin: "calibrated",
      ...((recipe.feedback === true || recipe.feedback === which) && { feedback: true }),
      ...(layerFormats && { layerFormats }),
      ...(recipe.shared && { sharedCodebooks: true }),
    };
    const shared = new Map<Format, Float32Array>();
    for (let layer = 0; layer < layers; layer++) {
      const format = layerFormat(side, side.format, layer);
      const smooth = side.smooth ? smoothFactors(activations, layer, recipe.smooth) : undefined;
      let codebook = shared.get(format);
      if (format.bits === 16) codebook = new Float32Array(0);
      codebook ??= await trainLayer(
        device,
        activations,
        which,
        side,
        format,
        recipe.shared ? null : layer,
        recipe,
        options,
      );
      if (recipe.shared) shared.set(format, codebook);
      const feedback = side.feedback && format.bits < 16
        ? layerFeedback(activations, layer, which, format, { hadamard: side.hadamard, smooth })
        : undefined;
      side.layers.push({ codebook, smooth, ...(feedback && { feedback }) });
      options.onProgress?.(++done, 2 * layers);
    }
    sides.push(side);
  }
  return { keys: sides[0], values: sides[1] };
}

/** The feedback of a layer, [kvHeads, headDim, headDim]. */
function layerFeedback(
  { shape: { kvHeads, headDim }, queryMoments, outputMetrics }: Activations,
  layer: number,
  which: "keys" | "values",
  { subDim }: Format,
  { hadamard, smooth }: { hadamard: boolean; smooth?: Float32Array },
): Float32Array {
  const size = headDim * headDim, out = new Float32Array(kvHeads * size);
  const metrics = which === "keys" ? queryMoments[layer] : outputMetrics[layer];
  for (let head = 0; head < kvHeads; head++) {
    const own = smooth?.subarray(head * headDim, (head + 1) * headDim);
    const metric = metrics.subarray(head * size, (head + 1) * size);
    const there = transformedMetric(metric, headDim, { hadamard, smooth: own });
    out.set(errorFeedback(there, headDim, subDim), head * size);
  }
  return out;
}

/** The keys' factors of a layer, [kvHeads, headDim], by the formulas of {@linkcode Recipe.smooth}. */
function smoothFactors(activations: Activations, layer: number, kind: Recipe["smooth"]): Float32Array {
  const { headDim } = activations.shape, { maxima, power } = activations.keyStatistics(layer);
  if (kind !== "fitted") return maxima.map(Math.sqrt);
  const moments = activations.queryMoments[layer];
  return maxima.map((_, i) => (power[i] / Math.max(moments[i * headDim + i % headDim], 1e-8)) ** 0.25);
}

/** Codebooks [codebookHeads, 2^bits, subDim] of one layer, or of all layers together where `layer` is null. */
async function trainLayer(
  device: Device,
  activations: Activations,
  which: "keys" | "values",
  side: SideCalibration,
  format: Format,
  layer: number | null,
  recipe: Recipe,
  options: CalibrateOptions,
): Promise<Float32Array> {
  const { shape } = activations, { subDim, bits } = format, heads = side.codebookHeads, codewords = 2 ** bits;
  const codebooks = new Float32Array(heads * codewords * subDim), random = uniform((recipe.seed ?? 0) + 1);
  const from = layer === null
    ? Array.from({ length: shape.layers }, (_, i) => i).filter((i) => layerFormat(side, side.format, i) === format)
    : [layer];
  for (let head = 0; head < heads; head++) {
    const points: Float32Array[] = [], weights: Float32Array[] = [];
    for (const index of from) {
      const smooth = side.smooth ? smoothFactors(activations, index, recipe.smooth) : undefined;
      const rows = activations.rows(index, which, { hadamard: side.hadamard, smooth });
      const most = Math.ceil((recipe.samples ?? 200_000) / from.length);
      const importance = recipe.importance ? activations.importance(index, which) : undefined;
      const own = heads === 1 ? null : head;
      const sample = sampleVectors(rows, importance, shape, format, own, most, side.tokenScale, random);
      points.push(sample.points);
      weights.push(sample.weights);
    }
    const all = joined(points);
    if (all.length < codewords * subDim) {
      throw new RangeError(
        `calibration: ${
          all.length / subDim
        } sub-vectors are too few for ${codewords} codewords; use more text or more samples`,
      );
    }
    const weight = side.tokenScale || recipe.importance ? joined(weights) : undefined;
    codebooks.set(await trainCodebook(device, format, all, weight, recipe, options), head * codewords * subDim);
  }
  return codebooks;
}

function joined(parts: readonly Float32Array[]): Float32Array {
  if (parts.length === 1) return parts[0];
  const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (out.set(part, at), at + part.length), 0);
  return out;
}

/**
 * Up to `most` sub-vectors of one KV head, or of all (null), and their weights: the importance of their vectors, [tokens, kvHeads],
 * where given. With a token scale vectors are divided by their root mean square first, and their errors count with its
 * square.
 */
function sampleVectors(
  rows: Float32Array,
  importance: Float32Array | undefined,
  { kvHeads, headDim }: CacheShape,
  { subDim }: Format,
  head: number | null,
  most: number,
  tokenScale: boolean,
  random: () => number,
): { points: Float32Array; weights: Float32Array } {
  const tokens = rows.length / (kvHeads * headDim), parts = headDim / subDim;
  const available = (head === null ? tokens * kvHeads : tokens) * parts, count = Math.min(available, most);
  const points = new Float32Array(count * subDim), weights = new Float32Array(count).fill(1);
  for (let i = 0; i < count; i++) {
    // One sub-vector from each of `count` equal strata: an even sample without a shuffle.
    const pick = Math.min(available - 1, Math.floor((i + random()) * available / count));
    const picked = Math.floor(pick / parts), part = pick % parts;
    const vector = head === null ? picked : picked * kvHeads + head, begin = vector * headDim;
    const scale = tokenScale ? rms(rows, begin, headDim) : 1;
    for (let j = 0; j < subDim; j++) points[i * subDim + j] = rows[begin + part * subDim + j] / scale;
    weights[i] = scale * scale * (importance?.[vector] ?? 1);
  }
  return { points, weights };
}

function rms(rows: Float32Array, begin: number, count: number): number {
  let sum = 0;
  for (let i = begin; i < begin + count; i++) sum += rows[i] * rows[i];
  return Math.max(Math.sqrt(sum / count), 1e-6);
}

/** k-means on host points [count, subDim]. */
export async function trainCodebook(
  device: Device,
  format: Format,
  points: Float32Array,
  weights: Float32Array | undefined,
  recipe: Recipe,
  options: CalibrateOptions = {},
): Promise<Float32Array> {
  const count = points.length / format.subDim;
  using pointTensor = Tensor.from(device, points, [count, format.subDim]);
  using weightTensor = weights && Tensor.from(device, weights, [count]);
  using codebook = Tensor.empty(device, "f32", [2 ** format.bits, format.subDim]);
  await kmeans(codebook, pointTensor, {
    weights: weightTensor,
    iterations: recipe.iterations ?? 20,
    seed: recipe.seed ?? 0,
    signal: options.signal,
  });
  return codebook.read() as Float32Array;
}
