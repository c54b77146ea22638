/**
 * Gemma2ForCausalLM and Gemma3ForCausalLM: Llama with norms (1 + w) before and after each part, GELU, a scaled embedding, and windows in some layers; the
 * second with soft caps of scores and logits, the third with norms of each query's and key's head, and a rotation of its own
 * in layers with a window.
 *
 * @module
 */

import type { ModelConfig } from "../weights/model_config.ts";
import type { Architecture } from "./architecture.ts";
import { type Differences, llamaPlan } from "./llama.ts";

const common = (config: ModelConfig): Differences => ({
  biases: { qkv: config.attentionBias, output: config.attentionBias, feedForward: false },
  activation: "gelu",
  normOffset: 1,
  norms: {
    attention: "input_layernorm",
    attentionOutput: "post_attention_layernorm",
    feedForward: "pre_feedforward_layernorm",
    feedForwardOutput: "post_feedforward_layernorm",
  },
});

/** Gemma 2. */
export const gemma2: Architecture = {
  name: "Gemma2ForCausalLM",
  plan: (config) => llamaPlan(config, common(config)),
};

/** Gemma 3, the models of text alone. */
export const gemma3: Architecture = {
  name: "Gemma3ForCausalLM",
  plan: (config) => llamaPlan(config, { ...common(config), headNorms: "head" }),
};
