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
import { ggufName, ggufRow } from "../../weights/gguf_llama.ts";
import { openModel, WeightsError } from "../../weights/safetensors.ts";
import type { TensorFile } from "../../weights/tensor_file.ts";
import type { ModelPlan } from "../architecture.ts";

/** Bytes of one read from a file. */
const READ_BYTES = 16 << 20;

/** Weights by their names in Hugging Face transformers. */
export interface WeightFile extends Disposable {
  /** Bytes of all tensors. */
  readonly bytes: number;
  /** The type in which a product can use a matrix: as it is in the file if that is packed, else bf16. */
  format(name: string): "bf16" | PackedDType;
  /** Copies a tensor to the device, in the target's type. Returns the bytes read. Throws WeightsError. */
  fill(target: Tensor, name: string): number;
}

/** Opens a model folder or a GGUF file. */
export function openWeights(path: string, plan: ModelPlan): WeightFile {
  if (!isGguf(path)) return new SafetensorsFile(openModel(path));
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

/** Numbers in a file, and as a tensor. */
const numberTypes = { F32: "f32", F16: "f16", BF16: "bf16" } as const;

/** Writes pieces of a tensor in file order, each `read` into a buffer, converting to the target's type on the device. */
function fillNumbers(
  target: Tensor,
  dtype: keyof typeof numberTypes,
  read: (offset: number, piece: Uint8Array) => void,
): void {
  const size = dtype === "F32" ? 4 : 2, byteLength = target.size * size, flat = target.view([target.size]);
  const buffer = new Uint8Array(Math.min(byteLength, READ_BYTES));
  const type = numberTypes[dtype];
  using staging = type === target.dtype ? undefined : Tensor.empty(target.device, type, [buffer.byteLength / size]);
  for (let offset = 0; offset < byteLength; offset += buffer.byteLength) {
    const piece = buffer.subarray(0, Math.min(buffer.byteLength, byteLength - offset)), count = piece.byteLength / size;
    read(offset, piece);
    const part = flat.rows(offset / size, count);
    const numbers = dtype === "F32"
      ? new Float32Array(piece.buffer, 0, count)
      : new Uint16Array(piece.buffer, 0, count);
    if (staging) {
      staging.write(numbers);
      convert(part, staging.rows(0, count));
    } else part.write(numbers);
  }
}

class SafetensorsFile implements WeightFile {
  readonly bytes: number;
  readonly #file: TensorFile;

  constructor(file: TensorFile) {
    this.#file = file;
    this.bytes = bytesOf(file);
  }

  format(): "bf16" {
    return "bf16";
  }

  fill(target: Tensor, name: string): number {
    const file = this.#file, { dtype, shape, byteLength } = file.info(name);
    checkShape(file.path, name, shape, target);
    if (dtype !== "BF16" && dtype !== "F16" && dtype !== "F32") {
      throw new WeightsError(`${file.path}: ${name} is ${dtype}; BF16, F16 and F32 weights are read`);
    }
    fillNumbers(target, dtype, (offset, piece) => file.readInto(name, offset, piece));
    return byteLength;
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}

const packedTypes: Readonly<Record<string, PackedDType>> = { Q8_0: "q8_0", Q4_0: "q4_0", Q4_1: "q4_1" };

class GgufFile implements WeightFile {
  readonly bytes: number;
  readonly #file: TensorFile;
  readonly #headDim: number;

  constructor(file: TensorFile, headDim: number) {
    this.#file = file;
    this.#headDim = headDim;
    this.bytes = bytesOf(file);
  }

  format(name: string): "bf16" | PackedDType {
    return packedTypes[this.#file.info(ggufName(name)).dtype] ?? "bf16";
  }

  fill(target: Tensor, name: string): number {
    const file = this.#file, from = ggufName(name), { dtype, shape, byteLength } = file.info(from);
    checkShape(file.path, from, shape, target);
    const rows = shape[0], rowBytes = byteLength / rows, interleaved = /\.(q|k)_proj\./.test(name);
    const read = (first: number, piece: Uint8Array): void => {
      if (!interleaved) return file.readInto(from, first * rowBytes, piece);
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
    return byteLength;
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
