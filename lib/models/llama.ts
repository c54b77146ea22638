/**
 * LlamaForCausalLM: RMSNorm, rotated grouped-query attention, SwiGLU. And the plan of those that differ from it in some points.
 *
 * @module
 */

import type { ModelConfig } from "../weights/model_config.ts";
import type {
  Architecture,
  AttentionPlan,
  FeedForwardPlan,
  LayerPlan,
  Matrix,
  ModelPlan,
  RouterPlan,
} from "./architecture.ts";

/** Which projections have a bias. */
export interface Biases {
  /** Of attention: queries, keys and values. */
  readonly qkv: boolean;
  /** Of attention: output. */
  readonly output: boolean;
  /** Of the feed-forward part: gate, up and down. */
  readonly feedForward: boolean;
}

/** Names of a layer's norms, behind the layer's own name. */
export interface NormNames {
  /** Before attention. */
  readonly attention?: string;
  /** After it. */
  readonly attentionOutput?: string;
  /** Before the feed-forward part. */
  readonly feedForward?: string;
  /** After it. */
  readonly feedForwardOutput?: string;
}

/** How an architecture differs from Llama. */
export interface Differences {
  /** Default: none. */
  readonly biases?: Biases;
  /** Default: before each part. */
  readonly norms?: NormNames;
  /** Norms of queries and keys, a head or of all heads together. Default: none. */
  readonly headNorms?: "head" | "whole";
  /** Whether queries, keys and values are one tensor in the file. */
  readonly joinedQkv?: boolean;
  /** Whether gate and up are one tensor in the file. */
  readonly joinedGateUp?: boolean;
  /** Whether channels 2i and 2i + 1 turn together. */
  readonly interleaved?: boolean;
  /** Of the gates. Default: "silu". */
  readonly activation?: FeedForwardPlan["activation"];
  /** Name of attention's further logits in the softmax, behind the layer's own. Default: none. */
  readonly sinkLogits?: string;
  /** Added to norms' weights of model folders. Default 0. */
  readonly normOffset?: number;
  /** Names of the tensors of a mixture of experts, where the configuration has one. */
  readonly experts?: ExpertNames;
}

/** Names of a mixture of experts, behind the layer's own, and what else is its own. */
export interface ExpertNames {
  /** Of the part. */
  readonly block: string;
  /** Of the router in it. Default: "gate". */
  readonly router?: string;
  /** Of an expert's gate projection. */
  readonly gate: string;
  /** Of its up projection. */
  readonly up: string;
  /** Of its down projection. */
  readonly down: string;
  /** Whether router and projections have biases. Default: false. */
  readonly bias?: boolean;
  /** What the weights of the chosen are. Default: as the configuration says. */
  readonly method?: RouterPlan["method"];
}

const none: Biases = { qkv: false, output: false, feedForward: false };

const before: NormNames = { attention: "input_layernorm", feedForward: "post_attention_layernorm" };

/** The plan of Llama and of those that differ from it. */
export function llamaPlan(config: ModelConfig, differences: Differences = {}): ModelPlan {
  const { vocabularySize, hiddenSize, layers, tieWordEmbeddings, multipliers, softCaps } = config;
  const table = (name: string): Matrix => ({ parts: [[name, vocabularySize]], width: hiddenSize, bias: false });
  const embedding = table("model.embed_tokens");
  return {
    embedding,
    embeddingScale: multipliers?.embedding,
    layers: Array.from({ length: layers }, (_, i) => layerPlan(config, differences, i)),
    norm: "model.norm",
    head: tieWordEmbeddings ? embedding : table("lm_head"),
    logitScale: multipliers?.logits,
    logitCap: softCaps?.logits,
    normOffset: differences.normOffset,
  };
}

function layerPlan(config: ModelConfig, differences: Differences, layer: number): LayerPlan {
  const { experts, multipliers } = config, mixed = experts && !experts.denseLayers.includes(layer);
  return {
    attention: attentionPlan(config, differences, layer),
    feedForward: mixed ? expertsPlan(config, differences, layer) : feedForwardPlan(config, differences, layer),
    residualScale: multipliers?.residual,
  };
}

/** Whether a layer has a sliding window. */
function windowed({ windows }: ModelConfig, layer: number): boolean {
  return windows !== undefined && windows[layer] > 0;
}

