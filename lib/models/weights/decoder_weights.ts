/**
 * The weights of a decoder by its plan: in bf16, norms in f32, or packed where the file has them so, and joined where one product can do
 * the work of several (q, k, v; gate, up).
 *
 * @module
 */

import type { Device } from "../../device.ts";
import { BLOCK_ELEMENTS, byteLengthOf, type DType, PACKED_ROWS, Tensor } from "../../tensor.ts";
import type { Matrix, ModelPlan } from "../architecture.ts";
import { openWeights, type WeightFile } from "./files.ts";

/** A matrix, bf16 or packed [out, in], and its bias, bf16 [out], where it has one. */
export interface Product<T = Tensor> {
  /** The matrix. */
  readonly weight: T;
  /** What is added to the product. */
  readonly bias?: T;
}

/** One layer's weights; norms are f32 [hidden]. */
export interface LayerWeights<T = Tensor> {
  /** Norm before attention. */
  readonly attentionNorm: T;
  /** Query, key and value projections, one under the other. */
  readonly qkv: Product<T>;
  /** Attention's output projection. */
  readonly output: Product<T>;
  /** Norm before the feed-forward part. */
  readonly feedForwardNorm: T;
  /** Gate and up projections, one under the other. */
  readonly gateUp: Product<T>;
  /** Down projection. */
  readonly down: Product<T>;
}

/** A model's weights. */
interface ModelWeights<T> {
  readonly embedding: T;
  readonly layers: readonly LayerWeights<T>[];
  readonly norm: T;
  readonly head: T;
}

/** One tensor on the device: what it is, and the tensors of a file that are joined in it. */
interface TensorPlan {
  readonly kind: "matrix" | "bias" | "norm";
  readonly dtype: DType;
  /** Names in a model folder, and rows. */
  readonly parts: readonly (readonly [name: string, rows: number])[];
  readonly rows: number;
  /** Columns; 1 for a vector. */
  readonly width: number;
}

/** The type in which a matrix lies on the device. */
type TypeOf = (matrix: Matrix) => DType;

const bf16: TypeOf = () => "bf16";

/** Makes a model's tensors in the order in which they are read. */
function build<T>(plan: ModelPlan, typeOf: TypeOf, make: (tensor: TensorPlan) => T): ModelWeights<T> {
  const tensor = (kind: TensorPlan["kind"], dtype: DType, { parts, width }: Pick<Matrix, "parts" | "width">): T => {
    const suffix = kind === "bias" ? "bias" : "weight", rows = parts.reduce((sum, [, rows]) => sum + rows, 0);
    return make({ kind, dtype, parts: parts.map(([name, rows]) => [`${name}.${suffix}`, rows]), rows, width });
  };
  const product = (matrix: Matrix): Product<T> => {
    const weight = tensor("matrix", typeOf(matrix), matrix);
    return { weight, bias: matrix.bias ? tensor("bias", "bf16", { parts: matrix.parts, width: 1 }) : undefined };
  };
  const norm = (name: string): T => tensor("norm", "f32", { parts: [[name, plan.embedding.width]], width: 1 });
  // Rows are taken out of the embedding one by one, so that it is never packed.
  const embedding = tensor("matrix", "bf16", plan.embedding);
  const layers = plan.layers.map(({ attention, feedForward }): LayerWeights<T> => ({
    attentionNorm: norm(attention.norm),
    qkv: product(attention.qkv),
    output: product(attention.output),
    feedForwardNorm: norm(feedForward.norm),
    gateUp: product(feedForward.gateUp),
    down: product(feedForward.down),
  }));
  const last = norm(plan.norm), tied = plan.head === plan.embedding && typeOf(plan.head) === "bf16";
  return { embedding, layers, norm: last, head: tied ? embedding : product(plan.head).weight };
}

