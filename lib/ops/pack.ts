/** Packed weights. @module */
import { BLOCK_ELEMENTS, dtypes, isPacked, type Tensor } from "../tensor.ts";
import { expectSize, mismatch } from "./check.ts";

/**
 * Brings rows of blocks, as GGUF files hold them, to the order in which the library multiplies them. out q8_0, q4_0 or
 * q4_1 [rows, width], blocks u8 of rows * width / 32 blocks of 34, 18 or 20 bytes.
 */
export function pack(out: Tensor, blocks: Tensor): void {
  const { device, dtype, length, width } = out;
  if (!isPacked(dtype)) throw mismatch("pack", "out", "q8_0, q4_0 or q4_1", out);
  const { code, bytes } = dtypes[dtype];
  expectSize("pack", "blocks", blocks, device, "u8", length * (width / BLOCK_ELEMENTS) * (bytes * BLOCK_ELEMENTS));
  const { native, context } = device;
  device.check("vi_pack", native.vi_pack(context, out.pointer, blocks.pointer, code, length, width));
}
