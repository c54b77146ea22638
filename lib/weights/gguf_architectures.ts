/**
 * Where the GGUF files of one architecture differ from another's: metadata, and which tensor of the file is which of the model.
 * What they have in common is read in `gguf_config.ts`.
 *
 * @module
 */

import type { OwnConfig } from "./architectures.ts";
import type { Gguf } from "./gguf.ts";
import type { GgufFields } from "./gguf_fields.ts";
import { WeightsError } from "./json.ts";
import { checkExperts, type ExpertsConfig, type ModelConfig, type Multipliers } from "./model_config.ts";

/** What is an architecture's own in a GGUF file. */
export interface GgufArchitecture {
  /** Its name in Hugging Face transformers. */
  name(experts: number): string;
  /** Whether the two halves of a query's or key's head are interleaved in the file, for llama.cpp's rope. */
  readonly interleaved?: true;
  /** Its sliding windows; absent where it has none. */
  readonly window?: GgufWindow;
  /** Whether YaRN's bounds are not rounded to whole channels. */
  readonly exactYarn?: true;
  /** Names of tensors that are not the others', by those of transformers. */
  readonly names?: Readonly<Record<string, string>>;
  /** Reads what is its own; `at` stands before its keys. */
  own(file: Gguf, fields: GgufFields, at: string, layers: number): OwnConfig & Pick<ModelConfig, "windowRope">;
}

/** Sliding windows as files of an architecture imply them. */
export interface GgufWindow {
  /** Of so many layers the last sees all; 0: none does. */
  readonly period: number;
  /** The window where the file does not say. Default: none. */
  readonly size?: number;
  /** Whether layers with a window rotate in a way of their own. */
  readonly rope?: true;
}

/** Biases are where the file has them. */
const biases = (file: Gguf): OwnConfig => ({
  attentionBias: file.has("blk.0.attn_q.bias"),
  mlpBias: file.has("blk.0.ffn_gate.bias"),
});

const noBiases: OwnConfig = { attentionBias: false, mlpBias: false };

/** A mixture of experts. That the weights of the chosen ones add up to 1 is implied. */
function experts(fields: GgufFields, at: string, intermediateSize: number): ExpertsConfig {
  const keys = { count: `${at}.expert_count`, top: `${at}.expert_used_count` };
  const count = fields.needed(keys.count), top = fields.needed(keys.top);
  checkExperts(fields.path, keys, count, top);
  return { count, top, intermediateSize, normalized: true, denseLayers: [] };
}

const gemmaNames = {
  "post_attention_layernorm": "post_attention_norm",
  "pre_feedforward_layernorm": "ffn_norm",
} as const;

/** The architectures that the runtime has, by `general.architecture`. */
export const ggufArchitectures: Readonly<Record<string, GgufArchitecture>> = {
  // Mistral and Mixtral too.
  llama: {
    name: (experts) => experts > 0 ? "MixtralForCausalLM" : "LlamaForCausalLM",
    interleaved: true,
    own: (file, fields, at) =>
      fields.count(`${at}.expert_count`, 0)
        ? { ...noBiases, experts: experts(fields, at, fields.needed(`${at}.feed_forward_length`)) }
        : biases(file),
  },
  qwen2: { name: () => "Qwen2ForCausalLM", own: () => ({ attentionBias: true, mlpBias: false }) },
  qwen3: { name: () => "Qwen3ForCausalLM", own: biases },
  qwen3moe: {
    name: () => "Qwen3MoeForCausalLM",
    own: (file, fields, at) => ({
      ...biases(file),
      experts: experts(fields, at, fields.needed(`${at}.expert_feed_forward_length`)),
    }),
  },
  phi3: { name: () => "Phi3ForCausalLM", window: { period: 0 }, own: () => noBiases },
  olmo2: {
    name: () => "Olmo2ForCausalLM",
    names: { "post_attention_layernorm": "post_attention_norm" },
    own: biases,
  },
  granite: {
    name: () => "GraniteForCausalLM",
    interleaved: true,
    own: (file, fields, at) => ({
      ...biases(file),
      multipliers: {
        embedding: fields.positive(`${at}.embedding_scale`) ?? 1,
        attention: fields.positive(`${at}.attention.scale`) ?? 1,
        residual: fields.positive(`${at}.residual_scale`) ?? 1,
        logits: 1 / (fields.positive(`${at}.logit_scale`) ?? 1),
      },
    }),
  },
  smollm3: {
    name: () => "SmolLM3ForCausalLM",
    interleaved: true,
    // Every fourth layer is not rotated, which the file does not say.
    own: (file, _fields, _at, layers) => ({
      ...biases(file),
      unrotatedLayers: Array.from({ length: layers }, (_, i) => i).filter((i) => i % 4 === 3),
    }),
  },
  glm4: { name: () => "Glm4ForCausalLM", own: biases },
  gemma2: {
    name: () => "Gemma2ForCausalLM",
    window: { period: 2, size: 4096 },
    names: gemmaNames,
    own: (file, fields, at, layers) => ({
      ...biases(file),
      multipliers: gemmaMultipliers(fields, at, layers),
      softCaps: {
        attention: fields.positive(`${at}.attn_logit_softcapping`) ?? 50,
        logits: fields.positive(`${at}.final_logit_softcapping`) ?? 30,
      },
    }),
  },
  gemma3: {
    name: () => "Gemma3ForCausalLM",
    window: { period: 6, rope: true },
    names: gemmaNames,
    own: (file, fields, at, layers) => ({
      ...biases(file),
      multipliers: gemmaMultipliers(fields, at, layers),
      softCaps: { attention: 0, logits: fields.positive(`${at}.final_logit_softcapping`) ?? 0 },
      windowRope: { ropeTheta: fields.positive(`${at}.rope.freq_base_swa`) ?? 10000, ropeScaling: null },
    }),
  },
  "gpt-oss": {
    name: () => "GptOssForCausalLM",
    window: { period: 2 },
    exactYarn: true,
    names: { "post_attention_layernorm": "post_attention_norm", "self_attn.sinks": "attn_sinks" },
    own: (file, fields, at) => ({
      ...biases(file),
      experts: experts(fields, at, fields.needed(`${at}.expert_feed_forward_length`)),
    }),
  },
};

