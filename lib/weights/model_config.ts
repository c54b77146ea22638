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
    /**
     * YaRN (arXiv 2309.00071): frequencies that turn less than `betaSlow` times in the original context are divided by
     * `factor`, those that turn more than `betaFast` times are kept, those between interpolated.
     */
    readonly type: "yarn";
    /** Divisor of the low frequencies. */
    readonly factor: number;
    /** Context of pre-training, tokens. */
    readonly originalContextLength: number;
    /** Turns from which on a frequency is kept. */
    readonly betaFast: number;
    /** Turns up to which a frequency is divided. */
    readonly betaSlow: number;
    /** Whether the bounds between the two are rounded to whole channels, outwards. */
    readonly truncate: boolean;
    /** Factor of the rotated queries and keys. */
    readonly attentionFactor: number;
  }
  | {
    /**
     * LongRoPE (arXiv 2402.13753): each frequency divided by a factor of its own, others up to the original context than beyond it.
     * A cache holds rotated keys, so that one set serves a whole sequence: the long one where the context that the model is
     * opened for is longer than the original, as vLLM and llama.cpp choose. transformers chooses by the text's own length.
     */
    readonly type: "longrope";
    /** Divisors for contexts up to the original one, rotaryDim / 2 of them. */
    readonly shortFactors: readonly number[];
    /** Divisors for longer contexts. */
    readonly longFactors: readonly number[];
    /** Context of pre-training, tokens. */
    readonly originalContextLength: number;
    /** Factor of the rotated queries and keys, for both. */
    readonly attentionFactor: number;
  }
  | {
    /** Each frequency divided by a factor of its own, as GGUF files have it. */
    readonly type: "factors";
    /** Divisors, rotaryDim / 2 of them. */
    readonly factors: readonly number[];
  };

/** The mixture of experts of a model's feed-forward parts. */
export interface ExpertsConfig {
  /** Experts of a layer. */
  readonly count: number;
  /** Experts that a token goes through. */
  readonly top: number;
  /** Inner channels of an expert. */
  readonly intermediateSize: number;
  /** Whether the weights of the chosen experts are divided by their sum. */
  readonly normalized: boolean;
  /** Layers that have a feed-forward part of `ModelConfig.intermediateSize` channels and no experts. */
  readonly denseLayers: readonly number[];
}

/** Constants with which parts of a model are multiplied (Granite, Gemma). */
export interface Multipliers {
  /** Of the token embedding. */
  readonly embedding: number;
  /** Of the scores, in place of 1 / sqrt(headDim). */
  readonly attention: number;
  /** Of what attention and feed-forward part add to the residual stream. */
  readonly residual: number;
  /** Of the logits. */
  readonly logits: number;
}

/** Soft caps, cap tanh(x / cap) (Gemma 2); 0: none. */
export interface SoftCaps {
  /** Of the scaled scores. */
  readonly attention: number;
  /** Of the logits. */
  readonly logits: number;
}

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
  /** Channels of a head, one of {@linkcode SUPPORTED_HEAD_DIMS}. */
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
  /** Channels of a head that are rotated, from the first on. Absent: all. */
  readonly rotaryDim?: number;
  /** Layers whose queries and keys are not rotated. Absent: none. */
  readonly unrotatedLayers?: readonly number[];
  /** Its mixture of experts. Absent: none. */
  readonly experts?: ExpertsConfig;
  /** Its multipliers. Absent: all 1, and scores as usual. */
  readonly multipliers?: Multipliers;
  /** Its soft caps. Absent: none. */
  readonly softCaps?: SoftCaps;
  /** Sliding window of each layer, in tokens, that at hand included; 0 for a layer that sees all. Absent: all do. */
  readonly windows?: readonly number[];
  /** How layers with a window rotate, where that is another way. */
  readonly windowRope?: Pick<ModelConfig, "ropeTheta" | "ropeScaling">;
  /** Id of the token that begins a text, or null. */
  readonly bosId: number | null;
  /** Ids of the tokens that end a generation, from config.json and generation_config.json. */
  readonly eosIds: readonly number[];
}

/** Head dimensions the native libraries have. */
export const SUPPORTED_HEAD_DIMS: readonly number[] = [64, 80, 96, 112, 128, 192, 256];

/** The most query heads that share a key/value head. */
const MAX_GROUP = 16;

/** The most experts of a layer, and the most that a token goes through. */
const MAX_EXPERTS = 1024, MAX_TOP = 32;

/** The sizes of a model that its cache depends on. */
export function cacheShapeOf(config: ModelConfig): Pick<ModelConfig, "layers" | "kvHeads" | "headDim" | "windows"> {
  const { layers, kvHeads, headDim, windows } = config;
  return { layers, kvHeads, headDim, ...(windows && { windows }) };
}

/** Names of the settings of a file that say a model's heads. */
export interface HeadKeys {
  /** Of the key/value heads. */
  readonly kvHeads: string;
  /** Of the channels of a head. */
  readonly headDim: string;
}

/** Throws {@link WeightsError} that names file and setting where the native libraries do not have the heads of a model. */
export function checkShape(path: string, keys: HeadKeys, heads: number, kvHeads: number, headDim: number): void {
  if (heads % kvHeads !== 0 || heads / kvHeads > MAX_GROUP) {
    throw new WeightsError(
      `${path}: ${keys.kvHeads}: ${heads} query heads over ${kvHeads} key/value heads; ` +
        `from 1 to ${MAX_GROUP} query heads must share each`,
    );
  }
  if (!SUPPORTED_HEAD_DIMS.includes(headDim)) {
    throw new WeightsError(
      `${path}: ${keys.headDim} ${headDim} is not supported; supported: ${SUPPORTED_HEAD_DIMS.join(", ")}`,
    );
  }
}

/** Throws {@link WeightsError} that names file and setting where a mixture of experts has not as many as it needs. */
export function checkExperts(path: string, keys: Record<"count" | "top", string>, count: number, top: number): void {
  if (count > MAX_EXPERTS) {
    throw new WeightsError(`${path}: ${keys.count}: expected at most ${MAX_EXPERTS}, found ${count}`);
  }
  if (top > Math.min(count, MAX_TOP)) {
    const most = count <= MAX_TOP ? `${count} (${keys.count})` : String(MAX_TOP);
    throw new WeightsError(`${path}: ${keys.top}: expected at most ${most}, found ${top}`);
  }
}
