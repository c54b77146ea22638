/**
 * The engine's thread: a model, its caches and the requests over them, driven by messages.
 *
 * @module
 */

import { PAGE_TOKENS } from "../ops/ops.ts";
import { modelFingerprint } from "../weights/fingerprint.ts";
import { Batch } from "./batch.ts";
import { effectiveConfig, type EngineOptions, type EngineSizes, engineSizes, open, type Opened } from "./load.ts";
import {
  type CacheConfig,
  type EngineConfig,
  EngineError,
  type EngineStats,
  type GenerationEvent,
  type GenerationRequest,
} from "./request.ts";
import { bf16Bytes } from "./stats.ts";
import { Validation } from "./validation.ts";

/** Messages to the engine's thread. */
export type ToThread =
  | { type: "load"; options: EngineOptions }
  | { type: "generate"; id: number; cache: string; request: GenerationRequest }
  | { type: "cancel"; id: number }
  | { type: "clearPrefixes" }
  | { type: "close" };

/** Messages from the engine's thread. */
export type FromThread =
  | { type: "progress"; bytes: number; total: number }
  | { type: "loaded"; config: EngineConfig; stats: EngineStats }
  | { type: "failed"; message: string }
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
    } else if (message.type === "close" && !thread) port.post({ type: "closed" });
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

  /** Takes over what was opened. */
  private constructor(port: Port, opened: Opened, options: EngineOptions, sizes: EngineSizes) {
    const { path, model, tokenizer, caches } = opened, { sequences: rows, block, prefixes } = sizes;
    const { chatFallback = "plain" } = options;
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
    this.config = {
      caches: caches.map((cache): CacheConfig => ({
        ...effectiveConfig(path, model, cache),
        ...sizes,
        cacheTokens: cache.pageCount * PAGE_TOKENS,
        bf16BytesPerToken: bf16Bytes(cache.shape, PAGE_TOKENS) / PAGE_TOKENS,
      })),
      chatTemplate: tokenizer.hasChatTemplate ? "model" : chatFallback === "plain" ? "plain" : "none",
      fingerprint: modelFingerprint(path),
      vocabularySize: model.config.vocabularySize,
    };
    this.#validation = new Validation(tokenizer, model.config, this.config.chatTemplate);
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

  #submit(id: number, name: string, request: GenerationRequest): void {
    try {
      const batch = this.#batches.get(name);
      if (!batch) throw new EngineError("invalid_request", `there is no cache "${name}"`, "model");
      batch.submit(id, this.#validation.check(request, batch.context));
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
      this.#port.post({ type: "failed", message: `the device failed: ${EngineError.from(error).message}` });
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
      this.#opened[Symbol.dispose]();
    } finally {
      this.#port.post({ type: "closed" });
    }
  }

  stats(): EngineStats {
    return {
      caches: Object.fromEntries([...this.#batches].map(([name, batch]) => [name, batch.stats()])),
      deviceBytes: this.#opened.device.memory().allocated,
    };
  }
}
