/**
 * The weights of a Llama model: in bf16, or packed where the file has them so, and joined where one product can do the
 * work of several (q, k, v; gate, up).
 *
 * @module
 */

import type { Device } from "../device.ts";
import { BLOCK_ELEMENTS, byteLengthOf, type DType, PACKED_ROWS, Tensor } from "../tensor.ts";
import { type ModelConfig, readModelConfig } from "../weights/config.ts";
import { type LlamaFile, openLlama } from "./llama_file.ts";

/** One layer's weights, bf16 or packed [out, in]; norms and biases bf16. */
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
  /**
   * Output projection [vocabulary, hidden]. Where it is tied to the embedding: the embedding itself, or, of a file that has
   * it packed, a packed copy, which reads half the bytes or less a token.
   */
  head!: Tensor;
  readonly #device: Device;
  readonly #owned: Tensor[] = [];

  /** Empty weights on a device. */
  constructor(device: Device) {
    this.#device = device;
  }

  /** Allocates a bf16 tensor that lives as long as these weights. */
  allocate(...shape: number[]): Tensor {
    return this.allocateAs("bf16", ...shape);
  }

  /** The same of another type. */
  allocateAs(dtype: DType, ...shape: number[]): Tensor {
    const tensor = Tensor.empty(this.#device, dtype, shape);
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

/** Matrices of a file that are joined to one, each with its rows, and the width of all. */
interface Joined {
  names: readonly (readonly [string, number])[];
  width: number;
}

/** The matrices of the layer whose tensors' names begin with `at`. */
function layerMatrices(config: ModelConfig, at: string): Record<"qkv" | "output" | "gateUp" | "down", Joined> {
  const { hiddenSize, intermediateSize, headDim } = config, qSize = config.heads * headDim;
  const kvSize = config.kvHeads * headDim;
  const attention = (name: string, rows: number) => [`${at}.self_attn.${name}_proj.weight`, rows] as const;
  const mlp = (name: string, rows: number) => [`${at}.mlp.${name}_proj.weight`, rows] as const;
  return {
    qkv: { names: [attention("q", qSize), attention("k", kvSize), attention("v", kvSize)], width: hiddenSize },
    output: { names: [attention("o", hiddenSize)], width: qSize },
    gateUp: { names: [mlp("gate", intermediateSize), mlp("up", intermediateSize)], width: hiddenSize },
    down: { names: [mlp("down", hiddenSize)], width: intermediateSize },
  };
}

const EMBEDDING = "model.embed_tokens.weight";

/** The output projection, or undefined where the embedding itself serves. */
function headMatrix(config: ModelConfig, file: LlamaFile): Joined | undefined {
  const { tieWordEmbeddings: tied, vocabularySize, hiddenSize } = config;
  if (tied && file.format(EMBEDDING) === "bf16") return undefined;
  return { names: [[tied ? EMBEDDING : "lm_head.weight", vocabularySize]], width: hiddenSize };
}

/** Packed where all parts are in one format and cut at whole panels, else bf16. */
function joinedType(file: LlamaFile, { names, width }: Joined): DType {
  const [format, ...others] = names.map(([name]) => file.format(name));
  const whole = width % BLOCK_ELEMENTS === 0 && names.slice(0, -1).every(([, rows]) => rows % PACKED_ROWS === 0);
  return whole && others.every((other) => other === format) ? format : "bf16";
}

/** Bytes that the weights of a model folder or a GGUF file take on a device, from the heads of the files. */
export function llamaBytes(path: string): number {
  const config = readModelConfig(path), { layers, hiddenSize, vocabularySize } = config;
  using file = openLlama(path, config.headDim);
  const rowsOf = ({ names }: Joined) => names.reduce((sum, [, rows]) => sum + rows, 0);
  const bytesOf = (matrix: Joined) => byteLengthOf(joinedType(file, matrix), rowsOf(matrix), matrix.width);
  let bytes = 2 * (vocabularySize * hiddenSize + hiddenSize);
  for (let i = 0; i < layers; i++) {
    const { qkv, output, gateUp, down } = layerMatrices(config, `model.layers.${i}`);
    for (const matrix of [qkv, output, gateUp, down]) bytes += bytesOf(matrix);
    const biases = [...config.attentionBias ? [qkv, output] : [], ...config.mlpBias ? [gateUp, down] : []];
    bytes += 2 * (2 * hiddenSize + biases.reduce((sum, matrix) => sum + rowsOf(matrix), 0));
  }
  const head = headMatrix(config, file);
  return bytes + (head ? bytesOf(head) : 0);
}

/** Reads configuration and weights of a model folder or a GGUF file. Progress counts bytes of the files. */
export async function loadLlama(
  device: Device,
  folder: string,
  options: { onProgress?: (bytes: number, total: number) => void; signal?: AbortSignal } = {},
): Promise<{ config: ModelConfig; weights: LlamaWeights }> {
  const config = readModelConfig(folder);
  using file = openLlama(folder, config.headDim);
  const weights = new LlamaWeights(device);
  const { hiddenSize, vocabularySize } = config;
  let done = 0;
  const fill = async (target: Tensor, name: string): Promise<void> => {
    done += file.fill(target, name);
    options.onProgress?.(Math.min(done, file.bytes), file.bytes);
    // A pause for the event loop, so that progress shows and an abort is heard.
    await new Promise((resolve) => setTimeout(resolve, 0));
    options.signal?.throwIfAborted();
  };
  const joined = async (dtype: DType, names: Joined["names"], ...inner: number[]): Promise<Tensor> => {
    const tensor = weights.allocateAs(dtype, names.reduce((sum, [, rows]) => sum + rows, 0), ...inner);
    let begin = 0;
    for (const [name, rows] of names) {
      await fill(tensor.rows(begin, rows), name);
      begin += rows;
    }
    return tensor;
  };
  const single = (name: string, ...shape: number[]): Promise<Tensor> =>
    joined("bf16", [[name, shape[0]]], ...shape.slice(1));
  const matrix = (parts: Joined): Promise<Tensor> => joined(joinedType(file, parts), parts.names, parts.width);
  const biases = ({ names }: Joined): Promise<Tensor> =>
    joined("bf16", names.map(([name, rows]) => [name.replace(/weight$/, "bias"), rows]));
  try {
    weights.embedding = await single(EMBEDDING, vocabularySize, hiddenSize);
    for (let i = 0; i < config.layers; i++) {
      const at = `model.layers.${i}`, { qkv, output, gateUp, down } = layerMatrices(config, at);
      weights.layers.push({
        inputNorm: await single(`${at}.input_layernorm.weight`, hiddenSize),
        qkv: await matrix(qkv),
        qkvBias: config.attentionBias ? await biases(qkv) : undefined,
        output: await matrix(output),
        outputBias: config.attentionBias ? await biases(output) : undefined,
        postNorm: await single(`${at}.post_attention_layernorm.weight`, hiddenSize),
        gateUp: await matrix(gateUp),
        gateUpBias: config.mlpBias ? await biases(gateUp) : undefined,
        down: await matrix(down),
        downBias: config.mlpBias ? await biases(down) : undefined,
      });
    }
    weights.norm = await single("model.norm.weight", hiddenSize);
    const head = headMatrix(config, file);
    weights.head = head ? await matrix(head) : weights.embedding;
  } catch (error) {
    weights[Symbol.dispose]();
    throw error;
  }
  return { config, weights };
}
