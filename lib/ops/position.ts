/** Positions of tokens. @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectRows, type RowsOptions } from "./check.ts";

/** positions[r] += 1, so that a recorded step moves on by itself. positions i32 [rows]. */
export function advance(positions: Tensor, options: RowsOptions = {}): void {
  const { device } = positions, { rows = positions.length } = options;
  expectInteger("advance", "rows", rows);
  expectRows("advance", "positions", positions, device, "i32", rows, 1);
  const status = device.native.vi_advance(device.context, positions.pointer, rows);
  if (status !== 0) device.check("vi_advance", status);
}
