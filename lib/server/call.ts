/**
 * One completion's life: accepted by the engine, answered in a dialect, ended, counted and logged.
 *
 * @module
 */

import { createHash, randomUUID } from "node:crypto";
import { EngineError, type GenerationEvent, type Owner } from "../engine/request.ts";
import { Answer, type ChoiceEvent, type Dialect, type Identity, type Job, streamed, whole } from "./dialect/dialect.ts";
import { ApiError, apiError, noteError } from "./error.ts";
import type { ServedModel } from "./models.ts";
import { eventStream } from "./sse.ts";
import type { LogEntry, ServerState } from "./state.ts";

/** Bytes of an answer that is kept until it is whole. */
const WHOLE = 64 << 20;

/** What a call is about. */
export interface CallOptions {
  /** How it is answered. */
  dialect: Dialect<never>;
  /** What is asked for. */
  job: Job;
  /** Which model answers. */
  model: ServedModel;
  /** Whose it is. */
  owner: Owner;
  /** Aborted when the client leaves. */
  signal: AbortSignal;
  /** Its line of the log. */
  entry: LogEntry;
  /** When it came, in milliseconds of performance.now(). */
  started: number;
}

/** A completion from its first moment to its last. */
export class Call {
  readonly #state: ServerState;
  readonly #options: CallOptions;
  readonly #answer: Answer;
  readonly #abort = new AbortController();
  readonly #leave = (): void => this.#abort.abort(new EngineError("cancelled", "the client left"));
  readonly #timer: ReturnType<typeof setTimeout> | undefined;
  /** Characters and tokens' texts of the answer so far, where it is kept until it is whole. */
  #kept = 0;
  /** When the first text came, and the last one of each choice. */
  #firstText: number | undefined;
  readonly #lastText = new Map<number, number>();
  #ended = false;

