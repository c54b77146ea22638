/** The gate of feed-forward layers. @module */
import { VI_GELU, VI_SILU, VI_SWIGLU_CLAMPED } from "../ffi/symbols.ts";
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectRows, mismatch, type RowsOptions } from "./check.ts";

/**
 * What is done to a gate g and to u, which it is multiplied with: "silu", g sigmoid(g) u (arXiv 2002.05202); "gelu", GELU's
 * approximation with tanh (arXiv 1606.08415) of g, times u; "swiglu clamped" (gpt-oss), g' sigmoid(1.702 g') (u' + 1) with
 * g' = min(g, 7) and u' = u held to -7..7.
 */
export type GateActivation = "silu" | "gelu" | "swiglu clamped";

/** Options of {@linkcode gate}. */
export interface GateOptions extends RowsOptions {
  /** Default: "silu". */
  readonly activation?: GateActivation;
}

const activations: Readonly<Record<GateActivation, number>> = {
  silu: VI_SILU,
  gelu: VI_GELU,
  "swiglu clamped": VI_SWIGLU_CLAMPED,
};

/**
 * out = activation(gate) * up. out f32 [rows, width], gateUp f32 [rows, 2 width]: gate, then up. A gate of minus infinity
 * counts as 0; NaN stays NaN.
 */
export function gate(out: Tensor, gateUp: Tensor, options: GateOptions = {}): void {
  const { device, width } = out, { rows = gateUp.length, activation = "silu" } = options;
  expectInteger("gate", "rows", rows);
  if (!Object.hasOwn(activations, activation)) {
    throw mismatch("gate", "activation", `one of ${Object.keys(activations)}`, activation);
  }
  expectRows("gate", "out", out, device, "f32", rows, width);
  expectRows("gate", "gateUp", gateUp, device, "f32", rows, 2 * width);
  const { native, context } = device;
  const status = native.vi_gate(context, out.pointer, gateUp.pointer, activations[activation], rows, width);
  if (status !== 0) device.check("vi_gate", status);
}
