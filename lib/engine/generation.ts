/**
 * The decode loop: prompt in, tokens out, one recorded step a token.
 *
 * @module
 */

import { setImmediate } from "node:timers";
import type { Graph } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { advance, sample, SAMPLE_SETTINGS } from "../ops/ops.ts";
import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import type { Model, Step } from "../models/model.ts";

/** How the next token is drawn. */
export interface SamplingOptions {
  /** 0 (the default) takes the most probable token. */
  temperature?: number;
  /** Keep this many of the most probable tokens; 0 (the default) keeps all. */
  topK?: number;
  /** Keep the smallest set of most probable tokens with this mass. Default 1. */
  topP?: number;
  /** Keep tokens with at least this share of the largest probability. Default 0. */
  minP?: number;
  /** Divides (multiplies, if negative) logits of tokens seen in prompt or output. Default 1. */
  repetitionPenalty?: number;
  /** Taken from the logits of tokens in the output. Default 0. */
  presencePenalty?: number;
  /** Taken from the logits of tokens in the output, for each time. Default 0. */
  frequencyPenalty?: number;
  /** Added to the logits of these token ids. */
  logitBias?: Record<number, number>;
  /** The same seed draws the same tokens. Default: drawn at random. */
  seed?: number;
}

/** Checked settings of one row of the sampler. */
export function settingsOf(options: SamplingOptions): Float32Array {
  const { temperature = 0, topK = 0, topP = 1, minP = 0 } = options;
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = options;
  const ranges: [string, number, number, number][] = [
    ["temperature", temperature, 0, 100],
    ["topK", topK, 0, 2 ** 24],
    ["topP", topP, Number.MIN_VALUE, 1],
    ["minP", minP, 0, 1],
    ["repetitionPenalty", repetitionPenalty, Number.MIN_VALUE, 1e6],
    ["presencePenalty", presencePenalty, -1e6, 1e6],
    ["frequencyPenalty", frequencyPenalty, -1e6, 1e6],
  ];
  for (const [name, value, low, high] of ranges) {
    if (!(value >= low && value <= high)) {
      throw new RangeError(
        `sampling: ${name} is ${value}; it must be from ${low === Number.MIN_VALUE ? "above 0" : low} to ${high}`,
      );
    }
  }
  return Float32Array.of(temperature, topK, topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty, 0);
}

/** Draws the next token of each row of a step: settings, seeds, token counts and biases of the rows on the device. */
export class Sampler implements Disposable {
  /** Log-probabilities of the drawn tokens, f32 [rows]. */
  readonly logprobs: Tensor;
  readonly #settings: Tensor;
  readonly #seeds: Tensor;
  readonly #counts: Tensor;
  readonly #bias: Tensor;
  readonly #biased: boolean[];

  /** Allocates memory for `rows` rows. */
  constructor(model: Model, rows: number) {
    const { device } = model, { vocabularySize } = model.config;
    this.#settings = Tensor.zeros(device, "f32", [rows, SAMPLE_SETTINGS]);
    this.#seeds = Tensor.zeros(device, "i32", [rows]);
    this.#counts = Tensor.zeros(device, "i32", [rows, vocabularySize]);
    this.#bias = Tensor.zeros(device, "f32", [rows, vocabularySize]);
    this.logprobs = Tensor.zeros(device, "f32", [rows]);
    this.#biased = new Array(rows).fill(false);
  }

  /** Sets a row up for a prompt. Throws RangeError that names the setting. */
  start(row: number, prompt: ArrayLike<number>, options: SamplingOptions): void {
    const vocabulary = this.#counts.width;
    this.#settings.write(settingsOf(options), row * SAMPLE_SETTINGS);
    this.#seeds.write(Int32Array.of(options.seed ?? Math.floor(Math.random() * 2 ** 31)), row);
    const counts = new Int32Array(vocabulary);
    for (let i = 0; i < prompt.length; i++) counts[prompt[i]] = 1;
    this.#counts.write(counts, row * vocabulary);
    this.setBias(row, biasOf(options, vocabulary));
  }

