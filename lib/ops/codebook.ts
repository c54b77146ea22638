/** Codebooks: nearest codewords and k-means. @module */
import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { expectInteger, expectRows, expectSize, mismatch, optional, type RowsOptions } from "./check.ts";

/** dim and codewords that the library takes. */
function expectCodebook(op: string, codebook: Tensor, device: Device): void {
  const { length, width } = codebook;
  expectRows(op, "codebook", codebook, device, "f32", length, width);
  expectInteger(op, "codebook's dimension", width, 1, 16);
  expectInteger(op, "number of codewords", length, 1, 65536);
}

/**
 * codes[n] = argmin_c |points[n] - codebook[c]|^2, the lowest index among equals. codes i32 [rows], points f32
 * [rows, dim], codebook f32 [codewords, dim]; dim 1 to 16, codewords 1 to 65536.
 */
export function codebookAssign(codes: Tensor, points: Tensor, codebook: Tensor, options: RowsOptions = {}): void {
  const { device } = codes, { rows = points.length } = options, { length, width } = codebook;
  expectInteger("codebookAssign", "rows", rows);
  expectCodebook("codebookAssign", codebook, device);
  expectRows("codebookAssign", "codes", codes, device, "i32", rows, 1);
  expectRows("codebookAssign", "points", points, device, "f32", rows, width);
  const { native, context } = device;
  const status = native.vi_codebook_assign(
    context,
    codes.pointer,
    points.pointer,
    codebook.pointer,
    rows,
    width,
    length,
  );
  if (status !== 0) device.check("vi_codebook_assign", status);
}

/** Options of {@linkcode kmeans}. */
export interface KmeansOptions {
  /** Importance of each point, f32 [count]. */
  readonly weights?: Tensor | null;
  /** Lloyd iterations at most. Default 20. */
  readonly iterations?: number;
  /** Ends where the distortion falls by less than this part of itself. Default 0: only when it no longer falls. */
  readonly tolerance?: number;
  /** Equal seeds give equal codebooks. Default 0. */
  readonly seed?: number;
  /** Called after each iteration with the distortion before it. */
  readonly onProgress?: (done: number, total: number, distortion: number) => void;
  /** Stops between iterations, by throwing its reason. */
  readonly signal?: AbortSignal;
}

/**
 * Trains a codebook, f32 [codewords, dim], on points, f32 [count, dim] with count >= codewords: k-means++ and Lloyd
 * iterations. Other work gets its turn between iterations. Returns the (weighted) mean squared distance of the points
 * before each iteration.
 */
export async function kmeans(codebook: Tensor, points: Tensor, options: KmeansOptions = {}): Promise<number[]> {
  const { device } = codebook, { iterations = 20, tolerance = 0, seed = 0, weights, onProgress, signal } = options;
  const { native } = device, { length: codewords, width: dim } = codebook, { length: count } = points;
  expectCodebook("kmeans", codebook, device);
  expectRows("kmeans", "points", points, device, "f32", count, dim);
  if (weights) expectSize("kmeans", "weights", weights, device, "f32", count);
  if (count < codewords) throw mismatch("kmeans", "points", `${codewords} or more, one a codeword`, count);
  expectInteger("kmeans", "iterations", iterations);
  expectInteger("kmeans", "seed", seed, -0x80000000);
  signal?.throwIfAborted();
  const sizes = [count, dim, codewords] as const, distortions: number[] = [];
  using distortion = Tensor.empty(device, "f32", [1]);
  const start = native.vi_kmeans_start(
    device.context,
    codebook.pointer,
    points.pointer,
    optional(weights),
    seed,
    ...sizes,
  );
  device.check("vi_kmeans_start", start);
  for (let i = 0; i < iterations; i++) {
    await new Promise((resolve) => setTimeout(resolve, 0));
    signal?.throwIfAborted();
    const step = native.vi_kmeans_step(
      device.context,
      codebook.pointer,
      distortion.pointer,
      points.pointer,
      optional(weights),
      seed,
      i,
      ...sizes,
    );
    device.check("vi_kmeans_step", step);
    const value = distortion.read<Float32Array>()[0], before = distortions.at(-1) ?? Infinity;
    distortions.push(value);
    onProgress?.(i + 1, iterations, value);
    if (value >= before * (1 - tolerance)) break;
  }
  return distortions;
}
