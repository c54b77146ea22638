/** Small models of all architectures with random sizes and weights. @module */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { readModelConfig } from "../../mod.ts";
import { writeSafetensors } from "../../lib/ops/mod.ts";
import { planOf } from "../../lib/models/model.ts";
import { DecoderWeights } from "../../lib/models/weights/decoder_weights.ts";
import { architectures } from "../../lib/weights/architectures.ts";
import { cpu } from "../support/device.ts";
import type { Random } from "../support/random.ts";

/** What the settings of an architecture are drawn from. */
interface Draw {
  readonly random: Random;
  readonly headDim: number;
  readonly layers: number;
  /** Of experts, or of what else there are some of. */
  readonly count: number;
  /** Shorter than texts and chunks, about as long, or longer. */
  readonly window: number;
  flag(): boolean;
  pick(of: readonly number[]): number;
}

/** Divisors of frequencies. */
function factors(random: Random, pairs: number): number[] {
  return Array.from({ length: pairs }, (_, i) => 1 + i * random.uniform() / 8);
}

/** What each has of its own. */
const own: Readonly<Record<string, (draw: Draw) => Record<string, unknown>>> = {
  LlamaForCausalLM: ({ random, flag }) => ({
    attention_bias: flag(),
    mlp_bias: flag(),
    rope_scaling: {
      rope_type: "yarn",
      factor: 2 + random.uniform(),
      original_max_position_embeddings: 40,
      truncate: flag(),
    },
  }),
  Qwen2ForCausalLM: ({ random, window, layers }) => ({
    use_sliding_window: true,
    sliding_window: window,
    max_window_layers: random.integer(0, layers),
  }),
  Qwen3MoeForCausalLM: ({ random, count, flag }) => ({
    num_experts: count,
    num_experts_per_tok: random.integer(1, count),
    moe_intermediate_size: 16 * random.integer(1, 6),
    norm_topk_prob: flag(),
    mlp_only_layers: flag() ? [0] : [],
  }),
  MistralForCausalLM: ({ window }) => ({ sliding_window: window }),
  MixtralForCausalLM: ({ random, count }) => ({
    num_local_experts: count,
    num_experts_per_tok: random.integer(1, count),
  }),
  Phi3ForCausalLM({ random, window, pick }) {
    const head_dim = pick([64, 80, 96, 112, 128, 192]), pairs = head_dim * 0.75 / 2;
    return {
      head_dim,
      sliding_window: pick([window, 512]),
      partial_rotary_factor: 0.75,
      original_max_position_embeddings: 16,
      rope_scaling: {
        type: "longrope",
        short_factor: factors(random, pairs),
        long_factor: factors(random, pairs),
      },
    };
  },
  GraniteForCausalLM: ({ random, headDim }) => ({
    embedding_multiplier: 4 + random.uniform(),
    attention_multiplier: 1 / headDim,
    residual_multiplier: 0.2 + random.uniform(),
    logits_scaling: 1 + random.uniform(),
  }),
  SmolLM3ForCausalLM: ({ random, window, flag }) => ({
    no_rope_layer_interval: random.integer(1, 4),
    use_sliding_window: flag(),
    sliding_window: window,
  }),
  Glm4ForCausalLM: ({ pick, flag }) => ({ partial_rotary_factor: pick([0.25, 0.5]), attention_bias: flag() }),
  Gemma2ForCausalLM: ({ window, pick }) => ({
    hidden_activation: "gelu_pytorch_tanh",
    sliding_window: window,
    head_dim: pick([128, 256]),
    query_pre_attn_scalar: pick([100, 256]),
    attn_logit_softcapping: pick([2, 50]),
    final_logit_softcapping: pick([3, 30]),
  }),
  Gemma3ForCausalLM: ({ random, window, pick }) => ({
    hidden_activation: "gelu_pytorch_tanh",
    sliding_window: window,
    sliding_window_pattern: random.integer(2, 4),
    head_dim: pick([64, 256]),
    rope_scaling: { rope_type: "linear", factor: 8 },
  }),
  GptOssForCausalLM: ({ random, window, layers, count, flag }) => ({
    sliding_window: window,
    layer_types: Array.from({ length: layers }, () => flag() ? "sliding_attention" : "full_attention"),
    num_local_experts: count,
    num_experts_per_tok: random.integer(1, count),
    rope_scaling: { rope_type: "yarn", factor: 4, original_max_position_embeddings: 40, truncate: false },
  }),
};

/** A config.json of an architecture with random sizes. */
export function randomConfig(random: Random, name: string): Record<string, unknown> {
  const pick = (of: readonly number[]) => of[random.integer(0, of.length - 1)], flag = () => random.uniform() < 0.5;
  const kvHeads = random.integer(1, 3), headDim = pick([64, 128]), layers = random.integer(1, 5);
  const count = random.integer(2, 9), window = pick([1, 5, 7, 8, 20, 33, 40, 41, 100]);
  return {
    architectures: [name],
    model_type: architectures[name].modelType,
    vocab_size: random.integer(65, 200),
    hidden_size: 32 * random.integer(1, 8),
    intermediate_size: 16 * random.integer(1, 12),
    num_hidden_layers: layers,
    num_attention_heads: kvHeads * pick([1, 3, 7]),
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    max_position_embeddings: 512,
    rms_norm_eps: pick([1e-5, 1e-6]),
    rope_theta: pick([1e4, 5e5, 1e6]),
    tie_word_embeddings: flag(),
    sliding_window: null,
    ...own[name]?.({ random, headDim, layers, count, window, flag, pick }),
  };
}

/** Writes a model of a configuration: norms about 1, matrices so wide that activations stay as they are, but for what `change` does. */
export function writeModel(
  random: Random,
  folder: string,
  config: Record<string, unknown>,
  change: (name: string, values: Float32Array) => void = () => {},
): void {
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  using weights = new DecoderWeights(cpu, planOf(readModelConfig(folder)));
  const tensors = weights.tensors.flatMap(({ kind, parts, width }) =>
    parts.map(([name, rows]) => {
      const deviation = kind === "matrix" ? 1 / Math.sqrt(width) : kind === "sinks" ? 1 : 0.2,
        shape = kind === "matrix" ? [rows, width] : [rows];
      const values = random.normals(rows * width, deviation).map((x) => kind === "norm" ? 1 + x : x);
      change(name, values);
      return [name, { dtype: "F32" as const, shape, data: new Uint8Array(values.buffer) }] as const;
    })
  );
  writeSafetensors(join(folder, "model.safetensors"), Object.fromEntries(tensors));
}
