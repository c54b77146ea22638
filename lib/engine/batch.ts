/**
 * Continuous batching: many requests over one cache. One step computes the next token of every running sequence in one
 * forward pass; a new request joins between steps, and its prompt is read in parts between them.
 *
 * The ops compute every row alone, so what a request is answered does not depend on what runs beside it.
 *
 * @module
 */

import type { Graph } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { advance, logProbabilities, PAGE_TOKENS } from "../ops/ops.ts";
import { cacheBytes } from "../cache/bytes.ts";
import { kvConfig } from "../cache/scheme.ts";
import { bf16Calibration } from "../cache/calibration.ts";
import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import type { Model, Step } from "../models/model.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { Answer, type AnswerOptions } from "./answer.ts";
import { Sampler, type SamplingOptions } from "./generation.ts";
import { PrefixCache } from "./prefix.ts";
import { type CacheStats, EngineError, type GenerationEvent, type TokenLogprob } from "./request.ts";

/** Most probable tokens that a request may ask for. */
export const TOP_LOGPROBS: number = 20;

/** Milliseconds that prompts are read for before the caller gets a turn, while no sequence runs. */
const PREFILL_TURN = 10;

/** Reading prompts takes at most this many times as long as the sequences that run meanwhile. */
const MOST_SHARE = 3;

/** Parts of a long prompt at whose ends its state is kept, so that a prompt that leaves it midway finds one. */
const STATES = 4;

/** Shortest distance of such states, in tokens. */
const STATE_DISTANCE = 512;

/** A request whose prompt is tokens and whose settings were checked. */
export interface BatchRequest extends AnswerOptions {
  /** Prompt. */
  ids: readonly number[];
  /** Tokens at most a choice. */
  maxTokens: number;
  /** How tokens are drawn. */
  sampling: SamplingOptions;
  /** Choices. */
  n: number;
}

interface Active {
  readonly id: number;
  readonly request: BatchRequest;
  /** Pages that one choice may come to hold. */
  readonly worst: number;
  /** Choices that are not at their end. */
  open: number;
}

interface Row {
  readonly active: Active;
  readonly sequence: Sequence;
  readonly answer: Answer;
  /** The last drawn token, which the next step reads. */
  next: number;
}

interface Reading {
  readonly active: Active;
  readonly sequence: Sequence;
  /** Block ends at which the state is kept. */
  readonly states: ReadonlySet<number>;
  parts: Generator<void, void, void> | undefined;
}

/** Sizes of a {@linkcode Batch}. */
export interface BatchOptions {
  /** Sequences that run at once. */
  rows: number;
  /** Tokens of a block of a prompt; a multiple of the page's 64. */
  block: number;
  /** Prefix states kept at most. The cache needs `rows + prefixes` slots. */
  prefixes: number;
}

