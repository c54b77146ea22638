/**
 * Prompts that were read before, kept so that a new prompt with the same start need not read that start again.
 *
 * A continued sequence attends to what the cache holds of its past (codes, the ring of newest tokens, the sinks), while
 * the prompt's own tokens attend to each other exactly. For a hit to give the very bits of a miss, the two must split the
 * prompt at the same places: so a prompt is always read in blocks whose ends are fixed positions (multiples of `block`),
 * and a start is shared at such ends only. The pages of the start are shared by reference count; the ring and the sinks, which
 * belong to a slot, are copied: an entry is a fork of the sequence at the end of a block, and so is what a hit returns.
 *
 * @module
 */

/** What is needed of a cache's sequence: no more, so that it is tested without a device. */
export interface PrefixSequence<S> extends Disposable {
  /** Tokens stored. */
  readonly length: number;
  /** Pages in order. */
  readonly pages: readonly number[];
  /** A second sequence with the same tokens, pages shared. */
  fork(): S;
  /** Drops tokens from the end. */
  truncate(length: number): void;
}

/** What is needed of a cache. */
export interface PagedCache<S> {
  /** Longest sequence, in tokens. */
  readonly context: number;
  /** Pages in all. */
  readonly pageCount: number;
  /** Pages that no sequence holds. */
  readonly freePages: number;
  /** Tokens that can be dropped from a sequence without a trace. */
  readonly stepTokens: number;
  /** Whether more than one sequence holds a page. */
  isShared(page: number): boolean;
  /** Starts an empty sequence. */
  sequence(): S;
}

interface Entry<S> {
  readonly ids: Int32Array;
  readonly salt: string;
  readonly sequence: S;
  used: number;
}

/** What is known of a prompt's start. */
export interface PrefixMatch<S> {
  /** A sequence that holds the start and belongs to the caller; undefined where there is none. */
  readonly sequence: S | undefined;
  /** The longest start, in whole blocks, that an earlier prompt had as well; a state kept here would have helped. */
  readonly common: number;
}

/** States of a cache at block ends, least recently used first out. */
export class PrefixCache<S extends PrefixSequence<S>> implements Disposable {
  /** Tokens of a block. */
  readonly block: number;
  readonly #cache: PagedCache<S>;
  readonly #capacity: number;
  readonly #entries: Entry<S>[] = [];
  #clock = 0;

  /** `capacity` states at most; each takes a slot of the cache. */
  constructor(cache: PagedCache<S>, block: number, capacity: number) {
    this.#cache = cache;
    this.block = block;
    this.#capacity = capacity;
  }

  /** The states kept. */
  get sequences(): S[] {
    return this.#entries.map(({ sequence }) => sequence);
  }

  #best(ids: ArrayLike<number>, salt: string): { entry?: Entry<S>; length: number; common: number } {
    // The last token is always read again: its logits are what the answer begins with.
    const whole = Math.floor((ids.length - 1) / this.block) * this.block;
    let entry: Entry<S> | undefined, length = 0, longest = 0;
    for (const candidate of this.#entries) {
      if (candidate.salt !== salt) continue;
      const common = Math.min(commonLength(candidate.ids, ids), whole);
      const end = Math.floor(common / this.block) * this.block;
      longest = Math.max(longest, end);
      // Up to `stepTokens` can be dropped from a state without a trace (Sequence.truncate); without a ring, any number.
      if (end > length && candidate.ids.length - end <= this.#cache.stepTokens) [entry, length] = [candidate, end];
    }
    return { entry, length, common: longest };
  }

  /** Looks a prompt up among those of the same salt. */
  find(ids: ArrayLike<number>, salt: string = ""): PrefixMatch<S> {
    const { entry, length, common } = this.#best(ids, salt);
    if (!entry) return { sequence: undefined, common };
    entry.used = ++this.#clock;
    const sequence = entry.sequence.fork();
    try {
      sequence.truncate(length);
    } catch (error) {
      sequence[Symbol.dispose]();
      throw error;
    }
    return { sequence, common };
  }

  /** Keeps the state of a sequence that holds just `ids`, whole blocks, for prompts of the same salt. */
  keep(ids: ArrayLike<number>, sequence: S, salt: string = ""): void {
    if (this.#capacity === 0) return;
    const known = this.#entries.find((entry) =>
      entry.salt === salt && entry.ids.length === ids.length && commonLength(entry.ids, ids) === ids.length
    );
    if (known) {
      known.used = ++this.#clock;
      return;
    }
    if (this.#entries.length >= this.#capacity) this.evict();
    this.#entries.push({ ids: Int32Array.from(ids), salt, sequence: sequence.fork(), used: ++this.#clock });
  }

  /** Drops the state that was not used for the longest time. False where there is none. */
  evict(): boolean {
    if (this.#entries.length === 0) return false;
    const oldest = this.#entries.reduce((a, b) => a.used < b.used ? a : b);
    this.#entries.splice(this.#entries.indexOf(oldest), 1);
    oldest.sequence[Symbol.dispose]();
    return true;
  }

  /** Drops all states. */
  [Symbol.dispose](): void {
    while (this.evict());
  }
}

function commonLength(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const most = Math.min(a.length, b.length);
  let i = 0;
  while (i < most && a[i] === b[i]) i++;
  return i;
}
