/**
 * The engine's loop: a model, its caches and the requests over them, driven by messages.
 *
 * @module
 */

import { Device } from "../device.ts";
import { KvCache } from "../cache/cache.ts";
import { bf16Calibration, describeCalibration } from "../cache/calibration.ts";
import { cacheBytes, effectiveBits } from "../cache/bytes.ts";
import { DEFAULT_KV, kvConfig } from "../cache/scheme.ts";
import { type Model, openModel } from "../models/model.ts";
import type { ChatMessage, Tokenizer } from "../tokenizer/tokenizer.ts";
import { StopMatcher } from "../tokenizer/stop.ts";
import { modelFingerprint } from "../weights/fingerprint.ts";
import { localPath } from "../weights/local.ts";
import { Batch, TOP_LOGPROBS } from "./batch.ts";
import { biasOf, settingsOf } from "./generation.ts";
import { Grammar } from "../grammar/grammar.ts";
import { jsonGrammar } from "../grammar/json_schema.ts";
import { openTokenizer } from "./tokenizer.ts";
import { EMBEDDED_MODEL, loadCalibration, type LoadOptions } from "./language_model.ts";
import {
  type CacheConfig,
  type EngineConfig,
  EngineError,
  type EngineErrorData,
  type EngineStats,
  type GenerationEvent,
  type GenerationRequest,
} from "./request.ts";

/** What an engine loads, and how much it takes on. */
export interface EngineOptions
  extends Pick<LoadOptions, "device" | "threads" | "library" | "sinks" | "window" | "calibration" | "context"> {
  /** Model folder. Default: the embedded model. */
  model?: string;
  /** Caches on offer, by preset or format; the first is the default. Default {@linkcode DEFAULT_KV} alone. */
  kv?: readonly string[];
  /** Sequences of a cache that are answered at once. Default 16. */
  sequences?: number;
  /** Requests that may wait for a cache. Default 64. */
  queue?: number;
  /** Tokens of all sequences of a cache together, prefix states included. Default `sequences * context`. */
  cacheTokens?: number;
  /** Prefix states that a cache keeps at most; 0 shares nothing. Default 16. */
  prefixes?: number;
  /** Tokens of a prompt that attend to each other exactly; a multiple of 64. Prompts share whole blocks. Default 128. */
  block?: number;
  /** What to do with a chat where the model has no template: join the messages' texts by blank lines, or refuse. Default "plain". */
  chatFallback?: "plain" | "refuse";
}

/** Messages to the engine's thread. */
export type ToWorker =
  | { type: "load"; options: EngineOptions }
  | { type: "generate"; id: number; cache: string; request: GenerationRequest }
  | { type: "cancel"; id: number }
  | { type: "clearPrefixes" }
  | { type: "close" };

/** Messages from the engine's thread. */
export type FromWorker =
  | { type: "progress"; bytes: number; total: number }
  | { type: "loaded"; config: EngineConfig; stats: EngineStats }
  | { type: "failed"; message: string }
  | { type: "events"; events: { id: number; event: GenerationEvent }[]; stats: EngineStats | undefined }
  | { type: "closed" };

/** How messages come and go. */
export interface Port {
  /** Sends a message. */
  post(message: FromWorker): void;
  /** Sets what receives messages. */
  listen(receive: (message: ToWorker) => void): void;
  /** Lets messages come in. */
  turn(): Promise<void>;
}

/** Milliseconds between reports of the engine's use while it runs. */
const STATS_INTERVAL = 100;

/** Runs an engine over a port. */
export function serveMessages(port: Port): void {
  let host: Host | undefined;
  port.listen((message) => {
    if (message.type === "load") {
      Host.load(message.options, port).then((loaded) => {
        host = loaded;
        port.post({ type: "loaded", config: loaded.config, stats: loaded.stats() });
      }, (error: unknown) => {
        port.post({ type: "failed", message: error instanceof Error ? error.message : String(error) });
      });
    } else if (message.type === "close" && !host) port.post({ type: "closed" });
    else host?.receive(message);
  });
}

/** A loaded model with its caches. */
class Host {
  readonly config: EngineConfig;
  readonly #port: Port;
  readonly #device: Device;
  readonly #model: Model;
  readonly #tokenizer: Tokenizer;
  readonly #caches: Map<string, KvCache>;
  readonly #batches = new Map<string, Batch>();
  #events: { id: number; event: GenerationEvent }[] = [];
  #reported = 0;
  /** Bytes of the longest token. */
  #longest: number | undefined;
  #running = false;
  #closing = false;

