/**
 * Which requests run: a queue, one prompt that is being read, and the rows of a step. It counts pages and knows no device.
 *
 * A request is let in once there are rows and pages for the worst case of it and of all that runs: so nothing that runs is
 * ever short of a page. Clients take turns, each with its requests in their order.
 *
 * @module
 */

import { PAGE_TOKENS } from "../ops/ops.ts";
import { type PagedCache, PrefixCache, type PrefixSequence } from "./prefix.ts";
import { type CacheStats, EngineError, type Owner } from "./request.ts";
import { Turns } from "./turns.ts";

/** Milliseconds that prompts are read for before the caller gets a turn, while no sequence runs. */
const PROMPT_TURN = 10;

/** Reading prompts takes at most this many times as long as the sequences that run meanwhile. */
const MOST_SHARE = 3;

/** Parts of a long prompt at whose ends its state is kept, so that a prompt that leaves it midway finds one. */
const STATES = 4;

/** Shortest distance of such states, in tokens. */
const STATE_DISTANCE = 512;

/** Of so many rows one is for clients that have none, so that one with many requests does not keep others waiting for their ends. */
const RESERVE = 8;

/** What the scheduler has to know of a request. Without an owner it is of a client of its own, and shares with all others alike. */
export interface ScheduledRequest extends Partial<Owner> {
  /** Prompt. */
  readonly ids: readonly number[];
  /** Tokens at most a choice. */
  readonly maxTokens: number;
  /** Choices. */
  readonly n: number;
  /** Whether the prompt is read whole and shares nothing with others: no state of it is sought or kept. Default false. */
  readonly alone?: boolean;
}

/** A request in the scheduler. */
export interface Job<R> {
  /** What the caller calls it. */
  readonly id: number;
  /** Who asks. */
  readonly client: string;
  /** The request. */
  readonly request: R;
  /** Pages that one choice may come to hold. */
  readonly worst: number;
  /** Choices that are not at their end. */
  open: number;
  /** Whether it was ended by an error. */
  failed: boolean;
}

/** A choice of a request, in a row of the step. */
export interface Row<R, S> {
  /** Its request. */
  readonly job: Job<R>;
  /** Which choice it is. */
  readonly choice: number;
  /** Where its tokens are. */
  readonly sequence: S;
}

/** The prompt that is being read. */
export interface Reading<R, S> {
  /** Its request. */
  readonly job: Job<R>;
  /** Where it is read to; what it holds at first was found among the prefixes. */
  readonly sequence: S;
  /** Block ends at which the state is kept. */
  readonly states: ReadonlySet<number>;
}

/** Sizes of a {@linkcode Scheduler}. */
export interface SchedulerOptions {
  /** Sequences that run at once. */
  rows: number;
  /** Tokens of a block of a prompt; a multiple of {@linkcode PAGE_TOKENS}. */
  block: number;
  /** Prefix states kept at most. The cache needs `rows + prefixes` slots. */
  prefixes: number;
}

/** Decides what is read and run next over a cache's pages. */
export class Scheduler<R extends ScheduledRequest, S extends PrefixSequence<S>> implements Disposable {
  /** States of earlier prompts. */
  readonly prefixes: PrefixCache<S>;
  /** Counts since the start. */
  readonly totals: CacheStats["totals"] = {
    promptTokens: 0,
    generatedTokens: 0,
    prefixQueries: 0,
    prefixHits: 0,
    steps: 0,
  };
  readonly #cache: PagedCache<S>;
  readonly #most: number;
  readonly #waiting = new Turns<Job<R>>();
  readonly #rows: Row<R, S>[] = [];
  #reading: Reading<R, S> | undefined;
  /** No waiting request fits; they are tried again once something was given back, or another one came. */
  #blocked = false;

  /** Begins with nothing to do. */
  constructor(cache: PagedCache<S>, options: SchedulerOptions) {
    this.#cache = cache;
    this.#most = options.rows;
    this.prefixes = new PrefixCache(cache, options.block, options.prefixes);
  }

  /** The choices that run, in the order of the step's rows. */
  get rows(): readonly Row<R, S>[] {
    return this.#rows;
  }

  /** The prompt that is being read. */
  get reading(): Reading<R, S> | undefined {
    return this.#reading;
  }

  /** Requests that wait. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** Whether there is something to do now. */
  get busy(): boolean {
    return this.#rows.length > 0 || this.#reading !== undefined || (this.#waiting.length > 0 && !this.#blocked);
  }

  /** Queues a request. Throws EngineError where it can never fit. */
  submit(id: number, request: R): void {
    const { context, pageCount } = this.#cache, { ids, n, maxTokens } = request;
    if (n > this.#most) {
      throw new EngineError("invalid_request", `n is ${n}; this server answers ${this.#most} sequences at once`, "n");
    }
    const worst = Math.ceil(Math.min(context, ids.length + Math.max(maxTokens, 1) - 1) / PAGE_TOKENS);
    const client = request.client ?? `request ${id}`,
      job = { id, client, request, worst, open: n, failed: false },
      needed = worst + forkPages(job);
    if (needed > pageCount) {
      throw new EngineError(
        "context_length",
        `${n} x ${ids.length} prompt and ${maxTokens} generated tokens need ${needed} pages of ${PAGE_TOKENS} ` +
          `tokens; the cache has ${pageCount}: ask for fewer tokens`,
      );
    }
    this.#waiting.push(client, job);
    this.#blocked = false;
  }

