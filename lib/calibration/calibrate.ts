/**
 * Training of a cache's transforms and codebooks on a model's own keys and values (VecInfer, arXiv 2510.06175).
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { kmeans } from "../ops/ops.ts";
import { type Calibration, exactSide, type LayerCalibration, type SideCalibration } from "../cache/calibration.ts";
import { type CacheShape, type Format, FORMATS, type KvConfig, kvConfig, layerFormat } from "../cache/format.ts";
import type { Model } from "../models/model.ts";
import { Activations } from "./activations.ts";
import { fitTransform, mixedMetric } from "./fit.ts";
import { allocate, sensitivity } from "./sensitivity.ts";

/** What the codebooks are trained for, beyond the formats. The defaults are the paper's. */
export interface Recipe {
  /** Smooth factors of the keys, sqrt(max |k_i|) a channel. Default true. */
  smooth?: boolean;
  /** Walsh-Hadamard transform of keys. Default true. */
  keyHadamard?: boolean;
  /** Walsh-Hadamard transform of values. Default false, as in the paper. */
  valueHadamard?: boolean;
  /** An 8-bit scale a token and KV head, for keys and values, or for one side alone. Default false. */
  tokenScale?: boolean | "keys" | "values";
  /**
   * A transform fitted to each KV head in place of smooth factors and Hadamard (see `lib/calibration/fit.ts`), for both sides or one
   * alone. An error of the keys costs what it does to the products with the queries, half by the queries' second moment and half by
   * that of the queries that coded tokens count for; an error of the values costs its square after the output projection.
   * Default false.
   */
  fitted?: boolean | "keys" | "values";
  /**
   * Sub-vectors count by what their error does to the attention's output: centroids are means weighted by the importance of the
   * token in its KV head, sum p_t^2 |v_t - o|^2 for keys and sum p_t^2 for values over some queries, with probabilities p and output
   * o of attention, in parts of the layer's mean and at least a hundredth of it. Where there is a token scale, times its
   * square. Queries don't see errors of the newest positions, which a cache keeps exactly. Default false.
   */
  importance?: boolean;
  /** One codebook a KV head rather than one a layer. Default false. */
  perHead?: boolean;
  /** Mean bits a channel of the codes that {@linkcode calibrate} spreads over layers, keys and values by their sensitivity. */
  layerBits?: number;
  /** Formats of the layers, where they are not all those of the configuration. */
  layerFormats?: { readonly keys?: readonly Format[]; readonly values?: readonly Format[] };
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
 * The paper's recipe, or `vecinfer+`, which the ablation in `docs/ablation.md` found best: fitted transforms for keys and values,
 * centroids weighted by importance, a codebook a KV head, and with `layerBits` formats a layer.
 */
export function recipeOf(name: string, layerBits?: number): Recipe {
  if (name === "vecinfer") return {};
  if (name !== "vecinfer+") throw new RangeError(`recipe "${name}" is unknown; recipes are ${RECIPES.join(", ")}`);
  return { fitted: true, importance: true, perHead: true, ...(layerBits !== undefined && { layerBits }) };
}

/**
 * Formats that layers choose from under {@linkcode Recipe.layerBits}: those of up to 10 bits, which attention reads fastest, and whose
 * codebooks are small enough for each KV head to have its own. Without d4b6: its codes of 6 bits take both libraries longer than those of
 * 8 to read, so that time goes up with the bits that it saves.
 */
export const LAYER_FORMATS: readonly Format[] = ["d8b8", "d4b8", "d4b10", "d2b8"].map((name) => FORMATS[name]);

/** Windows that the sensitivity of layers is measured on, their tokens, and what the codebooks there are trained by, at most. */
const SENSITIVITY = { windows: 2, tokens: 1024, codebooks: { samples: 50000, iterations: 8 } };

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

/** Whether a recipe needs activations captured with their weights. */
export function needsWeights({ importance, fitted }: Recipe): boolean {
  return importance === true || fitted === true || fitted === "keys";
}

/**
 * Trains the calibration of `config` for a model on windows of tokens. The same inputs and seed give the same bytes.
 *
 * For fitted transforms windows shorter than the model's context stand for all of it: each token is moved to another place there. Slow pairs
 * of channels hardly turn within a window, and what is fitted to them there is wrong further on (docs/ablation.md has figures).
 */
export async function calibrate(
  model: Model,
  config: KvConfig,
  windows: readonly Int32Array[],
  recipe: Recipe = {},
  options: CalibrateOptions = {},
): Promise<Calibration> {
  const { layerBits, skip } = recipe, { signal } = options, weights = needsWeights(recipe);
  const context = recipe.fitted ? model.config.contextLength : undefined;
  using activations = await Activations.capture(model, windows, {
    skip,
    context,
    window: config.window,
    weights,
    signal,
  });
  const steps = 2 * activations.shape.layers;
  if (layerBits === undefined) return await train(model.device, activations, config, recipe, options);
  const total = 2 * steps, at = FORMATS.d4b8;
  const { samples = Infinity, iterations = Infinity } = recipe, quick = SENSITIVITY.codebooks;
  const lighter = {
    ...recipe,
    samples: Math.min(samples, quick.samples),
    iterations: Math.min(iterations, quick.iterations),
  };
  const base = await train(model.device, activations, kvConfig(at.name), lighter, { signal });
  const compared = windows.slice(0, SENSITIVITY.windows).map((window) => window.subarray(0, SENSITIVITY.tokens));
  const onProgress = (done: number) => options.onProgress?.(done, total);
  const measured = await sensitivity(model, base, compared, { signal, onProgress });
  const layerFormats = allocate(activations.shape, measured, at, layerBits, LAYER_FORMATS);
  const codebooks = { signal, onProgress: (done: number) => options.onProgress?.(steps + done, total) };
  return await train(model.device, activations, config, { ...recipe, layerFormats }, codebooks);
}

/**
 * Trains the calibration of `config` from a model's activations. Throws RangeError where they have too few tokens, or were captured
 * without weights that the recipe needs, see {@linkcode needsWeights}.
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
    const { tokenScale = false } = recipe, fitted = recipe.fitted === true || recipe.fitted === which;
    const side: SideCalibration = {
      format,
      hadamard: !fitted && (isKeys ? recipe.keyHadamard ?? true : recipe.valueHadamard ?? false),
      tokenScale: tokenScale === which || tokenScale === true,
      smooth: !fitted && isKeys && (recipe.smooth ?? true),
      codebookHeads: recipe.perHead ? kvHeads : 1,
      codebookParts: 1,
      layers: [],
      origin: "calibrated",
      ...(fitted && { fitted: true }),
      ...(layerFormats && { layerFormats }),
    };
    for (let layer = 0; layer < layers; layer++) {
      side.layers.push(await trainLayer(device, activations, which, side, layer, recipe, options));
      options.onProgress?.(++done, 2 * layers);
    }
    sides.push(side);
  }
  return { keys: sides[0], values: sides[1] };
}

/** The fitted transforms of a layer, [kvHeads, headDim, headDim], as they are kept: rounded to f16. */
function fittedMatrices(
  activations: Activations,
  which: "keys" | "values",
  { subDim }: Format,
  layer: number,
): Float32Array {
  const { kvHeads, headDim } = activations.shape, size = headDim * headDim, out = new Float32Array(kvHeads * size);
  for (let head = 0; head < kvHeads; head++) {
    const own = (all: Float64Array) => all.subarray(head * size, (head + 1) * size);
    const metric = which === "keys"
      ? mixedMetric(own(activations.queryMoments[layer]), own(activations.weightedMoments(layer)), headDim)
      : own(activations.outputMetrics[layer]);
    out.set(fitTransform(metric, own(activations.moments(layer, which)), headDim, subDim), head * size);
  }
  const kept = Float32Array.from(Float16Array.from(out));
  if (!kept.every(Number.isFinite)) {
    throw new RangeError(`calibration: the transform of the ${which} of layer ${layer} has numbers beyond f16`);
  }
  return kept;
}

/** The paper's smooth factors of a layer's keys, sqrt(max |k_i|) a channel, [kvHeads, headDim]. */
function smoothFactors(activations: Activations, layer: number): Float32Array {
  const rows = activations.rows(layer, "keys"), { kvHeads, headDim } = activations.shape, width = kvHeads * headDim;
  const maxima = new Float32Array(width).fill(1e-4);
  for (let i = 0; i < rows.length; i++) maxima[i % width] = Math.max(maxima[i % width], Math.abs(rows[i]));
  return maxima.map(Math.sqrt);
}

/** Transform and codebooks [codebookHeads, 2^bits, subDim] of one layer. */
async function trainLayer(
  device: Device,
  activations: Activations,
  which: "keys" | "values",
  side: SideCalibration,
  layer: number,
  recipe: Recipe,
  options: CalibrateOptions,
): Promise<LayerCalibration> {
  const format = layerFormat(side, side.format, layer), { subDim, bits } = format, codewords = 2 ** bits;
  if (bits === 16) return { codebook: new Float32Array(0) };
  const smooth = side.smooth ? smoothFactors(activations, layer) : undefined;
  const matrix = side.fitted ? fittedMatrices(activations, which, format, layer) : undefined;
  const rows = activations.rows(layer, which, { hadamard: side.hadamard, smooth, matrix });
  const importance = recipe.importance ? activations.importance(layer, which) : undefined;
  const heads = side.codebookHeads, codebook = new Float32Array(heads * codewords * subDim);
  const random = uniform((recipe.seed ?? 0) + 1), most = recipe.samples ?? 200_000;
  for (let head = 0; head < heads; head++) {
    const own = heads === 1 ? null : head;
    const { points, weights } = sampleVectors(
      rows,
      importance,
      activations.shape,
      format,
      own,
      most,
      side.tokenScale,
      random,
    );
    if (points.length < codewords * subDim) {
      throw new RangeError(
        `calibration: ${
          points.length / subDim
        } sub-vectors are too few for ${codewords} codewords; use more text or more samples`,
      );
    }
    const weight = side.tokenScale || recipe.importance ? weights : undefined;
    codebook.set(await trainCodebook(device, format, points, weight, recipe, options), head * codewords * subDim);
  }
  return { codebook, ...(smooth && { smooth }), ...(matrix && { matrix }) };
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
