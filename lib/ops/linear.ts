/** Matrix products with weights. @module */
import { VI_OUTPUT_SILU, VI_OUTPUT_SUM, VI_OUTPUT_VALUES } from "../ffi/symbols.ts";
import { dtypes, isPacked, type Tensor } from "../tensor.ts";
import { expectInteger, expectNumber, expectRows, expectSize, mismatch, optional, type RowsOptions } from "./check.ts";

/**
 * What becomes of the products y: "values", out = y; "sum", out += y; "silu", out = silu(gate) * up with y = [gate, up],
 * as {@linkcode gate}.
 */
export type LinearOutput = "values" | "sum" | "silu";

/** Options of {@linkcode linear}. */
export interface LinearOptions extends RowsOptions {
  /** bf16 [outFeatures]. */
  readonly bias?: Tensor | null;
  /** f32 [inFeatures]: multiplies with x / sqrt(mean(x^2) + epsilon) * norm in place of x, as {@linkcode rmsnorm}. */
  readonly norm?: Tensor | null;
  /** Of the norm; 0 by default. */
  readonly epsilon?: number;
  /** Default: "values". */
  readonly output?: LinearOutput;
}

const outputs: Readonly<Record<LinearOutput, number>> = {
  values: VI_OUTPUT_VALUES,
  sum: VI_OUTPUT_SUM,
  silu: VI_OUTPUT_SILU,
};

/**
 * Products of x with weights: x weight^T + bias, x perhaps normed before. out f32 [rows, outFeatures] or, for output
 * "silu", [rows, outFeatures / 2]; x f32 [rows, inFeatures]; weight bf16 or packed [outFeatures, inFeatures].
 *
 * With packed weights a library may round x: the CPU library keeps 8 bits for each 32 values of a row, within 1/254 of
 * the largest of them.
 */
export function linear(out: Tensor, x: Tensor, weight: Tensor, options: LinearOptions = {}): void {
  const { device } = out, { rows = x.length, bias, norm, epsilon = 0, output = "values" } = options;
  const { length, width } = weight;
  expectInteger("linear", "rows", rows);
  if (!Object.hasOwn(outputs, output)) throw mismatch("linear", "output", `one of ${Object.keys(outputs)}`, output);
  expectNumber("linear", "epsilon", epsilon);
  expectRows("linear", "out", out, device, "f32", rows, output === "silu" ? length / 2 : length);
  expectRows("linear", "x", x, device, "f32", rows, width);
  expectRows("linear", "weight", weight, device, isPacked(weight.dtype) ? weight.dtype : "bf16", length, width);
  if (bias) expectSize("linear", "bias", bias, device, "bf16", length);
  if (norm) expectSize("linear", "norm", norm, device, "f32", width);
  const status = device.native.vi_linear(
    device.context,
    out.pointer,
    x.pointer,
    weight.pointer,
    optional(bias),
    optional(norm),
    epsilon,
    dtypes[weight.dtype].code,
    outputs[output],
    rows,
    length,
    width,
  );
  if (status !== 0) device.check("vi_linear", status);
}
