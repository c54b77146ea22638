/**
 * Options that several scripts share: which model, on what, with which cache.
 *
 * @module
 */

import type { EffectiveConfig, LoadOptions } from "../../mod.ts";
import { type Option, UsageError } from "./command.ts";

/** `--model`, `--device`, `--threads`, `--library`. */
export const MODEL_OPTIONS = {
  model: {
    type: "string",
    short: "m",
    default: "assets/tiny-llama",
    help: "model folder in Hugging Face layout, or GGUF file",
  },
  device: { type: "string", short: "d", default: "auto", help: "auto, cpu, cuda or cuda:N" },
  threads: { type: "number", default: 0, help: "CPU threads, 0 = all" },
  library: { type: "string", help: "native library, or its folder" },
} as const satisfies Record<string, Option>;

/** `--sinks`, `--window`, `--calibration`. */
export const CACHE_OPTIONS = {
  sinks: { type: "number", default: 4, help: "first positions kept exactly" },
  window: { type: "number", default: 128, help: "newest positions kept exactly" },
  calibration: { type: "string", help: 'calibration file, or "data-free" (default: beside the model)' },
} as const satisfies Record<string, Option>;

/** Device options as the library takes them; a bad device name is bad use. */
export function deviceOptions(
  options: { device: string; threads: number; library: string | undefined },
): Pick<LoadOptions, "device" | "threads" | "library"> {
  if (!/^(auto|cpu|cuda(:\d+)?)$/.test(options.device)) {
    throw new UsageError(`--device is "${options.device}"; auto, cpu, cuda or cuda:N is needed`);
  }
  return { device: options.device as LoadOptions["device"], threads: options.threads, library: options.library };
}

/** Runs a check of what the user gave; a RangeError in it is bad use. */
export function checked<T>(check: () => T): T {
  try {
    return check();
  } catch (error) {
    if (error instanceof RangeError) throw new UsageError(error.message);
    throw error;
  }
}

/** A whole number of at least `least`, or bad use. */
export function whole(name: string, value: number, least: number = 1): number {
  if (!Number.isInteger(value) || value < least) {
    throw new UsageError(`--${name} is ${value}; a whole number from ${least} on is needed`);
  }
  return value;
}

/** Bytes with a unit, for people. */
export function bytesText(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(Math.max(0, Math.floor(Math.log2(Math.max(bytes, 1)) / 10)), 4);
  return `${(bytes / 2 ** (10 * power)).toFixed(power === 0 ? 0 : 2)} ${units[power]}`;
}

/** Columns aligned: the first to the left, the others to the right. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows.map((row) =>
    row.map((cell, column) => column === 0 ? cell.padEnd(widths[column]) : cell.padStart(widths[column])).join("  ")
      .trimEnd()
  ).join("\n");
}

/** The effective configuration in a few lines. */
export function configText(config: EffectiveConfig): string {
  return [
    `model        ${config.model} (${bytesText(config.weightBytes)} of weights)`,
    `device       ${config.device}`,
    `library      ${config.library}`,
    `cache        ${config.kv}: keys ${config.keys}, values ${config.values}, sinks ${config.sinks}, window ${config.window}`,
    ...(config.slidingLayers === 0 ? [] : [
      `layers       ${config.growingLayers} as the cache says, ${config.slidingLayers} with a sliding window in bf16`,
    ]),
    `calibration  ${config.calibration}`,
    `context      ${config.context} tokens, ${config.bytesPerToken} bytes a token, ` +
    `${config.effectiveBits.toFixed(2)} effective bits, ${bytesText(config.cacheBytes)} allocated`,
    ...(config.beyondTraining === undefined ? [] : [`warning      ${config.beyondTraining}`]),
    ...(config.rope === undefined ? [] : [`rotation     ${config.rope}`]),
    ...(config.attention === undefined ? [] : [`attention    ${config.attention}`]),
  ].join("\n");
}
