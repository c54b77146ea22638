/**
 * SmolLM3ForCausalLM: Llama with layers that do not rotate.
 *
 * @module
 */

import type { Architecture } from "./architecture.ts";
import { biasesOf, llamaPlan } from "./llama.ts";

/** SmolLM 3. */
export const smollm3: Architecture = {
  name: "SmolLM3ForCausalLM",
  plan: (config) => llamaPlan(config, { biases: biasesOf(config) }),
};