/** The name of a layer's tensor. */
function named(layer: number, name: string): string {
  return `model.layers.${layer}.${name}`;
}

/** The same of a norm that may be absent. */
function normOf(layer: number, name: string | undefined): string | undefined {
  return name === undefined ? undefined : named(layer, name);
}

function attentionPlan(config: ModelConfig, differences: Differences, layer: number): AttentionPlan {
  const { hiddenSize: hidden, heads, kvHeads, headDim, unrotatedLayers, multipliers, softCaps } = config;
  const { biases = none, norms = before, headNorms, joinedQkv, interleaved, sinkLogits } = differences;
  const q = heads * headDim, kv = kvHeads * headDim, at = (name: string) => named(layer, `self_attn.${name}`);
  const parts: Matrix["parts"] = joinedQkv
    ? [[at("qkv_proj"), q + 2 * kv]]
    : [[at("q_proj"), q], [at("k_proj"), kv], [at("v_proj"), kv]];
  const { rotaryDim, windowRope } = config, own = windowRope && windowed(config, layer) ? windowRope : config;
  const { ropeTheta, ropeScaling } = own;
  return {
    norm: normOf(layer, norms.attention),
    qkv: { parts, width: hidden, bias: biases.qkv },
    headNorms: headNorms && { queries: at("q_norm"), keys: at("k_norm"), whole: headNorms === "whole" },
    output: { parts: [[at("o_proj"), hidden]], width: q, bias: biases.output },
    outputNorm: normOf(layer, norms.attentionOutput),
    heads,
    kvHeads,
    headDim,
    rotation: unrotatedLayers?.includes(layer) ? null : { headDim, rotaryDim, ropeTheta, ropeScaling, interleaved },
    scale: multipliers?.attention ?? 1 / Math.sqrt(headDim),
    softCap: softCaps?.attention,
    sinkLogits: sinkLogits && at(sinkLogits),
  };
}

function feedForwardPlan(config: ModelConfig, differences: Differences, layer: number): FeedForwardPlan {
  const { hiddenSize: hidden, intermediateSize: inner } = config;
  const { biases: { feedForward: bias } = none, norms = before, joinedGateUp, activation = "silu" } = differences;
  const at = (name: string) => named(layer, `mlp.${name}_proj`);
  return {
    norm: normOf(layer, norms.feedForward),
    gateUp: {
      parts: joinedGateUp ? [[at("gate_up"), 2 * inner]] : [[at("gate"), inner], [at("up"), inner]],
      width: hidden,
      bias,
    },
    activation,
    down: { parts: [[at("down"), hidden]], width: inner, bias },
    outputNorm: normOf(layer, norms.feedForwardOutput),
  };
}

function expertsPlan(config: ModelConfig, differences: Differences, layer: number): FeedForwardPlan {
  const { hiddenSize: hidden, experts } = config, { norms = before, experts: names, activation = "silu" } = differences;
  if (!experts || !names) throw new RangeError(`${config.architecture} has no experts`);
  const { count, top, intermediateSize: inner, normalized } = experts, { router = "gate", bias = false } = names;
  const parts = (...each: (readonly [name: string, rows: number])[]): Matrix["parts"] =>
    Array.from({ length: count }, (_, expert) => expert).flatMap((expert) =>
      each.map(([name, rows]) => [named(layer, `${names.block}.experts.${expert}.${name}`), rows] as const)
    );
  return {
    norm: normOf(layer, norms.feedForward),
    gateUp: { parts: parts([names.gate, inner], [names.up, inner]), width: hidden, bias, experts: count },
    activation,
    down: { parts: parts([names.down, hidden]), width: inner, bias, experts: count },
    outputNorm: normOf(layer, norms.feedForwardOutput),
    router: {
      logits: { parts: [[named(layer, `${names.block}.${router}`), count]], width: hidden, bias },
      top,
      method: names.method ?? (normalized ? "normalized" : "softmax"),
    },
  };
}

/** The biases that a configuration says, attention's on all four projections. */
export function biasesOf({ attentionBias, mlpBias }: ModelConfig): Biases {
  return { qkv: attentionBias, output: attentionBias, feedForward: mlpBias };
}

/** Llama 2 and 3, SmolLM2 and others of the kind. */
export const llama: Architecture = {
  name: "LlamaForCausalLM",
  plan: (config) => llamaPlan(config, { biases: biasesOf(config) }),
};
