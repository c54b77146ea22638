/**
 * A model, its tokenizer and its cache in one object: the way in for programs.
 *
 * @module
 */

import { Device, type DeviceOptions } from "../device.ts";
import { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import { type Calibration, describeCalibration, findCalibration } from "../cache/calibration.ts";
import { cacheBytes, effectiveBits } from "../cache/bytes.ts";
import { DEFAULT_KV, type KvConfig, kvConfig, type KvSpec } from "../cache/scheme.ts";
import { type Model, openModel } from "../models/model.ts";
import { syntheticConfig, syntheticModel } from "../models/synthetic.ts";
import type { ChatMessage, Tokenizer } from "../tokenizer/tokenizer.ts";
import { StopMatcher } from "../tokenizer/stop.ts";
import { isGguf } from "../weights/config.ts";
import { modelFingerprint } from "../weights/fingerprint.ts";
import { localPath } from "../weights/local.ts";
import { Decoder, type SamplingOptions } from "./generation.ts";
import { syntheticCalibration } from "../calibration/synthetic.ts";
import { openTokenizer } from "./tokenizer.ts";

/** The model that ships with the package. */
export const EMBEDDED_MODEL: URL = new URL("../../assets/tiny-llama", import.meta.url);

/** Options of {@linkcode LanguageModel.load}. */
export interface LoadOptions extends DeviceOptions {
  /** How the cache keeps keys and values: a preset ("bf16", "vq4" ... "vq1"), or keys and values apart. Default {@linkcode DEFAULT_KV}. */
  kv?: KvSpec;
  /** First positions kept exactly. Default 4. */
  sinks?: number;
  /** Newest positions kept exactly. Default 128. */
  window?: number;
  /** A calibration file, or "data-free". Default: `<preset>.vecinfer.safetensors` beside the model, else data-free. */
  calibration?: string;
  /** Longest sequence in tokens. Default: the model's own, at most 8192. */
  context?: number;
  /** Sequences that may exist at once. Default 1. */
  sequences?: number;
  /** Tokens of all sequences together. Default `sequences * context`. */
  cacheTokens?: number;
  /** Called with bytes of weights read and in all. */
  onProgress?: (bytes: number, total: number) => void;
  /** Stops loading. */
  signal?: AbortSignal;
}

/** Options of {@linkcode LanguageModel.generate}. */
export interface GenerateOptions extends SamplingOptions {
  /** Tokens at most. Default: what the context has room for. */
  maxTokens?: number;
  /** Generation ends before the first of these strings. */
  stop?: readonly string[];
  /** Stops during the prompt or between tokens: the generator throws the signal's reason. */
  signal?: AbortSignal;
  /** Called as the prompt's layers are done. */
  onPrefill?: (done: number, total: number) => void;
}

/** Why generation ended: an end token or stop string, or the length. */
export type FinishReason = "stop" | "length";

/** A piece of generated text. Text may be empty while a character or a stop string is incomplete. */
export interface Piece {
  /** Text that is certain by now. */
  text: string;
  /** Tokens that led to it, with their log-probabilities. */
  tokens: { id: number; logprob: number }[];
  /** Set on the last piece. */
  finishReason?: FinishReason;
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
  /** Where the codebooks come from. */
  calibration: string;
  /** Longest sequence in tokens. */
  context: number;
  /** Bytes that each token takes in the cache. */
  bytesPerToken: number;
  /** Bits a channel over a full context, everything counted. */
  effectiveBits: number;
  /** Bytes of the weights. */
  weightBytes: number;
  /** Bytes of the cache. */
  cacheBytes: number;
}

/** A language model ready to generate. */
export class LanguageModel implements Disposable {
  /** Where it runs. */
  readonly device: Device;
  /** Weights and forward pass. */
  readonly model: Model;
  /** Keys and values. */
  readonly cache: KvCache;
  /** Folder or GGUF file of the model, or the name of a synthetic one. */
  readonly folder: string;
  readonly #tokenizer: Tokenizer | null;
  readonly #decoders: Decoder[] = [];

  private constructor(folder: string, device: Device, model: Model, tokenizer: Tokenizer | null, cache: KvCache) {
    this.folder = folder;
    this.device = device;
    this.model = model;
    this.#tokenizer = tokenizer;
    this.cache = cache;
  }

  /**
   * Loads a model folder in Hugging Face layout or a GGUF file (default: the embedded model). Throws WeightsError for files,
   * VecInferError for the device, RangeError for settings.
   */
  static async load(folder: string | URL = EMBEDDED_MODEL, options: LoadOptions = {}): Promise<LanguageModel> {
    const path = localPath(folder), config = kvConfig(options.kv ?? DEFAULT_KV, options);
    const tokenizer = openTokenizer(path);
    const device = Device.open(options);
    let model: Model | undefined, cache: KvCache | undefined;
    try {
      model = await openModel(device, path, options);
      const context = options.context ?? Math.min(model.config.contextLength, 8192);
      const calibration = loadCalibration(path, model, config, options.calibration);
      cache = new KvCache(device, model.cacheShape, config, calibration, {
        context,
        sequences: options.sequences,
        tokens: options.cacheTokens,
      });
      return new LanguageModel(path, device, model, tokenizer, cache);
    } catch (error) {
      cache?.[Symbol.dispose]();
      model?.[Symbol.dispose]();
      device[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Makes a model of a published shape ("llama-3.1-8b", "llama-3.2-1b", "qwen2.5-7b") with weights drawn from `seed`, for
   * speed and memory: it has no tokenizer, so give `generate` token ids. The default calibration is the data-free one;
   * "synthetic" is {@linkcode syntheticCalibration}.
   */
  static async synthetic(name: string, options: LoadOptions & { seed?: number } = {}): Promise<LanguageModel> {
    const shape = syntheticConfig(name), config = kvConfig(options.kv ?? DEFAULT_KV, options), { seed = 0 } = options;
    const device = Device.open(options), owned = new DisposableStack();
    owned.use(device);
    try {
      const model = owned.use(syntheticModel(device, shape, seed));
      const calibration = options.calibration === "synthetic"
        ? await syntheticCalibration(model, config, options.signal)
        : findCalibration(config, model.cacheShape, `${name} ${seed}`, { path: options.calibration, folders: [] });
      const context = options.context ?? Math.min(shape.contextLength, 8192);
      const sizes = { context, sequences: options.sequences, tokens: options.cacheTokens };
      const cache = new KvCache(device, model.cacheShape, config, calibration, sizes);
      return new LanguageModel(`synthetic ${name}, seed ${seed}`, device, model, null, cache);
    } catch (error) {
      owned.dispose();
      throw error;
    }
  }

  /** Text to tokens and back. Throws where the model is synthetic and has none. */
  get tokenizer(): Tokenizer {
    if (this.#tokenizer) return this.#tokenizer;
    throw new Error(`${this.folder}: a synthetic model has no tokenizer; give it token ids`);
  }

  /** The configuration in effect. */
  get config(): EffectiveConfig {
    const { keys, values, sinks, window, name } = this.cache.config, { calibration, context } = this.cache;
    const bytes = cacheBytes(this.cache.shape, this.cache.config, calibration, context).total;
    return {
      model: this.folder,
      device: `${this.device.name} (${this.device.info.device})`,
      library: this.device.native.path,
      kv: name,
      keys: keys.name,
      values: values.name,
      sinks,
      window,
      calibration: describeCalibration(calibration),
      context,
      bytesPerToken: this.cache.bytesPerToken,
      effectiveBits: effectiveBits(this.cache.shape, bytes, context),
      weightBytes: this.model.weightBytes,
      cacheBytes: this.cache.bytes().total,
    };
  }

  /** Token ids of a prompt: a text as it is, or messages through the model's chat template. */
  encode(prompt: string | readonly ChatMessage[]): number[] {
    if (typeof prompt === "string") return this.tokenizer.encode(prompt);
    const text = this.tokenizer.applyChatTemplate(prompt, { addGenerationPrompt: true });
    return this.tokenizer.encode(text, { addSpecialTokens: false });
  }

  /**
   * Generates a continuation, piece by piece. Uses a sequence of its own, freed at the end; pass `sequence` to continue
   * one (it then holds prompt and output but for the last token).
   */
  async *generate(
    prompt: string | readonly ChatMessage[] | readonly number[],
    options: GenerateOptions & { sequence?: Sequence } = {},
  ): AsyncGenerator<Piece, void, void> {
    const ids = isTokens(prompt) ? [...prompt] : this.encode(prompt);
    const vocabulary = this.model.config.vocabularySize;
    const foreign = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabulary);
    if (foreign !== undefined) {
      throw new RangeError(`prompt: token ${foreign} is outside the vocabulary of ${vocabulary}`);
    }
    if (ids.length === 0) throw new RangeError("prompt: there are no tokens");
    const past = options.sequence?.length ?? 0, room = this.cache.context - past - ids.length;
    if (room < 0) {
      throw new RangeError(
        `prompt: ${ids.length} tokens${
          past ? ` after ${past}` : ""
        } do not fit the context of ${this.cache.context}; ` +
          "shorten it, or load the model with a larger context",
      );
    }
    const { maxTokens = room + 1, stop = [] } = options;
    if (!Number.isInteger(maxTokens) || maxTokens < 1) {
      throw new RangeError(`maxTokens is ${maxTokens}; at least 1 is needed`);
    }
    const tokenizer = this.#tokenizer, silent = { push: (_: number) => "", flush: () => "" };
    const ends = new Set([...tokenizer?.eosIds ?? [], ...this.model.config.eosIds]);
    const detokenizer = tokenizer?.detokenizer() ?? silent, matcher = new StopMatcher([...stop]);
    const sequence = options.sequence ?? this.cache.sequence();
    const decoder = this.#decoders.pop() ?? new Decoder(this.model, this.cache);
    let held: Piece["tokens"] = [], count = 0;
    try {
      for await (const token of decoder.tokens(sequence, ids, options)) {
        held.push(token);
        if (ends.has(token.id)) {
          yield { text: matcher.push(detokenizer.flush()).text + matcher.flush(), tokens: held, finishReason: "stop" };
          return;
        }
        const { text, stopped } = matcher.push(detokenizer.push(token.id));
        if (stopped) {
          yield { text, tokens: held, finishReason: "stop" };
          return;
        }
        // The last token needs no room in the cache: nothing follows it.
        if (++count >= Math.min(maxTokens, room + 1)) {
          const rest = matcher.push(detokenizer.flush());
          const finishReason = rest.stopped ? "stop" : "length";
          yield { text: text + rest.text + (rest.stopped ? "" : matcher.flush()), tokens: held, finishReason };
          return;
        }
        if (text || !tokenizer) {
          yield { text, tokens: held };
          held = [];
        }
      }
    } finally {
      this.#decoders.push(decoder);
      if (!options.sequence) sequence[Symbol.dispose]();
    }
  }

  /** Generates a whole continuation at once. */
  async complete(
    prompt: string | readonly ChatMessage[] | readonly number[],
    options: GenerateOptions = {},
  ): Promise<Required<Piece>> {
    const out: Required<Piece> = { text: "", tokens: [], finishReason: "length" };
    for await (const piece of this.generate(prompt, options)) {
      out.text += piece.text;
      out.tokens.push(...piece.tokens);
      out.finishReason = piece.finishReason ?? out.finishReason;
    }
    return out;
  }

  /** Frees cache, weights and device. */
  [Symbol.dispose](): void {
    for (const decoder of this.#decoders.splice(0)) decoder[Symbol.dispose]();
    this.cache[Symbol.dispose]();
    this.model[Symbol.dispose]();
    this.device[Symbol.dispose]();
  }
}

function isTokens(prompt: string | readonly ChatMessage[] | readonly number[]): prompt is readonly number[] {
  return typeof prompt !== "string" && (prompt.length === 0 || typeof prompt[0] === "number");
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
