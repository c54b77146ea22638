/** Rotary position embedding (arXiv 2104.09864). @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectRows, expectSize, expectStrided, type StrideOptions } from "./check.ts";

/** Options of {@linkcode rope}. */
export interface RopeOptions extends StrideOptions {
  /** Heads to rotate, from the start of each row; by default all of `x`. */
  readonly heads?: number;
  /** Channels of a head; by default twice the frequencies. */
  readonly headDim?: number;
}

/**
 * Rotates in place: for i < headDim / 2 and angle = positions[r] * frequencies[i], (x_i, x_{i + headDim/2}) becomes
 * (x_i cos - x_{i + headDim/2} sin, x_{i + headDim/2} cos + x_i sin). x f32 [rows, heads, headDim], positions i32 [rows],
 * frequencies f32 [headDim / 2].
 */
export function rope(x: Tensor, positions: Tensor, frequencies: Tensor, options: RopeOptions = {}): void {
  const { device } = x, { rows = x.length, stride = x.stride, headDim = 2 * frequencies.size } = options;
  const { heads = x.width / headDim } = options;
  expectInteger("rope", "rows", rows);
  expectInteger("rope", "headDim", headDim, 2);
  expectInteger("rope", "heads", heads, 1);
  expectStrided("rope", "x", x, device, rows, heads * headDim, stride);
  expectRows("rope", "positions", positions, device, "i32", rows, 1);
  expectSize("rope", "frequencies", frequencies, device, "f32", headDim / 2);
  const { native, context } = device;
  const status = native.vi_rope(
    context,
    x.pointer,
    positions.pointer,
    frequencies.pointer,
    rows,
    heads,
    headDim,
    stride,
  );
  if (status !== 0) device.check("vi_rope", status);
}
