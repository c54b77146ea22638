/** Small GGUF files of random Llama models. @module */
import { type GgufEntry, type GgufTensorData, toF16 } from "../../scripts/frame/gguf.ts";
import { BLOCKS, type BlockType, blockWeights, half, randomBlocks } from "./blocks.ts";
import type { Random } from "./random.ts";
import { bf16 } from "./reference.ts";

/** A tensor for a file, with the weights it stands for. */
export interface RandomTensor extends GgufTensorData {
  /** Its weights, rows as in the file. */
  readonly weights: ArrayLike<number>;
}

/** A random tensor of a type. */
export function randomTensor(random: Random, name: string, dtype: string, shape: readonly number[]): RandomTensor {
  const size = shape.reduce((a, b) => a * b, 1), values = random.normals(size, 0.1);
  let bytes: Uint8Array, weights: ArrayLike<number>;
  if (dtype === "F32") [bytes, weights] = [new Uint8Array(values.buffer), values];
  else if (dtype === "F16") {
    const bits = toF16(values);
    [bytes, weights] = [new Uint8Array(bits.buffer), Array.from(bits, half)];
  } else if (dtype === "BF16") {
    const rounded = Float32Array.from(values, bf16);
    const bits = Uint16Array.from(new Uint32Array(rounded.buffer), (word) => word >>> 16);
    [bytes, weights] = [new Uint8Array(bits.buffer), rounded];
  } else {
    bytes = randomBlocks(random, dtype as BlockType, size, BLOCKS[dtype as BlockType].weights === 256 ? 1e-4 : 2e-3);
    weights = blockWeights(dtype as BlockType, bytes);
  }
  return { name, dtype, shape, data: () => bytes, byteLength: bytes.length, weights };
}

/** Metadata of a Llama with heads of 64 and a byte-level tokenizer of 256 tokens and two control tokens. */
export function llamaMetadata(
  sizes: { hidden: number; inner: number; layers: number; heads: number; kvHeads: number },
): GgufEntry[] {
  return [
    ["general.architecture", "string", "llama"],
    ["llama.block_count", "u32", sizes.layers],
    ["llama.context_length", "u32", 512],
    ["llama.embedding_length", "u32", sizes.hidden],
    ["llama.feed_forward_length", "u32", sizes.inner],
    ["llama.attention.head_count", "u32", sizes.heads],
    ["llama.attention.head_count_kv", "u32", sizes.kvHeads],
    ["llama.attention.key_length", "u32", 64],
    ["llama.attention.value_length", "u32", 64],
    ["llama.attention.layer_norm_rms_epsilon", "f32", 1e-5],
    ["llama.rope.freq_base", "f32", 50000],
    ["llama.rope.dimension_count", "u32", 64],
    ["tokenizer.ggml.model", "string", "gpt2"],
    ["tokenizer.ggml.pre", "string", "smollm"],
    ["tokenizer.ggml.tokens", "string", [...byteAlphabet(), "<s>", "</s>"]],
    ["tokenizer.ggml.token_type", "i32", [...new Array(256).fill(1), 3, 3]],
    ["tokenizer.ggml.merges", "string", ["h e", "he l", "Ġ w"]],
    ["tokenizer.ggml.bos_token_id", "u32", 256],
    ["tokenizer.ggml.eos_token_id", "u32", 257],
    ["tokenizer.chat_template", "string", "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"],
  ];
}

/** The tensors of a Llama: matrices in the types given, norms F32. */
export function llamaTensors(
  random: Random,
  sizes: { hidden: number; inner: number; layers: number; heads: number; kvHeads: number; vocabulary: number },
  types: {
    embedding: string;
    q: string;
    k: string;
    v: string;
    output: string;
    gate: string;
    up: string;
    down: string;
    head?: string;
  },
): RandomTensor[] {
  const { hidden, inner, heads, kvHeads, vocabulary } = sizes, out: RandomTensor[] = [];
  const add = (name: string, dtype: string, ...shape: number[]): void => {
    out.push(randomTensor(random, `${name}.weight`, dtype, shape));
  };
  add("token_embd", types.embedding, vocabulary, hidden);
  for (let i = 0; i < sizes.layers; i++) {
    add(`blk.${i}.attn_norm`, "F32", hidden);
    add(`blk.${i}.attn_q`, types.q, heads * 64, hidden);
    add(`blk.${i}.attn_k`, types.k, kvHeads * 64, hidden);
    add(`blk.${i}.attn_v`, types.v, kvHeads * 64, hidden);
    add(`blk.${i}.attn_output`, types.output, hidden, heads * 64);
    add(`blk.${i}.ffn_norm`, "F32", hidden);
    add(`blk.${i}.ffn_gate`, types.gate, inner, hidden);
    add(`blk.${i}.ffn_up`, types.up, inner, hidden);
    add(`blk.${i}.ffn_down`, types.down, hidden, inner);
  }
  add("output_norm", "F32", hidden);
  if (types.head) add("output", types.head, vocabulary, hidden);
  return out;
}

/** GPT-2's alphabet: visible Latin-1 stands for itself, the rest follows from U+0100. */
export function byteAlphabet(): string[] {
  const visible = (byte: number): boolean => /[!-~¡-¬®-ÿ]/.test(String.fromCharCode(byte));
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(visible(byte) ? byte : next++));
}
