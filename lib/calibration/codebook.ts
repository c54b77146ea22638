/**
 * Training of one codebook, and what it takes.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { kmeans } from "../ops/ops.ts";
import type { Format } from "../cache/format.ts";
import type { SideScheme } from "../cache/scheme.ts";

/** How a scheme is trained: what does not change what the cache does, but how well it does it. */
export interface TrainingOptions {
  /** First positions of each passage that calibration leaves out, as sinks are kept exactly. Default 4. */
  skip?: number;
  /** Sub-vectors that a codebook is trained on, at most. Default 200000; 256 a codeword for codebooks of sub-vectors. */
  samples?: number;
  /** Lloyd iterations. Default 20. */
  iterations?: number;
  /** Of sampling and k-means. Default 0. */
  seed?: number;
  /** Called as layers are compared and codebooks are done. */
  onProgress?: (done: number, total: number) => void;
  /** Stops between k-means iterations. */
  signal?: AbortSignal;
}

/** What the training of a side's layers has in common. */
export interface Training {
  /** Where k-means runs. */
  readonly device: Device;
  /** The side's format. */
  readonly format: Format;
  /** How the side is coded. */
  readonly scheme: SideScheme;
  /** Whether vectors count by their importance. */
  readonly importance: boolean;
  /** Of the training. */
  readonly options: TrainingOptions;
}

/** Throws RangeError where there are fewer sub-vectors, [count, subDim], than codewords. */
export function expectPoints(points: Float32Array, { subDim, bits }: Format): void {
  const count = points.length / subDim, codewords = 2 ** bits;
  if (count >= codewords) return;
  throw new RangeError(
    `calibration: ${count} sub-vectors are too few for ${codewords} codewords; use more text or more samples`,
  );
}

/** k-means on host points f32 [count, subDim], with weights f32 [count] where given. Returns the codewords, f32 [2^bits, subDim]. */
export async function trainCodebook(
  device: Device,
  format: Format,
  points: Float32Array,
  weights: Float32Array | undefined,
  options: TrainingOptions = {},
): Promise<Float32Array> {
  const count = points.length / format.subDim;
  using pointTensor = Tensor.from(device, points, [count, format.subDim]);
  using weightTensor = weights && Tensor.from(device, weights, [count]);
  using codebook = Tensor.empty(device, "f32", [2 ** format.bits, format.subDim]);
  await kmeans(codebook, pointTensor, {
    weights: weightTensor,
    iterations: options.iterations ?? 20,
    seed: options.seed ?? 0,
    signal: options.signal,
  });
  return codebook.read() as Float32Array;
}
