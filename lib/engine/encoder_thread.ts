/**
 * Prompts encoded on a thread of their own, one at a time and clients in turn.
 *
 * @module
 */

import type { ChatFallback } from "./encoder.ts";
import type { FromEncoder, ToEncoder } from "./encoder_worker.ts";
import { EngineError, type EngineErrorData, type GenerationRequest } from "./request.ts";
import type { TextAnswer, TextQuestion, TokenizedText } from "./text_question.ts";
import { Turns } from "./turns.ts";

/** Seconds that a prompt may take. */
const LIMIT = 30;

interface Job {
  readonly message: ToEncoder;
  resolve(result: readonly number[] | TokenizedText | string): void;
  reject(error: Error): void;
}

/** What to encode with. */
export interface EncoderOptions {
  /** Model folder or file. Default: the embedded model. */
  model?: string;
  /** What to do with a chat where the model has no template. */
  chatFallback?: ChatFallback;
  /** How the model writes tool calls. */
  toolForm?: string;
  /** Seconds that a prompt may take. Default 30. */
  limit?: number;
}

/** Encodes prompts of one model. A prompt that takes too long ends with its thread, which is begun anew for the others. */
export class EncoderThread {
  readonly #options: EncoderOptions;
  readonly #onBroken: (message: string) => void;
  readonly #waiting = new Turns<Job>();
  #worker: Worker | undefined;
  #loaded = false;
  /** Why nothing can be encoded. */
  #broken: EngineError | undefined;
  #job: Job | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #closed = false;

  /** Starts the thread. `onBroken` is told why, should nothing be encoded any more. */
  constructor(options: EncoderOptions, onBroken: (message: string) => void = () => {}) {
    this.#options = options;
    this.#onBroken = onBroken;
    this.#begin();
  }

  /** Prompts that wait or are being encoded. */
  get pending(): number {
    return this.#waiting.length + (this.#job ? 1 : 0);
  }

  /** The ids of a request's prompt. Rejects with EngineError, or with the signal's reason. */
  encode(
    request: GenerationRequest,
    context: number,
    client: string,
    signal?: AbortSignal,
  ): Promise<readonly number[]> {
    return this.#queue({ type: "encode", request, context }, client, signal);
  }

  /** The answer to a question. Rejects as `encode` does. */
  ask<Q extends TextQuestion>(question: Q, client: string, signal?: AbortSignal): Promise<TextAnswer<Q>> {
    return this.#queue({ type: "ask", question }, client, signal);
  }

  /** Sends a message when its turn comes. `Result` is what it is answered with. */
  #queue<Result>(message: ToEncoder, client: string, signal?: AbortSignal): Promise<Result> {
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        this.#waiting.withdraw((other) => other === job);
        reject(signal!.reason);
      };
      const ended = (): void => signal?.removeEventListener("abort", leave);
      const job: Job = {
        message,
        resolve: (result) => (ended(), resolve(result as Result)),
        reject: (error) => (ended(), reject(error)),
      };
      if (this.#closed) return reject(new EngineError("unavailable", "the engine was closed"));
      if (this.#broken) return reject(this.#broken);
      if (signal?.aborted) return reject(signal.reason);
      signal?.addEventListener("abort", leave);
      this.#waiting.push(client, job);
      this.#next();
    });
  }

  #begin(): void {
    const worker = new Worker(new URL("./encoder_worker.ts", import.meta.url), { type: "module" });
    this.#worker = worker;
    this.#loaded = false;
    worker.onmessage = ({ data }: MessageEvent<FromEncoder>) => this.#receive(data);
    worker.onerror = (event: ErrorEvent) => {
      event.preventDefault?.();
      this.#restart(new EngineError("internal", `the thread that encodes prompts broke off: ${event.message}`));
    };
    const { model, chatFallback, toolForm } = this.#options;
    this.#post({ type: "load", model, chatFallback, toolForm });
  }

  #post(message: ToEncoder): void {
    this.#worker?.postMessage(message);
  }

  #receive(message: FromEncoder): void {
    if (message.type === "loaded") this.#loaded = true;
    else if (!this.#loaded) {
      if (message.type === "failed") this.#break(message.error);
      return;
    } else {
      const job = this.#end();
      if (message.type === "encoded") job?.resolve(message.ids);
      else if (message.type === "answered") job?.resolve(message.answer);
      else job?.reject(new EngineError(message.error.code, message.error.message, message.error.param));
    }
    this.#next();
  }

  /** Sends the next prompt, where none is under way. */
  #next(): void {
    if (!this.#loaded || this.#job) return;
    const [job] = this.#waiting.next();
    if (!job) return;
    this.#waiting.take(job);
    this.#job = job;
    const { limit = LIMIT } = this.#options;
    this.#timer = setTimeout(() => {
      const message = `the prompt takes longer than ${limit} s to turn into tokens; make it shorter`;
      this.#restart(new EngineError("invalid_request", message, "prompt"));
    }, limit * 1000);
    try {
      this.#post(job.message);
    } catch (error) { // something that cannot pass between threads
      this.#end();
      job.reject(EngineError.from(error));
      this.#next();
    }
  }

  /** Nothing can be encoded any more. */
  #break(error: EngineErrorData): void {
    const broken = new EngineError("internal", `prompts cannot be encoded: ${error.message}`);
    this.#broken = broken;
    while (this.#waiting.length > 0) this.#waiting.withdraw(() => true)!.reject(broken);
    this.#onBroken(broken.message);
  }

  #end(): Job | undefined {
    const job = this.#job;
    clearTimeout(this.#timer);
    this.#job = undefined;
    return job;
  }

  /** Ends the prompt under way with an error, and its thread with it. */
  #restart(error: EngineError): void {
    const job = this.#end();
    this.#worker?.terminate();
    job?.reject(error);
    if (this.#closed) return;
    // Without a job it broke off by itself, and would do so again.
    if (job) this.#begin();
    else this.#break(error.data);
  }

  /** Ends the thread, and what waits for it with an error. */
  close(): void {
    this.#closed = true;
    this.#worker?.terminate();
    const error = new EngineError("unavailable", "the server is shutting down"), job = this.#end();
    job?.reject(error);
    while (this.#waiting.length > 0) this.#waiting.withdraw(() => true)!.reject(error);
  }
}
