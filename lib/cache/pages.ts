/**
 * Which pages are whose: pages that are free, shared by sequences, and copied when one of these writes. Numbers alone; the cache does to its
 * memory what is said here.
 *
 * @module
 */

import { PAGE_TOKENS } from "../ops/ops.ts";

/** The cache has no free page or slot left; freeing sequences, or a larger cache, helps. */
export class CacheFullError extends Error {
  /** Always "CacheFullError". */
  override readonly name: string = "CacheFullError";
}

/** The pages of a cache. */
export class PagePool {
  /** Pages in all. */
  readonly count: number;
  readonly #references: Int32Array;
  readonly #free: number[];

  /** All `count` pages are free. */
  constructor(count: number) {
    this.count = count;
    this.#references = new Int32Array(count);
    this.#free = Array.from({ length: count }, (_, i) => count - 1 - i);
  }

  /** Pages that nobody holds. */
  get free(): number {
    return this.#free.length;
  }

  /** Pages that more than one sequence holds. */
  get shared(): number {
    return this.#references.reduce((count, references) => count + Number(references > 1), 0);
  }

  /** Whether more than one sequence holds a page. */
  isShared(page: number): boolean {
    return this.#references[page] > 1;
  }

  /** Takes a free page. Throws CacheFullError where there is none. */
  take(): number {
    const page = this.#free.pop();
    if (page === undefined) throw new CacheFullError(`KV cache: all ${this.count} pages are in use`);
    this.#references[page] = 1;
    return page;
  }

  /** Holds pages once more. */
  share(pages: readonly number[]): void {
    for (const page of pages) this.#references[page]++;
  }

  /** Gives a page back, which is free once nobody holds it. */
  release(page: number): void {
    if (--this.#references[page] === 0) this.#free.push(page);
  }
}

/** New entries of a page table from `first` on; the first of them begins as a copy of page `copyOf`, where that is given. */
export interface PageChange {
  /** Index of the first entry. */
  readonly first: number;
  /** The entries. */
  readonly pages: readonly number[];
  /** A page that was shared, and whose tokens go on in the first of `pages`. */
  readonly copyOf?: number;
}

/** The pages of one sequence, in order. */
export class PageList {
  readonly #pool: PagePool;
  readonly #pages: number[];

  /** Without a page, or with pages that it holds already. */
  constructor(pool: PagePool, pages: readonly number[] = []) {
    this.#pool = pool;
    this.#pages = [...pages];
  }

  /** Pages in order. */
  get pages(): readonly number[] {
    return this.#pages;
  }

  /**
   * Makes room for `count` tokens after `length`, in pages that no other sequence holds. Returns what changes in the page table, or undefined
   * where nothing does. Throws CacheFullError, with nothing changed, where pages run out.
   */
  grow(length: number, count: number): PageChange | undefined {
    const pool = this.#pool, last = this.#pages.length - 1;
    const copied = length % PAGE_TOKENS !== 0 && pool.isShared(this.#pages[last]);
    const wanted = Math.ceil((length + count) / PAGE_TOKENS) - this.#pages.length, needed = wanted + Number(copied);
    if (needed > pool.free) {
      throw new CacheFullError(
        `KV cache: ${needed} pages are needed for ${count} tokens, ${pool.free} are free; ` +
          "dispose a sequence, or make the cache with more tokens",
      );
    }
    if (needed <= 0) return undefined;
    const taken = Array.from({ length: needed }, () => pool.take());
    if (!copied) {
      this.#pages.push(...taken);
      return { first: last + 1, pages: taken };
    }
    const [copyOf] = this.#pages.splice(last, 1, ...taken);
    pool.release(copyOf);
    return { first: last, pages: taken, copyOf };
  }

  /** A list that holds the same pages. */
  fork(): PageList {
    this.#pool.share(this.#pages);
    return new PageList(this.#pool, this.#pages);
  }

  /** Gives back the pages beyond the first `length` tokens. */
  shrink(length: number): void {
    for (const page of this.#pages.splice(Math.ceil(length / PAGE_TOKENS))) this.#pool.release(page);
  }
}
