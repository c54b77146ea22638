/**
 * LlamaForCausalLM: RMSNorm, rotated grouped-query attention, SwiGLU.
 *
 * @module
 */

import type { ModelConfig } from "../weights/model_config.ts";
import type { Architecture, LayerPlan, Matrix, ModelPlan } from "./architecture.ts";

/** Which projections have a bias. */
export interface Biases {
  /** Of attention: queries, keys and values. */
  readonly qkv: boolean;
  /** Of attention: output. */
  readonly output: boolean;
  /** Of the feed-forward part: gate, up and down. */
  readonly feedForward: boolean;
}

/** The plan of Llama and of those that differ from it in their biases. */
export function llamaPlan(config: ModelConfig, biases: Biases): ModelPlan {
  const { vocabularySize, hiddenSize, layers, tieWordEmbeddings } = config;
  const table = (name: string): Matrix => ({ parts: [[name, vocabularySize]], width: hiddenSize, bias: false });
  const embedding = table("model.embed_tokens");
  return {
    embedding,
    layers: Array.from({ length: layers }, (_, i) => layerPlan(config, biases, `model.layers.${i}`)),
    norm: "model.norm",
    head: tieWordEmbeddings ? embedding : table("lm_head"),
  };
}

/** The layer whose tensors' names begin with `at`. */
function layerPlan(config: ModelConfig, biases: Biases, at: string): LayerPlan {
  const { hiddenSize: hidden, intermediateSize: inner, heads, kvHeads, headDim } = config;
  const q = heads * headDim, kv = kvHeads * headDim;
  const attention = (name: string, rows: number) => [`${at}.self_attn.${name}_proj`, rows] as const;
  const mlp = (name: string, rows: number) => [`${at}.mlp.${name}_proj`, rows] as const;
  return {
    attention: {
      norm: `${at}.input_layernorm`,
      qkv: { parts: [attention("q", q), attention("k", kv), attention("v", kv)], width: hidden, bias: biases.qkv },
      output: { parts: [attention("o", hidden)], width: q, bias: biases.output },
      heads,
      kvHeads,
      headDim,
      rotation: config,
      scale: 1 / Math.sqrt(headDim),
    },
    feedForward: {
      norm: `${at}.post_attention_layernorm`,
      gateUp: { parts: [mlp("gate", inner), mlp("up", inner)], width: hidden, bias: biases.feedForward },
      activation: "silu",
      down: { parts: [mlp("down", hidden)], width: inner, bias: biases.feedForward },
    },
  };
}

/** Llama 2 and 3, SmolLM2 and others of the kind. */
export const llama: Architecture = {
  name: "LlamaForCausalLM",
  plan(config) {
    const { attentionBias, mlpBias } = config;
    return llamaPlan(config, { qkv: attentionBias, output: attentionBias, feedForward: mlpBias });
  },
};
