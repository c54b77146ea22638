/**
 * The door to the models: what the engine, calibration and comparison see of one, and the list of architectures. Nothing above this
 * folder imports an architecture's file.
 *
 * @module
 */

import type { Device } from "../device.ts";
import type { Tensor } from "../tensor.ts";
import type { ScoreOptions } from "../ops/ops.ts";
import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import type { CacheShape } from "../cache/bytes.ts";
import { isGguf, readModelConfig } from "../weights/config.ts";
import type { ModelConfig } from "../weights/model_config.ts";
import type { Architecture, ModelPlan } from "./architecture.ts";
import { Decoder } from "./decoder.ts";
import { gemma2, gemma3 } from "./gemma.ts";
import { glm4 } from "./glm4.ts";
import { granite } from "./granite.ts";
import { gptOss } from "./gpt_oss.ts";
import { llama } from "./llama.ts";
import { mistral, mixtral } from "./mistral.ts";
import { olmo2 } from "./olmo2.ts";
import { phi3 } from "./phi3.ts";
import type { PrefillOptions, PrefillPlan } from "./prompt.ts";
import { qwen2 } from "./qwen2.ts";
import { qwen3, qwen3Moe } from "./qwen3.ts";
import { atContext } from "./rope.ts";
import { smollm3 } from "./smollm3.ts";
import type { Step, StepObserver } from "./step.ts";
import { countBytes, countParameters, loadWeights } from "./weights/decoder_weights.ts";

export { areAlike, type KvObserver, type PrefillOptions, type PrefillPlan, type PromptRead } from "./prompt.ts";
export { describeRope, type RopeConfig, ropeFrequencies } from "./rope.ts";
export { type Step, type StepObserver, stepRows } from "./step.ts";

/** The architectures. What their config.json have of their own is in `weights/architectures.ts`. */
export const ARCHITECTURES: readonly Architecture[] = [
  llama,
  qwen2,
  qwen3,
  qwen3Moe,
  mistral,
  mixtral,
  phi3,
  olmo2,
  granite,
  smollm3,
  glm4,
  gemma2,
  gemma3,
  gptOss,
];

/** A decoder-only transformer on a device: its sizes, and the ways to run it. */
export interface Model extends Disposable {
  /** Sizes and settings of config.json. */
  readonly config: ModelConfig;
  /** Where the weights are. */
  readonly device: Device;
  /** The sizes that a cache for this model needs. */
  readonly cacheShape: CacheShape;
  /** Bytes of the weights on the device. */
  readonly weightBytes: number;
  /**
   * Bytes of weights that a step of one row reads: all but the table of embeddings, of which it reads a row, unless it is the head
   * too, and of experts the chosen ones.
   */
  readonly stepBytes: number;
  /** Attention's output projection of each layer, [hidden, heads * headDim]. */
  readonly outputs: readonly Tensor[];
  /** Memory of a decode step for up to `rows` rows. */
  step(rows: number): Step;
  /**
   * One step: row r is token `step.ids[r]` at `step.positions[r]` of the sequence in `step.slots[r]`, for which
   * `extend` has made room. Writes `step.logits`. Allocates nothing, reads nothing back, so that it can be recorded.
   */
  forward(step: Step, cache: KvCache, rows: number): void;
  /** The same in more calls, so that each layer's queries, keys, values and attention can be seen. */
  forwardObserved(step: Step, cache: KvCache, rows: number, observe: StepObserver): void;
  /** How a prompt of so many tokens is read. */
  prefillPlan(tokens: number): PrefillPlan;
  /**
   * Reads a prompt into a sequence: attention is exact over the prompt's own tokens, and over what the sequence already
   * holds from its cache. Writes the last token's logits, f32 [vocabulary], to `logits`.
   */
  prefill(logits: Tensor, sequence: Sequence, ids: ArrayLike<number>, options?: PrefillOptions): void;
  /**
   * The same in parts: yields after every chunk of a layer. Left early, it leaves the sequence as its `abandon` does. Without `logits` the model's head is left out.
   */
  prefillParts(
    logits: Tensor | null,
    sequence: Sequence,
    ids: ArrayLike<number>,
    options?: PrefillOptions,
  ): Generator<void, void, void>;
  /**
   * `prefillParts` of several sequences of one cache in one pass; a sequence gets what it gets alone, bit for bit. Throws RangeError where
   * it would not: on a GPU prompts of less than 256 tokens and more than 4096 together, on the CPU very many.
   */
  prefillTogether(
    reads: readonly { readonly sequence: Sequence; readonly ids: ArrayLike<number>; readonly logits: Tensor | null }[],
    options?: PrefillOptions,
  ): Generator<void, void, void>;
  /**
   * Moves queries or keys of a layer (default: the first), at the beginning of rows, f32 [rows, heads, headDim], by so many
   * positions, i32 [rows]. Those of a layer that does not rotate stay.
   */
  rotate(x: Tensor, by: Tensor, heads: number, layer?: number): void;
  /** What becomes of a layer's scores on their way to the softmax, as `attention` takes it. */
  scores(layer: number): Required<ScoreOptions>;
}

/** How {@linkcode openModel} reads a model, reports and stops. */
export interface OpenOptions {
  /** Called with the bytes of the files that were read, and of all. */
  onProgress?: (bytes: number, total: number) => void;
  /** Stops reading. */
  signal?: AbortSignal;
  /**
   * Tokens of the longest sequence that it will be used for. Default: the model's own limit. LongRoPE rotates by its short factors
   * where these tokens are within the context of pre-training.
   */
  context?: number;
}

/** Reads config and weights of a model folder in Hugging Face layout, or of a GGUF file. Throws WeightsError naming file and cause. */
export async function openModel(device: Device, path: string, options: OpenOptions = {}): Promise<Model> {
  const config = atContext(readModelConfig(path), options.context), plan = planOf(config);
  return new Decoder(device, config, plan, await loadWeights(device, path, plan, options));
}

/** What the model of a configuration is made of. Throws RangeError for an architecture that is not in the list. */
export function planOf(config: ModelConfig): ModelPlan {
  const architecture = ARCHITECTURES.find(({ name }) => name === config.architecture);
  if (architecture) return architecture.plan(config);
  const names = ARCHITECTURES.map(({ name }) => name).join(", ");
  throw new RangeError(`there is no architecture ${config.architecture}; there are ${names}`);
}

/**
 * Bytes that the weights of a model take on a device: of a configuration, or of a model folder or a GGUF file, whose head says what is
 * packed and stays so.
 */
export function weightBytesOf(model: string | ModelConfig): number {
  if (typeof model !== "string") return countBytes(planOf(model));
  return countBytes(planOf(readModelConfig(model)), isGguf(model) ? model : undefined);
}

/** Weights and biases of a model, a matrix that is embedding and head counted once. */
export function parameterCount(config: ModelConfig): number {
  return countParameters(planOf(config));
}
