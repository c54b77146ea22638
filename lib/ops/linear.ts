/** Matrix products with weights. @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectRows, expectSize, optional, type RowsOptions } from "./check.ts";

/** Options of {@linkcode linear}. */
export interface LinearOptions extends RowsOptions {
  /** bf16 [outFeatures]. */
  readonly bias?: Tensor | null;
}

/**
 * out = x weight^T + bias. out f32 [rows, outFeatures], x f32 [rows, inFeatures], weight bf16 [outFeatures, inFeatures].
 */
export function linear(out: Tensor, x: Tensor, weight: Tensor, options: LinearOptions = {}): void {
  const { device } = out, { rows = x.length, bias } = options, { length, width } = weight;
  expectInteger("linear", "rows", rows);
  expectRows("linear", "out", out, device, "f32", rows, length);
  expectRows("linear", "x", x, device, "f32", rows, width);
  expectRows("linear", "weight", weight, device, "bf16", length, width);
  if (bias) expectSize("linear", "bias", bias, device, "bf16", length);
  const status = device.native.vi_linear(
    device.context,
    out.pointer,
    x.pointer,
    weight.pointer,
    optional(bias),
    rows,
    length,
    width,
  );
  if (status !== 0) device.check("vi_linear", status);
}
