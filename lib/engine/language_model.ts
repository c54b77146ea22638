/**
 * A model, its tokenizer and its cache in one object: the way in for programs.
 *
 * @module
 */

import { setImmediate } from "node:timers";
import { Chat } from "../chat/chat.ts";
import { Device } from "../device.ts";
import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import { type Calibration, findCalibration } from "../cache/calibration.ts";
import { checkHeadDim, defaultKv, type KvConfig, kvConfig, type KvSpec } from "../cache/scheme.ts";
import type { Model, OpenOptions } from "../models/model.ts";
import { syntheticConfig, syntheticModel } from "../models/synthetic.ts";
import type { ChatMessage, Tokenizer } from "../tokenizer/tokenizer.ts";
import { type EffectiveConfig, effectiveConfig, open, openCache, type RuntimeOptions } from "./load.ts";
import { Output } from "./output.ts";
import { type FinishReason, isTokens } from "./request.ts";
import { Runner, type RunnerRow } from "./runner.ts";
import type { SamplingOptions } from "./sampler.ts";
import { foreignToken } from "./validation.ts";

/** Options of {@linkcode LanguageModel.load}. */
export interface LoadOptions extends RuntimeOptions, OpenOptions {
  /** How the cache keeps keys and values: a preset ("bf16", "vq4" ... "vq1"), or keys and values apart. Default `DEFAULT_KV`; "bf16" where the model's head dimension has no codes. */
  kv?: KvSpec;
  /** Sequences that may exist at once. Default 1. */
  sequences?: number;
}

/** Options of {@linkcode LanguageModel.synthetic}. */
export interface SyntheticOptions extends Omit<LoadOptions, "calibration"> {
  /** A calibration, one to be made for the model, a file, or "data-free" (the default). */
  calibration?: Calibration | ((model: Model, config: KvConfig) => Calibration | Promise<Calibration>) | string;
  /** Seed of the weights. Default 0. */
  seed?: number;
}

/** Milliseconds that a prompt is read for before the caller gets a turn, in which it may stop it. */
const PROMPT_TURN = 20;

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

/** A piece of generated text. Text may be empty while a character or a stop string is incomplete. */
export interface Piece {
  /** Text that is certain by now. */
  text: string;
  /** Tokens that led to it, with their log-probabilities. */
  tokens: { id: number; logprob: number }[];
  /** Set on the last piece. */
  finishReason?: FinishReason;
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
  #chat: Chat | undefined;
  /** Runners that no generator uses. */
  readonly #runners: Runner[] = [];

  private constructor(folder: string, model: Model, tokenizer: Tokenizer | null, cache: KvCache) {
    this.folder = folder;
    this.device = model.device;
    this.model = model;
    this.#tokenizer = tokenizer;
    this.cache = cache;
  }

  /**
   * Loads a model folder in Hugging Face layout or a GGUF file (default: the embedded model). Throws WeightsError for files,
   * VecInferError for the device, RangeError for settings.
   */
  static async load(folder?: string | URL, options: LoadOptions = {}): Promise<LanguageModel> {
    const { kv, sequences = 1 } = options, sizes = { kv: kv === undefined ? undefined : [kv], sequences };
    const { path, model, tokenizer, caches: [cache] } = await open(folder, sizes, options);
    return new LanguageModel(path, model, tokenizer, cache);
  }

