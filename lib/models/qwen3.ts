/**
 * Qwen3ForCausalLM and Qwen3MoeForCausalLM: Llama with norms of each query's and key's head, and with experts.
 *
 * @module
 */

import type { Architecture } from "./architecture.ts";
import { biasesOf, llamaPlan } from "./llama.ts";

/** Qwen 3, without sliding windows. */
export const qwen3: Architecture = {
  name: "Qwen3ForCausalLM",
  plan: (config) => llamaPlan(config, { biases: biasesOf(config), headNorms: "head" }),
};

/** Qwen 3 with experts. */
export const qwen3Moe: Architecture = {
  name: "Qwen3MoeForCausalLM",
  plan: (config) =>
    llamaPlan(config, {
      biases: biasesOf(config),
      headNorms: "head",
      experts: { block: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" },
    }),
};
