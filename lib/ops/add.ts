/** Addition to the residual stream. @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectNumber, expectRows, expectSize, optional, type RowsOptions } from "./check.ts";

/** Options of {@linkcode add}. */
export interface AddOptions extends RowsOptions {
  /** f32 [width]: adds x / sqrt(mean(x^2) + epsilon) * norm in place of x, as {@linkcode rmsnorm}. */
  readonly norm?: Tensor | null;
  /** Of the norm; 0 by default. */
  readonly epsilon?: number;
  /** Of what is added; 1 by default. */
  readonly factor?: number;
}

/** residual += factor * x, x perhaps normed before. residual and x f32 [rows, width], apart from each other. */
export function add(residual: Tensor, x: Tensor, options: AddOptions = {}): void {
  const { device } = residual, { rows = x.length, norm, epsilon = 0, factor = 1 } = options, { width } = x;
  expectInteger("add", "rows", rows);
  expectNumber("add", "epsilon", epsilon);
  expectNumber("add", "factor", factor);
  expectRows("add", "residual", residual, device, "f32", rows, width);
  expectRows("add", "x", x, device, "f32", rows, width);
  if (norm) expectSize("add", "norm", norm, device, "f32", width);
  const { native, context } = device;
  const status = native.vi_add(
    context,
    residual.pointer,
    x.pointer,
    optional(norm),
    epsilon,
    factor,
    rows,
    width,
  );
  if (status !== 0) device.check("vi_add", status);
}
