/**
 * Where the `config.json` of one architecture differs from another's. What they have in common is read in `config.ts`.
 *
 * @module
 */

import type { Fields } from "./fields.ts";
import type { ModelConfig } from "./model_config.ts";

/** What is an architecture's own in a `config.json`. */
export interface ArchitectureConfig {
  /** Its `model_type`. */
  readonly modelType: string;
  /** Which projections have biases. */
  biases(config: Fields): Pick<ModelConfig, "attentionBias" | "mlpBias">;
  /** Throws {@link WeightsError} for settings of its own that the runtime does not have. */
  check?(config: Fields): void;
}

/** The architectures that the runtime has, by their names in Hugging Face transformers. */
export const architectures: Readonly<Record<string, ArchitectureConfig>> = {
  LlamaForCausalLM: {
    modelType: "llama",
    biases: (config) => ({ attentionBias: config.flag("attention_bias"), mlpBias: config.flag("mlp_bias") }),
  },
  Qwen2ForCausalLM: {
    modelType: "qwen2",
    biases: () => ({ attentionBias: true, mlpBias: false }),
    check(config) {
      if (config.flag("use_sliding_window")) throw config.wrong("use_sliding_window", "false");
      const types = config.value("layer_types");
      if (Array.isArray(types) && types.some((type) => type !== "full_attention")) {
        throw config.wrong("layer_types", '"full_attention" alone');
      }
      config.count("num_key_value_heads"); // transformers' default is 32 heads, not those of the queries
    },
  },
};
