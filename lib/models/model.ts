/**
 * The door to the models: what the engine, calibration and comparison see of one, and the list of architectures. Nothing above this
 * folder imports an architecture's file.
 *
 * @module
 */

import type { Device } from "../device.ts";
import type { Tensor } from "../tensor.ts";
import type { KvCache, Sequence } from "../cache/cache.ts";
import type { CacheShape } from "../cache/format.ts";
import type { ModelConfig } from "../weights/config.ts";
import { Llama, type PrefillOptions, type PrefillPlan, type Step, type StepObserver } from "./llama.ts";

export type { KvObserver, PrefillOptions, PrefillPlan, Step, StepObserver } from "./llama.ts";

/** A decoder-only transformer on a device: its sizes, and the two ways to run it. */
export interface Model extends Disposable {
  /** Sizes and settings of config.json. */
  readonly config: ModelConfig;
  /** Where the weights are. */
  readonly device: Device;
  /** The sizes that a cache for this model needs. */
  readonly cacheShape: CacheShape;
  /** Bytes of the weights on the device. */
  readonly weightBytes: number;
  /** Bytes of weights that a step reads: all but the table of embeddings, of which it reads a row, unless it is the head too. */
  readonly stepBytes: number;
  /** Attention's output projection of each layer, [hidden, heads * headDim]. */
  readonly outputs: readonly Tensor[];
  /** Memory of a decode step for up to `rows` rows. */
  step(rows: number): Step;
  /** One decode step, see {@linkcode Llama.forward}. */
  forward(step: Step, cache: KvCache, rows: number, observe?: StepObserver): void;
  /** How a prompt of so many tokens is read. */
  prefillPlan(tokens: number): PrefillPlan;
  /** Reads a prompt into a sequence and writes the last token's logits, see {@linkcode Llama.prefill}. */
  prefill(logits: Tensor, sequence: Sequence, ids: ArrayLike<number>, options?: PrefillOptions): void;
  /** The same in parts. */
  prefillParts(
    logits: Tensor | null,
    sequence: Sequence,
    ids: ArrayLike<number>,
    options?: PrefillOptions,
  ): Generator<void, void, void>;
  /** Moves the queries or keys at the beginning of rows, f32 [rows, heads, headDim], by so many positions, i32 [rows]. */
  rotate(x: Tensor, by: Tensor, heads: number): void;
}

/** How {@linkcode openModel} reports and stops. */
export interface OpenOptions {
  /** Called with bytes of weights read and in all. */
  onProgress?: (bytes: number, total: number) => void;
  /** Stops reading. */
  signal?: AbortSignal;
}

/** Reads config and weights of a model folder in Hugging Face layout, or of a GGUF file. Throws WeightsError naming file and cause. */
export function openModel(device: Device, path: string, options: OpenOptions = {}): Promise<Model> {
  return Llama.load(device, path, options);
}
