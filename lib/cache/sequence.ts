/**
 * One sequence of tokens in a cache.
 *
 * @module
 */

import type { KvLayer } from "../ops/ops.ts";
import { type PageChange, PageList, type PagePool } from "./pages.ts";
import type { KvConfig } from "./scheme.ts";

/** What a sequence needs of its cache; a {@linkcode KvCache} is one. */
export interface SequenceCache {
  /** What is kept, and how. */
  readonly config: KvConfig;
  /** The native binding of each layer, for ops. */
  readonly layers: readonly KvLayer[];
  /** Which pages are whose. */
  readonly pages: PagePool;
  /** Longest sequence, in tokens. */
  readonly context: number;
  /** Tokens that one step may add to a sequence. */
  readonly stepTokens: number;
  /** Starts an empty sequence. */
  sequence(): Sequence;
  /** Writes entries of `slot`'s page table, once the page that the first is a copy of is copied. */
  writePages(slot: number, change: PageChange): void;
  /** Copies ring and sinks from one slot to another. */
  copySlot(to: number, from: number): void;
  /** Tells the device from which position on `slot`'s ring rows are valid. */
  writeExactFrom(slot: number, position: number): void;
  /** Gives a slot back. */
  releaseSlot(slot: number): void;
}

/** One sequence of tokens in a {@linkcode KvCache}. */
export class Sequence implements Disposable {
  /** The cache it lives in. */
  readonly cache: SequenceCache;
  /** Its row in page tables and rings. */
  readonly slot: number;
  #length = 0;
  #exactFrom = 0;
  #exposed = 0;
  #pages: PageList;
  #disposed = false;

  /** @internal Use `cache.sequence()`. */
  constructor(cache: SequenceCache, slot: number) {
    this.cache = cache;
    this.slot = slot;
    this.#pages = new PageList(cache.pages);
    cache.writeExactFrom(slot, 0);
  }

  /** Tokens stored, or about to be by the step in progress. */
  get length(): number {
    return this.#length;
  }

  /** Lowest position that is in the ring of newest tokens once the tokens of `extend` are stored. */
  get exactFrom(): number {
    return this.#exactFrom;
  }

  /** Pages in order. */
  get pages(): readonly number[] {
    return this.#pages.pages;
  }

  /**
   * Makes room for `count` more tokens: they get pages of their own (a shared last page is copied first).
   * Throws RangeError past the cache's context, and CacheFullError with nothing changed where pages run out.
   */
  extend(count: number): void {
    this.#alive();
    const { context, config, stepTokens } = this.cache, length = this.#length + count;
    if (length > context) {
      throw new RangeError(`sequence: ${this.#length} + ${count} tokens do not fit the cache's context of ${context}`);
    }
    const change = this.#pages.grow(this.#length, count);
    if (change) this.cache.writePages(this.slot, change);
    this.#length = length;
    if (count > stepTokens) this.#exactFrom = Math.max(this.#exactFrom, length - config.recent);
  }

  /** Tells the device from which position on the ring holds this sequence's tokens. Called around a prompt's `quantize`. */
  expose(position: number): void {
    if (position === this.#exposed) return;
    this.cache.writeExactFrom(this.slot, position);
    this.#exposed = position;
  }

  /** A second sequence with the same tokens. Pages are shared until one of the two writes to them. */
  fork(): Sequence {
    this.#alive();
    const copy = this.cache.sequence();
    copy.#length = this.#length;
    copy.#pages = this.#pages.fork();
    if (copy.pages.length > 0) this.cache.writePages(copy.slot, { first: 0, pages: copy.pages });
    this.cache.copySlot(copy.slot, this.slot);
    copy.#exactFrom = this.#exactFrom;
    copy.expose(this.#exactFrom);
    return copy;
  }

  /**
   * Drops tokens from the end. Up to `cache.stepTokens` dropped tokens leave no trace; after more, some positions of
   * the window have left the ring and are read from their codes until new tokens have filled it again.
   */
  truncate(length: number): void {
    this.#alive();
    if (!Number.isInteger(length) || length < 0 || length > this.#length) {
      throw new RangeError(`sequence: cannot truncate ${this.#length} tokens to ${length}`);
    }
    this.#pages.shrink(length);
    const { recent } = this.cache.config;
    if (recent > 0) {
      this.#exactFrom = Math.min(length, Math.max(this.#exactFrom, this.#length - recent));
      this.expose(this.#exactFrom);
    }
    this.#length = length;
  }

  #alive(): void {
    if (this.#disposed) throw new Error("sequence: used after it was disposed");
  }

  /** Gives its pages and its slot back. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#pages.shrink(0);
    this.cache.releaseSlot(this.slot);
  }
}
