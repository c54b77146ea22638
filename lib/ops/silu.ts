/** The activation of SwiGLU (arXiv 2002.05202). @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectRows, type RowsOptions } from "./check.ts";

/** out = silu(gate) * up, silu(x) = x / (1 + e^-x). out f32 [rows, width], gateUp f32 [rows, 2 width]: gate, then up. */
export function siluMul(out: Tensor, gateUp: Tensor, options: RowsOptions = {}): void {
  const { device, width } = out, { rows = gateUp.length } = options;
  expectInteger("siluMul", "rows", rows);
  expectRows("siluMul", "out", out, device, "f32", rows, width);
  expectRows("siluMul", "gateUp", gateUp, device, "f32", rows, 2 * width);
  const status = device.native.vi_silu_mul(device.context, out.pointer, gateUp.pointer, rows, width);
  if (status !== 0) device.check("vi_silu_mul", status);
}
