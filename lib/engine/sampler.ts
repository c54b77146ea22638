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

/** Smallest penalty that logits can be divided by and stay finite. */
const LEAST_PENALTY = 1e-6;

/** Smallest f32 above 0. */
const LEAST_F32 = 2 ** -149;

/** Smallest temperature with a reciprocal in f32; below it is 0. */
const LEAST_TEMPERATURE = 2 ** -126;

/** Checked settings of one row of the sampler, f32 [8]: what is checked is what is drawn with. Throws SettingError that names the setting. */
export function settingsOf(options: SamplingOptions): Float32Array {
  const { temperature = 0, topK = 0, topP = 1, minP = 0 } = options;
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = options;
  const ranges: [string, number, number, number][] = [
    ["temperature", temperature, 0, 100],
    ["topK", topK, 0, 2 ** 24],
    ["topP", topP, LEAST_F32, 1],
    ["minP", minP, 0, 1],
    ["repetitionPenalty", repetitionPenalty, LEAST_PENALTY, 1e6],
    ["presencePenalty", presencePenalty, -1e6, 1e6],
    ["frequencyPenalty", frequencyPenalty, -1e6, 1e6],
  ];
  const settings = new Float32Array(SAMPLE_SETTINGS);
  for (const [i, [name, value, low, high]] of ranges.entries()) {
    settings[i] = value;
    if (settings[i] >= Math.fround(low) && settings[i] <= high) continue;
    throw new SettingError(
      `sampling: ${name} is ${value}; it must be from ${low === LEAST_F32 ? "above 0" : low} to ${high} as float32`,
    );
  }
  if (settings[0] < LEAST_TEMPERATURE) settings[0] = 0;
  return settings;
}

/** A seed as the 32 bits that a device takes: an i32 as it is; others mixed, so that 1 and 2^32 + 1 draw different tokens. */
export function seedBits(seed: number): number {
  if (seed === (seed | 0)) return seed | 0;
  const [low, high] = new Int32Array(Float64Array.of(seed).buffer);
  // MurmurHash3's finalizer: https://github.com/aappleby/smhasher
  let bits = Math.imul(low, 0x9e3779b1) ^ high;
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return bits ^ (bits >>> 16);
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
    this.#seeds.write(Int32Array.of(seedBits(options.seed ?? Math.floor(Math.random() * 2 ** 31))), row);
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
    if (!(Number(id) >= 0 && Number(id) < vocabulary)) {
      throw new SettingError(`sampling: logitBias has token ${id}: ${value}; ids go from 0 to ${vocabulary - 1}`);
    }
    bias[Number(id)] = value;
    // What is too large for f32 is infinite there, and nothing could be drawn.
    if (!(bias[Number(id)] < Infinity)) {
      throw new SettingError(`sampling: logitBias of token ${id} is ${value}; it must be a number that float32 has`);
    }
  }
  return bias;
}
