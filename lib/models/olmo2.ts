/**
 * Olmo2ForCausalLM: Llama with norms after attention and feed-forward part in place of before them, and of all queries and all keys
 * of a token together.
 *
 * @module
 */

import type { Architecture } from "./architecture.ts";
import { biasesOf, llamaPlan } from "./llama.ts";

/** OLMo 2. */
export const olmo2: Architecture = {
  name: "Olmo2ForCausalLM",
  plan: (config) =>
    llamaPlan(config, {
      biases: biasesOf(config),
      headNorms: "whole",
      norms: { attentionOutput: "post_attention_layernorm", feedForwardOutput: "post_feedforward_layernorm" },
    }),
};
