/**
 * Qwen2ForCausalLM: Llama with biases on queries, keys and values.
 *
 * @module
 */

import type { Architecture } from "./architecture.ts";
import { llamaPlan } from "./llama.ts";

/** Qwen 2 and 2.5, without sliding windows. */
export const qwen2: Architecture = {
  name: "Qwen2ForCausalLM",
  plan: (config) => llamaPlan(config, { biases: { qkv: true, output: false, feedForward: false } }),
};
