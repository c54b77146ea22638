/** Rotary position embedding (arXiv 2104.09864). @module */
import type { Tensor } from "../tensor.ts";
import {
  expectInteger,
  expectNumber,
  expectRows,
  expectSize,
  expectStrided,
  optional,
  type StrideOptions,
} from "./check.ts";

/** Options of {@linkcode rope}. */
export interface RopeOptions extends StrideOptions {
  /** Heads to rotate, from the start of each row; by default all of `x`. */
  readonly heads?: number;
  /** Channels of a head; by default twice the frequencies. */
  readonly headDim?: number;
  /** Channels of a head that are rotated, the first ones; by default all. */
  readonly rotaryDim?: number;
  /** Whether channels 2 i and 2 i + 1 are a pair, and not i and i + rotaryDim / 2; by default not. */
  readonly interleaved?: boolean;
  /** Of the rotated channels, YaRN's and longrope's attention factor; 1 by default. */
  readonly factor?: number;
}

/**
 * Rotates in place: for i < rotaryDim / 2 and angle = positions[r] * frequencies[i], a pair (a, b) of channels becomes
 * factor * (a cos - b sin, b cos + a sin). The pair is (x_i, x_{i + rotaryDim/2}) or, interleaved, (x_{2 i}, x_{2 i + 1}); channels
 * from rotaryDim on stay. x f32 [rows, heads, headDim], positions i32 [rows], frequencies f32 [rotaryDim / 2].
 */
export function rope(x: Tensor, positions: Tensor, frequencies: Tensor, options: RopeOptions = {}): void {
  const { device } = x, { rows = x.length, stride = x.stride, headDim = 2 * frequencies.size } = options;
  const { heads = x.width / headDim, rotaryDim = headDim, interleaved = false, factor = 1 } = options;
  expectInteger("rope", "rows", rows);
  expectInteger("rope", "headDim", headDim, 2);
  expectInteger("rope", "rotaryDim", rotaryDim, 2, headDim);
  expectInteger("rope", "heads", heads, 1);
  expectNumber("rope", "factor", factor);
  expectStrided("rope", "x", x, device, rows, heads * headDim, stride);
  expectRows("rope", "positions", positions, device, "i32", rows, 1);
  expectSize("rope", "frequencies", frequencies, device, "f32", rotaryDim / 2);
  const { native, context } = device;
  const status = native.vi_rope(
    context,
    x.pointer,
    positions.pointer,
    frequencies.pointer,
    factor,
    rows,
    heads,
    headDim,
    rotaryDim,
    interleaved ? 1 : 0,
    stride,
  );
  if (status !== 0) device.check("vi_rope", status);
}

/**
 * {@linkcode rope} of queries, in place, and of keys, then those keys and the values as f16 (beyond ±65504: these): what a prompt does between its
 * products and its attention, in one pass. queries f32 [rows, heads, headDim], keys and values f32 [rows, kvHeads, headDim], all of
 * one row stride, by default that of `queries`; to.keys and to.values f16 [rows, kvHeads, headDim] of another. keys are not changed.
 * Without frequencies nothing is rotated; then `headDim` is to be given.
 */
export function ropeRound(
  queries: Tensor,
  keys: Tensor,
  values: Tensor,
  to: { readonly keys: Tensor; readonly values: Tensor },
  positions: Tensor,
  frequencies: Tensor | null,
  options: Omit<RopeOptions, "heads"> = {},
): void {
  const op = "ropeRound", { device } = queries, { rows = queries.length, stride = queries.stride } = options;
  const { headDim = 2 * (frequencies?.size ?? 0), interleaved = false, factor = 1 } = options;
  const { rotaryDim = headDim } = options, turned = frequencies === null ? 0 : rotaryDim, outStride = to.keys.stride;
  expectInteger(op, "rows", rows);
  expectInteger(op, "headDim", headDim, 1);
  const heads = queries.width / headDim, kvHeads = keys.width / headDim;
  expectInteger(op, "heads", heads, 1);
  expectInteger(op, "kvHeads", kvHeads, 1);
  expectNumber(op, "factor", factor);
  expectStrided(op, "queries", queries, device, rows, queries.width, stride);
  expectStrided(op, "keys", keys, device, rows, keys.width, stride);
  expectStrided(op, "values", values, device, rows, keys.width, stride);
  expectStrided(op, "to.keys", to.keys, device, rows, keys.width, outStride, "f16");
  expectStrided(op, "to.values", to.values, device, rows, keys.width, outStride, "f16");
  expectRows(op, "positions", positions, device, "i32", rows, 1);
  if (frequencies !== null) {
    expectInteger(op, "rotaryDim", rotaryDim, 2, headDim);
    expectSize(op, "frequencies", frequencies, device, "f32", rotaryDim / 2);
  }
  const status = device.native.vi_rope_round(
    device.context,
    queries.pointer,
    keys.pointer,
    values.pointer,
    to.keys.pointer,
    to.values.pointer,
    positions.pointer,
    optional(frequencies),
    factor,
    rows,
    heads,
    kvHeads,
    headDim,
    turned,
    interleaved ? 1 : 0,
    stride,
    outStride,
  );
  if (status !== 0) device.check("vi_rope_round", status);
}
