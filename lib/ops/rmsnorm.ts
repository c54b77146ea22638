/** Root mean square layer normalization. @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectNumber, expectRows, expectSize, optional, type RowsOptions } from "./check.ts";

/** Options of {@linkcode rmsnorm}. */
export interface RmsnormOptions extends RowsOptions {
  /** f32 [rows, width], to which x is added first; the sum is what is normalized. */
  readonly residual?: Tensor | null;
}

/**
 * out = x / sqrt(mean(x^2) + epsilon) * weight a row (arXiv 1910.07467), or with a residual: residual += x and the same of
 * the residual. out and x f32 [rows, width], weight f32 [width]. out may be x.
 */
export function rmsnorm(out: Tensor, x: Tensor, weight: Tensor, epsilon: number, options: RmsnormOptions = {}): void {
  const { device } = out, { rows = x.length, residual } = options, { width } = x;
  expectInteger("rmsnorm", "rows", rows);
  expectNumber("rmsnorm", "epsilon", epsilon);
  expectRows("rmsnorm", "out", out, device, "f32", rows, width);
  expectRows("rmsnorm", "x", x, device, "f32", rows, width);
  expectSize("rmsnorm", "weight", weight, device, "f32", width);
  if (residual) expectRows("rmsnorm", "residual", residual, device, "f32", rows, width);
  const status = device.native.vi_rmsnorm(
    device.context,
    out.pointer,
    optional(residual),
    x.pointer,
    weight.pointer,
    epsilon,
    rows,
    width,
  );
  if (status !== 0) device.check("vi_rmsnorm", status);
}
