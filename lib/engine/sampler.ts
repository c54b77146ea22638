/**
 * How the next token of each row is drawn.
 *
 * @module
 */

import { Tensor } from "../tensor.ts";
import { sample, SAMPLE_SETTINGS } from "../ops/ops.ts";
import type { Model } from "../models/model.ts";

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

/** A setting that a request is at fault for: out of its range, or of a token that there is not. */
export class SettingError extends RangeError {
  /** Always "SettingError". */
  override readonly name: string = "SettingError";
}

/** Checked settings of one row of the sampler, f32 [8]. Throws SettingError that names the setting. */
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
      throw new SettingError(
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

  /** Allocates memory for `rows` rows, which take the most probable token until they are started. */
  constructor(model: Model, rows: number) {
    const { device } = model, { vocabularySize } = model.config, greedy = settingsOf({});
    const settings = new Float32Array(rows * SAMPLE_SETTINGS).map((_, i) => greedy[i % SAMPLE_SETTINGS]);
    this.#settings = Tensor.from(device, settings, [rows, SAMPLE_SETTINGS]);
    this.#seeds = Tensor.zeros(device, "i32", [rows]);
    this.#counts = Tensor.zeros(device, "i32", [rows, vocabularySize]);
    this.#bias = Tensor.zeros(device, "f32", [rows, vocabularySize]);
    this.logprobs = Tensor.zeros(device, "f32", [rows]);
    this.#biased = new Array(rows).fill(false);
  }

  /** Sets a row up for a prompt. Throws SettingError that names the setting. */
  start(row: number, prompt: ArrayLike<number>, options: SamplingOptions): void {
    const vocabulary = this.#counts.width;
    this.#settings.write(settingsOf(options), row * SAMPLE_SETTINGS);
    this.#seeds.write(Int32Array.of(options.seed ?? Math.floor(Math.random() * 2 ** 31)), row);
    const counts = new Int32Array(vocabulary);
    for (let i = 0; i < prompt.length; i++) counts[prompt[i]] = 1;
    this.#counts.write(counts, row * vocabulary);
    this.setBias(row, biasOf(options, vocabulary));
  }

  /** Lets a row take the most probable token, whatever it was told: it is padding from now on. */
  clear(row: number): void {
    this.#settings.write(settingsOf({}), row * SAMPLE_SETTINGS);
    this.setBias(row, null);
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

/** The logit biases of `options` as a row, or null for none. Throws SettingError for a token outside the vocabulary. */
export function biasOf(options: SamplingOptions, vocabulary: number): Float32Array | null {
  const entries = Object.entries(options.logitBias ?? {});
  if (entries.length === 0) return null;
  const bias = new Float32Array(vocabulary);
  for (const [id, value] of entries) {
    if (!(Number(id) >= 0 && Number(id) < vocabulary) || Number.isNaN(value)) {
      throw new SettingError(`sampling: logitBias has token ${id}: ${value}; ids go from 0 to ${vocabulary - 1}`);
    }
    bias[Number(id)] = value;
  }
  return bias;
}
