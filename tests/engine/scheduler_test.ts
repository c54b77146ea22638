import { assert, assertEquals, assertThrows } from "@std/assert";
import { test } from "node:test";
import type { PagedCache, PrefixSequence } from "../../lib/engine/prefix.ts";
import { EngineError } from "../../lib/engine/request.ts";
import { type ScheduledRequest, Scheduler } from "../../lib/engine/scheduler.ts";
import { Random } from "../support/random.ts";

const PAGE = 64, seed = Date.now() % 2 ** 31;

/** A cache's pages, counted as KvCache counts them, and nothing in them. */
class Pages implements PagedCache<Held> {
  readonly context = 2048;
  readonly stepTokens = 64;
  readonly pageCount: number;
  readonly holders: number[];
  constructor(pageCount: number) {
    this.pageCount = pageCount;
    this.holders = new Array(pageCount).fill(0);
  }
  get freePages(): number {
    return this.holders.filter((count) => count === 0).length;
  }
  isShared(page: number): boolean {
    return this.holders[page] > 1;
  }
  sequence(): Held {
    return new Held(this);
  }
  take(): number {
    const page = this.holders.indexOf(0);
    if (page < 0) throw new Error("short of a page");
    this.holders[page] = 1;
    return page;
  }
}

class Held implements PrefixSequence<Held> {
  readonly cache: Pages;
  length = 0;
  pages: number[] = [];
  constructor(cache: Pages) {
    this.cache = cache;
  }
  extend(count: number): void {
    const last = this.pages.length - 1;
    if (this.length % PAGE !== 0 && this.cache.isShared(this.pages[last])) {
      this.cache.holders[this.pages[last]]--;
      this.pages[last] = this.cache.take();
    }
    this.length += count;
    while (this.pages.length < Math.ceil(this.length / PAGE)) this.pages.push(this.cache.take());
  }
  fork(): Held {
    const copy = new Held(this.cache);
    copy.length = this.length;
    copy.pages = [...this.pages];
    for (const page of copy.pages) this.cache.holders[page]++;
    return copy;
  }
  truncate(length: number): void {
    for (const page of this.pages.splice(Math.ceil(length / PAGE))) this.cache.holders[page]--;
    this.length = length;
  }
  [Symbol.dispose](): void {
    this.truncate(0);
  }
}

const tokens = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i);

/** A scheduler, and what drives it in a batch: prompts that are read, and a token a step for each row. */
function open(pages: number, options: { rows?: number; block?: number; prefixes?: number } = {}) {
  const cache = new Pages(pages), { rows = 4, block = 128, prefixes = 0 } = options;
  const scheduler = new Scheduler<ScheduledRequest, Held>(cache, { rows, block, prefixes });
  const started: number[] = [], ended: number[] = [], drawn = new Map<object, number>();
  const read = (): void => {
    const admitted = scheduler.admit();
    if (admitted) started.push(admitted.job.id);
    if (!scheduler.reading) return;
    scheduler.reading.sequence.extend(scheduler.block().ids.length);
    const first = scheduler.blockRead();
    if (first !== undefined) take(first);
  };
  /** Counts a drawn token for the rows from `first` on, and removes those at their end. */
  const take = (first: number): void => {
    for (let row = scheduler.rows.length - 1; row >= first; row--) {
      const { sequence, job } = scheduler.rows[row], count = (drawn.get(sequence) ?? 0) + 1;
      drawn.set(sequence, count);
      if (count < job.request.maxTokens) continue;
      scheduler.remove(row);
      if (job.open === 0) ended.push(job.id);
    }
  };
  /** A step of all rows, then so many blocks. */
  const step = (blocks = 1): boolean => {
    for (const { sequence } of scheduler.rows) sequence.extend(1);
    take(0);
    for (let i = 0; i < blocks; i++) read();
    return scheduler.busy;
  };
  return { cache, scheduler, started, ended, read, step };
}

test("a prompt is read in blocks, and its choices become rows once it is read", () => {
  const { scheduler, cache } = open(100);
  scheduler.submit(1, { ids: tokens(0, 300), maxTokens: 10, n: 3 });
  assertEquals([scheduler.waiting, scheduler.rows.length, scheduler.busy], [1, 0, true]);
  assertEquals(scheduler.admit()!.job.id, 1);
  const blocks: [number, number, boolean][] = [];
  let first: number | undefined;
  while (first === undefined) {
    const { ids, last } = scheduler.block();
    blocks.push([ids[0], ids.length, last]);
    scheduler.reading!.sequence.extend(ids.length);
    first = scheduler.blockRead();
  }
  assertEquals(first, 0);
  assertEquals(blocks, [[0, 128, false], [128, 128, false], [256, 44, true]]);
  assertEquals(scheduler.rows.map(({ choice, sequence }) => [choice, sequence.length]), [[0, 300], [1, 300], [2, 300]]);
  assertEquals(cache.freePages, 95);
  // The last row takes the place of one that is removed.
  assertEquals(scheduler.remove(0), 2);
  assertEquals(scheduler.rows.map(({ choice }) => choice), [2, 1]);
});

