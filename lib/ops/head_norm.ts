/** Root mean square normalization of heads. @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectNumber, expectSize, expectStrided, type StrideOptions } from "./check.ts";

/** Options of {@linkcode headNorm}. */
export interface HeadNormOptions extends StrideOptions {
  /** Of the norm; 0 by default. */
  readonly epsilon?: number;
  /** Heads to norm, from the start of each row; by default all of `x`. */
  readonly heads?: number;
  /** Channels of a head, up to 16384; by default as many as weights. */
  readonly headDim?: number;
}

/**
 * {@linkcode rmsnorm} of each head of each row, in place: x / sqrt(mean(x^2) + epsilon) * weight. x f32 [rows, heads, headDim],
 * weight f32 [headDim]. One head as wide as a row norms whole rows.
 */
export function headNorm(x: Tensor, weight: Tensor, options: HeadNormOptions = {}): void {
  const { device } = x, { rows = x.length, stride = x.stride, headDim = weight.size, epsilon = 0 } = options;
  const { heads = x.width / headDim } = options;
  expectInteger("headNorm", "rows", rows);
  expectInteger("headNorm", "headDim", headDim, 1, 16384);
  expectInteger("headNorm", "heads", heads, 1);
  expectNumber("headNorm", "epsilon", epsilon);
  expectStrided("headNorm", "x", x, device, rows, heads * headDim, stride);
  expectSize("headNorm", "weight", weight, device, "f32", headDim);
  const { native, context } = device;
  const status = native.vi_head_norm(context, x.pointer, weight.pointer, epsilon, rows, heads, headDim, stride);
  if (status !== 0) device.check("vi_head_norm", status);
}
