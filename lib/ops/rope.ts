/** Rotary position embedding (arXiv 2104.09864). @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectRows, expectSize, expectStrided, type RowsOptions, type StrideOptions } from "./check.ts";

/** Options of {@linkcode rope}. */
export interface RopeOptions extends StrideOptions {
  /** Heads to rotate, from the start of each row; by default all of `x`. */
  readonly heads?: number;
  /** Channels of a head; by default twice the frequencies. */
  readonly headDim?: number;
}

/**
 * Rotates in place: for i < headDim / 2 and angle = positions[r] * frequencies[i], (x_i, x_{i + headDim/2}) becomes
 * (x_i cos - x_{i + headDim/2} sin, x_{i + headDim/2} cos + x_i sin). x f32 [rows, heads, headDim], positions i32 [rows],
 * frequencies f32 [headDim / 2].
 */
export function rope(x: Tensor, positions: Tensor, frequencies: Tensor, options: RopeOptions = {}): void {
  const { device } = x, { rows = x.length, stride = x.stride, headDim = 2 * frequencies.size } = options;
  const { heads = x.width / headDim } = options;
  expectInteger("rope", "rows", rows);
  expectInteger("rope", "headDim", headDim, 2);
  expectInteger("rope", "heads", heads, 1);
  expectStrided("rope", "x", x, device, rows, heads * headDim, stride);
  expectRows("rope", "positions", positions, device, "i32", rows, 1);
  expectSize("rope", "frequencies", frequencies, device, "f32", headDim / 2);
  const { native, context } = device;
  const status = native.vi_rope(
    context,
    x.pointer,
    positions.pointer,
    frequencies.pointer,
    rows,
    heads,
    headDim,
    stride,
  );
  if (status !== 0) device.check("vi_rope", status);
}

/** Options of {@linkcode ropeRound}. */
export interface RopeRoundOptions extends RowsOptions {
  /** Distance between rows of queries, keys and values in elements; by default that of `queries`. */
  readonly stride?: number;
}

/**
 * {@linkcode rope} of queries, in place, and of keys, then those keys and the values as bf16: what a prompt does between its
 * products and its attention, in one pass. queries f32 [rows, heads, headDim], keys and values f32 [rows, kvHeads, headDim], all of
 * one row stride; to.keys and to.values bf16 [rows, kvHeads, headDim] of another. keys are not changed.
 */
export function ropeRound(
  queries: Tensor,
  keys: Tensor,
  values: Tensor,
  to: { readonly keys: Tensor; readonly values: Tensor },
  positions: Tensor,
  frequencies: Tensor,
  options: RopeRoundOptions = {},
): void {
  const op = "ropeRound", { device } = queries, { rows = queries.length, stride = queries.stride } = options;
  const headDim = 2 * frequencies.size, heads = queries.width / headDim, kvHeads = keys.width / headDim;
  const outStride = to.keys.stride;
  expectInteger(op, "rows", rows);
  expectInteger(op, "heads", heads, 1);
  expectInteger(op, "kvHeads", kvHeads, 1);
  expectStrided(op, "queries", queries, device, rows, queries.width, stride);
  expectStrided(op, "keys", keys, device, rows, keys.width, stride);
  expectStrided(op, "values", values, device, rows, keys.width, stride);
  expectStrided(op, "to.keys", to.keys, device, rows, keys.width, outStride, "bf16");
  expectStrided(op, "to.values", to.values, device, rows, keys.width, outStride, "bf16");
  expectRows(op, "positions", positions, device, "i32", rows, 1);
  expectSize(op, "frequencies", frequencies, device, "f32", headDim / 2);
  const status = device.native.vi_rope_round(
    device.context,
    queries.pointer,
    keys.pointer,
    values.pointer,
    to.keys.pointer,
    to.values.pointer,
    positions.pointer,
    frequencies.pointer,
    rows,
    heads,
    kvHeads,
    headDim,
    stride,
    outStride,
  );
  if (status !== 0) device.check("vi_rope_round", status);
}