/** The requests over one cache. Its methods do not wait; call `step` until it returns false. */
export class Batch implements Disposable {
  readonly #model: Model;
  readonly #cache: KvCache;
  readonly #tokenizer: Tokenizer;
  readonly #options: BatchOptions;
  readonly #emit: (id: number, event: GenerationEvent) => void;
  readonly #prefixes: PrefixCache;
  readonly #step: Step;
  readonly #sampler: Sampler;
  readonly #logits: Tensor;
  readonly #topValues: Tensor;
  readonly #topIds: Tensor;
  readonly #graphs = new Map<number, Graph>();
  readonly #waiting: Active[] = [];
  readonly #rows: Row[] = [];
  #reading: Reading | undefined;
  /** The first waiting request did not fit; it is tried again once something was given back. */
  #blocked = false;
  /** Rows changed since the device was told. */
  #changed = false;
  readonly #totals: CacheStats["totals"] = {
    promptTokens: 0,
    generatedTokens: 0,
    prefixQueries: 0,
    prefixHits: 0,
    steps: 0,
  };

  /** Allocates the memory of a step. `emit` gets what happens to each request. */
  constructor(
    model: Model,
    cache: KvCache,
    tokenizer: Tokenizer,
    options: BatchOptions,
    emit: (id: number, event: GenerationEvent) => void,
  ) {
    const { device, config } = model, { rows } = options;
    this.#model = model;
    this.#cache = cache;
    this.#tokenizer = tokenizer;
    this.#options = options;
    this.#emit = emit;
    this.#prefixes = new PrefixCache(cache, options.block, options.prefixes);
    this.#step = model.step(rows);
    this.#sampler = new Sampler(model, rows);
    this.#logits = Tensor.zeros(device, "f32", [1, config.vocabularySize]);
    const top = Math.min(TOP_LOGPROBS, config.vocabularySize);
    this.#topValues = Tensor.zeros(device, "f32", [rows, top]);
    this.#topIds = Tensor.zeros(device, "i32", [rows, top]);
  }

  /** Queues a request. Throws EngineError where it can never fit. */
  submit(id: number, request: BatchRequest): void {
    const { context, pageCount } = this.#cache, { ids, n } = request;
    if (n > this.#options.rows) {
      throw new EngineError(
        "invalid_request",
        `n is ${n}; this server answers ${this.#options.rows} sequences at once`,
        "n",
      );
    }
    const worst = Math.ceil(Math.min(context, ids.length + request.maxTokens - 1) / PAGE_TOKENS);
    const needed = worst + (n - 1) * (worst - Math.floor(ids.length / PAGE_TOKENS));
    if (needed > pageCount) {
      throw new EngineError(
        "context_length",
        `${n} x ${ids.length} prompt and ${request.maxTokens} generated tokens need ${needed} pages of ${PAGE_TOKENS} ` +
          `tokens; the cache has ${pageCount}: ask for fewer tokens`,
      );
    }
    this.#waiting.push({ id, request, worst, open: n });
    this.#emit(id, { type: "accepted", promptTokens: ids.length });
  }

  /** Ends a request, wherever it is. One that is not there is left at that. */
  cancel(id: number): void {
    const at = this.#waiting.findIndex((active) => active.id === id);
    if (at >= 0) {
      this.#waiting.splice(at, 1);
      this.#blocked = false;
    }
    if (this.#reading?.active.id === id) this.#stopReading();
    for (let r = this.#rows.length - 1; r >= 0; r--) if (this.#rows[r].active.id === id) this.#remove(r);
  }

  /** One step of all rows, and a part of a prompt. False where nothing is left to do. */
  step(): boolean {
    const start = performance.now();
    try {
      this.#admit();
      if (this.#rows.length > 0) this.#decode();
    } catch (error) {
      this.#fail(error, this.#rows.map(({ active }) => active));
    }
    // While sequences run, reading prompts takes as much time as they do, and more where more wait than run.
    const share = Math.min(MOST_SHARE, Math.max(1, this.#waiting.length / this.#rows.length));
    const turn = this.#rows.length > 0 ? share * (performance.now() - start) : PREFILL_TURN;
    const until = performance.now() + turn;
    do {
      if (!this.#reading) this.#admit();
      if (!this.#reading) break;
      this.#read(this.#reading);
    } while (performance.now() < until);
    return this.#rows.length > 0 || this.#reading !== undefined || (this.#waiting.length > 0 && !this.#blocked);
  }

  /** Pages that what runs may still take. */
  #outstanding(): number {
    let pages = 0;
    for (const { active, sequence } of this.#rows) {
      const last = sequence.pages.at(-1);
      pages += active.worst - sequence.pages.length;
      // A fork copies its last page before it writes to it.
      if (sequence.length % PAGE_TOKENS !== 0 && last !== undefined && this.#cache.isShared(last)) pages++;
    }
    if (this.#reading) {
      const { active: { worst, request }, sequence } = this.#reading;
      pages += worst - sequence.pages.length + (request.n - 1) * (worst - Math.floor(request.ids.length / PAGE_TOKENS));
    }
    return pages;
  }

  /** Begins to read the first waiting prompt where rows and pages allow its worst case. First come, first served. */
  #admit(): void {
    const active = this.#waiting[0];
    if (!active || this.#reading || this.#blocked) return;
    const { ids, n } = active.request, cache = this.#cache;
    if (this.#rows.length + n > this.#options.rows) {
      this.#blocked = true;
      return;
    }
    const match = this.#prefixes.find(ids), sequence = match.sequence ?? cache.sequence();
    const needed = this.#outstanding() + active.worst - sequence.pages.length +
      (n - 1) * (active.worst - Math.floor(ids.length / PAGE_TOKENS));
    while (cache.freePages < needed && this.#prefixes.evict());
    if (cache.freePages < needed) {
      sequence[Symbol.dispose]();
      this.#blocked = true;
      return;
    }
    this.#waiting.shift();
    this.#totals.promptTokens += ids.length;
    this.#totals.prefixQueries += ids.length;
    this.#totals.prefixHits += sequence.length;
    this.#reading = { active, sequence, states: this.#states(ids.length, match.common), parts: undefined };
    this.#emit(active.id, { type: "start", cachedTokens: sequence.length });
  }

  /** Where the state of a prompt is kept: at its last block end, where another prompt left it, and a few between. */
  #states(tokens: number, common: number): Set<number> {
    const { block } = this.#prefixes, floor = (position: number) => Math.floor(position / block) * block;
    const states = new Set([floor(tokens - 1), common]);
    // Without a ring any block end can be found again in a later state.
    const distance = Math.max(STATE_DISTANCE, tokens / STATES);
    if (this.#cache.stepTokens !== Infinity) {
      for (let position = distance; position < tokens; position += distance) states.add(floor(position));
    }
    return states;
  }

  #read(reading: Reading): void {
    const { active, sequence, states } = reading, { ids } = active.request, { block } = this.#prefixes;
    try {
      if (!reading.parts) {
        const past = sequence.length, end = Math.min(ids.length, past + block);
        const logits = end === ids.length ? this.#logits : null;
        reading.parts = this.#model.prefillParts(logits, sequence, ids.slice(past, end));
      }
      const { done } = reading.parts.next();
      // Else the time of this part would be counted to the next step.
      this.#model.device.synchronize();
      if (!done) return;
      reading.parts = undefined;
      if (states.has(sequence.length)) this.#prefixes.keep(ids.slice(0, sequence.length), sequence);
      if (sequence.length === ids.length) {
        this.#reading = undefined;
        this.#begin(active, sequence);
      }
    } catch (error) {
      this.#fail(error, [active]);
    }
  }

  #stopReading(): void {
    const reading = this.#reading!;
    this.#reading = undefined;
    try {
      reading.parts?.return();
    } finally {
      reading.sequence[Symbol.dispose]();
      this.#blocked = false;
    }
  }

  /** A prompt was read: its choices become rows, and their first tokens are drawn from its logits. */
  #begin(active: Active, sequence: Sequence): void {
    const { request } = active, { sampling, ids } = request, first = this.#rows.length;
    const sequences = [sequence, ...Array.from({ length: request.n - 1 }, () => sequence.fork())];
    sequences.forEach((sequence, choice) => {
      const answer = new Answer(this.#tokenizer, request, this.#model.config, (event) => {
        this.#emit(active.id, { ...event, choice });
      });
      this.#rows.push({ active, sequence, answer, next: -1 });
      const seed = sampling.seed === undefined ? undefined : sampling.seed + choice;
      this.#sampler.start(first + choice, ids, { ...sampling, seed });
      this.#constrain(first + choice);
    });
    this.#step.positions.write(new Int32Array(request.n).fill(ids.length - 1), first);
    for (let row = first; row < first + request.n; row++) {
      const positions = this.#step.positions.rows(row, 1);
      this.#sampler.draw(this.#step.ids.rows(row, 1), this.#logits, positions, 1, row);
    }
    const top = this.#top(this.#logits, first, first + 1);
    this.#changed = true;
    this.#take(first, this.#rows.length, () => top(first));
  }

  #decode(): void {
    const step = this.#step, rows = this.#rows, count = rows.length;
    if (this.#changed) {
      step.ids.write(Int32Array.from(rows, ({ next }) => next));
      step.slots.write(Int32Array.from(rows, ({ sequence }) => sequence.slot));
      step.positions.write(Int32Array.from(rows, ({ sequence }) => sequence.length));
      this.#changed = false;
    }
    for (const { sequence } of rows) sequence.extend(1);
    let graph = this.#graphs.get(count);
    if (!graph) {
      graph = this.#model.device.capture(() => {
        this.#model.forward(step, this.#cache, count);
        this.#sampler.draw(step.ids, step.logits, step.positions, count);
        advance(step.positions, { rows: count });
      });
      this.#graphs.set(count, graph);
    }
    graph.launch();
    this.#totals.steps++;
    this.#take(0, count, this.#top(step.logits, 0, count));
  }

  /** Hands the drawn tokens of rows `first` to `last` - 1 to their answers, and removes the rows that are at their end. */
  #take(first: number, last: number, top: (row: number) => TokenLogprob[]): void {
    const ids = this.#step.ids.read<Int32Array>(), rows = this.#rows.slice(first, last);
    const logprobs = rows.some(({ answer }) => answer.logprobs !== undefined)
      ? this.#sampler.logprobs.read<Float32Array>()
      : undefined;
    const failed: Active[] = [];
    this.#totals.generatedTokens += rows.length;
    // From the last row on, since the last row takes the place of one that is removed.
    for (let row = last - 1; row >= first; row--) {
      const { answer, active } = this.#rows[row], id = ids[row];
      if (id < 0) {
        failed.push(active);
        continue;
      }
      this.#rows[row].next = id;
      if (answer.push(id, logprobs?.[row] ?? 0, answer.logprobs ? top(row).slice(0, answer.logprobs) : [])) {
        this.#remove(row);
      } else {
        this.#constrain(row);
      }
    }
    if (failed.length > 0) this.#fail(new EngineError("internal", "the model's logits are not numbers"), failed);
  }

  /** Forbids the tokens that the answer's grammar does not allow next. */
  #constrain(row: number): void {
    const bias = this.#rows[row].answer.bias();
    if (bias) this.#sampler.setBias(row, bias);
  }

  /** The most probable tokens of rows, read from the device where a row wants them. */
  #top(logits: Tensor, first: number, last: number): (row: number) => TokenLogprob[] {
    const rows = this.#rows.slice(first, last);
    if (!rows.some(({ answer }) => answer.logprobs)) return () => [];
    logProbabilities(logits, { rows: last - first, outValues: this.#topValues, outIds: this.#topIds });
    const values = this.#topValues.read<Float32Array>(), ids = this.#topIds.read<Int32Array>();
    const { width } = this.#topIds;
    return (row) =>
      Array.from({ length: width }, (_, i) => {
        const at = (row - first) * width + i;
        return this.#rows[row].answer.describe(ids[at], values[at]);
      });
  }

  /** Takes a row out; the last row takes its place. */
  #remove(row: number): void {
    const { sequence, active } = this.#rows[row], last = this.#rows.pop()!;
    if (row < this.#rows.length) {
      this.#rows[row] = last;
      this.#sampler.move(row, this.#rows.length);
    }
    sequence[Symbol.dispose]();
    active.open--;
    this.#changed = true;
    this.#blocked = false;
  }

  /** Ends requests with an error. */
  #fail(error: unknown, actives: readonly Active[]): void {
    const data = error instanceof EngineError
      ? error.data
      : new EngineError("internal", error instanceof Error ? error.message : String(error)).data;
    for (const active of new Set(actives)) {
      this.cancel(active.id);
      this.#emit(active.id, { type: "error", error: data });
    }
  }

  /** How much is in use. */
  stats(): CacheStats {
    const cache = this.#cache, { layers, kvHeads, headDim } = cache.shape, { recent, sinks } = cache.config;
    const sequences = [...this.#rows.map(({ sequence }) => sequence), ...this.#reading ? [this.#reading.sequence] : []];
    const states = this.#prefixes.sequences, running = new Set(sequences.flatMap(({ pages }) => pages));
    const tokens = (cache.pageCount - cache.freePages) * PAGE_TOKENS, none = bf16Calibration();
    const exactRows = [...sequences, ...states].reduce(
      (sum, { length }) => sum + Math.min(length, recent) + Math.min(length, sinks),
      0,
    );
    return {
      running:
        new Set([...this.#rows.map(({ active }) => active), ...this.#reading ? [this.#reading.active] : []]).size,
      waiting: this.#waiting.length,
      sequences: sequences.length,
      prefixes: states.length,
      pages: {
        total: cache.pageCount,
        free: cache.freePages,
        prefix: new Set(states.flatMap(({ pages }) => pages.filter((page) => !running.has(page)))).size,
        shared: cache.sharedPages,
      },
      bytes: { pages: tokens * cache.bytesPerToken, exact: exactRows * layers * kvHeads * headDim * 2 * 2 },
      bf16Bytes: cacheBytes(cache.shape, kvConfig("bf16"), none, tokens).total,
      totals: { ...this.#totals },
    };
  }

  /** Drops all prefix states. */
  clearPrefixes(): void {
    this.#prefixes[Symbol.dispose]();
    this.#blocked = false;
  }

  /** Ends what runs without a word and frees the memory. */
  [Symbol.dispose](): void {
    this.#waiting.length = 0;
    if (this.#reading) this.#stopReading();
    while (this.#rows.length > 0) this.#remove(this.#rows.length - 1);
    this.#prefixes[Symbol.dispose]();
    for (const graph of this.#graphs.values()) graph[Symbol.dispose]();
    for (const part of [this.#step, this.#sampler, this.#logits, this.#topValues, this.#topIds]) part[Symbol.dispose]();
  }
}
