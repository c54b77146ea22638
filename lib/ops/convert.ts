/** Conversion between element types. @module */
import { dtypes, isPacked, type Tensor } from "../tensor.ts";
import { expectSize, mismatch } from "./check.ts";

/** out[i] = x[i], each f32, bf16 or f16 and of equal size; rounds to nearest even. */
export function convert(out: Tensor, x: Tensor): void {
  const { device } = out;
  for (const [name, tensor] of [["out", out], ["x", x]] as const) {
    const { dtype } = tensor;
    if (dtype === "i32" || dtype === "u8" || isPacked(dtype)) {
      throw mismatch("convert", name, "f32, bf16 or f16", tensor);
    }
    expectSize("convert", name, tensor, device, dtype, x.size);
  }
  const { native, context } = device;
  const to = dtypes[out.dtype].code, from = dtypes[x.dtype].code;
  device.check("vi_convert", native.vi_convert(context, out.pointer, x.pointer, to, from, x.size));
}
