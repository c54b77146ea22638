/**
 * A model on a thread of its own, as the rest of a program sees it: requests in, streams of events out.
 *
 * @module
 */

import { EncoderThread } from "./encoder_thread.ts";
import type { EngineOptions } from "./load.ts";
import { Pulse } from "./pulse.ts";
import {
  type EngineConfig,
  EngineError,
  type EngineStats,
  type GenerationEvent,
  type GenerationRequest,
  isTokens,
  type Owner,
} from "./request.ts";
import { cancelled, Streams } from "./streams.ts";
import type { TextAnswer, TextQuestion } from "./text_question.ts";
import type { FromThread, ToThread } from "./thread.ts";

export type { EngineOptions } from "./load.ts";

/** Where an engine is in its life. "stalled" is ready, but its thread has given no sign of life for some seconds. */
export type EngineState = "loading" | "ready" | "stalled" | "failed" | "closed";

/** Seconds without a sign of life after which an engine counts as stalled, and what part of the watchdog's that may be. */
const STALLED = 5, STALLED_PART = 0.25;

/** Seconds without one after which it counts as failed, where nothing else is said. */
const WATCHDOG = 120;

/** Seconds that a thread has to end while it loads, hangs or has failed. */
const SHORT_GRACE = 0.5;

/** Options of {@linkcode Engine.generate}. */
export interface EngineGenerateOptions extends Partial<Owner> {
  /** Name of the cache. Default: the first. */
  cache?: string;
  /** Ends the request wherever it is; the generator throws EngineError (cancelled). */
  signal?: AbortSignal;
}

/** Runs requests on a worker thread with continuous batching. */
export class Engine {
  /** Resolves when the model is loaded; rejects with what went wrong. */
  readonly ready: Promise<EngineConfig>;
  /** Resolves with what went wrong, should loading or the thread fail. */
  readonly failed: Promise<Error>;
  readonly #worker: Worker;
  readonly #encoder: EncoderThread;
  readonly #streams: Streams;
  readonly #stalled: number;
  readonly #pulse: Pulse;
  #state: Exclude<EngineState, "stalled"> = "loading";
  #config: EngineConfig | undefined;
  #stats: EngineStats | undefined;
  #closed: (() => void) | undefined;
  #fail: (message: string) => void = () => {};
  readonly #options: EngineOptions;
  /** What answers questions about texts: not the thread that prompts wait for. */
  #texts: EncoderThread | undefined;

