/**
 * Llama models in GGUF files: their sizes, and which tensor of the file is which of the model.
 *
 * @module
 */

import type { Gguf } from "./gguf.ts";
import { GgufFields } from "./gguf_fields.ts";
import { WeightsError } from "./json.ts";
import { checkShape, type ModelConfig, type RopeScaling } from "./model_config.ts";

/** The sizes and constants of a Llama model. Throws WeightsError for another architecture, by its name. */
export function ggufConfig(file: Gguf): ModelConfig {
  const fields = new GgufFields(file), { path } = file;
  const architecture = fields.text("general.architecture");
  if (architecture !== "llama") {
    throw new WeightsError(`${path}: the architecture ${architecture ?? "(none)"} is not supported; supported: llama`);
  }
  const parts = fields.count("split.count", 0) ?? 0;
  if (parts > 1) {
    throw new WeightsError(`${path}: is one of ${parts} parts; join them with llama-gguf-split --merge`);
  }
  const experts = fields.count("llama.expert_count", 0) ?? 0;
  if (experts > 0) throw new WeightsError(`${path}: has ${experts} experts a layer, which are not supported`);
  const hiddenSize = fields.needed("llama.embedding_length"), heads = fields.needed("llama.attention.head_count");
  const kvHeads = fields.count("llama.attention.head_count_kv") ?? heads;
  const headDim = fields.count("llama.attention.key_length") ?? hiddenSize / heads;
  const valueDim = fields.count("llama.attention.value_length") ?? headDim;
  if (valueDim !== headDim) throw fields.wrong("llama.attention.value_length", String(headDim));
  checkShape(path, heads, kvHeads, headDim);
  const rotated = fields.count("llama.rope.dimension_count") ?? headDim;
  if (rotated !== headDim) throw fields.wrong("llama.rope.dimension_count", `${headDim}, a whole head`);
  const rmsNormEps = fields.positive("llama.attention.layer_norm_rms_epsilon");
  if (rmsNormEps === undefined) throw fields.wrong("llama.attention.layer_norm_rms_epsilon", "a number > 0");
  const { shape } = file.info("token_embd.weight");
  const ids = ["eos", "eot", "eom"].map((name) => fields.count(`tokenizer.ggml.${name}_token_id`, 0));
  return {
    architecture: "LlamaForCausalLM",
    vocabularySize: shape[0],
    hiddenSize,
    intermediateSize: fields.needed("llama.feed_forward_length"),
    layers: fields.needed("llama.block_count"),
    heads,
    kvHeads,
    headDim,
    contextLength: fields.needed("llama.context_length"),
    rmsNormEps,
    ropeTheta: fields.positive("llama.rope.freq_base") ?? 10000,
    ropeScaling: ropeScaling(file, fields, headDim),
    tieWordEmbeddings: !file.has("output.weight"),
    attentionBias: file.has("blk.0.attn_q.bias"),
    mlpBias: file.has("blk.0.ffn_gate.bias"),
    bosId: fields.count("tokenizer.ggml.bos_token_id", 0) ?? null,
    eosIds: [...new Set(ids.filter((id) => id !== undefined))],
  };
}

/** Llama 3.1's scaling comes as a divisor for each frequency, in a tensor. */
function ropeScaling(file: Gguf, fields: GgufFields, headDim: number): RopeScaling | null {
  const type = fields.text("llama.rope.scaling.type") ?? "none";
  if (type !== "none" && type !== "linear") {
    throw new WeightsError(
      `${file.path}: rope scaling "${type}" is not supported; supported: none, linear, rope_freqs`,
    );
  }
  const factor = fields.positive("llama.rope.scaling.factor") ?? fields.positive("llama.rope.scale_linear") ?? 1;
  if (!file.has("rope_freqs.weight")) return factor === 1 ? null : { type: "linear", factor };
  const { dtype, shape, byteLength } = file.info("rope_freqs.weight");
  if (dtype !== "F32" || shape.length !== 1 || shape[0] !== headDim / 2) {
    throw new WeightsError(
      `${file.path}: rope_freqs.weight is ${dtype} [${shape.join(", ")}], expected F32 [${headDim / 2}]`,
    );
  }
  const bytes = new Uint8Array(byteLength), view = new DataView(bytes.buffer);
  file.readInto("rope_freqs.weight", 0, bytes);
  const factors = Array.from({ length: headDim / 2 }, (_, i) => view.getFloat32(4 * i, true));
  if (!factors.every((divisor) => divisor > 0 && divisor < Infinity)) {
    throw new WeightsError(`${file.path}: rope_freqs.weight has a value that is not a number > 0`);
  }
  return { type: "factors", factors: factors.map((divisor) => divisor * factor) };
}

const LAYER_NAMES: Readonly<Record<string, string>> = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
};

/** The name in a GGUF file of a tensor by its name in Hugging Face transformers. */
export function ggufName(name: string): string {
  const [, layer, part, kind] = /^model\.layers\.(\d+)\.(.*)\.(weight|bias)$/.exec(name) ?? [];
  if (part !== undefined && Object.hasOwn(LAYER_NAMES, part)) return `blk.${layer}.${LAYER_NAMES[part]}.${kind}`;
  switch (name) {
    case "model.embed_tokens.weight":
      return "token_embd.weight";
    case "model.norm.weight":
      return "output_norm.weight";
    case "lm_head.weight":
      return "output.weight";
    default:
      throw new WeightsError(`there is no tensor ${name} in a GGUF file`);
  }
}

/**
 * The row of a GGUF file's query or key projection that is row `row` of the model's. Files have the two halves of a head
 * interleaved for rope: file row (head, i, half) is model row (head, half, i), i < headDim / 2.
 */
export function ggufRow(row: number, headDim: number): number {
  const inner = row % headDim, half = headDim / 2;
  return row - inner + 2 * (inner % half) + Math.floor(inner / half);
}
