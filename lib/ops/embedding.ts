/** Rows of an embedding table. @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectRows, type RowsOptions } from "./check.ts";

/**
 * out[r] = table[ids[r]]. out f32 [rows, width], ids i32 [rows], table bf16 [vocabulary, width]. An id outside of the
 * vocabulary gives a row of NaN.
 */
export function embedding(out: Tensor, ids: Tensor, table: Tensor, options: RowsOptions = {}): void {
  const { device } = out, { rows = ids.length } = options, { length, width } = table;
  expectInteger("embedding", "rows", rows);
  expectRows("embedding", "out", out, device, "f32", rows, width);
  expectRows("embedding", "ids", ids, device, "i32", rows, 1);
  expectRows("embedding", "table", table, device, "bf16", length, width);
  const { native, context } = device;
  const status = native.vi_embedding(context, out.pointer, ids.pointer, table.pointer, rows, width, length);
  if (status !== 0) device.check("vi_embedding", status);
}
