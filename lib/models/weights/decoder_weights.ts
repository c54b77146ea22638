/**
 * The weights of a decoder by its plan: in bf16, or packed where the file has them so, and joined where one product can do
 * the work of several (q, k, v; gate, up).
 *
 * @module
 */

import type { Device } from "../../device.ts";
import { BLOCK_ELEMENTS, byteLengthOf, type DType, isPacked, PACKED_ROWS, Tensor } from "../../tensor.ts";
import { WeightsError } from "../../weights/json.ts";
import type { LayerPlan, Matrix, ModelPlan } from "../architecture.ts";
import { openWeights, type WeightFile } from "./files.ts";

/** A matrix, bf16 or packed [out, in], and its bias, bf16 [out], where it has one. */
export interface Product<T = Tensor> {
  /** The matrix. */
  readonly weight: T;
  /** What is added to the product. */
  readonly bias?: T;
}

/** One layer's weights; norms are f32 [hidden] but for those of queries and keys. */
export interface LayerWeights<T = Tensor> {
  /** Norm before attention. */
  readonly attentionNorm?: T;
  /** Query, key and value projections, one under the other. */
  readonly qkv: Product<T>;
  /** Norm of queries, f32 [headDim] or [heads * headDim]. */
  readonly queryNorm?: T;
  /** Norm of keys, f32 [headDim] or [kvHeads * headDim]. */
  readonly keyNorm?: T;
  /** Further logits of the query heads in the softmax, f32 [heads]. */
  readonly sinkLogits?: T;
  /** Attention's output projection. */
  readonly output: Product<T>;
  /** Norm after attention. */
  readonly outputNorm?: T;
  /** Norm before the feed-forward part. */
  readonly feedForwardNorm?: T;
  /** The projection that chooses experts, where the layer has any. */
  readonly router?: Product<T>;
  /** Gate and up projections, one under the other; of experts [experts, 2 inner, hidden]. */
  readonly gateUp: Product<T>;
  /** Down projection; of experts [experts, hidden, inner]. */
  readonly down: Product<T>;
  /** Norm after the feed-forward part. */
  readonly feedForwardOutputNorm?: T;
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
  readonly kind: "matrix" | "bias" | "norm" | "sinks";
  readonly dtype: DType;
  /** Names in a model folder, and rows. */
  readonly parts: readonly (readonly [name: string, rows: number])[];
  readonly rows: number;
  /** Columns; 1 for a vector. */
  readonly width: number;
  /** Of how many experts it is; undefined for none. */
  readonly experts?: number;
}

/** The type in which a matrix lies on the device. */
type TypeOf = (matrix: Matrix) => DType;

const bf16: TypeOf = () => "bf16";

/** What follows the name of a part in a file. */
const suffixes: Readonly<Record<TensorPlan["kind"], string>> = {
  matrix: ".weight",
  bias: ".bias",
  norm: ".weight",
  sinks: "",
};

/** Makes a model's tensors in the order in which they are read. */
function build<T>(plan: ModelPlan, typeOf: TypeOf, make: (tensor: TensorPlan) => T): ModelWeights<T> {
  const hidden = plan.embedding.width;
  const tensor = (
    kind: TensorPlan["kind"],
    dtype: DType,
    { parts, width, experts }: Pick<Matrix, "parts" | "width" | "experts">,
  ): T => {
    const suffix = suffixes[kind], total = parts.reduce((sum, [, rows]) => sum + rows, 0);
    const named = parts.map(([name, rows]) => [`${name}${suffix}`, rows] as const);
    return make({ kind, dtype, parts: named, rows: total, width, experts });
  };
  const product = (matrix: Matrix, dtype: DType = typeOf(matrix)): Product<T> => {
    const weight = tensor("matrix", dtype, matrix);
    return { weight, bias: matrix.bias ? tensor("bias", "bf16", { parts: matrix.parts, width: 1 }) : undefined };
  };
  const norm = (name: string, size: number = hidden): T => tensor("norm", "f32", { parts: [[name, size]], width: 1 });
  const perhaps = (name: string | undefined): T | undefined => name === undefined ? undefined : norm(name);
  const layer = ({ attention, feedForward }: LayerPlan): LayerWeights<T> => {
    const { headNorms, heads, kvHeads, headDim, sinkLogits } = attention, { router } = feedForward;
    const sizeOf = (count: number) => headNorms?.whole ? count * headDim : headDim;
    return {
      attentionNorm: perhaps(attention.norm),
      qkv: product(attention.qkv),
      queryNorm: headNorms && norm(headNorms.queries, sizeOf(heads)),
      keyNorm: headNorms && norm(headNorms.keys, sizeOf(kvHeads)),
      sinkLogits: sinkLogits === undefined
        ? undefined
        : tensor("sinks", "f32", { parts: [[sinkLogits, heads]], width: 1 }),
      output: product(attention.output),
      outputNorm: perhaps(attention.outputNorm),
      feedForwardNorm: perhaps(feedForward.norm),
      // A few rows, on which the choice of experts hangs: never packed.
      router: router && product(router.logits, "bf16"),
      gateUp: product(feedForward.gateUp),
      down: product(feedForward.down),
      feedForwardOutputNorm: perhaps(feedForward.outputNorm),
    };
  };
  // Rows are taken out of the embedding one by one, so that it is never packed.
  const embedding = tensor("matrix", "bf16", plan.embedding), layers = plan.layers.map(layer);
  const last = norm(plan.norm), tied = plan.head === plan.embedding && typeOf(plan.head) === "bf16";
  return { embedding, layers, norm: last, head: tied ? embedding : product(plan.head).weight };
}

