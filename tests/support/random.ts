/** Random test data that repeats: the seed is in the test. @module */

/** A generator: mulberry32. */
export class Random {
  #state: number;

  /** Equal seeds give equal numbers. */
  constructor(seed: number) {
    this.#state = seed | 0;
  }

  /** From 0 up to but not 1. */
  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let x = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    x = (x + Math.imul(x ^ (x >>> 7), x | 61)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number from `least` to `most`. */
  integer(least: number, most: number): number {
    return least + Math.floor(this.uniform() * (most - least + 1));
  }

  /** N(0, 1), by Box and Muller. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  /** `count` numbers of N(0, deviation). */
  normals(count: number, deviation = 1): Float32Array {
    return Float32Array.from({ length: count }, () => deviation * this.normal());
  }

  /** `count` whole numbers from `least` to `most`. */
  integers(count: number, least: number, most: number): Int32Array {
    return Int32Array.from({ length: count }, () => this.integer(least, most));
  }

  /** The numbers 0 to count - 1 in random order. */
  permutation(count: number): number[] {
    const out = Array.from({ length: count }, (_, i) => i);
    for (let i = count - 1; i > 0; i--) {
      const j = this.integer(0, i);
      [out[i], out[j]] = [out[j], out[i]];
    }
    return out;
  }
}