test("a start that was read before is found, and a state is kept where another prompt left it", () => {
  const { scheduler, step } = open(100, { prefixes: 8 });
  const run = (id: number, ids: number[]): number => {
    scheduler.submit(id, { ids, maxTokens: 2, n: 1 });
    const cached = scheduler.totals.prefixHits;
    while (step());
    return scheduler.totals.prefixHits - cached;
  };
  const start = tokens(0, 400), branch = [...tokens(0, 200), ...tokens(5000, 100)];
  assertEquals(run(1, start), 0);
  assertEquals(run(2, start), 384);
  assertEquals(run(3, branch), 0); // 128 are common; the one state is further behind than a ring can go back
  assertEquals(run(4, [...tokens(0, 150), ...tokens(7000, 100)]), 128);
  assertEquals(scheduler.totals.promptTokens, 400 + 400 + 300 + 250);
});

test("what can never fit is refused, by the choices and by the pages that it would need", () => {
  const { scheduler } = open(14);
  assertThrows(() => scheduler.submit(1, { ids: [1], maxTokens: 1, n: 5 }), EngineError, "4 sequences");
  const large = { ids: tokens(0, 880), maxTokens: 100, n: 1 };
  assertThrows(() => scheduler.submit(1, large), EngineError, "16 pages");
  scheduler.submit(1, { ids: tokens(0, 640), maxTokens: 65, n: 4 }); // 11 + 3 x 1
  assertEquals(scheduler.waiting, 1);
});

test("a request that does not fit yet waits, without a turn, until something is given back", () => {
  const { scheduler, started, read } = open(10);
  scheduler.submit(1, { ids: tokens(0, 300), maxTokens: 100, n: 1 });
  for (let i = 0; i < 3; i++) read();
  scheduler.submit(2, { ids: tokens(0, 300), maxTokens: 100, n: 1 });
  scheduler.submit(3, { ids: tokens(0, 10), maxTokens: 5, n: 1 });
  read();
  // 7 + 7 pages are more than 10; the third would fit, but first come, first served.
  assertEquals([started, scheduler.waiting], [[1], 2]);
  scheduler.withdraw(2);
  read();
  assertEquals(started, [1, 3]);
  while (scheduler.rows.length > 0) scheduler.remove(0);
  assertEquals(scheduler.busy, false);
});

test("prompts are read for as long as the step took, for more where more wait, and for 10 ms where nothing runs", () => {
  const { scheduler, read } = open(100, { rows: 2 });
  assertEquals(scheduler.turn(1), 10);
  for (let id = 1; id <= 2; id++) {
    scheduler.submit(id, { ids: [1, 2], maxTokens: 9, n: 1 });
    read();
  }
  assertEquals(scheduler.turn(4), 4);
  for (let id = 3; id <= 6; id++) scheduler.submit(id, { ids: [1], maxTokens: 9, n: 1 });
  assertEquals(scheduler.turn(4), 8);
  for (let id = 7; id <= 20; id++) scheduler.submit(id, { ids: [1], maxTokens: 9, n: 1 });
  assertEquals(scheduler.turn(4), 12);
});

test(`nothing that runs is ever short of a page, whatever is asked for and withdrawn, seed ${seed}`, () => {
  const random = new Random(seed);
  for (let round = 0; round < 100; round++) {
    const pages = random.integer(4, 30), prefixes = random.integer(0, 5), rows = random.integer(1, 6);
    const block = PAGE * random.integer(1, 3), run = open(pages, { rows, block, prefixes }), { scheduler } = run;
    const accepted: number[] = [], gone = new Set<number>();
    for (let id = 1; id <= 30; id++) {
      const from = 1000 * random.integer(0, 2), ids = tokens(from, random.integer(1, random.integer(0, 1) ? 30 : 600));
      try {
        scheduler.submit(id, { ids, maxTokens: random.integer(1, 200), n: random.integer(1, rows) });
        accepted.push(id);
      } catch (error) {
        assert(error instanceof EngineError, `${error}`);
      }
      for (let steps = random.integer(0, 20); steps > 0; steps--) run.step(random.integer(1, 4));
      if (random.integer(0, 5) > 0 || accepted.length === 0) continue;
      const out = accepted[random.integer(0, accepted.length - 1)];
      if (run.ended.includes(out)) continue;
      gone.add(out);
      scheduler.withdraw(out);
      if (scheduler.reading?.job.id === out) scheduler.dropReading();
      for (let r = scheduler.rows.length - 1; r >= 0; r--) if (scheduler.rows[r].job.id === out) scheduler.remove(r);
    }
    for (let steps = 0; run.step(); steps++) assert(steps < 1e5, "no end");
    assertEquals(run.started, [...run.started].sort((a, b) => a - b));
    assertEquals(run.ended.sort((a, b) => a - b), accepted.filter((id) => !gone.has(id)));
    scheduler.clearPrefixes();
    assertEquals(run.cache.freePages, pages);
  }
});
