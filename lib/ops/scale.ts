/** Multiplication with a number. @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectNumber, expectRows, type RowsOptions } from "./check.ts";

/** Options of {@linkcode scale}. */
export interface ScaleOptions extends RowsOptions {
  /** Above 0: y = factor x becomes cap tanh(y / cap), a soft cap. Default 0: none. */
  readonly cap?: number;
}

/**
 * x *= factor, then the soft cap where there is one. x f32 [rows, width]. A cap makes of infinity the cap; NaN stays NaN.
 */
export function scale(x: Tensor, factor: number, options: ScaleOptions = {}): void {
  const { device, width } = x, { rows = x.length, cap = 0 } = options;
  expectInteger("scale", "rows", rows);
  expectNumber("scale", "factor", factor);
  expectNumber("scale", "cap", cap);
  expectRows("scale", "x", x, device, "f32", rows, width);
  const status = device.native.vi_scale(device.context, x.pointer, factor, cap, rows * width);
  if (status !== 0) device.check("vi_scale", status);
}
