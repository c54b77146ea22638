/**
 * Files with a model's weights, and how a tensor gets from them to a device.
 *
 * @module
 */

import { type DType, isPacked, PACKED_ROWS, type PackedDType, Tensor } from "../../tensor.ts";
import { convert, pack } from "../../ops/ops.ts";
import { isGguf } from "../../weights/config.ts";
import { Gguf } from "../../weights/gguf.ts";
import { BLOCK_TYPES, dequantizeBlocks } from "../../weights/gguf_blocks.ts";
import {
  type GgufArchitecture,
  ggufArchitectures,
  type GgufPlace,
  ggufPlace,
  ggufRow,
} from "../../weights/gguf_architectures.ts";
import { openModel, WeightsError } from "../../weights/safetensors.ts";
import type { TensorFile } from "../../weights/tensor_file.ts";
import type { ModelPlan } from "../architecture.ts";

/** Bytes of one read from a file. */
const READ_BYTES = 16 << 20;

/** Weights by their names in Hugging Face transformers. */
export interface WeightFile extends Disposable {
  /** The file, for messages. */
  readonly path: string;
  /** Bytes of all tensors. */
  readonly bytes: number;
  /** What is added to a norm's weights. */
  readonly normOffset: number;
  /** The type in which a product can use a matrix: as it is in the file if that is packed, else bf16. */
  format(name: string): "bf16" | PackedDType;
  /** Rows of a tensor. Throws WeightsError. */
  rows(name: string): number;
  /** Copies a tensor to the device, in the target's type. Returns the bytes read. Throws WeightsError. */
  fill(target: Tensor, name: string): number;
}

/** Opens a model folder or a GGUF file. */
export function openWeights(path: string, plan: ModelPlan): WeightFile {
  if (!isGguf(path)) return new SafetensorsFile(openModel(path), plan.normOffset);
  return new GgufFile(Gguf.open(path), plan.layers[0].attention.headDim);
}

function bytesOf(file: TensorFile): number {
  return file.names.reduce((sum, name) => sum + file.info(name).byteLength, 0);
}

function checkShape(path: string, name: string, shape: readonly number[], target: Tensor): void {
  if (shape.length !== target.shape.length || shape.some((n, i) => n !== target.shape[i])) {
    throw new WeightsError(`${path}: ${name} has shape [${shape}], the configuration needs [${target.shape}]`);
  }
}

/** Writes pieces of a tensor in file order, each `read` into a buffer, converting to the target's type on the device. */
function fillNumbers(
  target: Tensor,
  dtype: "F32" | "F16" | "BF16",
  read: (offset: number, piece: Uint8Array) => void,
): void {
  const size = dtype === "F32" ? 4 : 2, byteLength = target.size * size, flat = target.view([target.size]);
  const from = ({ F32: "f32", F16: "f16", BF16: "bf16" } as const)[dtype];
  const buffer = new Uint8Array(Math.min(byteLength, READ_BYTES));
  using staging = from === target.dtype ? undefined : Tensor.empty(target.device, from, [buffer.byteLength / size]);
  for (let offset = 0; offset < byteLength; offset += buffer.byteLength) {
    const piece = buffer.subarray(0, Math.min(buffer.byteLength, byteLength - offset)), count = piece.byteLength / size;
    read(offset, piece);
    const part = flat.rows(offset / size, count), numbers = dtype === "F32" ? Float32Array : Uint16Array;
    (staging?.rows(0, count) ?? part).write(new numbers(piece.buffer, 0, count));
    if (staging) convert(part, staging.rows(0, count));
  }
}

class SafetensorsFile implements WeightFile {
  readonly bytes: number;
  readonly normOffset: number;
  readonly #file: TensorFile;

  constructor(file: TensorFile, normOffset: number = 0) {
    this.#file = file;
    this.bytes = bytesOf(file);
    this.normOffset = normOffset;
  }

  get path(): string {
    return this.#file.path;
  }

  format(): "bf16" {
    return "bf16";
  }

  rows(name: string): number {
    return this.#file.info(name).shape[0];
  }

  #dtype(name: string): "F32" | "F16" | "BF16" {
    const { path } = this.#file, { dtype } = this.#file.info(name);
    if (dtype === "BF16" || dtype === "F16" || dtype === "F32") return dtype;
    throw new WeightsError(`${path}: ${name} is ${dtype}; BF16, F16 and F32 weights are read`);
  }

  fill(target: Tensor, name: string): number {
    const file = this.#file, joined = file.has(name) ? undefined : joinedExpert(name);
    if (joined && file.has(joined.name)) return this.#fillJoined(target, joined);
    const { shape, byteLength } = file.info(name);
    checkShape(file.path, name, shape, target);
    fillNumbers(target, this.#dtype(name), (offset, piece) => file.readInto(name, offset, piece));
    return byteLength;
  }

  #fillJoined(target: Tensor, { name, expert, offset, step }: JoinedExpert): number {
    const file = this.#file, dtype = this.#dtype(name), { shape, byteLength } = file.info(name);
    const [rows, width] = target.shape, [count, ...own] = shape, needed = [...(width ? [width] : []), step * rows];
    if (expert >= count || own.length !== needed.length || own.some((n, i) => n !== needed[i])) {
      throw new WeightsError(
        `${file.path}: ${name} has shape [${shape}], the configuration needs [${expert + 1} or more,${needed}]`,
      );
    }
    const block = new Uint8Array(byteLength / count), numbers = dtype === "F32" ? Float32Array : Uint16Array;
    file.readInto(name, expert * block.byteLength, block);
    const from = new numbers(block.buffer), to = new numbers(target.size), columns = width ?? 1;
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < columns; i++) to[row * columns + i] = from[i * step * rows + row * step + offset];
    }
    const bytes = new Uint8Array(to.buffer);
    fillNumbers(target, dtype, (at, piece) => piece.set(bytes.subarray(at, at + piece.byteLength)));
    return block.byteLength / step;
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}

