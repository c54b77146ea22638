/**
 * MistralForCausalLM, which is Llama without biases, and MixtralForCausalLM, the same with experts.
 *
 * @module
 */

import type { Architecture } from "./architecture.ts";
import { llamaPlan } from "./llama.ts";

/** Mistral, without sliding windows. */
export const mistral: Architecture = { name: "MistralForCausalLM", plan: (config) => llamaPlan(config) };

/** Mixtral. */
export const mixtral: Architecture = {
  name: "MixtralForCausalLM",
  plan: (config) => llamaPlan(config, { experts: { block: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" } }),
};