  /**
   * Makes a model of a published shape ("llama-3.1-8b", "qwen3-8b", "gemma3-12b", ...) with weights drawn from `seed`, for
   * speed and memory: it has no tokenizer, so give `generate` token ids. Throws as {@linkcode LanguageModel.load} does.
   */
  static async synthetic(name: string, options: SyntheticOptions = {}): Promise<LanguageModel> {
    const shape = syntheticConfig(name), { kv = defaultKv(shape.headDim), sequences = 1, seed = 0 } = options;
    const { calibration } = options, config = kvConfig(kv, options), owned = new DisposableStack();
    checkHeadDim(config, shape.headDim);
    try {
      const model = owned.use(syntheticModel(owned.use(Device.open(options)), shape, seed));
      const found = typeof calibration === "function"
        ? await calibration(model, config)
        : typeof calibration === "object"
        ? calibration
        : findCalibration(config, model.cacheShape, `${name} ${seed}`, { path: calibration, folders: [] });
      const cache = openCache(model, config, found, { sequences }, options);
      owned.move();
      return new LanguageModel(`synthetic ${name}, seed ${seed}`, model, null, cache);
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
    return effectiveConfig(this.folder, this.model, this.cache);
  }

  /** Token ids of a prompt: a text as it is, or messages through the model's chat template, calls of tools as it has them. */
  encode(prompt: string | readonly ChatMessage[]): number[] {
    if (typeof prompt === "string") return this.tokenizer.encode(prompt);
    this.#chat ??= new Chat(this.tokenizer, false);
    const { messages, options } = this.#chat.prepare(prompt);
    return this.tokenizer.renderChat(messages, options).encode();
  }

  /**
   * Generates a continuation, piece by piece. Uses a sequence of its own, freed at the end; pass `sequence` to continue
   * one (it then holds prompt and output but for the last token).
   */
  async *generate(
    prompt: string | readonly ChatMessage[] | readonly number[],
    options: GenerateOptions & { sequence?: Sequence } = {},
  ): AsyncGenerator<Piece, void, void> {
    const ids = isTokens(prompt) ? [...prompt] : this.encode(prompt), { maxTokens, room } = this.#room(ids, options);
    const tokenizer = this.#tokenizer;
    // The last token needs no room in the cache: nothing follows it.
    const limits = { maxTokens: Math.min(maxTokens, room + 1), stop: options.stop ?? [], sampling: options };
    const output = new Output(tokenizer, limits, this.model.config);
    const sequence = options.sequence ?? this.cache.sequence(),
      runner = this.#runners.pop() ?? new Runner(this.model, this.cache, 1);
    const row: RunnerRow = { sequence, logprobs: 0, next: -1 };
    let held: Piece["tokens"] = [];
    try {
      runner.start(0, ids, options);
      const reading = { signal: options.signal, onProgress: options.onPrefill };
      let turn = performance.now();
      for (const _ of this.model.prefillParts(runner.logits, sequence, ids, reading)) {
        if (performance.now() - turn < PROMPT_TURN) continue;
        await new Promise<void>((resolve) => setImmediate(resolve));
        turn = performance.now();
      }
      for (let [token] = runner.begin([row], 0);; [token] = runner.step([row])) {
        const { id, logprob } = token;
        if (id < 0) throw new Error(`decode: the logits at position ${sequence.length} are not numbers`);
        held.push({ id, logprob });
        const { text, reason } = output.push(id);
        if (reason) {
          yield { text, tokens: held, finishReason: reason };
          return;
        }
        if (text || !tokenizer) {
          yield { text, tokens: held };
          held = [];
        }
        await new Promise<void>((resolve) => setImmediate(resolve));
        options.signal?.throwIfAborted();
      }
    } finally {
      this.#runners.push(runner);
      if (!options.sequence) sequence[Symbol.dispose]();
    }
  }

  /** The tokens that may be generated after a prompt, and those that the context has room for. Throws RangeError for either. */
  #room(
    ids: readonly number[],
    options: GenerateOptions & { sequence?: Sequence },
  ): { maxTokens: number; room: number } {
    const vocabulary = this.model.config.vocabularySize, foreign = foreignToken(ids, vocabulary);
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
    const { maxTokens = room + 1 } = options;
    if (!Number.isInteger(maxTokens) || maxTokens < 1) {
      throw new RangeError(`maxTokens is ${maxTokens}; at least 1 is needed`);
    }
    return { maxTokens, room };
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
    for (const runner of this.#runners.splice(0)) runner[Symbol.dispose]();
    this.cache[Symbol.dispose]();
    this.model[Symbol.dispose]();
    this.device[Symbol.dispose]();
  }
}
