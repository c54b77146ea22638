/**
 * Opens what generating needs: device, tokenizer, model, calibrations and caches; and says what came of it.
 *
 * @module
 */

import { Device, type DeviceOptions } from "../device.ts";
import { describeAttention } from "../cache/attention.ts";
import { KvCache } from "../cache/cache.ts";
import { type Calibration, describeCalibration, findCalibration } from "../cache/calibration.ts";
import { cacheBytes, effectiveBits } from "../cache/bytes.ts";
import { growingLayers } from "../cache/ring.ts";
import { checkHeadDim, defaultKv, type KvConfig, kvConfig, type KvSpec } from "../cache/scheme.ts";
import { PAGE_TOKENS } from "../ops/ops.ts";
import { describeRope, type Model, openModel, type OpenOptions } from "../models/model.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { isGguf, readModelConfig } from "../weights/config.ts";
import { modelFingerprint } from "../weights/fingerprint.ts";
import { localPath } from "../weights/local.ts";
import { EMBEDDED_MODEL } from "./embedded.ts";
import { openTokenizer } from "./tokenizer.ts";

export { EMBEDDED_MODEL } from "./embedded.ts";

/** Longest sequence by default, where the model's own is not shorter. */
const CONTEXT = 8192;

/** What a model and its caches are opened with, wherever they run. Plain data, which can pass between threads. */
export interface RuntimeOptions extends DeviceOptions {
  /** First positions kept exactly. Default 4. */
  sinks?: number;
  /** Newest positions kept exactly. Default 128. */
  window?: number;
  /** A calibration file, or "data-free". Default: `<preset>.vecinfer.safetensors` beside the model, else data-free. */
  calibration?: string;
  /** Longest sequence in tokens. Default: the model's own, at most 8192. */
  context?: number;
  /** Tokens of all sequences of a cache together. Default `sequences * context`. */
  cacheTokens?: number;
}

/** What an engine loads, and how much it takes on. Plain data, which can pass between threads. */
export interface EngineOptions extends RuntimeOptions {
  /** Model folder. Default: the embedded model. */
  model?: string;
  /** Caches on offer, by preset or format; the first is the default. Default: as of {@linkcode CacheSizes}. */
  kv?: readonly string[];
  /** Sequences of a cache that are answered at once. Default 16. */
  sequences?: number;
  /** Requests that may wait for a cache. Default 64. */
  queue?: number;
  /** Prefix states that a cache keeps at most; 0 shares nothing. Default 16. */
  prefixes?: number;
  /** Tokens of a prompt that attend to each other exactly; a multiple of 64. Prompts share whole blocks. Default 128. */
  block?: number;
  /** What to do with a chat where the model has no template: join the messages' texts by blank lines, or refuse. Default "plain". */
  chatFallback?: "plain" | "refuse";
  /** How the model writes tool calls. Default: the form that its chat template is known by, else "hermes". */
  toolForm?: string;
  /** Seconds without a sign of life of its thread after which the engine counts as failed; 0 is never. Default 120. */
  watchdog?: number;
  /** Bytes of an answer that its reader may leave unread before it is ended. Default 8 MiB. */
  unreadBytes?: number;
}

/** How much an engine takes on; see {@linkcode EngineOptions}. */
export type EngineSizes = Readonly<Required<Pick<EngineOptions, "sequences" | "queue" | "prefixes" | "block">>>;

/** What it takes on where nothing is said. */
export const ENGINE_DEFAULTS: EngineSizes = {
  sequences: 16,
  queue: 64,
  prefixes: 16,
  block: 128,
};

/** The sizes in effect. Throws RangeError that names one that cannot be. */
export function engineSizes(options: EngineOptions): EngineSizes {
  const size = (name: keyof EngineSizes, least: number): number => {
    const value = options[name] ?? ENGINE_DEFAULTS[name];
    if (Number.isInteger(value) && value >= least) return value;
    throw new RangeError(`${name} is ${value}; at least ${least} is needed`);
  };
  const sizes = {
    sequences: size("sequences", 1),
    queue: size("queue", 0),
    prefixes: size("prefixes", 0),
    block: size("block", PAGE_TOKENS),
  };
  if (sizes.block % PAGE_TOKENS === 0) return sizes;
  throw new RangeError(`block is ${sizes.block}; a multiple of ${PAGE_TOKENS} is needed`);
}

/** The caches that {@linkcode open} makes. */
export interface CacheSizes {
  /** One cache for each. Default: `DEFAULT_KV` alone; "bf16" where the model's head dimension has no codes. */
  kv?: readonly KvSpec[];
  /** Sequences that run at once. */
  sequences: number;
  /** Slots besides, for sequences that share pages with others. Default none. */
  prefixes?: number;
}

/** A model that is ready to generate, with all that it needs. */
export interface Opened extends Disposable {
  /** Model folder or GGUF file. */
  readonly path: string;
  /** Where it runs. */
  readonly device: Device;
  /** Text to tokens and back. */
  readonly tokenizer: Tokenizer;
  /** Weights and forward pass. */
  readonly model: Model;
  /** Keys and values, a cache for each kind that was asked for. */
  readonly caches: readonly KvCache[];
}

