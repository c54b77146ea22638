/**
 * Where the `config.json` of one architecture differs from another's. What they have in common is read in `config.ts`.
 *
 * @module
 */

import type { Fields } from "./fields.ts";
import { checkExperts, type ExpertsConfig, type ModelConfig, type SoftCaps } from "./model_config.ts";
import type { WindowConfig } from "./window_config.ts";

/** What a `config.json` has beyond the sizes that every model has. */
export type OwnConfig =
  & Pick<ModelConfig, "attentionBias" | "mlpBias">
  & Pick<ModelConfig, "unrotatedLayers" | "experts" | "multipliers" | "softCaps">;

/** What is an architecture's own in a `config.json`. Defaults are those of its class in transformers. */
export interface ArchitectureConfig {
  /** Its `model_type`. */
  readonly modelType: string;
  /** Default of `head_dim`, where it is not hidden_size / num_attention_heads. */
  readonly headDim?: number;
  /** Whether `num_key_value_heads` must be there: its default is not the number of query heads. */
  readonly kvHeadsNamed?: boolean;
  /** Default of `rope_theta`, where it is not 10000. */
  readonly ropeTheta?: number;
  /** Default of `partial_rotary_factor`; absent where whole heads are rotated. */
  readonly partialRotary?: number;
  /** Default of `tie_word_embeddings`, where it is not false. */
  readonly tied?: boolean;
  /** Which layers have a sliding window. Absent: none has. */
  readonly window?: WindowConfig;
  /** Default of `rope_local_base_freq`, the base in layers with a window, where these have one of their own. */
  readonly localTheta?: number;
  /** `hidden_act` or `hidden_activation`. Default: "silu". */
  readonly activation?: string;
  /** Reads what is its own. Throws {@link WeightsError} for settings that the runtime does not have. */
  own(config: Fields, layers: number): OwnConfig;
}

/** Biases as Llama's files say them. */
const llamaBiases = (config: Fields): OwnConfig => ({
  attentionBias: config.flag("attention_bias"),
  mlpBias: config.flag("mlp_bias"),
});

const attentionBias = (config: Fields, absent: boolean = false): OwnConfig => ({
  attentionBias: config.flag("attention_bias", absent),
  mlpBias: false,
});

const noBiases: OwnConfig = { attentionBias: false, mlpBias: false };

/** Reads a mixture of experts; `count` are the names that its size has had. */
function experts(
  config: Fields,
  count: readonly string[],
  rest: Omit<ExpertsConfig, "count" | "top">,
): { experts: ExpertsConfig } {
  const name = count.find((key) => config.value(key) !== undefined) ?? count[0], size = config.count(name);
  const top = config.count("num_experts_per_tok");
  checkExperts(config.path, { count: name, top: "num_experts_per_tok" }, size, top);
  return { experts: { count: size, top, ...rest } };
}

/** Windows of Qwen 2 and 3: in layers from `max_window_layers` on. */
const upperLayers: WindowConfig = {
  switched: true,
  size: 4096,
  layer(config, layer) {
    const key = "max_window_layers", first = config.value(key) === 0 ? 0 : config.optionalCount(key);
    return layer >= (first ?? 28);
  },
};

/** Windows in the first of two layers. */
const everyOther = (_config: Fields, layer: number): boolean => layer % 2 === 0;

const gemma = {
  headDim: 256,
  kvHeadsNamed: true,
  tied: true,
  activation: "gelu_pytorch_tanh",
} as const;

/** What the Gemmas have in common: the embedding times the root of its width, scores divided by the root of a scalar of their own. */
function gemmaOwn(config: Fields): OwnConfig {
  if (config.flag("use_bidirectional_attention")) throw config.wrong("use_bidirectional_attention", "false");
  const scalar = config.optionalPositive("query_pre_attn_scalar") ?? 256;
  return {
    ...attentionBias(config),
    multipliers: {
      embedding: Math.sqrt(config.count("hidden_size")),
      attention: 1 / Math.sqrt(scalar),
      residual: 1,
      logits: 1,
    },
  };
}

