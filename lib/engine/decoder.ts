/**
 * A recorded step alone, for measuring it: nothing is read back, nothing is scheduled.
 *
 * @module
 */

import type { Tensor } from "../tensor.ts";
import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import type { Model } from "../models/model.ts";
import { Runner } from "./runner.ts";
import type { SamplingOptions } from "./sampler.ts";

/** Draws on for a fixed number of sequences, each in a row of its own. */
export class Decoder implements Disposable {
  readonly #runner: Runner;
  readonly #rows: number;

  /** Allocates and records a step of `rows` sequences. */
  constructor(model: Model, cache: KvCache, rows: number = 1) {
    this.#runner = new Runner(model, cache, rows, [rows]);
    this.#rows = rows;
  }

  /** Ids that the last step drew, i32 [rows]; reading them waits for the step. */
  get ids(): Tensor {
    return this.#runner.ids;
  }

  /**
   * Sets a row to go on from a sequence as it is stored: the next step reads token `id` behind its end. Without `options` the
   * row draws on as it did, which it must have been told before.
   */
  resume(row: number, sequence: Sequence, id: number, options?: SamplingOptions): void {
    if (options) this.#runner.start(row, [id], options);
    this.#runner.place(row, sequence, id);
  }

  /** Runs the step, see {@linkcode Runner.launch}: all rows must have been resumed, and their sequences extended by one. */
  advance(): void {
    this.#runner.launch(this.#rows);
  }

  /** Frees the step's memory and recording. */
  [Symbol.dispose](): void {
    this.#runner[Symbol.dispose]();
  }
}
