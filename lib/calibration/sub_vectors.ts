/**
 * Training of codebooks of sub-vectors, as MILLION and CQ have them: one for each place in a head.
 *
 * @module
 */

import type { LayerCalibration } from "../cache/calibration.ts";
import { codebookCounts, sharedByLayers } from "../cache/scheme.ts";
import type { SideActivations } from "./activations.ts";
import { expectPoints, trainCodebook, type Training } from "./codebook.ts";

/** Sub-vectors a codeword is trained on, at most. */
const POINTS = 256;

/** Vectors of a layer, [tokens, kvHeads, headDim], and their importance, [tokens, kvHeads], where it counts. */
interface Vectors {
  readonly rows: Float32Array;
  readonly importance: Float32Array | undefined;
}

/**
 * Codebooks [1 or kvHeads, headDim / subDim, 2^bits, subDim] of each layer, or the same for all. Calls `advance` once a layer. Throws
 * RangeError where there are too few tokens, and for a transform, token scale or formats of layers, which these schemes have not.
 */
export async function trainSubVectors(
  training: Training,
  sources: readonly SideActivations[],
  advance: () => void,
): Promise<LayerCalibration[]> {
  const { scheme, importance } = training, shared = sharedByLayers(scheme.codebooks);
  if (scheme.transform !== "none" || scheme.tokenScale || scheme.layerFormats) {
    throw new RangeError("calibration: codebooks of sub-vectors have no transform, token scale and formats of layers");
  }
  const layers: LayerCalibration[] = [];
  for (const group of shared ? [sources] : sources.map((source) => [source])) {
    const vectors = group.map((source): Vectors => ({
      rows: source.rows(),
      importance: importance ? source.importance() : undefined,
    }));
    const codebook = await trainBooks(training, group[0], vectors);
    for (const _ of group) {
      layers.push({ codebook });
      advance();
    }
  }
  return layers;
}

/** The codebooks of all heads and sub-vectors, trained on the vectors of all `layers`. */
async function trainBooks(
  { device, format, scheme, options }: Training,
  { shape }: SideActivations,
  layers: readonly Vectors[],
): Promise<Float32Array> {
  const { heads, parts } = codebookCounts(scheme.codebooks, shape, format), size = 2 ** format.bits * format.subDim;
  const codebook = new Float32Array(heads * parts * size), most = options.samples ?? POINTS * 2 ** format.bits;
  for (let head = 0; head < heads; head++) {
    for (let part = 0; part < parts; part++) {
      const place = { head: heads === 1 ? null : head, part, subDim: format.subDim, ...shape };
      const { points, weights } = sampleSubVectors(layers, place, most);
      expectPoints(points, format);
      const book = await trainCodebook(device, format, points, weights, options);
      codebook.set(book, (head * parts + part) * size);
    }
  }
  return codebook;
}

/**
 * Sub-vector `part` of the vectors of one KV head, or of all (null), evenly spread where there are more than `most`, and
 * their importance.
 */
function sampleSubVectors(
  layers: readonly Vectors[],
  { head, part, subDim, kvHeads, headDim }: {
    head: number | null;
    part: number;
    subDim: number;
    kvHeads: number;
    headDim: number;
  },
  most: number,
): { points: Float32Array; weights: Float32Array | undefined } {
  const vectors = layers[0].rows.length / headDim / (head === null ? 1 : kvHeads);
  const available = layers.length * vectors, count = Math.min(available, most);
  const points = new Float32Array(count * subDim);
  const weights = layers[0].importance && new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const pick = Math.floor((i + 0.5) * available / count), { rows, importance } = layers[pick % layers.length];
    const picked = Math.floor(pick / layers.length), vector = head === null ? picked : picked * kvHeads + head;
    const at = vector * headDim + part * subDim;
    points.set(rows.subarray(at, at + subDim), i * subDim);
    if (weights && importance) weights[i] = importance[vector];
  }
  return { points, weights };
}
