/**
 * Training of a cache's transforms and codebooks on a model's own keys and values (VecInfer, arXiv 2510.06175).
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { kmeans, Quantizer } from "../ops/mod.ts";
import { KvCache } from "../cache/cache.ts";
import { type Calibration, exactSide, type LayerCalibration, type SideCalibration } from "../cache/calibration.ts";
import { type CacheShape, type Format, type KvConfig, kvConfig } from "../cache/format.ts";
import type { Llama } from "../models/llama.ts";

/** What the codebooks are trained for, beyond the formats. */
export interface Recipe {
  /** Smooth factors sqrt(max |k_i|) a channel, for the keys. Default true. */
  smooth?: boolean;
  /** Walsh-Hadamard transform of keys. Default true. */
  keyHadamard?: boolean;
  /** Walsh-Hadamard transform of values. Default false, as in the paper. */
  valueHadamard?: boolean;
  /** An 8-bit scale a token and KV head, for keys and values. Default false. */
  tokenScale?: boolean;
  /** One codebook a KV head rather than one a layer. Default false. */
  perHead?: boolean;
  /** First positions of each window that calibration leaves out, as sinks are kept exactly. Default 4. */
  skip?: number;
  /** Sub-vectors that a codebook is trained on, at most. Default 200000. */
  samples?: number;
  /** Lloyd iterations. Default 20. */
  iterations?: number;
  /** Of sampling and k-means. Default 0. */
  seed?: number;
}

/** Options of {@linkcode calibrate}. */
export interface CalibrateOptions {
  /** Called as codebooks are done. */
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
  const shape = model.cacheShape, skip = recipe.skip ?? 4;
  const stored = collect(model, windows, skip, options.signal);
  try {
    const total = 2 * shape.layers;
    let done = 0;
    const sides: SideCalibration[] = [];
    for (const which of ["keys", "values"] as const) {
      const format = config[which], isKeys = which === "keys";
      if (format.bits === 16) {
        sides.push(exactSide());
        done += shape.layers;
        continue;
      }
      const smooth = isKeys && (recipe.smooth ?? true);
      const side: SideCalibration = {
        format,
        hadamard: isKeys ? recipe.keyHadamard ?? true : recipe.valueHadamard ?? false,
        tokenScale: recipe.tokenScale ?? false,
        smooth,
        codebookHeads: recipe.perHead ? shape.kvHeads : 1,
        layers: [],
        origin: "calibrated",
      };
      for (let layer = 0; layer < shape.layers; layer++) {
        side.layers.push(
          await trainLayer(model.device, shape, side, rowsOf(stored[layer], shape, isKeys), recipe, options),
        );
        options.onProgress?.(++done, total);
      }
      sides.push(side);
    }
    return { keys: sides[0], values: sides[1] };
  } finally {
    for (const tensor of stored) tensor[Symbol.dispose]();
  }
}

/** Runs the windows and keeps each layer's keys and values, f32 [tokens, 2, kvHeads, headDim]. */
function collect(model: Llama, windows: readonly Int32Array[], skip: number, signal?: AbortSignal): Tensor[] {
  const shape = model.cacheShape, width = 2 * shape.kvHeads * shape.headDim;
  const tokens = windows.reduce((sum, window) => sum + Math.max(0, window.length - skip), 0);
  if (tokens === 0) throw new RangeError(`calibration: no window is longer than the ${skip} first positions left out`);
  const stored = Array.from({ length: shape.layers }, () => Tensor.empty(model.device, "f32", [tokens, width]));
  const exact = kvConfig("bf16"), context = Math.max(...windows.map((window) => window.length));
  using cache = new KvCache(model.device, shape, exact, { keys: exactSide(), values: exactSide() }, { context });
  using logits = Tensor.empty(model.device, "f32", [1, model.config.vocabularySize]);
  let begin = 0;
  for (const window of windows) {
    using sequence = cache.sequence();
    const count = window.length - skip;
    if (count <= 0) continue;
    model.prefill(logits, sequence, window, {
      signal,
      observe: (layer, kv) => stored[layer].rows(begin, count).copyFrom(kv.rows(skip, count)),
    });
    begin += count;
  }
  return stored;
}

