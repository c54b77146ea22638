/**
 * Checks of op arguments. They run on every call, so they compare numbers and make text only when they fail.
 *
 * @module
 */
import { type Device, VecInferError } from "../device.ts";
import type { DType, Tensor } from "../tensor.ts";

/** Options of ops that can use the first rows of larger tensors. */
export interface RowsOptions {
  /** Rows to compute; by default those of the first input. */
  readonly rows?: number;
}

/** Options of ops that read rows out of wider ones, e.g. the queries of a joint query, key and value projection. */
export interface StrideOptions extends RowsOptions {
  /** Distance between rows in elements; by default the tensor's own stride. */
  readonly stride?: number;
}

/** An argument error: what was expected in place of what was found. */
export function mismatch(op: string, argument: string, expected: string, found: unknown): VecInferError {
  return new VecInferError("INVALID_ARGUMENT", `${op}: ${argument}: expected ${expected}, found ${found}`);
}

/** Requires a whole number from `least` to `most`. */
export function expectInteger(
  op: string,
  argument: string,
  value: number,
  least: number = 0,
  most: number = 0x7fffffff,
): void {
  if (Number.isInteger(value) && value >= least && value <= most) return;
  throw mismatch(op, argument, `a whole number from ${least} to ${most}`, value);
}

/** Requires a number that an f32 can hold. */
export function expectNumber(op: string, argument: string, value: number): void {
  if (typeof value !== "number" || !Number.isFinite(value)) throw mismatch(op, argument, "a finite number", value);
}

function at(device: Device): string {
  return device.name;
}

function found(tensor: Tensor): string {
  const gaps = tensor.contiguous ? "" : `, rows ${tensor.stride} elements apart,`;
  return `${tensor}${gaps} on ${at(tensor.device)}`;
}

function elsewhere(op: string, argument: string, tensor: Tensor, device: Device): VecInferError {
  const same = tensor.device.name === device.name ? "another Device object of " : "";
  return mismatch(op, argument, `a tensor on the op's ${at(device)}`, `${tensor} on ${same}${at(tensor.device)}`);
}

/** Requires at least `rows` rows of exactly `width` elements without gaps. */
export function expectRows(
  op: string,
  argument: string,
  tensor: Tensor,
  device: Device,
  dtype: DType,
  rows: number,
  width: number,
): void {
  if (tensor.device !== device) throw elsewhere(op, argument, tensor, device);
  if (tensor.dtype === dtype && tensor.length >= rows && tensor.width === width && tensor.stride === width) return;
  const shape = width === 1 ? `[${rows}]` : `[${rows}, ${width}]`;
  throw mismatch(op, argument, `${dtype} ${shape} or more rows`, found(tensor));
}

/** Requires exactly `size` elements without gaps, in any shape. */
export function expectSize(
  op: string,
  argument: string,
  tensor: Tensor,
  device: Device,
  dtype: DType,
  size: number,
): void {
  if (tensor.device !== device) throw elsewhere(op, argument, tensor, device);
  if (tensor.dtype === dtype && tensor.size === size && tensor.stride === tensor.width) return;
  throw mismatch(op, argument, `${dtype} of ${size} elements`, found(tensor));
}

/** Requires room for `rows` rows of `width` elements, `stride` elements apart. */
export function expectStrided(
  op: string,
  argument: string,
  tensor: Tensor,
  device: Device,
  rows: number,
  width: number,
  stride: number,
  dtype: DType = "f32",
): void {
  if (tensor.device !== device) throw elsewhere(op, argument, tensor, device);
  const fits = Number.isInteger(stride) && stride >= width &&
    (rows === 0 || (rows - 1) * stride + width <= tensor.extent);
  if (tensor.dtype === dtype && fits) return;
  throw mismatch(op, argument, `${dtype} [${rows}, ${width}], rows ${stride} elements apart`, found(tensor));
}

/** The library's address of an optional tensor. */
export function optional(tensor: Tensor | null | undefined): Tensor["pointer"] | null {
  return tensor === undefined || tensor === null ? null : tensor.pointer;
}
