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
import { type CacheStats, EngineError, type GenerationEvent } from "./request.ts";
import { type DrawnToken, Runner, type RunnerRow } from "./runner.ts";
import { type Job, type Row, type ScheduledRequest, Scheduler, type SchedulerOptions } from "./scheduler.ts";
import { cacheStats } from "./stats.ts";

/** A request whose prompt is tokens and whose settings were checked. */
export interface BatchRequest extends ScheduledRequest, OutputOptions {
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
  /** The block of a prompt that is being read. */
  #block: Generator<void, void, void> | undefined;

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

  /** One step of all rows, and a part of a prompt. False where nothing is left to do. */
  step(): boolean {
    const scheduler = this.#scheduler, start = performance.now();
    try {
      this.#admit();
      if (this.#choices.length > 0) {
        const tokens = this.#runner.step(this.#choices);
        scheduler.totals.steps++;
        this.#take(0, tokens);
      }
    } catch (error) {
      this.#fail(error, scheduler.rows.map(({ job }) => job));
    }
    const end = performance.now(), until = end + scheduler.turn(end - start);
    do {
      this.#admit();
      if (!scheduler.reading) break;
      this.#read();
    } while (performance.now() < until);
    return scheduler.busy;
  }

  #admit(): void {
    const reading = this.#scheduler.admit();
    if (reading) this.#emit(reading.job.id, { type: "start", cachedTokens: reading.sequence.length });
  }

  /** Reads a part of the prompt's next block. */
  #read(): void {
    const scheduler = this.#scheduler, { job, sequence } = scheduler.reading!;
    try {
      if (!this.#block) {
        const { ids, last } = scheduler.block();
        this.#block = this.#model.prefillParts(last ? this.#runner.logits : null, sequence, ids);
      }
      const { done } = this.#block.next();
      // Else the time of this part would be counted to the next step.
      this.#model.device.synchronize();
      if (!done) return;
      this.#block = undefined;
      const first = scheduler.blockRead();
      if (first !== undefined) this.#begin(first);
    } catch (error) {
      this.#fail(error, [job]);
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
      this.#runner.start(first + i, request.ids, { ...sampling, seed: seed === undefined ? undefined : seed + choice });
      this.#constrain(first + i);
    });
    this.#take(first, this.#runner.begin(this.#choices, first));
  }

  #output({ job: { id, request }, choice }: BatchRow): ChoiceOutput {
    return new ChoiceOutput(
      this.#tokenizer,
      request,
      this.#model.config,
      (event) => this.#emit(id, { ...event, choice }),
    );
  }

  /** Hands drawn tokens to the outputs of rows from `first` on, and removes the rows that are at their end. */
  #take(first: number, tokens: readonly DrawnToken[]): void {
    const { rows, totals } = this.#scheduler, failed: Job<BatchRequest>[] = [];
    totals.generatedTokens += tokens.length;
    // From the last row on, since the last row takes the place of one that is removed.
    for (let row = first + tokens.length - 1; row >= first; row--) {
      const token = tokens[row - first];
      if (token.id < 0) failed.push(rows[row].job);
      else if (this.#choices[row].output.push(token)) this.#remove(row);
      else this.#constrain(row);
    }
    if (failed.length > 0) this.#fail(new EngineError("internal", "the model's logits are not numbers"), failed);
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
    for (const { id } of new Set(jobs)) {
      this.cancel(id);
      this.#emit(id, { type: "error", error: data });
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
