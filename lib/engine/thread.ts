/**
 * The engine's thread: a model, its caches and the requests over them, driven by messages.
 *
 * @module
 */

import { PAGE_TOKENS } from "../ops/ops.ts";
import { modelFingerprint } from "../weights/fingerprint.ts";
import { Chat } from "../chat/chat.ts";
import { Batch } from "./batch.ts";
import { chatTemplateOf } from "./encoder.ts";
import { effectiveConfig, type EngineOptions, type EngineSizes, engineSizes, open, type Opened } from "./load.ts";
import {
  type CacheConfig,
  type EngineConfig,
  EngineError,
  type EngineStats,
  type GenerationEvent,
  type GenerationRequest,
  type Owner,
} from "./request.ts";
import { bf16Bytes } from "./stats.ts";
import { Validation } from "./validation.ts";

/** Messages to the engine's thread. */
export type ToThread =
  | { type: "load"; options: EngineOptions }
  | { type: "generate"; id: number; cache: string; request: GenerationRequest; ids: readonly number[]; owner: Owner }
  | { type: "cancel"; id: number }
  | { type: "clearPrefixes" }
  | { type: "beat" }
  | { type: "close" };

/** Messages from the engine's thread. */
export type FromThread =
  | { type: "progress"; bytes: number; total: number }
  | { type: "loaded"; config: EngineConfig; stats: EngineStats }
  | { type: "failed"; message: string }
  | { type: "beat" }
  | { type: "events"; events: { id: number; event: GenerationEvent }[]; stats: EngineStats | undefined }
  | { type: "closed" };

/** How messages come and go. */
export interface Port {
  /** Sends a message. */
  post(message: FromThread): void;
  /** Sets what receives messages. */
  listen(receive: (message: ToThread) => void): void;
  /** Lets messages come in. */
  turn(): Promise<void>;
}

/** Milliseconds between reports of the engine's use while it runs. */
const STATS_INTERVAL = 100;

/** Runs an engine over a port. */
export function serveMessages(port: Port): void {
  let thread: EngineThread | undefined;
  port.listen((message) => {
    if (message.type === "load") {
      EngineThread.load(message.options, port).then((loaded) => {
        thread = loaded;
        port.post({ type: "loaded", config: loaded.config, stats: loaded.stats() });
      }, (error: unknown) => port.post({ type: "failed", message: EngineError.from(error).message }));
    } else if (message.type === "beat") port.post({ type: "beat" });
    else if (message.type === "close" && !thread) port.post({ type: "closed" });
    else thread?.receive(message);
  });
}

/** A loaded model with its caches. */
class EngineThread {
  readonly config: EngineConfig;
  readonly #port: Port;
  readonly #opened: Opened;
  readonly #validation: Validation;
  readonly #batches = new Map<string, Batch>();
  #events: { id: number; event: GenerationEvent }[] = [];
  #reported = 0;
  #running = false;
  #closing = false;
  #closed = false;

  /** Takes over what was opened. */
  private constructor(port: Port, opened: Opened, options: EngineOptions, sizes: EngineSizes) {
    const { path, model, tokenizer, caches } = opened, { sequences: rows, block, prefixes } = sizes;
    this.#port = port;
    this.#opened = opened;
    const emit = (id: number, event: GenerationEvent) => void this.#events.push({ id, event });
    try {
      for (const cache of caches) {
        this.#batches.set(cache.config.name, new Batch(model, cache, tokenizer, { rows, block, prefixes }, emit));
      }
    } catch (error) {
      for (const batch of this.#batches.values()) batch[Symbol.dispose]();
      throw error;
    }
    const chat = new Chat(tokenizer, !tokenizer.hasChatTemplate, options.toolForm);
    this.config = {
      caches: caches.map((cache): CacheConfig => ({
        ...effectiveConfig(path, model, cache),
        ...sizes,
        cacheTokens: cache.pageCount * PAGE_TOKENS,
        bf16BytesPerToken: bf16Bytes(cache.shape, PAGE_TOKENS) / PAGE_TOKENS,
      })),
      chatTemplate: chatTemplateOf(tokenizer, options.chatFallback),
      tools: { prompt: chat.toolPrompt, form: chat.form.name },
      fingerprint: modelFingerprint(path),
      vocabularySize: model.config.vocabularySize,
      trainedContext: model.config.contextLength,
      hiddenSize: model.config.hiddenSize,
    };
    this.#validation = new Validation(tokenizer, model.config, chat);
  }

  static async load(options: EngineOptions, port: Port): Promise<EngineThread> {
    const sizes = engineSizes(options), { model, kv } = options;
    const onProgress = (bytes: number, total: number) => port.post({ type: "progress", bytes, total });
    const opened = await open(model, { kv, ...sizes }, { ...options, onProgress });
    try {
      return new EngineThread(port, opened, options, sizes);
    } catch (error) {
      opened[Symbol.dispose]();
      throw error;
    }
  }

  receive(message: ToThread): void {
    if (this.#closed) return;
    try {
      this.#obey(message);
    } catch (error) {
      return this.#fail(error);
    }
    if (!this.#running) void this.#run();
  }

  #obey(message: ToThread): void {
    switch (message.type) {
      case "generate":
        this.#submit(message);
        break;
      case "cancel":
        for (const batch of this.#batches.values()) batch.cancel(message.id);
        break;
      case "clearPrefixes":
        for (const batch of this.#batches.values()) batch.clearPrefixes();
        break;
      case "close":
        this.#closing = true;
    }
  }

  #submit({ id, cache, request, ids, owner }: Extract<ToThread, { type: "generate" }>): void {
    try {
      const batch = this.#batches.get(cache);
      if (!batch) throw new EngineError("invalid_request", `there is no cache "${cache}"`, "model");
      batch.submit(id, { ...this.#validation.check(request, ids, batch.context), ...owner });
    } catch (error) {
      this.#events.push({ id, event: { type: "error", error: EngineError.from(error).data } });
    }
  }

  /** Runs until nothing is left to do. An error here is of the device itself: what fails of a request ends that request. */
  async #run(): Promise<void> {
    this.#running = true;
    try {
      while (!this.#closing && this.#turn()) await this.#port.turn();
    } catch (error) {
      this.#fail(error);
    }
    this.#running = false;
    if (this.#closing && !this.#closed) this.#close();
  }

  /** Gives back what can be given back, and is of no use from here on. */
  #fail(error: unknown): void {
    this.#closed = true;
    try {
      this.#free();
    } catch { // of a device that failed
    }
    this.#port.post({ type: "failed", message: `the device failed: ${EngineError.from(error).message}` });
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
    this.#closed = true;
    try {
      this.#free();
    } finally {
      this.#port.post({ type: "closed" });
    }
  }

  #free(): void {
    for (const batch of this.#batches.values()) batch[Symbol.dispose]();
    this.#opened[Symbol.dispose]();
  }

  stats(): EngineStats {
    return {
      caches: Object.fromEntries([...this.#batches].map(([name, batch]) => [name, batch.stats()])),
      deviceBytes: this.#opened.device.memory().allocated,
    };
  }
}
