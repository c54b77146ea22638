/**
 * Llama models in GGUF files: their sizes, and which tensor of the file is which of the model.
 *
 * @module
 */

import { checkedShape, type ModelConfig, type RopeScaling } from "./config.ts";
import type { Gguf, GgufValue } from "./gguf.ts";
import { WeightsError } from "./json.ts";

/** Typed access to the metadata of a GGUF file. Errors name the file and the entry. */
export class GgufFields {
  readonly #file: Gguf;

  /** Of an open file. */
  constructor(file: Gguf) {
    this.#file = file;
  }

  /** The error for an entry that is not what was expected. */
  wrong(key: string, expected: string): WeightsError {
    const value = this.#file.metadata.get(key);
    const found = value === undefined
      ? "nothing"
      : typeof value === "bigint"
      ? String(value)
      : JSON.stringify(value, (_, v) => typeof v === "bigint" ? String(v) : v).slice(0, 80);
    return new WeightsError(`${this.#file.path}: ${key}: expected ${expected}, found ${found}`);
  }

  #optional<T extends GgufValue>(key: string, expected: string, is: (value: GgufValue) => value is T): T | undefined {
    const value = this.#file.metadata.get(key);
    if (value === undefined) return undefined;
    if (!is(value)) throw this.wrong(key, expected);
    return value;
  }

  /** A text, or undefined where there is none. */
  text(key: string): string | undefined {
    return this.#optional(key, "a text", (value): value is string => typeof value === "string");
  }

  /** True or false, or undefined. */
  flag(key: string): boolean | undefined {
    return this.#optional(key, "true or false", (value): value is boolean => typeof value === "boolean");
  }

  /** A whole number from `least` on, or undefined. */
  count(key: string, least: number = 1): number | undefined {
    const is = (value: GgufValue): value is number =>
      typeof value === "number" && Number.isInteger(value) && value >= least && value < 2 ** 31;
    return this.#optional(key, `a whole number >= ${least}`, is);
  }

  /** The same where there must be one. */
  needed(key: string): number {
    const value = this.count(key);
    if (value === undefined) throw this.wrong(key, "a whole number >= 1");
    return value;
  }

  /** A number > 0, or undefined. */
  positive(key: string): number | undefined {
    const is = (value: GgufValue): value is number => typeof value === "number" && value > 0 && value < Infinity;
    return this.#optional(key, "a number > 0", is);
  }

  /** A list of texts, or undefined. */
  texts(key: string): string[] | undefined {
    const is = (value: GgufValue): value is string[] =>
      Array.isArray(value) && value.every((item) => typeof item === "string");
    return this.#optional(key, "a list of texts", is);
  }

  /** A list of numbers, or undefined. */
  numbers(key: string): number[] | undefined {
    const is = (value: GgufValue): value is number[] =>
      Array.isArray(value) && value.every((item) => typeof item === "number");
    return this.#optional(key, "a list of numbers", is);
  }
}

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
  checkedShape(path, heads, kvHeads, headDim);
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
