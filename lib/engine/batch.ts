/**
 * Continuous batching: many requests over one cache. One step computes the next token of every running sequence in one
 * forward pass; a new request joins between steps, and its prompt is read in parts between them.
 *
 * The ops compute every row alone, so what a request is answered does not depend on what runs beside it.
 *
 * @module
 */

import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import type { Model } from "../models/model.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { ChoiceOutput, type OutputOptions } from "./output.ts";
import { PromptOutput } from "./prompt_output.ts";
import { type CacheStats, EngineError, type GenerationEvent, type GenerationRequest } from "./request.ts";
import { type DrawnToken, RowError, Runner, type RunnerRow } from "./runner.ts";
import { seedBits } from "./sampler.ts";
import { type Job, type Row, type ScheduledRequest, Scheduler, type SchedulerOptions } from "./scheduler.ts";
import { embedPrompt, scorePrompt } from "./scorer.ts";
import { cacheStats } from "./stats.ts";

/** A request whose prompt is tokens and whose settings were checked. */
export interface BatchRequest
  extends ScheduledRequest, OutputOptions, Pick<GenerationRequest, "echo" | "promptLogprobs" | "embedding"> {
  /** Tokens at most a choice. */
  maxTokens: number;
  /** Most probable tokens that come with each token; undefined for no log-probabilities at all. */
  logprobs?: number;
}

/** Sizes of a {@linkcode Batch}. */
export type BatchOptions = SchedulerOptions;

type BatchRow = Row<BatchRequest, Sequence>;

/** The requests over one cache. Its methods do not wait; call `step` until it returns false. */
export class Batch implements Disposable {
  readonly #model: Model;
  readonly #cache: KvCache;
  readonly #tokenizer: Tokenizer;
  readonly #emit: (id: number, event: GenerationEvent) => void;
  readonly #scheduler: Scheduler<BatchRequest, Sequence>;
  readonly #runner: Runner;
  /** Of the scheduler's rows, in their order. */
  readonly #choices: (RunnerRow & { readonly output: ChoiceOutput })[] = [];
  /** Steps in a row that failed as a whole. */
  #failures = 0;
  /** The block of a prompt that is being read. */
  #block: Generator<void, void, void> | undefined;
  /** When the prompt that is being read was begun. */
  #readingSince = 0;

  /** Allocates the memory of a step, and records it. `emit` gets what happens to each request. */
  constructor(
    model: Model,
    cache: KvCache,
    tokenizer: Tokenizer,
    options: BatchOptions,
    emit: (id: number, event: GenerationEvent) => void,
  ) {
    this.#model = model;
    this.#cache = cache;
    this.#tokenizer = tokenizer;
    this.#emit = emit;
    this.#scheduler = new Scheduler(cache, options);
    this.#runner = new Runner(model, cache, options.rows);
  }

  /** Tokens of the longest sequence. */
  get context(): number {
    return this.#cache.context;
  }

  /** Queues a request. Throws EngineError where it can never fit. */
  submit(id: number, request: BatchRequest): void {
    this.#scheduler.submit(id, request);
    this.#emit(id, { type: "accepted", promptTokens: request.ids.length });
  }

  /** Ends a request, wherever it is. One that is not there is left at that. */
  cancel(id: number): void {
    const scheduler = this.#scheduler, { rows } = scheduler;
    scheduler.withdraw(id);
    if (scheduler.reading?.job.id === id) this.#stopReading();
    for (let row = rows.length - 1; row >= 0; row--) if (rows[row].job.id === id) this.#remove(row);
  }

  /**
   * One step of all rows, and a part of a prompt. False where nothing is left to do. What is wrong with one request ends that one;
   * a step that fails ends all that run, and the second in a row is thrown: then it is the device.
   */
  step(): boolean {
    const scheduler = this.#scheduler, start = performance.now();
    this.#admit();
    if (this.#choices.length > 0) this.#step();
    const end = performance.now(), until = end + scheduler.turn(end - start);
    do {
      this.#admit();
      if (!scheduler.reading) break;
      this.#read();
    } while (performance.now() < until);
    return scheduler.busy;
  }

  #step(): void {
    const { rows, totals } = this.#scheduler;
    let tokens: DrawnToken[];
    try {
      tokens = this.#runner.step(this.#choices);
    } catch (error) {
      if (error instanceof RowError) return this.#fail(error.cause, [rows[error.row].job]);
      this.#fail(error, rows.map(({ job }) => job));
      if (++this.#failures > 1) throw error;
      return;
    }
    this.#failures = 0;
    totals.steps++;
    this.#take(0, tokens);
  }

  #admit(): void {
    const { next } = this.#scheduler;
    if (!next) return;
    let reading;
    try {
      reading = this.#scheduler.admit();
    } catch (error) {
      return this.#fail(error, [next]);
    }
    if (!reading) return;
    const { job: { id, request }, sequence } = reading;
    this.#readingSince = performance.now();
    this.#emit(id, { type: "start", cachedTokens: sequence.length });
    if (request.echo && request.promptLogprobs === undefined) this.#promptOutput(id).tell(request.ids);
  }

  #promptOutput(id: number): PromptOutput {
    return new PromptOutput(this.#tokenizer, (event) => this.#emit(id, event));
  }