/**
 * Opens a model folder in Hugging Face layout or a GGUF file (default: the embedded model), and a cache of each kind. Throws
 * WeightsError and TokenizerError for files, VecInferError for the device, RangeError for settings.
 */
export async function open(
  model: string | URL | undefined,
  sizes: CacheSizes,
  options: RuntimeOptions & OpenOptions,
): Promise<Opened> {
  const path = localPath(model ?? EMBEDDED_MODEL), given = sizes.kv?.map((kv) => kvConfig(kv, options));
  const tokenizer = openTokenizer(path), { headDim } = readModelConfig(path), owned = new DisposableStack();
  const configs = given ?? [kvConfig(defaultKv(headDim), options)];
  for (const config of configs) checkHeadDim(config, headDim);
  try {
    const device = owned.use(Device.open(options)), model = owned.use(await openModel(device, path, options));
    const caches = configs.map((config) =>
      owned.use(openCache(model, config, loadCalibration(path, model, config, options.calibration), sizes, options))
    );
    const all = owned.move();
    return { path, device, tokenizer, model, caches, [Symbol.dispose]: () => all.dispose() };
  } catch (error) {
    owned.dispose();
    throw error;
  }
}

/** Makes a model's cache. Prefix states have slots of their own, and share pages with each other and with what runs. */
export function openCache(
  model: Model,
  config: KvConfig,
  calibration: Calibration,
  { sequences, prefixes = 0 }: Omit<CacheSizes, "kv">,
  options: Pick<RuntimeOptions, "context" | "cacheTokens">,
): KvCache {
  const context = options.context ?? Math.min(model.config.contextLength, CONTEXT);
  return new KvCache(model.device, model.cacheShape, config, calibration, {
    context,
    sequences: sequences + prefixes,
    tokens: options.cacheTokens ?? sequences * Math.ceil(context / PAGE_TOKENS) * PAGE_TOKENS,
  });
}

/** What a model runs with, as effective: for reports. */
export interface EffectiveConfig {
  /** Folder of the model. */
  model: string;
  /** "cpu" or "cuda:N", and its name. */
  device: string;
  /** Path of the native library. */
  library: string;
  /** Preset or formats of the cache. */
  kv: string;
  /** Format of the keys. */
  keys: string;
  /** Format of the values. */
  values: string;
  /** Positions kept exactly at the start. */
  sinks: number;
  /** Positions kept exactly at the end. */
  window: number;
  /** Layers whose cache grows with a sequence, kept as `keys` and `values` say. */
  growingLayers: number;
  /** Layers with a sliding window, which keep its tokens in bf16 and no others. */
  slidingLayers: number;
  /** Where the codebooks come from. */
  calibration: string;
  /** Longest sequence in tokens. */
  context: number;
  /** Said where it is longer than the model was trained for. */
  beyondTraining?: string;
  /** How queries and keys are rotated, where the context decides it. */
  rope?: string;
  /** What attention reads by the slower kernel for any pair of formats, where it does. */
  attention?: string;
  /** Bytes that each token takes in the cache. */
  bytesPerToken: number;
  /** Bits a channel over a full context, everything counted. */
  effectiveBits: number;
  /** Bytes of the weights. */
  weightBytes: number;
  /** Bytes of the cache. */
  cacheBytes: number;
}

function beyondTraining(tokens: number): string {
  return `the model was trained for ${tokens} tokens; what it writes behind them is likely to be worse`;
}

/** The configuration in effect of a model with one of its caches. */
export function effectiveConfig(path: string, model: Model, cache: KvCache): EffectiveConfig {
  const { device } = model,
    rope = describeRope(model.config),
    { calibration, context, shape } = cache,
    attention = describeAttention(device.info, shape, calibration),
    { name, keys, values, sinks, window } = cache.config,
    growing = growingLayers(shape).length;
  return {
    model: path,
    device: `${device.name} (${device.info.device})`,
    library: device.native.path,
    kv: name,
    keys: keys.name,
    values: values.name,
    sinks,
    window,
    growingLayers: growing,
    slidingLayers: shape.layers - growing,
    calibration: describeCalibration(calibration),
    context,
    ...(context > model.config.contextLength && { beyondTraining: beyondTraining(model.config.contextLength) }),
    ...(rope !== undefined && { rope }),
    ...(attention !== undefined && { attention }),
    bytesPerToken: cache.bytesPerToken,
    effectiveBits: effectiveBits(shape, cacheBytes(shape, cache.config, calibration, context).total, context),
    weightBytes: model.weightBytes,
    cacheBytes: cache.bytes().total,
  };
}

/** Where a model's calibration is kept: `calibration` in its folder, or, for `x.gguf`, `x.calibration` beside it. */
export function calibrationFolder(model: string): string {
  return isGguf(model) ? model.replace(/\.gguf$/i, ".calibration") : `${model}/calibration`;
}

/** The calibration of a model for `config`: an explicit file, the model's own folder, or the data-free scheme. */
export function loadCalibration(folder: string, model: Model, config: KvConfig, path?: string): Calibration {
  return findCalibration(config, model.cacheShape, modelFingerprint(folder), {
    path,
    folders: isGguf(folder) ? [calibrationFolder(folder)] : [folder, calibrationFolder(folder)],
  });
}
