/**
 * Phi3ForCausalLM: Llama with one tensor for queries, keys and values and one for gate and up; LongRoPE over a part of each head.
 *
 * @module
 */

import type { Architecture } from "./architecture.ts";
import { llamaPlan } from "./llama.ts";

/** Phi 3, 3.5 and 4 mini, without sliding windows. */
export const phi3: Architecture = {
  name: "Phi3ForCausalLM",
  plan: (config) => llamaPlan(config, { joinedQkv: true, joinedGateUp: true }),
};