  /** Sets what is added to a row's logits, f32 [vocabulary]; -Infinity forbids a token. */
  setBias(row: number, bias: Float32Array | null): void {
    if (bias) this.#bias.write(bias, row * this.#bias.width);
    else if (this.#biased[row]) this.#bias.rows(row, 1).fill(0);
    this.#biased[row] = bias !== null;
  }

  /** Copies a row's state to another row. */
  move(to: number, from: number): void {
    for (const part of [this.#settings, this.#seeds, this.#counts, this.#bias]) {
      part.rows(to, 1).copyFrom(part.rows(from, 1));
    }
    this.#biased[to] = this.#biased[from];
  }

  /** Draws `rows` ids from `logits`, f32 [rows, vocabulary], for sampler rows `first` on; see {@linkcode sample}. */
  draw(ids: Tensor, logits: Tensor, positions: Tensor, rows: number, first: number = 0): void {
    const part = (tensor: Tensor) => first === 0 ? tensor : tensor.rows(first, rows);
    sample(ids, logits, {
      rows,
      logprobs: part(this.logprobs),
      counts: part(this.#counts),
      bias: part(this.#bias),
      settings: part(this.#settings),
      seeds: part(this.#seeds),
      positions,
    });
  }

  /** Frees the memory. */
  [Symbol.dispose](): void {
    for (const tensor of [this.#settings, this.#seeds, this.#counts, this.#bias, this.logprobs]) {
      tensor[Symbol.dispose]();
    }
  }
}

/** The logit biases of `options` as a row, or null for none. Throws RangeError for a token outside the vocabulary. */
export function biasOf(options: SamplingOptions, vocabulary: number): Float32Array | null {
  const entries = Object.entries(options.logitBias ?? {});
  if (entries.length === 0) return null;
  const bias = new Float32Array(vocabulary);
  for (const [id, value] of entries) {
    if (!(Number(id) >= 0 && Number(id) < vocabulary) || Number.isNaN(value)) {
      throw new RangeError(`sampling: logitBias has token ${id}: ${value}; ids go from 0 to ${vocabulary - 1}`);
    }
    bias[Number(id)] = value;
  }
  return bias;
}

/** One drawn token. */
export interface Token {
  /** Its id. */
  id: number;
  /** Its log-probability under the model, before temperature and penalties. */
  logprob: number;
}

/**
 * Draws tokens one at a time for a sequence in each of its rows. Holds the memory of a step and its recording, so make one
 * and use it for many prompts.
 */
export class Decoder implements Disposable {
  readonly #model: Model;
  readonly #step: Step;
  readonly #sampler: Sampler;
  readonly #cache: KvCache;
  #ran = false;
  #graph?: Graph;

  /** Allocates what a step of `rows` sequences needs. */
  constructor(model: Model, cache: KvCache, rows: number = 1) {
    this.#model = model;
    this.#cache = cache;
    this.#step = model.step(rows);
    this.#sampler = new Sampler(model, rows);
  }

  #draw(): void {
    const { ids, logits, positions, rows } = this.#step;
    this.#sampler.draw(ids, logits, positions, rows);
    advance(positions);
  }

  /** Ids that the last step drew, i32 [rows]; reading them waits for the step. */
  get ids(): Tensor {
    return this.#step.ids;
  }

  /**
   * Sets a row to go on from a sequence as it is stored: the next step reads token `id` behind its end. Without `options` the
   * row draws on as it did, which it must have been told before.
   */
  resume(row: number, sequence: Sequence, id: number, options?: SamplingOptions): void {
    const step = this.#step;
    if (options) this.#sampler.start(row, [id], options);
    step.slots.write(Int32Array.of(sequence.slot), row);
    step.positions.write(Int32Array.of(sequence.length), row);
    step.ids.write(Int32Array.of(id), row);
  }

  /**
   * Runs the recorded step, without waiting: each row's id is read into its sequence, which was extended by one, and the
   * next is drawn in its place. The first call runs as it is, for the library to get its scratch memory, which it can't
   * while it records; the second one records.
   */
  advance(): void {
    if (this.#graph) return this.#graph.launch();
    const run = (): void => {
      this.#model.forward(this.#step, this.#cache, this.#step.rows);
      this.#draw();
    };
    if (this.#ran) (this.#graph = this.#model.device.capture(run)).launch();
    else run();
    this.#ran = true;
  }

  /**
   * Reads a prompt into `sequence`, in the first row, and yields tokens without end: the caller stops at an end token, a
   * stop string, or a length. The sequence holds prompt and output but for the last token. Throws RangeError where the context
   * is full.
   */
  async *tokens(
    sequence: Sequence,
    prompt: ArrayLike<number>,
    options: SamplingOptions & { signal?: AbortSignal; onPrefill?: (done: number, total: number) => void } = {},
  ): AsyncGenerator<Token, void, void> {
    const step = this.#step, sampler = this.#sampler, model = this.#model;
    sampler.start(0, prompt, options);
    model.prefill(step.logits, sequence, prompt, { signal: options.signal, onProgress: options.onPrefill });
    step.slots.write(Int32Array.of(sequence.slot));
    step.positions.write(Int32Array.of(sequence.length - 1));
    this.#draw();
    while (true) {
      const id = (step.ids.read() as Int32Array)[0], logprob = (sampler.logprobs.read() as Float32Array)[0];
      if (id < 0) throw new Error(`decode: the logits at position ${sequence.length} are not numbers`);
      yield { id, logprob };
      await new Promise<void>((resolve) => setImmediate(resolve));
      options.signal?.throwIfAborted();
      sequence.extend(1);
      this.advance();
    }
  }

  /** Frees the step's memory and recording. */
  [Symbol.dispose](): void {
    this.#graph?.[Symbol.dispose]();
    this.#sampler[Symbol.dispose]();
    this.#step[Symbol.dispose]();
  }
}
