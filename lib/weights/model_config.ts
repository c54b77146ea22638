/**
 * What a model's configuration says, wherever it was read, and which shapes the native libraries have.
 *
 * @module
 */

import { WeightsError } from "./json.ts";

/** How rotary frequencies are stretched for contexts longer than those of pre-training. */
export type RopeScaling =
  | {
    /** All frequencies divided by `factor`. */
    readonly type: "linear";
    /** Divisor, >= 1. */
    readonly factor: number;
  }
  | {
    /** Llama 3.1: low frequencies divided by `factor`, high ones kept, those between interpolated. */
    readonly type: "llama3";
    /** Divisor of the low frequencies. */
    readonly factor: number;
    /** Wavelengths above `originalContextLength / lowFrequencyFactor` are low frequencies. */
    readonly lowFrequencyFactor: number;
    /** Wavelengths below `originalContextLength / highFrequencyFactor` are high frequencies. */
    readonly highFrequencyFactor: number;
    /** Context of pre-training, tokens. */
    readonly originalContextLength: number;
  }
  | {
    /** Each frequency divided by a factor of its own, as GGUF files have it. */
    readonly type: "factors";
    /** Divisors, headDim / 2 of them. */
    readonly factors: readonly number[];
  };

/** The sizes and constants of a decoder-only transformer. */
export interface ModelConfig {
  /** The architecture's name in Hugging Face transformers, e.g. "LlamaForCausalLM". */
  readonly architecture: string;
  /** Rows of the embedding and of the output projection. */
  readonly vocabularySize: number;
  /** Channels of the residual stream. */
  readonly hiddenSize: number;
  /** Channels of the feed-forward layer. */
  readonly intermediateSize: number;
  /** Decoder layers. */
  readonly layers: number;
  /** Query heads. */
  readonly heads: number;
  /** Key/value heads; divides `heads`. */
  readonly kvHeads: number;
  /** Channels of a head, 64 or 128. */
  readonly headDim: number;
  /** The longest context, tokens (`max_position_embeddings`). */
  readonly contextLength: number;
  /** Epsilon of RMSNorm. */
  readonly rmsNormEps: number;
  /** Base of the rotary frequencies. */
  readonly ropeTheta: number;
  /** Scaling of the rotary frequencies, or null. */
  readonly ropeScaling: RopeScaling | null;
  /** Whether the output projection is the embedding. */
  readonly tieWordEmbeddings: boolean;
  /** Whether attention's projections have biases. Which of them follows from the architecture: Qwen 2's output has none. */
  readonly attentionBias: boolean;
  /** Whether the feed-forward projections have a bias. */
  readonly mlpBias: boolean;
  /** Id of the token that begins a text, or null. */
  readonly bosId: number | null;
  /** Ids of the tokens that end a generation, from config.json and generation_config.json. */
  readonly eosIds: readonly number[];
}

/** Head dimensions the native libraries have. */
export const SUPPORTED_HEAD_DIMS: readonly number[] = [64, 128];

/** The most query heads that share a key/value head. */
const MAX_GROUP = 16;

/** Throws {@link WeightsError} where the native libraries do not have the heads of a model. */
export function checkShape(path: string, heads: number, kvHeads: number, headDim: number): void {
  if (heads % kvHeads !== 0 || heads / kvHeads > MAX_GROUP) {
    throw new WeightsError(
      `${path}: ${heads} query heads over ${kvHeads} key/value heads; from 1 to ${MAX_GROUP} query heads must share each`,
    );
  }
  if (!SUPPORTED_HEAD_DIMS.includes(headDim)) {
    throw new WeightsError(
      `${path}: head_dim ${headDim} is not supported; supported: ${SUPPORTED_HEAD_DIMS.join(", ")}`,
    );
  }
}
