/**
 * Glm4ForCausalLM: Llama with norms before and after each part, and a half of each head rotated by neighbouring pairs.
 *
 * @module
 */

import type { Architecture } from "./architecture.ts";
import { llamaPlan } from "./llama.ts";

/** GLM 4 of 2025 (GLM-4-0414). */
export const glm4: Architecture = {
  name: "Glm4ForCausalLM",
  plan: (config) =>
    llamaPlan(config, {
      biases: { qkv: config.attentionBias, output: false, feedForward: false },
      joinedGateUp: true,
      interleaved: true,
      norms: {
        attention: "input_layernorm",
        attentionOutput: "post_self_attn_layernorm",
        feedForward: "post_attention_layernorm",
        feedForwardOutput: "post_mlp_layernorm",
      },
    }),
};