/** The shape on the device. bf16 matrices of experts have three dimensions; packed ones lie one after another. */
function shapeOf({ kind, dtype, rows, width, experts }: TensorPlan): number[] {
  if (kind !== "matrix") return [rows];
  return experts === undefined || dtype !== "bf16" ? [rows, width] : [experts, rows / experts, width];
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
        const tensor = Tensor.empty(device, each.dtype, shapeOf(each));
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
  return ({ parts, width, experts }) => {
    const [format, ...others] = parts.map(([name]) => file.format(`${name}.weight`));
    const cut = experts === undefined ? parts.slice(0, -1) : parts;
    const whole = width % BLOCK_ELEMENTS === 0 && cut.every(([, rows]) => rows % PACKED_ROWS === 0);
    return whole && others.every((other) => other === format) ? format : "bf16";
  };
}

/** Weights and biases of a plan. */
export function countParameters(plan: ModelPlan): number {
  let count = 0;
  build(plan, bf16, ({ rows, width }) => count += rows * width);
  return count;
}

/** Bytes that the weights of a plan take on a device: in bf16, or packed where a GGUF file at `path` has them so. */
export function countBytes(plan: ModelPlan, path?: string): number {
  using file = path === undefined ? undefined : openWeights(path, plan);
  let bytes = 0;
  build(plan, file ? typeIn(file) : bf16, ({ dtype, rows, width }) => bytes += byteLengthOf(dtype, rows, width));
  return bytes;
}

/** How {@linkcode loadWeights} reports and stops. */
export interface LoadWeightsOptions {
  /** Called with the bytes of the files that were read, and of all. */
  onProgress?: (bytes: number, total: number) => void;
  /** Stops reading. */
  signal?: AbortSignal;
}

/** Throws WeightsError where a file has other experts than the configuration says: a router has a row for each. */
function checkExperts(file: WeightFile, { layers }: ModelPlan): void {
  for (const { feedForward: { router } } of layers) {
    if (router === undefined) continue;
    const [[name, count]] = router.logits.parts, rows = file.rows(`${name}.weight`);
    if (rows === count) continue;
    const keys = "num_experts or num_local_experts, in a GGUF file expert_count";
    throw new WeightsError(
      `${file.path}: ${name}.weight is for ${rows} experts, the configuration says ${count} (${keys})`,
    );
  }
}

/** Reads the weights of a model folder or a GGUF file. Throws WeightsError naming file and tensor. */
export async function loadWeights(
  device: Device,
  path: string,
  plan: ModelPlan,
  options: LoadWeightsOptions = {},
): Promise<DecoderWeights> {
  using file = openWeights(path, plan);
  checkExperts(file, plan);
  const weights = new DecoderWeights(device, plan, typeIn(file));
  try {
    let done = 0;
    for (const { kind, tensor, parts, rows, width, experts } of weights.tensors) {
      const whole = experts === undefined || isPacked(tensor.dtype) ? tensor : tensor.view([rows, width]);
      let begin = 0;
      for (const [name, rows] of parts) {
        done += file.fill(whole.rows(begin, rows), name);
        begin += rows;
        options.onProgress?.(Math.min(done, file.bytes), file.bytes);
        // A pause for the event loop, so that progress shows and an abort is heard.
        await new Promise((resolve) => setTimeout(resolve, 0));
        options.signal?.throwIfAborted();
      }
      if (kind === "norm" && file.normOffset !== 0) {
        tensor.write((tensor.read() as Float32Array).map((weight) => weight + file.normOffset));
      }
    }
  } catch (error) {
    weights[Symbol.dispose]();
    throw error;
  }
  return weights;
}
