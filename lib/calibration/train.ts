/**
 * Training of transforms and codebooks from a model's keys and values (VecInfer, arXiv 2510.06175).
 *
 * @module
 */

import type { Device } from "../device.ts";
import { bf16Side, type Calibration, type LayerCalibration, type SideCalibration } from "../cache/calibration.ts";
import type { CacheShape } from "../cache/bytes.ts";
import type { Format } from "../cache/format.ts";
import { growingLayers } from "../cache/ring.ts";
import {
  codebookCounts,
  hasHadamard,
  hasSmooth,
  type KvConfig,
  layerFormat,
  type Scheme,
  type Side,
} from "../cache/scheme.ts";
import type { Activations, SideActivations } from "./activations.ts";
import { expectPoints, trainCodebook, type Training, type TrainingOptions } from "./codebook.ts";
import { fitTransform } from "./fit.ts";
import { trainSubVectors } from "./sub_vectors.ts";

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

/** Whether a scheme needs activations captured with their importance: for its centroids, or for the transform of its keys. */
export function needsImportance({ importance, keys }: Scheme): boolean {
  return importance === true || keys.transform === "fitted";
}

/**
 * Trains a scheme at the formats of `config` from a model's activations. The same inputs and seed give the same bytes. Throws RangeError
 * where they have too few tokens, or no importance that the scheme needs, see {@linkcode needsImportance}, and for the data-free scheme.
 */
export async function train(
  device: Device,
  activations: Activations,
  config: KvConfig,
  scheme: Scheme,
  options: TrainingOptions = {},
): Promise<Calibration> {
  const layers = growingLayers(activations.shape).length;
  let done = 0;
  const advance = (by = 1) => options.onProgress?.(done += by, 2 * layers);
  const trained = async (side: Side): Promise<SideCalibration> => {
    const format = config[side], own = scheme[side];
    if (format.bits === 16) {
      advance(layers);
      return bf16Side();
    }
    if (own.codebooks === "model") throw new RangeError("calibration: one codebook for all layers is not trained");
    const sources = activations.layers.flatMap((layer) => layer[side]);
    const training: Training = { device, format, scheme: own, importance: scheme.importance === true, options };
    const found = own.codebooks.endsWith("sub-vector")
      ? await trainSubVectors(training, sources, advance)
      : await trainLayers(training, sources, advance);
    const byLayer: LayerCalibration[] = [];
    found.forEach((each, i) => byLayer[sources[i].layer] = each);
    return { format, ...own, layers: byLayer, origin: "calibrated" };
  };
  return { keys: await trained("keys"), values: await trained("values") };
}

async function trainLayers(
  training: Training,
  sources: readonly SideActivations[],
  advance: () => void,
): Promise<LayerCalibration[]> {
  const layers: LayerCalibration[] = [];
  for (const source of sources) {
    layers.push(await trainLayer(training, source));
    advance();
  }
  return layers;
}

/** Transform and codebooks [1 or kvHeads, 1, 2^bits, subDim] of one layer. */
async function trainLayer(
  { device, format: usual, scheme, importance, options }: Training,
  source: SideActivations,
): Promise<LayerCalibration> {
  const format = layerFormat(scheme, usual, source.layer), { subDim, bits } = format, size = 2 ** bits * subDim;
  if (bits === 16) return { codebook: new Float32Array(0) };
  const smooth = hasSmooth(scheme.transform) ? smoothFactors(source) : undefined;
  const matrix = scheme.transform === "fitted" ? fittedMatrices(source, format) : undefined;
  const rows = source.rows({ hadamard: hasHadamard(scheme.transform), smooth, matrix });
  const vectors = { rows, importance: importance ? source.importance() : undefined, shape: source.shape };
  const { heads } = codebookCounts(scheme.codebooks, source.shape, format), codebook = new Float32Array(heads * size);
  const random = uniform((options.seed ?? 0) + 1), most = options.samples ?? 200_000, { tokenScale } = scheme;
  for (let head = 0; head < heads; head++) {
    const of = heads === 1 ? null : head;
    const { points, weights } = sampleVectors(vectors, format, { head: of, most, tokenScale, random });
    expectPoints(points, format);
    const counted = tokenScale || importance ? weights : undefined;
    codebook.set(await trainCodebook(device, format, points, counted, options), head * size);
  }
  return { codebook, ...(smooth && { smooth }), ...(matrix && { matrix }) };
}

/** The fitted transforms of a layer, [kvHeads, headDim, headDim], as they are kept: rounded to f16. */
function fittedMatrices(source: SideActivations, { subDim }: Format): Float32Array {
  const { kvHeads, headDim } = source.shape, size = headDim * headDim, out = new Float32Array(kvHeads * size);
  for (let head = 0; head < kvHeads; head++) {
    const moment = source.moments().subarray(head * size, (head + 1) * size);
    out.set(fitTransform(source.metric(head), moment, headDim, subDim), head * size);
  }
  const kept = Float32Array.from(Float16Array.from(out));
  if (!kept.every(Number.isFinite)) {
    throw new RangeError(
      `calibration: the transform of the ${source.side} of layer ${source.layer} has numbers beyond f16`,
    );
  }
  return kept;
}

/** The paper's smooth factors of a layer, sqrt(max |x_i|) a channel, [kvHeads, headDim]. */
function smoothFactors(source: SideActivations): Float32Array {
  const rows = source.rows(), { kvHeads, headDim } = source.shape, width = kvHeads * headDim;
  const maxima = new Float32Array(width).fill(1e-4);
  for (let i = 0; i < rows.length; i++) maxima[i % width] = Math.max(maxima[i % width], Math.abs(rows[i]));
  return maxima.map(Math.sqrt);
}

/**
 * Up to `most` sub-vectors of one KV head, or of all (null), and their weights: the importance of their vectors, [tokens, kvHeads],
 * where given. With a token scale vectors are divided by their root mean square first, and their errors count with its
 * square.
 */
function sampleVectors(
  { rows, importance, shape: { kvHeads, headDim } }: {
    rows: Float32Array;
    importance: Float32Array | undefined;
    shape: CacheShape;
  },
  { subDim }: Format,
  { head, most, tokenScale, random }: { head: number | null; most: number; tokenScale: boolean; random: () => number },
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
