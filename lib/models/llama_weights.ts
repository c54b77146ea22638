/**
 * The weights of a Llama model: read from safetensors, brought to bf16, and joined where one product can do the work
 * of several (q, k, v; gate, up).
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { convert } from "../ops/mod.ts";
import { type LlamaConfig, readModelConfig } from "../weights/config.ts";
import { openModel, type Safetensors, WeightsError } from "../weights/safetensors.ts";

/** One layer's weights, bf16 [out, in]; norms [hidden]. */
export interface LlamaLayer {
  /** Norm before attention. */
  inputNorm: Tensor;
  /** Query, key and value projections, one under the other. */
  qkv: Tensor;
  /** Their biases, where the model has them. */
  qkvBias?: Tensor;
  /** Attention's output projection. */
  output: Tensor;
  /** Its bias. */
  outputBias?: Tensor;
  /** Norm before the feed-forward part. */
  postNorm: Tensor;
  /** Gate and up projections, one under the other. */
  gateUp: Tensor;
  /** Their biases. */
  gateUpBias?: Tensor;
  /** Down projection. */
  down: Tensor;
  /** Its bias. */
  downBias?: Tensor;
}

/** All weights of a model on a device. */
export class LlamaWeights implements Disposable {
  /** Token embedding, bf16 [vocabulary, hidden]. */
  embedding!: Tensor;
  /** The layers, in order. */
  layers: LlamaLayer[] = [];
  /** Norm before the head. */
  norm!: Tensor;
  /** Output projection, bf16 [vocabulary, hidden]; the embedding itself where they are tied. */
  head!: Tensor;
  readonly #device: Device;
  readonly #owned: Tensor[] = [];

  /** Empty weights on a device. */
  constructor(device: Device) {
    this.#device = device;
  }

  /** Allocates a bf16 tensor that lives as long as these weights. */
  allocate(...shape: number[]): Tensor {
    const tensor = Tensor.empty(this.#device, "bf16", shape);
    this.#owned.push(tensor);
    return tensor;
  }

  /** Bytes on the device. */
  get bytes(): number {
    return this.#owned.reduce((sum, tensor) => sum + tensor.byteLength, 0);
  }

  /** Frees them. */
  [Symbol.dispose](): void {
    for (const tensor of this.#owned.splice(0)) tensor[Symbol.dispose]();
  }
}

/** Bytes of one read from a file. */
const READ_BYTES = 16 << 20;

/** Reads config.json and the weights of a model folder. Progress counts bytes of the files. */
export async function loadLlama(
  device: Device,
  folder: string,
  options: { onProgress?: (bytes: number, total: number) => void; signal?: AbortSignal } = {},
): Promise<{ config: LlamaConfig; weights: LlamaWeights }> {
  const config = readModelConfig(folder);
  using file = openModel(folder);
  const weights = new LlamaWeights(device);
  const { hiddenSize, intermediateSize, vocabularySize } = config, qSize = config.heads * config.headDim;
  const kvSize = config.kvHeads * config.headDim;
  const total = file.names.reduce((sum, name) => sum + file.info(name).byteLength, 0);
  let done = 0;
  const fill = async (target: Tensor, name: string): Promise<void> => {
    read(file, name, target);
    done += file.info(name).byteLength;
    options.onProgress?.(done, total);
    // A pause for the event loop, so that progress shows and an abort is heard.
    await new Promise((resolve) => setTimeout(resolve, 0));
    options.signal?.throwIfAborted();
  };
  const single = async (name: string, ...shape: number[]): Promise<Tensor> => {
    const tensor = weights.allocate(...shape);
    await fill(tensor, name);
    return tensor;
  };
  const joined = async (names: [string, number][], ...inner: number[]): Promise<Tensor> => {
    const tensor = weights.allocate(names.reduce((sum, [, rows]) => sum + rows, 0), ...inner);
    let begin = 0;
    for (const [name, rows] of names) {
      await fill(tensor.rows(begin, rows), name);
      begin += rows;
    }
    return tensor;
  };
  try {
    weights.embedding = await single("model.embed_tokens.weight", vocabularySize, hiddenSize);
    for (let i = 0; i < config.layers; i++) {
      const at = `model.layers.${i}`, qkv = ["q", "k", "v"].map((n) => `${at}.self_attn.${n}_proj`);
      const sizes = [qSize, kvSize, kvSize], gateUp = ["gate", "up"].map((n) => `${at}.mlp.${n}_proj`);
      weights.layers.push({
        inputNorm: await single(`${at}.input_layernorm.weight`, hiddenSize),
        qkv: await joined(qkv.map((name, j) => [`${name}.weight`, sizes[j]]), hiddenSize),
        qkvBias: config.attentionBias ? await joined(qkv.map((name, j) => [`${name}.bias`, sizes[j]])) : undefined,
        output: await single(`${at}.self_attn.o_proj.weight`, hiddenSize, qSize),
        outputBias: config.attentionBias ? await single(`${at}.self_attn.o_proj.bias`, hiddenSize) : undefined,
        postNorm: await single(`${at}.post_attention_layernorm.weight`, hiddenSize),
        gateUp: await joined(gateUp.map((name) => [`${name}.weight`, intermediateSize]), hiddenSize),
        gateUpBias: config.mlpBias ? await joined(gateUp.map((name) => [`${name}.bias`, intermediateSize])) : undefined,
        down: await single(`${at}.mlp.down_proj.weight`, hiddenSize, intermediateSize),
        downBias: config.mlpBias ? await single(`${at}.mlp.down_proj.bias`, hiddenSize) : undefined,
      });
    }
    weights.norm = await single("model.norm.weight", hiddenSize);
    weights.head = config.tieWordEmbeddings
      ? weights.embedding
      : await single("lm_head.weight", vocabularySize, hiddenSize);
  } catch (error) {
    weights[Symbol.dispose]();
    throw error;
  }
  return { config, weights };
}

/** Copies one tensor of a file to the device, as bf16, in pieces. */
function read(file: Safetensors, name: string, target: Tensor): void {
  const { dtype, shape, byteLength } = file.info(name);
  if (shape.length !== target.shape.length || shape.some((n, i) => n !== target.shape[i])) {
    throw new WeightsError(`${file.path}: ${name} has shape [${shape}], config.json needs [${target.shape}]`);
  }
  if (dtype !== "BF16" && dtype !== "F16" && dtype !== "F32") {
    throw new WeightsError(`${file.path}: ${name} is ${dtype}; BF16, F16 and F32 weights are read`);
  }
  const size = dtype === "F32" ? 4 : 2, flat = target.view([byteLength / size]);
  const buffer = new Uint8Array(Math.min(byteLength, READ_BYTES));
  using staging = dtype === "BF16"
    ? undefined
    : Tensor.empty(target.device, dtype === "F32" ? "f32" : "f16", [buffer.byteLength / size]);
  for (let offset = 0; offset < byteLength; offset += buffer.byteLength) {
    const piece = buffer.subarray(0, Math.min(buffer.byteLength, byteLength - offset)), count = piece.byteLength / size;
    file.readInto(name, offset, piece);
    const part = flat.rows(offset / size, count);
    if (staging) {
      staging.write(
        dtype === "F32" ? new Float32Array(piece.buffer, 0, count) : new Uint16Array(piece.buffer, 0, count),
      );
      convert(part, staging.rows(0, count));
    } else part.write(new Uint16Array(piece.buffer, 0, count));
  }
}