  /** Starts its clock. */
  constructor(state: ServerState, options: CallOptions) {
    this.#state = state;
    this.#options = options;
    this.#answer = new Answer(identityOf(state, options), options.job);
    const { signal } = options, { timeout } = state;
    if (timeout > 0) {
      this.#timer = setTimeout(() => {
        this.#abort.abort(
          new EngineError("timeout", `the request took longer than the ${timeout} s that this server allows`),
        );
      }, timeout * 1000);
    }
    if (signal.aborted) this.#leave();
    signal.addEventListener("abort", this.#leave);
    state.active++;
  }

  /** The response: whole, or a stream as soon as all prompts are accepted. Throws where it is refused or fails before. */
  async respond(): Promise<Response> {
    const { dialect, job, entry } = this.#options;
    try {
      const events = this.#timed(merged(await this.#accepted(), job.n));
      if (!job.stream) {
        const body = await whole(dialect, this.#answer, events);
        this.#end();
        return Response.json(body);
      }
      entry.stream = true;
      return eventStream(streamed(dialect, this.#answer, events), this.#leave, (error) => this.#end(error));
    } catch (error) {
      this.#end(error);
      entry.stream = undefined;
      throw error;
    }
  }

  /** Asks the engine, and waits until it took all prompts or refused one. */
  async #accepted(): Promise<AsyncGenerator<GenerationEvent>[]> {
    const { job, model, owner } = this.#options,
      { sequences, queue } = model.cache,
      places = job.requests.length * job.n;
    if (places > sequences + queue) {
      const message = `${places} answers are asked for; this server takes ${sequences + queue} at once`;
      throw new EngineError("invalid_request", message, job.requests.length > 1 ? "prompt" : "n");
    }
    const options = { cache: model.cache.kv, signal: this.#abort.signal, ...owner };
    const sources = job.requests.map((request) => this.#state.engine.generate(request, options));
    for (const [prompt, result] of (await Promise.allSettled(sources.map((source) => source.next()))).entries()) {
      if (result.status === "rejected") {
        this.#abort.abort(new EngineError("cancelled", "another prompt of the request was refused"));
        // Let the others see it, so that they give back what they hold.
        await Promise.allSettled(sources.map((source) => source.next()));
        throw result.reason;
      }
      if (result.value.value) this.#answer.add({ index: prompt * job.n, event: result.value.value });
    }
    return sources;
  }

  /** Notes when texts come, and hides what clients are not told of an error. */
  async *#timed(events: AsyncGenerator<ChoiceEvent>): AsyncGenerator<ChoiceEvent> {
    try {
      for await (const item of events) {
        this.#note(item);
        yield item;
      }
    } catch (error) {
      const { entry } = this.#options;
      if (!(error instanceof EngineError && error.code === "cancelled")) noteError(entry, error);
      throw error instanceof EngineError && error.code !== "internal" ? error : apiError(error, entry.id as string);
    }
  }

  #note({ index, event }: ChoiceEvent): void {
    const labels = { model_name: this.#options.model.name }, { job } = this.#options;
    if (!job.stream && (event.type === "text" || event.type === "prompt")) {
      this.#kept += 2 * event.text.length + [...event.tokens].reduce((sum, { top }) => sum + 160 * (1 + top.length), 0);
      if (this.#kept > WHOLE) {
        const message = `the answer has more than the ${
          WHOLE >> 20
        } MiB that are sent whole; ask for a stream, or for less`;
        throw new ApiError(400, "invalid_request_error", "answer_too_large", message);
      }
    }
    if (event.type !== "text" || !event.text) return;
    const now = performance.now(), before = this.#lastText.get(index);
    this.#firstText ??= now;
    for (let i = 0; before !== undefined && i < event.count; i++) {
      this.#state.metrics.betweenTokens.observe(labels, (now - before) / 1000 / event.count);
    }
    this.#lastText.set(index, now);
  }

  /** Ends it, once: counts it and writes down what it did. */
  #end(error?: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#state.active--;
    clearTimeout(this.#timer);
    this.#options.signal.removeEventListener("abort", this.#leave);
    // One prompt of several failed: the others are of no use any more.
    if (error !== undefined) this.#leave();
    const { metrics, log } = this.#state, { entry, model, job, started } = this.#options;
    const { choices, promptTokens, cachedTokens, completionTokens } = this.#answer;
    const now = performance.now(), labels = { model_name: model.name };
    if (this.#firstText !== undefined) {
      metrics.firstToken.observe(labels, (this.#firstText - started) / 1000);
      entry.ttft_ms = Math.round(this.#firstText - started);
    }
    metrics.request.observe(labels, (now - started) / 1000);
    const left = error instanceof EngineError && error.code === "cancelled", failure = left ? "abort" : "error";
    for (const { reason } of choices) metrics.finished.inc({ ...labels, finished_reason: reason ?? failure });
    Object.assign(entry, {
      model: model.name,
      stream: job.stream,
      prompt_tokens: promptTokens,
      cached_tokens: cachedTokens,
      completion_tokens: completionTokens,
      finish: error === undefined ? choices.map(({ reason }) => reason).join(",") : failure,
    });
    // Where the response has not begun, its line is written when it does.
    if (!job.stream || entry.status === undefined) return;
    entry.ms = Math.round(now - started);
    log(entry);
  }
}

function identityOf({ engine }: ServerState, { dialect, model: { name, cache } }: CallOptions): Identity {
  const hash = createHash("sha256").update(`${engine.config.fingerprint} ${cache.kv} ${cache.calibration}`);
  return {
    id: `${dialect.prefix}-${randomUUID().replaceAll("-", "")}`,
    created: Math.floor(Date.now() / 1000),
    model: name,
    fingerprint: `fp_${hash.digest("hex").slice(0, 12)}`,
  };
}

/** The events of all prompts' generators in the order they come. */
async function* merged(sources: AsyncGenerator<GenerationEvent>[], n: number): AsyncGenerator<ChoiceEvent> {
  const next = async (source: number) => ({ source, result: await sources[source].next() });
  const waiting = new Map(sources.map((_, source) => [source, next(source)]));
  while (waiting.size > 0) {
    const { source, result } = await (waiting.size === 1 ? [...waiting.values()][0] : Promise.race(waiting.values()));
    if (result.done) waiting.delete(source);
    else {
      const event = result.value;
      yield { index: source * n + ("choice" in event ? event.choice : 0), event };
      waiting.set(source, next(source));
    }
  }
}
