/**
 * What a model needs in memory, by cache preset, and the longest context that fits.
 *
 * @module
 */

import os from "node:os";
import { readModelConfig } from "../mod.ts";
import {
  cacheBytes,
  cacheShapeOf,
  effectiveBits,
  fitsHeadDim,
  isGguf,
  kvConfig,
  PAGE_TOKENS,
  parameterCount,
  PRESETS,
  presetScheme,
  type Scheme,
  syntheticConfig,
  weightBytesOf,
} from "../lib/ops/mod.ts";
import { command } from "./frame/command.ts";
import { bytesText, checked, MODEL_OPTIONS, table, whole } from "./frame/options.ts";

/** Bytes that a size such as "24GiB", "80GB" or "1000000" means. */
function sizeOf(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?$/i.exec(text.trim());
  if (!match) throw new RangeError(`--memory is "${text}"; a size such as 24GiB or 80GB is needed`);
  const power = match[2] ? "KMGT".indexOf(match[2].toUpperCase()) + 1 : 0;
  return Number(match[1]) * (match[3] ? 1024 : 1000) ** power;
}

/** The most tokens, in whole pages, that fit; null where any number does: memory does not grow beyond the windows of all layers. */
function longestContext(fits: (tokens: number) => boolean): number | null {
  let low = 0, high = 2 ** 31 / PAGE_TOKENS;
  if (fits(high * PAGE_TOKENS)) return null;
  while (low < high - 1) {
    const middle = Math.floor((low + high) / 2);
    if (fits(middle * PAGE_TOKENS)) low = middle;
    else high = middle;
  }
  return low * PAGE_TOKENS;
}

await command({
  name: "plan",
  summary: "weights and KV memory of a model by cache preset, and the longest context that fits",
  usage: "scripts/plan.ts [options]",
  options: {
    model: MODEL_OPTIONS.model,
    synthetic: { type: "string", help: "a published shape in place of a folder: llama-3.1-8b, ..." },
    context: { type: "number", short: "c", help: "tokens a sequence (default: the model's own limit)" },
    sequences: { type: "number", default: 1, help: "sequences at once" },
    memory: { type: "string", help: "memory to fit into, such as 24GiB or 80GB (default: this machine's)" },
    sinks: { type: "number", default: 4, help: "first positions kept exactly" },
    window: { type: "number", default: 128, help: "newest positions kept exactly" },
    "token-scale": { type: "boolean", help: "count an 8-bit scale a token and KV head" },
    "per-head": { type: "boolean", help: "count a codebook a KV head" },
    json: { type: "boolean", help: "print one JSON object" },
  },
}, ({ options }) => {
  const { synthetic } = options, name = synthetic ?? options.model;
  const config = synthetic === undefined ? readModelConfig(name) : checked(() => syntheticConfig(synthetic));
  const context = whole("context", options.context ?? config.contextLength);
  const sequences = whole("sequences", options.sequences);
  const memory = options.memory === undefined ? os.totalmem() : checked(() => sizeOf(options.memory!));
  const shape = cacheShapeOf(config);
  const parameters = parameterCount(config);
  // Of a folder config.json is enough; which matrices of a GGUF file are packed, and stay so, is in its head.
  const packed = synthetic === undefined && isGguf(name), weights = weightBytesOf(packed ? name : config);
  const kinds = Object.keys(PRESETS).map((name) => checked(() => kvConfig(name, options)))
    .filter((kv) => fitsHeadDim(kv, shape.headDim));
  const rows = kinds.map((kv) => {
    const { name } = kv;
    const { keys, values, ...rest } = presetScheme(name);
    const flags = {
      ...(options["token-scale"] && { tokenScale: true }),
      ...(options["per-head"] && { codebooks: "head" as const }),
    };
    const scheme: Scheme = { ...rest, keys: { ...keys, ...flags }, values: { ...values, ...flags } };
    const bytes = (tokens: number) => cacheBytes(shape, kv, scheme, tokens, sequences);
    const cache = bytes(context), longest = longestContext((tokens) => weights + bytes(tokens).total <= memory);
    return {
      kv: name,
      cacheBytes: cache.total,
      totalBytes: weights + cache.total,
      fits: weights + cache.total <= memory,
      effectiveBits: effectiveBits(shape, cache.total, context, sequences),
      longestContext: longest,
    };
  });
  if (options.json) {
    console.log(
      JSON.stringify({
        model: name,
        parameters,
        weightBytes: weights,
        context,
        sequences,
        memoryBytes: memory,
        rows,
      }),
    );
    return;
  }
  console.log(
    `${name}: ${(parameters / 1e6).toFixed(1)} M parameters, ${bytesText(weights)} of ${
      packed ? "" : "bf16 "
    }weights; ` +
      `${sequences} x ${context} tokens; memory ${bytesText(memory)}; activations come on top`,
  );
  console.log(table([
    ["cache", "KV", "weights + KV", "fits", "bits", "longest context"],
    ...rows.map((row) => [
      row.kv,
      bytesText(row.cacheBytes),
      bytesText(row.totalBytes),
      row.fits ? "yes" : "no",
      row.effectiveBits.toFixed(2),
      row.longestContext === null ? "any" : row.longestContext.toLocaleString("en-US"),
    ]),
  ]));
});