/** All weights of a model on a device. */
export class DecoderWeights implements ModelWeights<Tensor>, Disposable {
  /** Token embedding, bf16 [vocabulary, hidden]. */
  readonly embedding: Tensor;
  /** The layers, in order. */
  readonly layers: readonly LayerWeights[];
  /** Norm before the head, f32 [hidden]. */
  readonly norm: Tensor;
  /**
   * Output projection [vocabulary, hidden]. Where it is tied to the embedding: the embedding itself, or, of a file that has
   * it packed, a packed copy, which reads half the bytes or less a token.
   */
  readonly head: Tensor;
  /** All tensors, each once, in the order in which they are read or drawn. */
  readonly tensors: readonly (TensorPlan & { readonly tensor: Tensor })[];

  /** Allocates the weights of a plan; what they hold is undefined. Throws VecInferError (OUT_OF_MEMORY). */
  constructor(device: Device, plan: ModelPlan, typeOf: TypeOf = bf16) {
    const tensors: (TensorPlan & { tensor: Tensor })[] = this.tensors = [];
    try {
      const { embedding, layers, norm, head } = build(plan, typeOf, (each) => {
        const tensor = Tensor.empty(device, each.dtype, each.kind === "matrix" ? [each.rows, each.width] : [each.rows]);
        tensors.push({ ...each, tensor });
        return tensor;
      });
      this.embedding = embedding;
      this.layers = layers;
      this.norm = norm;
      this.head = head;
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Bytes on the device. */
  get bytes(): number {
    return this.tensors.reduce((sum, { tensor }) => sum + tensor.byteLength, 0);
  }

  /** Frees them. */
  [Symbol.dispose](): void {
    for (const { tensor } of this.tensors) tensor[Symbol.dispose]();
  }
}

/** Packed where all parts are in one format and cut at whole panels, else bf16. */
function typeIn(file: WeightFile): TypeOf {
  return ({ parts, width }) => {
    const [format, ...others] = parts.map(([name]) => file.format(`${name}.weight`));
    const whole = width % BLOCK_ELEMENTS === 0 && parts.slice(0, -1).every(([, rows]) => rows % PACKED_ROWS === 0);
    return whole && others.every((other) => other === format) ? format : "bf16";
  };
}

/** Weights and biases of a plan. */
export function countParameters(plan: ModelPlan): number {
  let count = 0;
  build(plan, bf16, ({ rows, width }) => count += rows * width);
  return count;
}

/** Bytes that the weights of a model folder or a GGUF file take on a device, from the heads of the files. */
export function countBytes(path: string, plan: ModelPlan): number {
  using file = openWeights(path, plan);
  let bytes = 0;
  build(plan, typeIn(file), ({ dtype, rows, width }) => bytes += byteLengthOf(dtype, rows, width));
  return bytes;
}

/** How {@linkcode loadWeights} reports and stops. */
export interface LoadWeightsOptions {
  /** Called with the bytes of the files that were read, and of all. */
  onProgress?: (bytes: number, total: number) => void;
  /** Stops reading. */
  signal?: AbortSignal;
}

/** Reads the weights of a model folder or a GGUF file. Throws WeightsError naming file and tensor. */
export async function loadWeights(
  device: Device,
  path: string,
  plan: ModelPlan,
  options: LoadWeightsOptions = {},
): Promise<DecoderWeights> {
  using file = openWeights(path, plan);
  const weights = new DecoderWeights(device, plan, typeIn(file));
  try {
    let done = 0;
    for (const { tensor, parts } of weights.tensors) {
      let begin = 0;
      for (const [name, rows] of parts) {
        done += file.fill(tensor.rows(begin, rows), name);
        begin += rows;
        options.onProgress?.(Math.min(done, file.bytes), file.bytes);
        // A pause for the event loop, so that progress shows and an abort is heard.
        await new Promise((resolve) => setTimeout(resolve, 0));
        options.signal?.throwIfAborted();
      }
    }
  } catch (error) {
    weights[Symbol.dispose]();
    throw error;
  }
  return weights;
}
