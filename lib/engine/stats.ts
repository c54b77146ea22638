/**
 * How much of a cache is in use.
 *
 * @module
 */

import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import { PAGE_TOKENS } from "../ops/ops.ts";
import { cacheBytes, type CacheShape } from "../cache/bytes.ts";
import { bf16Calibration } from "../cache/calibration.ts";
import { kvConfig } from "../cache/scheme.ts";
import type { CacheStats } from "./request.ts";
import type { ScheduledRequest, Scheduler } from "./scheduler.ts";

/** Bytes that the pages of a bf16 cache would use for so many tokens. */
export function bf16Bytes(shape: CacheShape, tokens: number): number {
  return cacheBytes(shape, kvConfig("bf16"), bf16Calibration(), tokens).pages;
}

/** Counts what requests and prefix states hold of a cache now. */
export function cacheStats<R extends ScheduledRequest>(cache: KvCache, scheduler: Scheduler<R, Sequence>): CacheStats {
  const { rows, reading } = scheduler;
  const read = reading ? [reading] : [], held = [...rows, ...read].map(({ sequence }) => sequence);
  const states = scheduler.prefixes.sequences, running = new Set(held.flatMap(({ pages }) => pages));
  const tokens = (cache.pageCount - cache.freePages) * PAGE_TOKENS;
  const all = [...held, ...states],
    sum = (bytes: (length: number) => number) => all.reduce((total, { length }) => total + bytes(length), 0);
  return {
    running: new Set([...rows, ...read].map(({ job }) => job)).size,
    waiting: scheduler.waiting,
    sequences: held.length,
    prefixes: states.length,
    pages: {
      total: cache.pageCount,
      free: cache.freePages,
      prefix: new Set(states.flatMap(({ pages }) => pages.filter((page) => !running.has(page)))).size,
      shared: cache.sharedPages,
    },
    bytes: { pages: tokens * cache.bytesPerToken, exact: sum((length) => cache.exactBytes(length)) },
    bf16Bytes: bf16Bytes(cache.shape, tokens) + sum((length) => cache.slidingBytes(length)),
    totals: { ...scheduler.totals },
  };
}
