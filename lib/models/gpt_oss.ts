/**
 * GptOssForCausalLM: Llama with biases, attention sinks as logits, windows in every other layer, and experts with a clamped gate.
 *
 * @module
 */

import type { Architecture } from "./architecture.ts";
import { biasesOf, llamaPlan } from "./llama.ts";

/** gpt-oss, in bf16. */
export const gptOss: Architecture = {
  name: "GptOssForCausalLM",
  plan: (config) =>
    llamaPlan(config, {
      biases: biasesOf(config),
      sinkLogits: "sinks",
      activation: "swiglu clamped",
      experts: {
        block: "mlp",
        router: "router",
        gate: "gate_proj",
        up: "up_proj",
        down: "down_proj",
        bias: true,
        method: "top softmax",
      },
    }),
};