/** Soft caps, null for none; where the file does not say, `absent`. */
function softCaps(config: Fields, absent: SoftCaps): SoftCaps {
  const cap = (key: string, value: number) => config.has(key) ? config.optionalPositive(key) ?? 0 : value;
  return {
    attention: cap("attn_logit_softcapping", absent.attention),
    logits: cap("final_logit_softcapping", absent.logits),
  };
}

/** The architectures that the runtime has, by their names in Hugging Face transformers. */
export const architectures: Readonly<Record<string, ArchitectureConfig>> = {
  LlamaForCausalLM: { modelType: "llama", own: llamaBiases },
  Qwen2ForCausalLM: {
    modelType: "qwen2",
    kvHeadsNamed: true,
    window: upperLayers,
    own: () => ({ attentionBias: true, mlpBias: false }),
  },
  Qwen3ForCausalLM: {
    modelType: "qwen3",
    headDim: 128,
    kvHeadsNamed: true,
    window: upperLayers,
    own: (config) => attentionBias(config),
  },
  Qwen3MoeForCausalLM: {
    modelType: "qwen3_moe",
    kvHeadsNamed: true,
    window: { switched: true, size: 4096 },
    own(config, layers) {
      const dense = config.list("mlp_only_layers", "layers", (layer) => Number.isInteger(layer)) as number[];
      const step = config.optionalCount("decoder_sparse_step") ?? 1;
      const denseLayers = Array.from({ length: layers }, (_, i) => i)
        .filter((i) => dense.includes(i) || (i + 1) % step !== 0);
      const rest = {
        intermediateSize: config.count("moe_intermediate_size"),
        normalized: config.flag("norm_topk_prob"),
        denseLayers,
      };
      return { ...attentionBias(config), ...experts(config, ["num_experts", "num_local_experts"], rest) };
    },
  },
  MistralForCausalLM: {
    modelType: "mistral",
    kvHeadsNamed: true,
    window: { size: 4096 },
    own: () => noBiases,
  },
  MixtralForCausalLM: {
    modelType: "mixtral",
    kvHeadsNamed: true,
    ropeTheta: 1e6,
    window: {},
    own: (config) => ({
      ...noBiases,
      ...experts(config, ["num_local_experts", "num_experts"], {
        intermediateSize: config.count("intermediate_size"),
        normalized: true,
        denseLayers: [],
      }),
    }),
  },
  Phi3ForCausalLM: { modelType: "phi3", partialRotary: 1, window: {}, own: () => noBiases },
  Olmo2ForCausalLM: { modelType: "olmo2", own: (config) => attentionBias(config) },
  GraniteForCausalLM: {
    modelType: "granite",
    own: (config) => ({
      ...llamaBiases(config),
      multipliers: {
        embedding: config.optionalPositive("embedding_multiplier") ?? 1,
        attention: config.optionalPositive("attention_multiplier") ?? 1,
        residual: config.optionalPositive("residual_multiplier") ?? 1,
        logits: 1 / (config.optionalPositive("logits_scaling") ?? 1),
      },
    }),
  },
  SmolLM3ForCausalLM: {
    modelType: "smollm3",
    kvHeadsNamed: true,
    ropeTheta: 2e6,
    tied: true,
    window: {
      switched: true,
      layer: (config, layer, layers) => unrotatedLayers(config, layers).includes(layer),
    },
    own: (config, layers) => ({ ...llamaBiases(config), unrotatedLayers: unrotatedLayers(config, layers) }),
  },
  Glm4ForCausalLM: {
    modelType: "glm4",
    headDim: 128,
    kvHeadsNamed: true,
    partialRotary: 0.5,
    own: (config) => attentionBias(config, true),
  },
  Gemma2ForCausalLM: {
    ...gemma,
    modelType: "gemma2",
    window: { size: 4096, layer: everyOther },
    own: (config) => ({ ...gemmaOwn(config), softCaps: softCaps(config, { attention: 50, logits: 30 }) }),
  },
  Gemma3ForCausalLM: {
    ...gemma,
    modelType: "gemma3_text",
    ropeTheta: 1e6,
    localTheta: 1e4,
    window: {
      size: 4096,
      rope: true,
      layer(config, layer) {
        const every = ["sliding_window_pattern", "_sliding_window_pattern"].map((key) => config.optionalCount(key));
        return (layer + 1) % (every[0] ?? every[1] ?? 6) !== 0;
      },
    },
    own: (config) => ({ ...gemmaOwn(config), softCaps: softCaps(config, { attention: 0, logits: 0 }) }),
  },
  GptOssForCausalLM: {
    modelType: "gpt_oss",
    kvHeadsNamed: true,
    headDim: 64,
    ropeTheta: 150000,
    window: { size: 128, layer: everyOther },
    own(config) {
      if (!config.has("rope_scaling") && !config.has("rope_parameters")) {
        throw config.wrong("rope_scaling", "an object");
      }
      const limit = config.optionalPositive("swiglu_limit") ?? 7;
      if (limit !== 7) throw config.wrong("swiglu_limit", "7");
      const rest = { intermediateSize: config.count("intermediate_size"), normalized: true, denseLayers: [] };
      return { ...attentionBias(config, true), ...experts(config, ["num_local_experts", "num_experts"], rest) };
    },
  },
};

