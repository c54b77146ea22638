/** Statistics over channels. @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectSize, expectStrided, type StrideOptions } from "./check.ts";

/**
 * maxima[i] = max(maxima[i], max_r |x[r, i]|): of keys, the statistic behind the smooth factors sqrt(maxima).
 * maxima f32 [width], x f32 [rows, width].
 */
export function channelMax(maxima: Tensor, x: Tensor, options: StrideOptions = {}): void {
  const { device, size: width } = maxima, { rows = x.length, stride = x.stride } = options;
  expectInteger("channelMax", "rows", rows);
  expectSize("channelMax", "maxima", maxima, device, "f32", width);
  expectStrided("channelMax", "x", x, device, rows, width, stride);
  const status = device.native.vi_channel_max(device.context, maxima.pointer, x.pointer, rows, width, stride);
  if (status !== 0) device.check("vi_channel_max", status);
}
