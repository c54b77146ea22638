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
import { checkExperts, type ExpertsConfig } from "./model_config.ts";

/** What is an architecture's own in a GGUF file. */
export interface GgufArchitecture {
  /** Its name in Hugging Face transformers. */
  name(experts: number): string;
  /** Whether the two halves of a query's or key's head are interleaved in the file, for llama.cpp's rope. */
  readonly interleaved?: true;
  /** Names of tensors that are not the others', by those of transformers. */
  readonly names?: Readonly<Record<string, string>>;
  /** Reads what is its own; `at` stands before its keys. */
  own(file: Gguf, fields: GgufFields, at: string, layers: number): OwnConfig;
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
  phi3: { name: () => "Phi3ForCausalLM", own: () => noBiases },
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
};

/** Architectures that are not supported, by `general.architecture`, and their names in transformers. */
export const otherNames: Readonly<Record<string, string>> = {
  gemma2: "Gemma2ForCausalLM",
  gemma3: "Gemma3ForCausalLM",
  gemma3n: "Gemma3nForConditionalGeneration",
  gemma4: "Gemma4ForConditionalGeneration",
  "gpt-oss": "GptOssForCausalLM",
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
  const [, layer, part, kind] = /^model\.layers\.(\d+)\.(.*)\.(weight|bias)$/.exec(name) ?? [];
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
