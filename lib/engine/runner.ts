/**
 * The steps of the sequences that run together: memory, recorded graphs, drawing.
 *
 * A step of a size is recorded once and replayed. All sizes that will be served are recorded when a runner is made, so that no
 * request waits for a recording. On a GPU each size is run once before that, over padding alone: the library's scratch memory
 * must not grow while it records, and a first run loads kernels.
 *
 * @module
 */

import type { Graph } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { advance, logProbabilities } from "../ops/ops.ts";
import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import type { Model, Step } from "../models/model.ts";
import { Sampler, type SamplingOptions } from "./sampler.ts";

/** Most probable tokens that can be asked for. */
export const TOP_LOGPROBS: number = 20;

/** A sequence that a step computes the next token of. */
export interface RunnerRow {
  /** Where its tokens are stored. */
  readonly sequence: Sequence;
  /** Most probable tokens wanted with each drawn one; undefined for no log-probabilities. */
  readonly logprobs?: number;
  /** The last drawn token, which the next step reads. */
  next: number;
}

/** What a row alone is at fault for; the others are as they were. */
export class RowError extends Error {
  /** Always "RowError". */
  override readonly name: string = "RowError";
  /** Which row of the step. */
  readonly row: number;

  /** `cause`: what went wrong. */
  constructor(row: number, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause });
    this.row = row;
  }
}

/** A drawn token. */
export interface DrawnToken {
  /** Its id; below 0 where nothing can be drawn: the logits are not numbers, or none or all are infinite. */
  id: number;
  /** Its log-probability under the model, before temperature, penalties and biases; 0 where no row asked for any. */
  logprob: number;
  /** The most probable tokens in its place, in order; empty where no row asked for any. */
  top: { id: number; logprob: number }[];
}

/**
 * The sizes of step for up to `rows` rows. A CPU pays for every row and records in no time: all sizes. A GPU takes longer to
 * record, and no longer for a few rows more: up to 8 rows all sizes, for which vi_linear computes a row as it does alone;
 * above, 12, 16, 24, 32, 48, 64, ..., each row of a step having the bits that it has in any step of that size.
 */
export function stepSizes(rows: number, device: "cpu" | "cuda"): number[] {
  if (device === "cpu" || rows <= 8) return Array.from({ length: rows }, (_, i) => i + 1);
  const sizes = [1, 2, 3, 4, 5, 6, 7, 8];
  for (let size = 8; sizes.at(-1)! < rows; size *= 2) sizes.push(size * 1.5, size * 2);
  return [...sizes.filter((size) => size < rows), rows];
}

/** Runs steps of up to `rows` sequences. Its methods do not wait but for what they return. */
export class Runner implements Disposable {
  /** Logits of a prompt's last token, f32 [1, vocabulary]: what the first token is drawn from. */
  readonly logits: Tensor;
  readonly #model: Model;
  readonly #cache: KvCache;
  readonly #step: Step;
  readonly #sampler: Sampler;
  readonly #topValues: Tensor;
  readonly #topIds: Tensor;
  readonly #sizes: readonly number[];
  readonly #graphs = new Map<number, Graph>();
  /** Rows came, went or moved since the device was told. */
  #changed = true;