/** Factors that a Gemma's file implies; the models of 27 B are told by their layers. */
function gemmaMultipliers(fields: GgufFields, at: string, layers: number): Multipliers {
  const hidden = fields.needed(`${at}.embedding_length`), heads = fields.needed(`${at}.attention.head_count`);
  const headDim = fields.count(`${at}.attention.key_length`) ?? hidden / heads;
  const scalar = layers === (at === "gemma2" ? 46 : 62) ? hidden / heads : headDim;
  return { embedding: Math.sqrt(hidden), attention: 1 / Math.sqrt(scalar), residual: 1, logits: 1 };
}

/** Architectures that are not supported, by `general.architecture`, and their names in transformers. */
export const otherNames: Readonly<Record<string, string>> = {
  gemma3n: "Gemma3nForConditionalGeneration",
  gemma4: "Gemma4ForConditionalGeneration",
  qwen3next: "Qwen3NextForCausalLM",
  qwen35: "Qwen3_5ForCausalLM",
  qwen35moe: "Qwen3_5MoeForCausalLM",
  deepseek2: "DeepseekV3ForCausalLM",
  mamba: "MambaForCausalLM",
  mamba2: "Mamba2ForCausalLM",
  jamba: "JambaForCausalLM",
  "falcon-h1": "FalconH1ForCausalLM",
  granitehybrid: "GraniteMoeHybridForCausalLM",
  lfm2: "Lfm2ForCausalLM",
  nemotron_h: "NemotronHForCausalLM",
  bert: "BertModel",
  "nomic-bert": "NomicBertModel",
  "modern-bert": "ModernBertModel",
  t5: "T5ForConditionalGeneration",
};

const layerNames: Readonly<Record<string, string>> = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.qkv_proj": "attn_qkv",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "self_attn.o_proj": "attn_output",
  "post_self_attn_layernorm": "post_attention_norm",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.gate_up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "post_mlp_layernorm": "post_ffw_norm",
  "post_feedforward_layernorm": "post_ffw_norm",
  "mlp.gate": "ffn_gate_inp",
  "mlp.router": "ffn_gate_inp",
  "block_sparse_moe.gate": "ffn_gate_inp",
};

const expertNames: Readonly<Record<string, string>> = {
  gate_proj: "ffn_gate",
  up_proj: "ffn_up",
  down_proj: "ffn_down",
  w1: "ffn_gate",
  w3: "ffn_up",
  w2: "ffn_down",
};

/** Where a GGUF file has a tensor of a model. */
export interface GgufPlace {
  /** The tensor of the file. */
  readonly name: string;
  /** Which of its matrices it is, where the file has those of all experts in one. */
  readonly expert?: number;
}

/** Where a file of an architecture has the tensor of this name in Hugging Face transformers. */
export function ggufPlace(file: Gguf, name: string, names: GgufArchitecture["names"] = {}): GgufPlace {
  const [, layer, part, kind = "weight"] = /^model\.layers\.(\d+)\.(.*?)(?:\.(weight|bias))?$/.exec(name) ?? [];
  const [, expert, matrix] = /^(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(.*)$/.exec(part ?? "") ?? [];
  if (matrix !== undefined && Object.hasOwn(expertNames, matrix)) {
    const at = `blk.${layer}.${expertNames[matrix]}`, alone = `${at}.${expert}.${kind}`;
    return file.has(alone) ? { name: alone } : { name: `${at}_exps.${kind}`, expert: Number(expert) };
  }
  if (part !== undefined && Object.hasOwn(names, part)) return { name: `blk.${layer}.${names[part]}.${kind}` };
  if (part !== undefined && Object.hasOwn(layerNames, part)) {
    return { name: `blk.${layer}.${layerNames[part]}.${kind}` };
  }
  switch (name) {
    case "model.embed_tokens.weight":
      return { name: "token_embd.weight" };
    case "model.norm.weight":
      return { name: "output_norm.weight" };
    case "lm_head.weight":
      return { name: "output.weight" };
    default:
      throw new WeightsError(`there is no tensor ${name} in a GGUF file`);
  }
}

/**
 * The row of an interleaved query or key projection in a file that is row `row` of the model's: file row (head, i, half) is model
 * row (head, half, i), i < headDim / 2.
 */
export function ggufRow(row: number, headDim: number): number {
  const inner = row % headDim, half = headDim / 2;
  return row - inner + 2 * (inner % half) + Math.floor(inner / half);
}