/** One side's rows on the host, [tokens, kvHeads, headDim]. */
function rowsOf(stored: Tensor, shape: CacheShape, isKeys: boolean): Float32Array {
  const all = stored.read() as Float32Array, width = shape.kvHeads * shape.headDim, tokens = all.length / (2 * width);
  const out = new Float32Array(tokens * width);
  for (let t = 0; t < tokens; t++) {
    const begin = 2 * t * width + (isKeys ? 0 : width);
    out.set(all.subarray(begin, begin + width), t * width);
  }
  return out;
}

/** smooth_i = sqrt(max_t |k_ti|), a factor a KV head and channel. */
function smoothFactors(rows: Float32Array, width: number): Float32Array {
  const maxima = new Float32Array(width).fill(1e-4);
  for (let i = 0; i < rows.length; i++) maxima[i % width] = Math.max(maxima[i % width], Math.abs(rows[i]));
  return maxima.map(Math.sqrt);
}

async function trainLayer(
  device: Device,
  shape: CacheShape,
  side: SideCalibration,
  rows: Float32Array,
  recipe: Recipe,
  options: CalibrateOptions,
): Promise<LayerCalibration> {
  const { kvHeads, headDim } = shape, width = kvHeads * headDim, tokens = rows.length / width;
  const { subDim, bits } = side.format, smooth = side.smooth ? smoothFactors(rows, width) : undefined;
  transform(device, shape, side, rows, smooth);
  const heads = side.codebookHeads, codewords = 2 ** bits, codebook = new Float32Array(heads * codewords * subDim);
  const random = uniform((recipe.seed ?? 0) + 1), parts = headDim / subDim;
  for (let head = 0; head < heads; head++) {
    // Vectors of this codebook: those of one KV head, or of all.
    const vectors = heads === 1 ? tokens * kvHeads : tokens;
    const available = vectors * parts, count = Math.min(available, recipe.samples ?? 200_000);
    if (count < codewords) {
      throw new RangeError(
        `calibration: ${available} sub-vectors are too few for ${codewords} codewords; use more text`,
      );
    }
    const points = new Float32Array(count * subDim), weights = side.tokenScale ? new Float32Array(count) : undefined;
    for (let i = 0; i < count; i++) {
      // One sub-vector from each of `count` equal strata: an even sample without a shuffle.
      const pick = Math.min(available - 1, Math.floor((i + random()) * available / count));
      const vector = Math.floor(pick / parts), part = pick % parts;
      const begin = heads === 1 ? vector * headDim : vector * width + head * headDim;
      const scale = side.tokenScale ? rms(rows, begin, headDim) : 1;
      for (let j = 0; j < subDim; j++) points[i * subDim + j] = rows[begin + part * subDim + j] / scale;
      // The error of a scaled vector counts with the square of its scale.
      if (weights) weights[i] = scale * scale;
    }
    codebook.set(await trainCodebook(device, side.format, points, weights, recipe, options), head * codewords * subDim);
  }
  return { codebook, smooth };
}

function rms(rows: Float32Array, begin: number, count: number): number {
  let sum = 0;
  for (let i = begin; i < begin + count; i++) sum += rows[i] * rows[i];
  return Math.max(Math.sqrt(sum / count), 1e-6);
}

/** Applies the side's transform to host rows, through the native op. */
function transform(
  device: Device,
  shape: CacheShape,
  side: SideCalibration,
  rows: Float32Array,
  smooth?: Float32Array,
): void {
  if (!side.hadamard && !smooth) return;
  const { kvHeads, headDim } = shape, { subDim, bits } = side.format;
  // The transform alone is wanted; the codebook is a placeholder that it does not read.
  using codebooks = Tensor.zeros(device, "f32", [1, 2 ** bits, subDim]);
  using factors = smooth && Tensor.from(device, smooth, [kvHeads, headDim]);
  using quantizer = new Quantizer(device, {
    kvHeads,
    headDim,
    subDim,
    bits,
    codebooks,
    smooth: factors ?? null,
    codebookHeads: 1,
    hadamard: side.hadamard,
    tokenScale: false,
  });
  using tensor = Tensor.from(device, rows, [rows.length / (kvHeads * headDim), kvHeads * headDim]);
  quantizer.transform(tensor, tensor, "forward", { heads: kvHeads });
  rows.set(tensor.read() as Float32Array);
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