  private constructor(
    port: Port,
    parts: { device: Device; model: Model; tokenizer: Tokenizer; caches: Map<string, KvCache> },
    batch: { rows: number; block: number; prefixes: number },
    config: EngineConfig,
  ) {
    this.#port = port;
    this.config = config;
    ({ device: this.#device, model: this.#model, tokenizer: this.#tokenizer, caches: this.#caches } = parts);
    for (const [name, cache] of this.#caches) {
      const emit = (id: number, event: GenerationEvent) => void this.#events.push({ id, event });
      this.#batches.set(name, new Batch(this.#model, cache, this.#tokenizer, batch, emit));
    }
  }

  static async load(options: EngineOptions, port: Port): Promise<Host> {
    const { kv = [DEFAULT_KV], sequences = 16, queue = 64, block = 128, chatFallback = "plain" } = options;
    const prefixes = options.prefixes ?? 16;
    for (
      const [name, value, least] of [["sequences", sequences, 1], ["queue", queue, 0], [
        "prefixes",
        prefixes,
        0,
      ]] as const
    ) {
      if (!Number.isInteger(value) || value < least) {
        throw new RangeError(`${name} is ${value}; at least ${least} is needed`);
      }
    }
    if (!Number.isInteger(block) || block < 64 || block % 64 !== 0) {
      throw new RangeError(`block is ${block}; a multiple of 64 is needed`);
    }
    const folder = localPath(options.model ?? EMBEDDED_MODEL), owned = new DisposableStack();
    try {
      const tokenizer = openTokenizer(folder), device = owned.use(Device.open(options));
      const model = owned.use(
        await openModel(device, folder, {
          onProgress: (bytes, total) => port.post({ type: "progress", bytes, total }),
        }),
      );
      const context = options.context ?? Math.min(model.config.contextLength, 8192);
      const caches = new Map<string, KvCache>(), configs: CacheConfig[] = [], none = bf16Calibration();
      for (const spec of kv) {
        const config = kvConfig(spec, options),
          calibration = loadCalibration(folder, model, config, options.calibration);
        // Prefix states have slots of their own. They share pages with each other and with what runs.
        const cache = owned.use(
          new KvCache(device, model.cacheShape, config, calibration, {
            context,
            sequences: sequences + prefixes,
            tokens: options.cacheTokens ?? sequences * Math.ceil(context / 64) * 64,
          }),
        );
        const { total } = cacheBytes(cache.shape, config, calibration, context);
        caches.set(config.name, cache);
        configs.push({
          model: folder,
          device: `${device.name} (${device.info.device})`,
          library: device.library,
          kv: config.name,
          keys: config.keys.name,
          values: config.values.name,
          sinks: config.sinks,
          window: config.window,
          calibration: describeCalibration(calibration),
          context,
          bytesPerToken: cache.bytesPerToken,
          effectiveBits: effectiveBits(cache.shape, total, context),
          weightBytes: model.weightBytes,
          cacheBytes: cache.bytes().total,
          sequences,
          queue,
          cacheTokens: cache.pageCount * 64,
          bf16BytesPerToken: cacheBytes(cache.shape, kvConfig("bf16"), none, 64).pages / 64,
          block,
          prefixes,
        });
      }
      const chatTemplate = tokenizer.hasChatTemplate ? "model" : chatFallback === "plain" ? "plain" : "none";
      const host = new Host(port, { device, model, tokenizer, caches }, { rows: sequences, block, prefixes }, {
        caches: configs,
        chatTemplate,
        fingerprint: modelFingerprint(folder),
        vocabularySize: model.config.vocabularySize,
      });
      owned.move();
      return host;
    } catch (error) {
      owned.dispose();
      throw error;
    }
  }

  receive(message: ToWorker): void {
    switch (message.type) {
      case "generate":
        this.#submit(message.id, message.cache, message.request);
        break;
      case "cancel":
        for (const batch of this.#batches.values()) batch.cancel(message.id);
        break;
      case "clearPrefixes":
        for (const batch of this.#batches.values()) batch.clearPrefixes();
        break;
      case "close":
        this.#closing = true;
        break;
    }
    if (!this.#running) void this.#run();
  }

  #submit(id: number, cache: string, request: GenerationRequest): void {
    try {
      const batch = this.#batches.get(cache);
      if (!batch) throw new EngineError("invalid_request", `there is no cache "${cache}"`, "model");
      const { vocabularySize } = this.#model.config, { context } = this.#caches.get(cache)!;
      const ids = this.#encode(request, context);
      if (ids.length === 0) throw new EngineError("invalid_request", "the prompt has no tokens", "prompt");
      // The last generated token needs no room: nothing follows it.
      const room = context - ids.length + 1, maxTokens = Math.min(request.maxTokens ?? room, room);
      if (room < 1 || (request.maxTokens ?? 1) > room) {
        throw new EngineError(
          "context_length",
          `This model's maximum context length is ${context} tokens. However, you requested ` +
            `${ids.length + (request.maxTokens ?? 1)} tokens (${ids.length} in the prompt, ` +
            `${request.maxTokens ?? "at least 1"} for the completion). Please reduce the length of either.`,
          "prompt",
        );
      }
      const sampling = request.sampling ?? {}, stop = request.stop ?? [], { logprobs } = request;
      if (logprobs !== undefined && !(Number.isInteger(logprobs) && logprobs >= 0 && logprobs <= TOP_LOGPROBS)) {
        throw new EngineError(
          "invalid_request",
          `${logprobs} log-probabilities were asked for; 0 to ${TOP_LOGPROBS} are possible`,
          "top_logprobs",
        );
      }
      try {
        settingsOf(sampling);
        biasOf(sampling, vocabularySize);
        new StopMatcher(stop);
      } catch (error) {
        throw error instanceof RangeError ? new EngineError("invalid_request", error.message) : error;
      }
      const grammar = request.json === undefined ? undefined : this.#grammar(request.json);
      batch.submit(id, { ids, maxTokens, sampling, stop, logprobs, grammar, n: request.n ?? 1 });
    } catch (error) {
      this.#events.push({ id, event: { type: "error", error: errorData(error) } });
    }
  }

  /** Throws for a text that cannot fit whatever its tokens, before time of everyone's goes into finding them. */
  #fits(text: string, context: number): string {
    this.#longest ??= Array.from({ length: this.#tokenizer.vocabularySize }, (_, id) => this.#tokenizer.tokenBytes(id))
      .reduce((most, { length }) => Math.max(most, length), 1);
    const least = Math.ceil(text.length / this.#longest);
    if (least <= context) return text;
    throw new EngineError(
      "context_length",
      `This model's maximum context length is ${context} tokens. However, the prompt has at least ${least}. ` +
        "Please reduce its length.",
      "prompt",
    );
  }

  #encode({ prompt }: GenerationRequest, context: number): number[] {
    if (typeof prompt === "string") return this.#tokenizer.encode(this.#fits(prompt, context));
    if (isTokens(prompt)) {
      const { vocabularySize } = this.#model.config;
      const foreign = prompt.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabularySize);
      if (foreign !== undefined) {
        throw new EngineError(
          "invalid_request",
          `token ${foreign} is outside the vocabulary of ${vocabularySize}`,
          "prompt",
        );
      }
      return [...prompt];
    }
    const { chatTemplate } = this.config;
    if (chatTemplate === "none") {
      throw new EngineError(
        "invalid_request",
        "the model has no chat template: use /v1/completions, or start the server with the plain chat fallback",
        "messages",
      );
    }
    if (chatTemplate === "plain") {
      const text = prompt.map(({ content }) => typeof content === "string" ? content : "").filter(Boolean).join("\n\n");
      return this.#tokenizer.encode(this.#fits(text, context), { parseSpecialTokens: false });
    }
    let text: string;
    try {
      text = this.#tokenizer.applyChatTemplate(prompt);
    } catch (error) {
      throw new EngineError("invalid_request", (error as Error).message, "messages");
    }
    return this.#tokenizer.encode(this.#fits(text, context), { addSpecialTokens: false });
  }

  #grammar(json: NonNullable<GenerationRequest["json"]>): Grammar {
    try {
      return jsonGrammar(json, this.#tokenizer.vocabulary, {
        size: this.#model.config.vocabularySize,
        ends: [...new Set(this.#tokenizer.eosIds.concat(this.#model.config.eosIds))],
      });
    } catch (error) {
      throw error instanceof RangeError ? new EngineError("invalid_request", error.message, "response_format") : error;
    }
  }

  /** Runs until nothing is left to do. An error here is of the device itself: what fails of a request ends that request. */
  async #run(): Promise<void> {
    this.#running = true;
    try {
      while (!this.#closing && this.#turn()) await this.#port.turn();
    } catch (error) {
      this.#port.post({ type: "failed", message: `the device failed: ${errorData(error).message}` });
    }
    this.#running = false;
    if (this.#closing) this.#close();
  }

  /** A step of every batch, and what it brought. False where nothing is left to do. */
  #turn(): boolean {
    let busy = false;
    for (const batch of this.#batches.values()) busy = batch.step() || busy;
    const now = performance.now(), due = !busy || now - this.#reported > STATS_INTERVAL;
    if (due) this.#reported = now;
    if (this.#events.length > 0 || due) {
      this.#port.post({ type: "events", events: this.#events, stats: due ? this.stats() : undefined });
      this.#events = [];
    }
    return busy;
  }

  #close(): void {
    try {
      for (const batch of this.#batches.values()) batch[Symbol.dispose]();
      for (const cache of this.#caches.values()) cache[Symbol.dispose]();
      this.#model[Symbol.dispose]();
      this.#device[Symbol.dispose]();
    } finally {
      this.#port.post({ type: "closed" });
    }
  }

  stats(): EngineStats {
    return {
      caches: Object.fromEntries([...this.#batches].map(([name, batch]) => [name, batch.stats()])),
      deviceBytes: this.#device.memory().allocated,
    };
  }
}

function isTokens(prompt: readonly number[] | readonly ChatMessage[]): prompt is readonly number[] {
  return prompt.length === 0 || typeof prompt[0] === "number";
}

function errorData(error: unknown): EngineErrorData {
  if (error instanceof EngineError) return error.data;
  return { code: "internal", message: error instanceof Error ? error.message : String(error) };
}