  /** Allocates the memory of a step, and records it for `sizes` numbers of rows, of which the last is the most. */
  constructor(model: Model, cache: KvCache, rows: number, sizes: readonly number[] = stepSizes(rows, kind(model))) {
    const { device } = model, { vocabularySize } = model.config, top = Math.min(TOP_LOGPROBS, vocabularySize);
    this.#model = model;
    this.#cache = cache;
    this.#sizes = sizes;
    this.#step = model.step(rows);
    this.#sampler = new Sampler(model, rows);
    this.logits = Tensor.zeros(device, "f32", [1, vocabularySize]);
    this.#topValues = Tensor.zeros(device, "f32", [rows, top]);
    this.#topIds = Tensor.zeros(device, "i32", [rows, top]);
    try {
      // The largest first: what scratch memory it needs is enough for the others.
      for (const size of [...sizes].reverse()) {
        if (kind(model) === "cuda") {
          this.#write([], size);
          this.#run(size);
        }
        this.#graphs.set(size, device.capture(() => this.#run(size)));
      }
      device.synchronize();
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  #run(rows: number): void {
    const step = this.#step;
    this.#model.forward(step, this.#cache, rows);
    this.#sampler.draw(step.ids, step.logits, step.positions, rows);
    advance(step.positions, { rows });
  }

  /** Tells the device the rows of a step of `size`, whose sequences have room for its token. What is left of it is padding. */
  #write(rows: readonly RunnerRow[], size: number): void {
    const step = this.#step,
      of = (value: (row: RunnerRow) => number, padding: number) =>
        Int32Array.from({ length: size }, (_, i) => i < rows.length ? value(rows[i]) : padding);
    step.ids.write(of(({ next }) => next, 0));
    step.slots.write(of(({ sequence }) => sequence.slot, 0));
    // A step adds 1 to it, and no row runs for more steps than the context has tokens: it stays below 0.
    step.positions.write(of(({ sequence }) => sequence.length - 1, -1 - this.#cache.context));
  }

  /** Sets a row up for a prompt. Throws SettingError that names the setting. */
  start(row: number, prompt: ArrayLike<number>, options: SamplingOptions): void {
    this.#sampler.start(row, prompt, options);
    this.#changed = true;
  }

  /** Sets what is added to a row's logits, f32 [vocabulary]; -Infinity forbids a token. */
  setBias(row: number, bias: Float32Array): void {
    this.#sampler.setBias(row, bias);
  }

  /** Row `row` is gone, and the one at `last`, if that is another, takes its place. */
  remove(row: number, last: number): void {
    if (row !== last) this.#sampler.move(row, last);
    this.#sampler.clear(last);
    this.#changed = true;
  }

  /** Draws the first token of each row from `first` on, whose prompt was read and left `logits`. */
  begin(rows: readonly RunnerRow[], first: number): DrawnToken[] {
    const step = this.#step, begun = rows.slice(first);
    step.positions.write(Int32Array.from(begun, ({ sequence }) => sequence.length - 1), first);
    begun.forEach((_, i) => {
      const row = first + i;
      this.#sampler.draw(step.ids.rows(row, 1), this.logits, step.positions.rows(row, 1), 1, row);
    });
    const tokens = this.#drawn(begun, first, this.logits);
    this.#changed = true;
    return tokens;
  }

  /** Computes and draws the next token of each row. Throws RowError where a sequence has no room; then nothing is changed. */
  step(rows: readonly RunnerRow[]): DrawnToken[] {
    for (const [row, { sequence }] of rows.entries()) {
      try {
        sequence.extend(1);
      } catch (error) {
        for (const { sequence } of rows.slice(0, row)) sequence.truncate(sequence.length - 1);
        throw new RowError(row, error);
      }
    }
    if (this.#changed) this.#write(rows, this.#sizeOf(rows.length));
    this.#changed = false;
    this.launch(rows.length);
    return this.#drawn(rows, 0, this.#step.logits);
  }

  /** Sets a row to go on behind a sequence as it is stored: the next launch reads token `id` there. */
  place(row: number, sequence: Sequence, id: number): void {
    this.#step.slots.write(Int32Array.of(sequence.slot), row);
    this.#step.positions.write(Int32Array.of(sequence.length), row);
    this.#step.ids.write(Int32Array.of(id), row);
  }

  /** Runs a recorded step, without waiting: each row's id is read into its sequence, which was extended by one, and the next is drawn. */
  launch(rows: number): void {
    this.#graphs.get(this.#sizeOf(rows))!.launch();
  }

  #sizeOf(rows: number): number {
    const size = this.#sizes.find((size) => size >= rows);
    if (size === undefined) throw new RangeError(`runner: ${rows} rows are more than the ${this.#sizes.at(-1)} it has`);
    return size;
  }

  /** Ids that the last step drew, i32 [rows]; reading them waits for the step. */
  get ids(): Tensor {
    return this.#step.ids;
  }

  /** What was drawn for rows of the step from `first` on. `logits` has a row for each, or one for all. */
  #drawn(rows: readonly RunnerRow[], first: number, logits: Tensor): DrawnToken[] {
    const ids = this.#step.ids.read<Int32Array>();
    const logprobs = rows.some(({ logprobs }) => logprobs !== undefined)
      ? this.#sampler.logprobs.read<Float32Array>()
      : undefined;
    const top = rows.some(({ logprobs }) => logprobs) ? this.#top(logits, Math.min(rows.length, logits.length)) : [];
    return rows.map((row, i) => {
      row.next = ids[first + i];
      return { id: row.next, logprob: logprobs?.[first + i] ?? 0, top: top[i] ?? top[0] ?? [] };
    });
  }

  /** The most probable tokens of the first rows of logits. */
  #top(logits: Tensor, rows: number): DrawnToken["top"][] {
    logProbabilities(logits, { rows, outValues: this.#topValues, outIds: this.#topIds });
    const values = this.#topValues.read<Float32Array>(), ids = this.#topIds.read<Int32Array>();
    const { width } = this.#topIds;
    return Array.from(
      { length: rows },
      (_, row) =>
        Array.from({ length: width }, (_, i) => ({ id: ids[row * width + i], logprob: values[row * width + i] })),
    );
  }

  /** Frees memory and recordings. */
  [Symbol.dispose](): void {
    for (const graph of this.#graphs.values()) graph[Symbol.dispose]();
    for (const part of [this.#step, this.#sampler, this.logits, this.#topValues, this.#topIds]) part[Symbol.dispose]();
  }
}

function kind({ device }: Model): "cpu" | "cuda" {
  return device.name === "cpu" ? "cpu" : "cuda";
}