  /** Starts the threads and loads the model. */
  constructor(options: EngineOptions = {}, onProgress?: (bytes: number, total: number) => void) {
    const { watchdog = WATCHDOG } = options;
    this.#options = options;
    this.#worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
    this.#encoder = new EncoderThread(options, (message) => this.#fail(message));
    this.#streams = new Streams(options.unreadBytes);
    this.#stalled = Math.min(STALLED, (watchdog || Infinity) * STALLED_PART);
    this.#pulse = new Pulse(() => this.#post({ type: "beat" }), (seconds) => {
      if (watchdog === 0 || seconds < watchdog || this.#state !== "ready") return;
      this.#fail(`the engine's thread gave no sign of life for ${Math.round(seconds)} s`);
      this.#worker.terminate();
    });
    let tell: (error: Error) => void;
    this.failed = new Promise((resolve) => tell = resolve);
    this.ready = new Promise((resolve, reject) => {
      this.#fail = (message) => {
        if (this.#state === "closed" || this.#state === "failed") return;
        this.#state = "failed";
        const error = new Error(message);
        reject(error);
        tell(error);
        this.#streams.fail(this.#unavailable().data);
      };
      this.#worker.onmessage = ({ data }: MessageEvent<FromThread>) => this.#receive(data, resolve, onProgress);
      this.#worker.onerror = (event: ErrorEvent) => {
        event.preventDefault?.();
        this.#fail(`the engine's thread broke off: ${event.message}`);
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

  #receive(
    message: FromThread,
    loaded: (config: EngineConfig) => void,
    onProgress?: (bytes: number, total: number) => void,
  ): void {
    switch (message.type) {
      case "progress":
        onProgress?.(message.bytes, message.total);
        break;
      case "loaded":
        if (this.#state !== "loading") break;
        this.#state = "ready";
        this.#config = message.config;
        this.#stats = message.stats;
        this.#pulse.begin();
        loaded(message.config);
        break;
      case "failed":
        this.#fail(message.message);
        break;
      case "beat":
        this.#pulse.beat();
        break;
      case "events":
        if (message.stats) this.#stats = message.stats;
        for (const { id, event } of message.events) {
          if (!this.#streams.push(id, event)) this.#post({ type: "cancel", id });
        }
        break;
      case "closed":
        this.#closed?.();
    }
  }

  /** Where it is in its life. */
  get state(): EngineState {
    return this.#state === "ready" && this.#pulse.silence >= this.#stalled ? "stalled" : this.#state;
  }

  /** Whether it was loaded: `config` and `stats` are there, though it may have failed since. */
  get loaded(): boolean {
    return this.#config !== undefined;
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

  /** Of them, those whose prompts are not tokens yet. */
  get encoding(): number {
    return this.#encoder.pending;
  }

  /** Neutral, since it is told to clients: what went wrong is in `failed`. */
  #unavailable(): EngineError {
    const messages: Record<Exclude<EngineState, "ready">, string> = {
      loading: "the model is being loaded; try again in a moment",
      stalled: "the engine does not respond; try again later",
      failed: "the engine failed; the server's log says why",
      closed: "the server is shutting down",
    };
    const { state } = this;
    return new EngineError("unavailable", messages[state === "ready" ? "loading" : state]);
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
    const { signal, client = `request ${crypto.randomUUID()}`, salt = "" } = options;
    if (this.state !== "ready") throw this.#unavailable();
    if (signal?.aborted) throw cancelled(signal);
    const { caches } = this.config, { sequences, queue } = caches[0], name = options.cache ?? caches[0].kv;
    const context = caches.find(({ kv }) => kv === name)?.context ?? caches[0].context;
    const { id, stream } = this.#streams.open(name, client, request.n ?? 1, sequences + queue);
    const abort = (): void => stream.wake();
    signal?.addEventListener("abort", abort);
    let open = request.n ?? 1, posted = false;
    try {
      const { prompt } = request;
      const ids = isTokens(prompt) ? prompt : await this.#encoded(request, context, client, signal);
      const chat = typeof prompt === "string" || isTokens(prompt) ? undefined : request.chat ?? {};
      // The prompt is in `ids`, whatever it was; that it was a chat decides how its answer is read.
      this.#post({
        type: "generate",
        id,
        cache: name,
        request: { ...request, prompt: [], chat },
        ids,
        owner: { client, salt },
      });
      posted = true;
      while (open > 0) {
        const event = await stream.next(signal);
        if (event.type === "end") open--;
        yield event;
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#streams.close(id);
      // Also where it failed: then there is nothing to cancel, and that is all.
      if (posted && open > 0) this.#post({ type: "cancel", id });
    }
  }

  async #encoded(
    request: GenerationRequest,
    context: number,
    client: string,
    signal: AbortSignal | undefined,
  ): Promise<readonly number[]> {
    try {
      return await this.#encoder.encode(request, context, client, signal);
    } catch (error) {
      throw signal?.aborted ? cancelled(signal) : error;
    }
  }

  /**
   * Asks the model's tokenizer, on a thread of its own. Throws EngineError: invalid_request, unavailable, and cancelled by the
   * signal.
   */
  async ask<Q extends TextQuestion>(
    question: Q,
    { client = `question ${crypto.randomUUID()}`, signal }: Pick<EngineGenerateOptions, "client" | "signal"> = {},
  ): Promise<TextAnswer<Q>> {
    if (this.#state !== "ready") throw this.#unavailable();
    this.#texts ??= new EncoderThread(this.#options, () => this.#texts = undefined);
    try {
      return await this.#texts.ask(question, client, signal);
    } catch (error) {
      throw signal?.aborted ? cancelled(signal) : error;
    }
  }

  /** Drops what is kept of earlier prompts. */
  clearPrefixes(): void {
    this.#post({ type: "clearPrefixes" });
  }

  /**
   * Ends all requests, frees the device and ends the threads. One that does not do so of itself within `grace` seconds (default
   * 5) is terminated; what it held of the device is then given back with the process.
   */
  async close(grace: number = 5): Promise<void> {
    if (this.#state === "closed") return;
    const ended = new Promise<void>((resolve) => this.#closed = resolve);
    const { state } = this;
    this.#state = "closed";
    this.#pulse.end();
    this.#streams.fail({ code: "unavailable", message: "the server is shutting down" });
    this.#encoder.close();
    this.#texts?.close();
    this.#post({ type: "close" });
    let timer: ReturnType<typeof setTimeout> | undefined;
    // What loads is given up, and of what failed little is to be expected.
    const most = (state === "ready" ? grace : Math.min(grace, SHORT_GRACE)) * 1000;
    await Promise.race([ended, new Promise<void>((resolve) => timer = setTimeout(resolve, most))]);
    clearTimeout(timer);
    this.#worker.terminate();
  }
}
