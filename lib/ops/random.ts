/** Random numbers on the device. @module */
import { dtypes, type Tensor } from "../tensor.ts";
import { expectInteger, expectNumber, expectSize, mismatch } from "./check.ts";

/** Options of {@linkcode randomNormal}. */
export interface RandomNormalOptions {
  /** Equal seeds give equal numbers. Default 0. */
  readonly seed?: number;
  /** Default 0. */
  readonly mean?: number;
  /** Standard deviation. Default 1. */
  readonly deviation?: number;
}

/** Fills a tensor, f32 or bf16, with normally distributed numbers. */
export function randomNormal(out: Tensor, options: RandomNormalOptions = {}): void {
  const { device, dtype, size } = out, { seed = 0, mean = 0, deviation = 1 } = options;
  if (dtype !== "f32" && dtype !== "bf16") throw mismatch("randomNormal", "out", "f32 or bf16", out);
  expectSize("randomNormal", "out", out, device, dtype, size);
  expectInteger("randomNormal", "seed", seed, -0x80000000);
  expectNumber("randomNormal", "mean", mean);
  expectNumber("randomNormal", "deviation", deviation);
  const { native, context } = device, { code } = dtypes[dtype];
  const status = native.vi_random_normal(context, out.pointer, code, seed, mean, deviation, size);
  if (status !== 0) device.check("vi_random_normal", status);
}
