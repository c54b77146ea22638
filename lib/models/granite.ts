/**
 * GraniteForCausalLM: Llama with multipliers of embedding, scores, residual stream and logits.
 *
 * @module
 */

import type { Architecture } from "./architecture.ts";
import { biasesOf, llamaPlan } from "./llama.ts";

/** Granite 3 and the dense ones of 4. */
export const granite: Architecture = {
  name: "GraniteForCausalLM",
  plan: (config) => llamaPlan(config, { biases: biasesOf(config) }),
};
