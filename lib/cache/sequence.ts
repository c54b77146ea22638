/**
 * One sequence of tokens in a cache.
 *
 * @module
 */

import type { KvLayer } from "../ops/ops.ts";
import { type PageChange, PageList, type PagePool } from "./pages.ts";
import type { Ring } from "./ring.ts";

/**
 * The rings of layers with a sliding window no longer hold what the next token would read: a sequence was to go back further than they
 * keep tokens. Reading its text anew helps.
 */
export class WindowError extends Error {
  /** Always "WindowError". */
  override readonly name: string = "WindowError";
}

/** What a sequence needs of its cache; a {@linkcode KvCache} is one. */
export interface SequenceCache {
  /** Its rings of newest tokens: the first of layers that see all of a sequence, the others one a sliding window. */
  readonly rings: readonly Ring[];
  /** The native binding of each layer, for ops. */
  readonly layers: readonly KvLayer[];
  /** Which pages are whose. */
  readonly pages: PagePool;
  /** Longest sequence, in tokens. */
  readonly context: number;
  /** Starts an empty sequence. */
  sequence(): Sequence;
  /** Writes entries of `slot`'s page table, once the page that the first is a copy of is copied. */
  writePages(slot: number, change: PageChange): void;
  /** Copies ring and sinks from one slot to another. */
  copySlot(to: number, from: number): void;
  /** Tells the device from which position on the rows of `slot` in a ring are valid. */
  writeExactFrom(slot: number, ring: number, position: number): void;
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
  /** The lowest position in each ring. */
  #starts: number[];
  /** The same as the device knows it. */
  #exposed: number[];
  #pages: PageList;
  #disposed = false;
  #lost: WindowError | undefined;

  /** @internal Use `cache.sequence()`. */
  constructor(cache: SequenceCache, slot: number) {
    this.cache = cache;
    this.slot = slot;
    this.#pages = new PageList(cache.pages);
    this.#starts = cache.rings.map(() => 0);
    this.#exposed = [...this.#starts];
    cache.rings.forEach((_, ring) => cache.writeExactFrom(slot, ring, 0));
  }

  /** Tokens stored, or about to be by the step in progress. */
  get length(): number {
    return this.#length;
  }

  /** Lowest position that is in the ring of newest tokens once the tokens of `extend` are stored, in layers that see all. */
  get exactFrom(): number {
    return this.#starts[0];
  }

  /** The same of each of the cache's rings. */
  get starts(): readonly number[] {
    return [...this.#starts];
  }

  /** Pages in order. */
  get pages(): readonly number[] {
    return this.#pages.pages;
  }

  /**
   * Makes room for `count` more tokens: they get pages of their own (a shared last page is copied first).
   * Throws RangeError for no whole number and past the cache's context, and CacheFullError with nothing changed where pages run out.
   */
  extend(count: number): void {
    this.#alive();
    if (!Number.isInteger(count) || count < 0) {
      throw new RangeError(`sequence: cannot be extended by ${count} tokens; a whole number from 0 on is needed`);
    }
    const { context, rings } = this.cache, length = this.#length + count;
    if (length > context) {
      throw new RangeError(`sequence: ${this.#length} + ${count} tokens do not fit the cache's context of ${context}`);
    }
    const change = this.#pages.grow(this.#length, count);
    if (change) this.cache.writePages(this.slot, change);
    this.#length = length;
    this.#starts = this.#starts.map((start, i) => {
      const { window, recent } = rings[i];
      return recent > 0 && count > recent - window ? Math.max(start, length - recent) : start;
    });
  }

  /**
   * Tells the device from which position on each ring holds this sequence's tokens, by default as {@linkcode Sequence.starts} says. Called
   * around a prompt's `quantize`.
   */
  expose(starts: readonly number[] = this.#starts): void {
    starts.forEach((position, ring) => {
      if (position === this.#exposed[ring]) return;
      this.cache.writeExactFrom(this.slot, ring, position);
      this.#exposed[ring] = position;
    });
  }

  /** A second sequence with the same tokens. Pages are shared until one of the two writes to them. */
  fork(): Sequence {
    this.#alive();
    const copy = this.cache.sequence();
    copy.#length = this.#length;
    copy.#pages = this.#pages.fork();
    if (copy.pages.length > 0) this.cache.writePages(copy.slot, { first: 0, pages: copy.pages });
    this.cache.copySlot(copy.slot, this.slot);
    copy.#starts = [...this.#starts];
    copy.expose();
    return copy;
  }

  /**
   * Drops tokens from the end. Up to the rings' surplus (`cache.stepTokens`) of dropped tokens leave no trace; after more, some positions
   * of the window have left the ring and are read from their codes until new tokens have filled it again. Layers with a sliding window
   * have no codes: it throws {@linkcode WindowError}, with nothing changed, where their rings no longer hold what token `length` reads.
   */
  truncate(length: number): void {
    this.#alive();
    if (!Number.isInteger(length) || length < 0 || length > this.#length) {
      throw new RangeError(`sequence: cannot truncate ${this.#length} tokens to ${length}`);
    }
    const lost = this.#lostAt(length);
    if (lost) throw lost;
    this.#cut(length);
  }

  /**
   * Drops the tokens from `length` on, whose storing was interrupted. Where rings of sliding windows have lost what came before them, the
   * sequence is of no more use, and says so whenever it is used.
   */
  abandon(length: number): void {
    this.#alive();
    this.#lost = this.#lostAt(length);
    this.#cut(length);
  }

  /** The lowest position in a ring once the tokens from `length` on are gone. */
  #startAt(ring: number, length: number): number {
    const { recent } = this.cache.rings[ring], start = this.#starts[ring];
    return recent === 0 ? start : Math.min(length, Math.max(start, this.#length - recent));
  }

  /** The error where a ring of a sliding window misses a token that the one at position `length` sees. */
  #lostAt(length: number): WindowError | undefined {
    const rings = this.cache.rings;
    for (let ring = 1; ring < rings.length; ring++) {
      const { window } = rings[ring], start = this.#startAt(ring, length), needed = Math.max(0, length - window + 1);
      if (start <= needed) continue;
      return new WindowError(
        `sequence: ${this.#length} tokens cannot go back to ${length}: layers with a window of ${window} tokens need those ` +
          `from ${needed} on and hold those from ${start}; read the text anew in another sequence`,
      );
    }
  }

  #cut(length: number): void {
    this.#pages.shrink(length);
    this.#starts = this.#starts.map((_, ring) => this.#startAt(ring, length));
    this.expose();
    this.#length = length;
  }

  #alive(): void {
    if (this.#disposed) throw new Error("sequence: used after it was disposed");
    if (this.#lost) throw this.#lost;
  }

  /** Gives its pages and its slot back. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#pages.shrink(0);
    this.cache.releaseSlot(this.slot);
  }
}
