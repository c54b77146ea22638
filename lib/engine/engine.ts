/**
 * A model on a thread of its own, as the rest of a program sees it: requests in, streams of events out.
 *
 * @module
 */

import type { EngineOptions } from "./load.ts";
import {
  type EngineConfig,
  EngineError,
  type EngineStats,
  type GenerationEvent,
  type GenerationRequest,
} from "./request.ts";
import type { FromThread, ToThread } from "./thread.ts";

export type { EngineOptions } from "./load.ts";

/** Where an engine is in its life. */
export type EngineState = "loading" | "ready" | "failed" | "closed";

interface Stream {
  readonly cache: string;
  readonly events: GenerationEvent[];
  wake: (() => void) | undefined;
}

/** Options of {@linkcode Engine.generate}. */
export interface EngineGenerateOptions {
  /** Name of the cache. Default: the first. */
  cache?: string;
  /** Ends the request wherever it is; the generator throws EngineError (cancelled). */
  signal?: AbortSignal;
}

/** Runs requests on a worker thread with continuous batching. */
export class Engine {
  /** Resolves when the model is loaded; rejects with what went wrong. */
  readonly ready: Promise<EngineConfig>;
  readonly #worker: Worker;
  readonly #streams = new Map<number, Stream>();
  #state: EngineState = "loading";
  #config: EngineConfig | undefined;
  #stats: EngineStats | undefined;
  #problem = "";
  #closed: (() => void) | undefined;
  #next = 1;

  /** Starts the thread and loads the model. */
  constructor(options: EngineOptions = {}, onProgress?: (bytes: number, total: number) => void) {
    this.#worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
    this.ready = new Promise((resolve, reject) => {
      const fail = (message: string): void => {
        if (this.#state === "closed") return;
        this.#state = "failed";
        this.#problem = message;
        reject(new Error(message));
        for (const [id] of this.#streams) this.#deliver(id, { type: "error", error: { code: "unavailable", message } });
      };
      this.#worker.onmessage = ({ data }: MessageEvent<FromThread>) => {
        switch (data.type) {
          case "progress":
            onProgress?.(data.bytes, data.total);
            break;
          case "loaded":
            this.#state = "ready";
            this.#config = data.config;
            this.#stats = data.stats;
            resolve(data.config);
            break;
          case "failed":
            fail(data.message);
            break;
          case "events":
            if (data.stats) this.#stats = data.stats;
            for (const { id, event } of data.events) this.#deliver(id, event);
            break;
          case "closed":
            this.#closed?.();
        }
      };
      this.#worker.onerror = (event: ErrorEvent) => {
        event.preventDefault?.();
        fail(`the engine's thread broke off: ${event.message}`);
      };
    });
    // Who does not ask for it learns of a failure from `state` and from every request.
    this.ready.catch(() => {});
    // What else a caller keeps there may not be able to pass between threads: callbacks, above all.
    const plain = Object.entries(options).filter(([, value]) => typeof value !== "object" || Array.isArray(value))
      .filter(([, value]) => typeof value !== "function");
    this.#post({ type: "load", options: Object.fromEntries(plain) });
  }

  #post(message: ToThread): void {
    this.#worker.postMessage(message);
  }

  #deliver(id: number, event: GenerationEvent): void {
    const stream = this.#streams.get(id);
    if (!stream) return;
    stream.events.push(event);
    stream.wake?.();
  }

  /** Where it is in its life. */
  get state(): EngineState {
    return this.#state;
  }

  /** What it runs with. Throws EngineError (unavailable) until it is ready. */
  get config(): EngineConfig {
    if (!this.#config) throw this.#unavailable();
    return this.#config;
  }

  /** How it is used, at most a tenth of a second old. Throws EngineError (unavailable) until it is ready. */
  get stats(): EngineStats {
    if (!this.#stats) throw this.#unavailable();
    return this.#stats;
  }

  /** Requests that are not at their end. */
  get pending(): number {
    return this.#streams.size;
  }

  #unavailable(): EngineError {
    const message = this.#state === "loading"
      ? "the model is being loaded; try again in a moment"
      : this.#state === "failed"
      ? `the engine failed: ${this.#problem}`
      : "the engine was closed";
    return new EngineError("unavailable", message);
  }

  /**
   * Runs a request: "accepted", "start", then "text" and "end" for each choice. Throws EngineError: at the first `next`
   * where the request is refused (queue_full, invalid_request, context_length, unavailable), later where it fails.
   * Leaving the generator early, or aborting the signal, gives everything back.
   */
  async *generate(
    request: GenerationRequest,
    options: EngineGenerateOptions = {},
  ): AsyncGenerator<GenerationEvent, void, void> {
    const { signal } = options;
    if (this.#state !== "ready") throw this.#unavailable();
    if (signal?.aborted) throw cancelled(signal);
    const { caches } = this.config, cache = options.cache ?? caches[0].kv, { sequences, queue } = caches[0];
    let pending = 0;
    for (const stream of this.#streams.values()) if (stream.cache === cache) pending++;
    if (pending >= sequences + queue) {
      throw new EngineError("queue_full", `${pending} requests are running or waiting; try again later`);
    }
    const id = this.#next++, stream: Stream = { cache, events: [], wake: undefined };
    this.#streams.set(id, stream);
    const abort = (): void => stream.wake?.();
    signal?.addEventListener("abort", abort);
    let open = request.n ?? 1;
    try {
      this.#post({ type: "generate", id, cache, request });
      while (open > 0) {
        if (signal?.aborted) throw cancelled(signal);
        const event = stream.events.shift();
        if (!event) {
          await new Promise<void>((resolve) => stream.wake = resolve);
          continue;
        }
        if (event.type === "error") {
          open = 0;
          throw new EngineError(event.error.code, event.error.message, event.error.param);
        }
        if (event.type === "end") open--;
        yield event;
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#streams.delete(id);
      if (open > 0) this.#post({ type: "cancel", id });
    }
  }

  /** Drops what is kept of earlier prompts. */
  clearPrefixes(): void {
    this.#post({ type: "clearPrefixes" });
  }

  /** Ends all requests, frees the device and ends the thread. */
  async close(): Promise<void> {
    if (this.#state === "closed") return;
    const ended = new Promise<void>((resolve) => this.#closed = resolve);
    const failed = this.#state === "failed";
    this.#state = "closed";
    const error = { code: "unavailable", message: "the server is shutting down" } as const;
    for (const [id] of this.#streams) this.#deliver(id, { type: "error", error });
    if (!failed) {
      this.#post({ type: "close" });
      await ended;
    }
    this.#worker.terminate();
  }
}

function cancelled(signal: AbortSignal): EngineError {
  return signal.reason instanceof EngineError
    ? signal.reason
    : new EngineError("cancelled", "the request was cancelled");
}