  /** Takes a request out of the queue. */
  withdraw(id: number): void {
    if (this.#waiting.withdraw((job) => job.id === id)) this.#blocked = false;
  }

  /** Pages that what runs may still take. */
  #outstanding(): number {
    let pages = 0;
    for (const { job, sequence } of this.#rows) {
      const last = sequence.pages.at(-1);
      pages += job.worst - sequence.pages.length;
      // A fork copies its last page before it writes to it.
      if (sequence.length % PAGE_TOKENS !== 0 && last !== undefined && this.#cache.isShared(last)) pages++;
    }
    if (this.#reading) {
      const { job, sequence } = this.#reading;
      pages += job.worst - sequence.pages.length + forkPages(job);
    }
    return pages;
  }

  /** The request that is let in next: the first of the client whose turn it is, where rows allow it. */
  get next(): Job<R> | undefined {
    if (this.#reading || this.#blocked) return undefined;
    const free = this.#most - this.#rows.length, reserve = this.#most > 1 ? Math.ceil(this.#most / RESERVE) : 0;
    for (const job of this.#waiting.next()) {
      if (this.#rows.some(({ job: { client } }) => client === job.client) && job.request.n > free - reserve) continue;
      if (job.request.n <= free) return job;
      // It keeps its turn until there are rows enough: else small ones could pass it for ever.
      break;
    }
    this.#blocked = true;
    return undefined;
  }

  /**
   * Begins to read the next request's prompt where rows and pages allow its worst case: that prompt, or undefined. Throws where
   * the cache does, with nothing changed.
   */
  admit(): Reading<R, S> | undefined {
    const job = this.next;
    if (!job) return undefined;
    const { ids, salt, alone } = job.request, cache = this.#cache;
    const match = alone ? { sequence: undefined, common: 0 } : this.prefixes.find(ids, salt),
      sequence = match.sequence ?? cache.sequence();
    const needed = this.#outstanding() + job.worst - sequence.pages.length + forkPages(job);
    while (cache.freePages < needed && this.prefixes.evict());
    if (cache.freePages < needed) {
      sequence[Symbol.dispose]();
      this.#blocked = true;
      return undefined;
    }
    this.#waiting.take(job);
    this.totals.promptTokens += ids.length;
    if (!alone) this.totals.prefixQueries += ids.length;
    this.totals.prefixHits += sequence.length;
    return this.#reading = { job, sequence, states: alone ? new Set() : this.#states(ids.length, match.common) };
  }

  /** Where the state of a prompt is kept: at its last block end, where another prompt left it, and a few between. */
  #states(tokens: number, common: number): Set<number> {
    const { block } = this.prefixes, floor = (position: number) => Math.floor(position / block) * block;
    const states = new Set([floor(tokens - 1), common]);
    // Without a ring any block end can be found again in a later state.
    const distance = Math.max(STATE_DISTANCE, tokens / STATES);
    if (this.#cache.stepTokens !== Infinity) {
      for (let position = distance; position < tokens; position += distance) states.add(floor(position));
    }
    return states;
  }

  /** The next block of the prompt, as far as it goes on; `last` where nothing comes after it. */
  block(): { ids: readonly number[]; last: boolean } {
    const { job: { request: { ids, alone } }, sequence: { length } } = this.#reading!;
    const end = Math.min(ids.length, alone ? Infinity : length + this.prefixes.block);
    return { ids: ids.slice(length, end), last: end === ids.length };
  }

  /** The block was read. Where it was the last, the prompt's choices become rows: the index of the first, else undefined. */
  blockRead(): number | undefined {
    const { job, sequence, states } = this.#reading!, { ids, n, salt } = job.request;
    if (states.has(sequence.length)) this.prefixes.keep(ids.slice(0, sequence.length), sequence, salt);
    if (sequence.length < ids.length) return undefined;
    const first = this.#rows.length, sequences = [sequence];
    try {
      while (sequences.length < n) sequences.push(sequence.fork());
    } catch (error) { // the first is given back with the prompt
      for (const fork of sequences.slice(1)) fork[Symbol.dispose]();
      throw error;
    }
    this.#reading = undefined;
    this.#rows.push(...sequences.map((sequence, choice) => ({ job, choice, sequence })));
    return first;
  }

  /** Reads no more of the prompt. */
  dropReading(): void {
    this.#reading?.sequence[Symbol.dispose]();
    this.#reading = undefined;
    this.#blocked = false;
  }

  /** Takes a row out; the last row takes its place. Returns the row that it had. */
  remove(row: number): number {
    const { sequence, job } = this.#rows[row], last = this.#rows.pop()!, from = this.#rows.length;
    if (row < from) this.#rows[row] = last;
    sequence[Symbol.dispose]();
    job.open--;
    this.#blocked = false;
    return from;
  }

  /**
   * Milliseconds to read prompts for, after a step that took `step`: as much time as the sequences that run take, and more
   * where more requests wait than run.
   */
  turn(step: number): number {
    if (this.#rows.length === 0) return PROMPT_TURN;
    return step * Math.min(MOST_SHARE, Math.max(1, this.#waiting.length / this.#rows.length));
  }

  /** Drops all prefix states. */
  clearPrefixes(): void {
    this.prefixes[Symbol.dispose]();
    this.#blocked = false;
  }

  /** Gives everything back. */
  [Symbol.dispose](): void {
    this.#waiting.clear();
    this.dropReading();
    while (this.#rows.length > 0) this.remove(this.#rows.length - 1);
    this.prefixes[Symbol.dispose]();
  }
}

/** Pages that the choices after the first may come to hold besides those that they share with it. */
function forkPages({ request: { ids, n }, worst }: Job<ScheduledRequest>): number {
  return (n - 1) * (worst - Math.floor(ids.length / PAGE_TOKENS));
}