  /** What reads the prompt's next block, or all of it. */
  #reader({ id, request: { promptLogprobs: top, embedding } }: Job<BatchRequest>, sequence: Sequence): Generator<void> {
    const model = this.#model, { ids, last } = this.#scheduler.block(), { logits } = this.#runner;
    if (embedding) return embedded(embedPrompt(model, sequence, ids, embedding), (event) => this.#emit(id, event));
    if (top === undefined) return model.prefillParts(last ? logits : null, sequence, ids);
    const output = this.#promptOutput(id);
    return scorePrompt(model, this.#cache, sequence, ids, { top, logits, emit: (tokens) => output.push(tokens) });
  }

  /** Reads a part of the prompt's next block. */
  #read(): void {
    const scheduler = this.#scheduler, { job, sequence } = scheduler.reading!;
    try {
      this.#block ??= this.#reader(job, sequence);
      const { done } = this.#block.next();
      // Else the time of this part would be counted to the next step.
      this.#model.device.synchronize();
      if (!done) return;
      this.#block = undefined;
      if (job.request.maxTokens === 0 && sequence.length === job.request.ids.length) return this.#endRead(job);
      const first = scheduler.blockRead();
      if (first !== undefined) this.#begin(first);
    } catch (error) {
      this.#fail(error, [job]);
    }
  }

  /** A prompt was read that nothing is to be generated for. */
  #endRead({ id, request: { n } }: Job<BatchRequest>): void {
    const timings = { promptMs: performance.now() - this.#readingSince, generatedMs: 0 };
    this.#scheduler.dropReading();
    for (let choice = 0; choice < n; choice++) {
      this.#emit(id, { type: "end", choice, reason: "length", completionTokens: 0, timings });
    }
  }

  #stopReading(): void {
    const block = this.#block;
    this.#block = undefined;
    try {
      block?.return();
    } finally {
      this.#scheduler.dropReading();
    }
  }

  /** A prompt was read: rows from `first` on are its choices, whose first tokens are drawn from its logits. */
  #begin(first: number): void {
    const begun = this.#scheduler.rows.slice(first);
    begun.forEach((row, i) => {
      const { job: { request }, choice, sequence } = row, { sampling: { seed, ...sampling } } = request;
      const output = this.#output(row);
      this.#choices.push({ sequence, output, logprobs: request.logprobs, next: -1 });
      this.#runner.start(first + i, request.ids, {
        ...sampling,
        seed: seed === undefined ? undefined : seedBits(seed) + choice | 0,
      });
      this.#constrain(first + i);
    });
    this.#take(first, this.#runner.begin(this.#choices, first));
  }

  #output({ job: { id, request }, choice }: BatchRow): ChoiceOutput {
    const begun = performance.now(), promptMs = begun - this.#readingSince;
    return new ChoiceOutput(this.#tokenizer, request, this.#model.config, (event) => {
      if (event.type === "text") return this.#emit(id, { ...event, choice });
      this.#emit(id, { ...event, choice, timings: { promptMs, generatedMs: performance.now() - begun } });
    });
  }

  /** Hands drawn tokens to the outputs of rows from `first` on, and removes the rows that are at their end. */
  #take(first: number, tokens: readonly DrawnToken[]): void {
    const { rows, totals } = this.#scheduler, failed: [Job<BatchRequest>, unknown][] = [];
    totals.generatedTokens += tokens.length;
    // From the last row on, since the last row takes the place of one that is removed.
    for (let row = first + tokens.length - 1; row >= first; row--) {
      try {
        if (this.#push(row, tokens[row - first])) this.#remove(row);
      } catch (error) {
        failed.push([rows[row].job, error]);
      }
    }
    for (const [job, error] of failed) this.#fail(error, [job]);
  }

  /** Hands a drawn token to a row's output. True where that is at its end. */
  #push(row: number, token: DrawnToken): boolean {
    if (token.id < 0) throw new EngineError("internal", "nothing can be drawn: the logits are not finite numbers");
    const ended = this.#choices[row].output.push(token);
    if (!ended) this.#constrain(row);
    return ended;
  }

  /** Forbids the tokens that the output's grammar does not allow next. */
  #constrain(row: number): void {
    const bias = this.#choices[row].output.bias();
    if (bias) this.#runner.setBias(row, bias);
  }

  /** Takes a row out; the last row takes its place. */
  #remove(row: number): void {
    const from = this.#scheduler.remove(row);
    if (row >= this.#choices.length) return; // its beginning failed
    const last = this.#choices.pop()!;
    if (row < from) this.#choices[row] = last;
    this.#runner.remove(row, from);
  }

  /** Ends requests with an error. */
  #fail(error: unknown, jobs: readonly Job<BatchRequest>[]): void {
    const data = EngineError.from(error).data;
    for (const job of new Set(jobs)) {
      if (job.failed) continue;
      job.failed = true;
      this.cancel(job.id);
      this.#emit(job.id, { type: "error", error: data });
    }
  }

  /** How much is in use. */
  stats(): CacheStats {
    return cacheStats(this.#cache, this.#scheduler);
  }

  /** Drops all prefix states. */
  clearPrefixes(): void {
    this.#scheduler.clearPrefixes();
  }

  /** Ends what runs without a word and frees the memory. */
  [Symbol.dispose](): void {
    this.#stopReading();
    this.#scheduler[Symbol.dispose]();
    this.#runner[Symbol.dispose]();
  }
}

/** Tells the embedding once it is there. */
function* embedded(
  reading: Generator<void, Float32Array, void>,
  emit: (event: GenerationEvent) => void,
): Generator<void, void, void> {
  emit({ type: "embedding", values: yield* reading });
}