/** Where a file that has the matrices of all experts in one tensor has one of them. */
interface JoinedExpert {
  /** The tensor. */
  readonly name: string;
  /** Which of its experts. */
  readonly expert: number;
  /** Its first output among the tensor's. */
  readonly offset: number;
  /** How far apart its outputs are. */
  readonly step: number;
}

/**
 * An expert's matrix as gpt-oss keeps it: [experts, inputs, outputs], gate's and up's outputs in turns, and biases [experts, outputs]
 * likewise.
 */
function joinedExpert(name: string): JoinedExpert | undefined {
  const match = /^(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.(weight|bias)$/.exec(name);
  if (!match) return undefined;
  const [, experts, expert, part, kind] = match, suffix = kind === "bias" ? "_bias" : "";
  if (part === "down") return { name: `${experts}.down_proj${suffix}`, expert: Number(expert), offset: 0, step: 1 };
  return {
    name: `${experts}.gate_up_proj${suffix}`,
    expert: Number(expert),
    offset: part === "gate" ? 0 : 1,
    step: 2,
  };
}

const packedTypes: Readonly<Record<string, PackedDType>> = { Q8_0: "q8_0", Q4_0: "q4_0", Q4_1: "q4_1" };

class GgufFile implements WeightFile {
  readonly bytes: number;
  readonly normOffset = 0;
  readonly #file: Gguf;
  readonly #headDim: number;
  readonly #architecture: GgufArchitecture;

  constructor(file: Gguf, headDim: number) {
    this.#file = file;
    this.#headDim = headDim;
    this.#architecture = ggufArchitectures[String(file.metadata.get("general.architecture"))];
    this.bytes = bytesOf(file);
  }

  format(name: string): "bf16" | PackedDType {
    return packedTypes[this.#file.info(this.#place(name).name).dtype] ?? "bf16";
  }

  get path(): string {
    return this.#file.path;
  }

  rows(name: string): number {
    return this.#file.info(this.#place(name).name).shape[0];
  }

  #place(name: string): GgufPlace {
    return ggufPlace(this.#file, name, this.#architecture.names);
  }

  fill(target: Tensor, name: string): number {
    const file = this.#file,
      { name: from, expert } = this.#place(name),
      { dtype, shape: all, byteLength } = file.info(from);
    const shape = expert === undefined ? all : all.slice(1), count = expert === undefined ? 1 : all[0];
    if (expert !== undefined && expert >= count) {
      throw new WeightsError(
        `${file.path}: ${from} has ${count} experts, the configuration needs ${expert + 1} or more`,
      );
    }
    checkShape(file.path, from, shape, target);
    const rows = shape[0], bytes = byteLength / count, rowBytes = bytes / rows, start = bytes * (expert ?? 0);
    const interleaved = this.#architecture.interleaved && /\.(q|k)_proj\./.test(name);
    const read = (first: number, piece: Uint8Array): void => {
      if (!interleaved) return file.readInto(from, start + first * rowBytes, piece);
      for (let at = 0; at < piece.byteLength; at += rowBytes) {
        const row = ggufRow(first + at / rowBytes, this.#headDim);
        file.readInto(from, row * rowBytes, piece.subarray(at, at + rowBytes));
      }
    };
    if (dtype === "F32" || dtype === "F16" || dtype === "BF16") {
      const pieceRows = Math.max(1, Math.floor(READ_BYTES / rowBytes));
      for (let first = 0; first < rows; first += pieceRows) {
        const part = target.rows(first, Math.min(pieceRows, rows - first));
        fillNumbers(part, dtype, (offset, piece) => read(first + offset / rowBytes, piece));
      }
    } else if (BLOCK_TYPES.includes(dtype)) this.#fillBlocks(target, dtype, rowBytes, read);
    else {
      const known = ["F32", "F16", "BF16", ...BLOCK_TYPES].join(", ");
      throw new WeightsError(`${file.path}: ${from} is ${dtype}, which is not supported; supported: ${known}`);
    }
    return bytes;
  }

  #fillBlocks(target: Tensor, type: string, rowBytes: number, read: (first: number, piece: Uint8Array) => void): void {
    const { device, length: rows, width } = target, keep: DType = target.dtype;
    const most = Math.max(1, Math.floor(READ_BYTES / rowBytes / PACKED_ROWS)) * PACKED_ROWS,
      pieceRows = Math.min(most, rows);
    const buffer = new Uint8Array(pieceRows * rowBytes);
    const numbers = !isPacked(keep) ? new Float32Array(pieceRows * width) : undefined;
    using staging = Tensor.empty(device, numbers ? "f32" : "u8", [pieceRows, numbers ? width : rowBytes]);
    for (let first = 0; first < rows; first += pieceRows) {
      const count = Math.min(pieceRows, rows - first), piece = buffer.subarray(0, count * rowBytes);
      read(first, piece);
      const part = target.rows(first, count), stage = staging.rows(0, count);
      if (numbers) {
        const values = numbers.subarray(0, count * width);
        dequantizeBlocks(type, piece, values);
        stage.write(values);
        convert(part, stage);
      } else {
        stage.write(piece);
        pack(part, stage);
      }
    }
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}