/** Layers without rotation: those with a 0 in `no_rope_layers`, by default every `no_rope_layer_interval`-th. */
function unrotatedLayers(config: Fields, layers: number): number[] {
  const every = config.optionalCount("no_rope_layer_interval") ?? 4, key = "no_rope_layers";
  const flags = config.value(key) === undefined
    ? Array.from({ length: layers }, (_, i) => (i + 1) % every === 0 ? 0 : 1)
    : config.list(key, `0 or 1 for each of ${layers} layers`, (flag) => flag === 0 || flag === 1);
  if (flags.length < layers) throw config.wrong(key, `0 or 1 for each of ${layers} layers`);
  return Array.from({ length: layers }, (_, i) => i).filter((i) => flags[i] === 0);
}

const linear = "linear attention or state-space layers keep a state that the KV cache does not have";
const latent = "multi-head latent attention keeps latents in place of keys and values";
const encoder = "an encoder does not generate text token by token";
const own = "its attention is not in the libraries";

/** Architectures that are not supported, by their names, and why. The first that fits counts. */
const reasons: readonly (readonly [names: RegExp, reason: string])[] = [
  [/^(Gemma3n|Gemma4|.*Gemma4)/, `${own}: Gemma 3n and Gemma 4 share keys and values between layers`],
  [
    /^(Qwen3Next|Qwen3_5|Qwen3\.5|KimiLinear|MiniMax(?:Text|M1|For)|Jamba|Zamba|Bamba|FalconH1|Lfm2|NemotronH|GraniteMoeHybrid)/,
    linear,
  ],
  [/^(Mamba|FalconMamba|Rwkv|RecurrentGemma|Olmo3?Hybrid|Plamo2)/, linear],
  [/^(DeepseekV|DeepSeekV|Kimi|MiniCPM3|LongcatFlash|Glm4MoeLite|GlmMoeDsa)/, latent],
  [/^(T5|MT5|UMT5|Bart|MBart|Pegasus|Whisper|T5Gemma|Marian)/, "encoder and decoder in one are not supported"],
  [/(Bert|Roberta|Electra|MPNet|XLNet|Deberta|NomicBert)|ForMaskedLM$|ForSequenceClassification$/, encoder],
  [
    /ForConditionalGeneration$/,
    "it wraps a text model with encoders of images or sound; take the text model alone (a ...ForCausalLM)",
  ],
];

/** Why an architecture is not supported, where that is known by its name. */
export function reasonAgainst(architecture: string): string | undefined {
  return reasons.find(([names]) => names.test(architecture))?.[1];
}
