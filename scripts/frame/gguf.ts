/**
 * Writes GGUF files, and rewrites one with its matrices in another type. What the runtime needs of the format is read by
 * `lib/weights`; nothing of it writes.
 *
 * @module
 */

import { closeSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import process from "node:process";
import { BLOCK_TYPES, dequantizeBlocks, Gguf, type GgufValue } from "../../lib/ops/mod.ts";

/** The kinds of metadata that are written, with their numbers in the format. */
export type GgufKind = "u32" | "i32" | "f32" | "bool" | "string";

/** A metadata entry: its name, what it (or each element of it) is, and the value or list. */
export type GgufEntry = readonly [key: string, kind: GgufKind, value: GgufValue];

/** A tensor to write; `data` has the bytes of its type and shape, little-endian. */
export interface GgufTensorData {
  /** Its name. */
  readonly name: string;
  /** Name of its type, e.g. "Q8_0". */
  readonly dtype: string;
  /** Sizes of the dimensions, the last one contiguous. */
  readonly shape: readonly number[];
  /** Makes the bytes; called when they are written, so that one tensor at a time is held. */
  readonly data: () => Uint8Array;
  /** How many they are. */
  readonly byteLength: number;
}

const kinds: Readonly<Record<GgufKind, number>> = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8 };
const dtypes: Readonly<Record<string, number>> = {
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q4_1: 3,
  Q8_0: 8,
  Q4_K: 12,
  Q6_K: 14,
  BF16: 30,
};

/** Bytes put together one after another, little-endian. */
class Bytes {
  #bytes: Uint8Array = new Uint8Array(1 << 16);
  length = 0;

  /** Room for `count` bytes more. */
  #room(count: number): DataView {
    if (this.length + count > this.#bytes.length) {
      const more = new Uint8Array(Math.max(2 * this.#bytes.length, this.length + count));
      more.set(this.#bytes);
      this.#bytes = more;
    }
    const at = this.length;
    this.length += count;
    return new DataView(this.#bytes.buffer, at, count);
  }

  u32(value: number): void {
    this.#room(4).setUint32(0, value, true);
  }

  u64(value: number): void {
    this.#room(8).setBigUint64(0, BigInt(value), true);
  }

  text(value: string): void {
    const bytes = new TextEncoder().encode(value);
    this.u64(bytes.length);
    this.#room(bytes.length);
    this.#bytes.set(bytes, this.length - bytes.length);
  }

  value(kind: GgufKind, value: GgufValue): void {
    if (kind === "string") this.text(value as string);
    else if (kind === "bool") this.#room(1).setUint8(0, value ? 1 : 0);
    else if (kind === "f32") this.#room(4).setFloat32(0, value as number, true);
    else if (kind === "i32") this.#room(4).setInt32(0, value as number, true);
    else this.u32(value as number);
  }

  /** Zeros up to a multiple of `alignment`. */
  pad(alignment: number): void {
    this.#room((alignment - this.length % alignment) % alignment);
  }

  get(): Uint8Array {
    return this.#bytes.subarray(0, this.length);
  }
}

const ALIGNMENT = 32;

/** The file up to where the tensors' bytes begin. */
export function ggufHead(metadata: readonly GgufEntry[], tensors: readonly Omit<GgufTensorData, "data">[]): Uint8Array {
  const head = new Bytes();
  head.u32(0x46554747);
  head.u32(3);
  head.u64(tensors.length);
  head.u64(metadata.length);
  for (const [key, kind, value] of metadata) {
    head.text(key);
    if (Array.isArray(value)) {
      head.u32(9);
      head.u32(kinds[kind]);
      head.u64(value.length);
      for (const item of value) head.value(kind, item);
    } else {
      head.u32(kinds[kind]);
      head.value(kind, value);
    }
  }
  let offset = 0;
  for (const { name, dtype, shape, byteLength } of tensors) {
    head.text(name);
    head.u32(shape.length);
    for (const size of shape.toReversed()) head.u64(size);
    head.u32(dtypes[dtype]);
    head.u64(offset);
    offset += Math.ceil(byteLength / ALIGNMENT) * ALIGNMENT;
  }
  head.pad(ALIGNMENT);
  return head.get();
}

/** Writes a GGUF file, version 3: beside `path` first, then renamed, so that a reader never sees half a file. */
export function writeGguf(path: string, metadata: readonly GgufEntry[], tensors: readonly GgufTensorData[]): void {
  const temporary = `${path}.${process.pid}.tmp`;
  let file: number;
  try {
    file = openSync(temporary, "wx");
  } catch (cause) {
    const { code, message } = cause as { code?: string; message: string };
    throw new Error(`${path}: cannot be written (${code === "ENOENT" ? "no such folder" : message})`, { cause });
  }
  try {
    const write = (bytes: Uint8Array): void => {
      for (let done = 0; done < bytes.length;) done += writeSync(file, bytes, done, bytes.length - done);
    };
    write(ggufHead(metadata, tensors));
    for (const { name, byteLength, data } of tensors) {
      const bytes = data();
      if (bytes.length !== byteLength) throw new Error(`${name}: ${bytes.length} bytes, ${byteLength} were announced`);
      write(bytes);
      write(new Uint8Array((ALIGNMENT - byteLength % ALIGNMENT) % ALIGNMENT));
    }
    renameSync(temporary, path);
  } finally {
    closeSync(file);
    rmSync(temporary, { force: true });
  }
}

/** The f16 next to each number, ties to even. */
export function toF16(values: ArrayLike<number>): Uint16Array {
  const out = new Uint16Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const x = values[i], size = Math.abs(x);
    // From 65520 on the nearest f16 is infinity.
    const exponent = Math.max(-14, Math.floor(Math.log2(size))),
      steps = size === 0 ? 0 : even(size * 2 ** (10 - exponent));
    const bits = size >= 65520 ? 0x7c00 : Number.isNaN(x) ? 0x7e00 : steps + (exponent + 14) * 1024;
    out[i] = (x < 0 ? 0x8000 : 0) + (size === 0 ? 0 : bits);
  }
  return out;
}

/** The nearest whole number, ties to even. */
function even(x: number): number {
  const below = Math.floor(x), rest = x - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

/** Blocks of Q8_0: 32 whole numbers and the scale with which the largest is 127. */
export function toQ8(values: ArrayLike<number>): Uint8Array {
  const blocks = values.length / 32, out = new Uint8Array(blocks * 34), view = new DataView(out.buffer);
  const scales = new Float32Array(blocks);
  for (let b = 0; b < blocks; b++) {
    let most = 0;
    for (let i = 0; i < 32; i++) most = Math.max(most, Math.abs(values[b * 32 + i]));
    scales[b] = most / 127;
    for (let i = 0; i < 32; i++) {
      view.setInt8(b * 34 + 2 + i, most === 0 ? 0 : Math.round(values[b * 32 + i] / scales[b]));
    }
  }
  toF16(scales).forEach((bits, b) => view.setUint16(b * 34, bits, true));
  return out;
}

/** What a metadata value is written as. Llama files have whole numbers as u32, and these names as f32. */
function kindOf(key: string, value: GgufValue): GgufKind {
  const one = Array.isArray(value) ? value[0] : value;
  if (typeof one === "string") return "string";
  if (typeof one === "boolean") return "bool";
  if (/(epsilon|freq_base|factor|scale_linear|scores)$/.test(key)) return "f32";
  return key.endsWith("token_type") ? "i32" : "u32";
}

/** Types that are read. */
const READ_TYPES = ["F32", "F16", "BF16", ...BLOCK_TYPES];

/** Rewrites a GGUF file with its matrices as F16 or Q8_0; vectors stay as they are. */
export function rewriteGguf(from: string, to: string, dtype: "F16" | "Q8_0"): void {
  using file = Gguf.open(from);
  const entries = [...file.metadata].filter(([key]) => key !== "general.file_type" && key !== "general.alignment");
  const metadata: GgufEntry[] = entries.map(([key, value]) => [key, kindOf(key, value), value]);
  metadata.push(["general.file_type", "u32", dtype === "F16" ? 1 : 7]);
  const tensors = file.names.map((name): GgufTensorData => {
    const info = file.info(name), size = info.shape.reduce((a, b) => a * b, 1);
    const read = (): Uint8Array => {
      const bytes = new Uint8Array(info.byteLength);
      file.readInto(name, 0, bytes);
      return bytes;
    };
    if (info.shape.length === 1 || info.dtype === dtype) return { name, ...info, data: read };
    if (!READ_TYPES.includes(info.dtype)) {
      throw new Error(
        `${from}: ${name} is ${info.dtype}, which cannot be read; types that can: ${READ_TYPES.join(", ")}`,
      );
    }
    if (dtype === "Q8_0" && info.shape.at(-1)! % 32 !== 0) {
      throw new Error(`${from}: ${name} has rows of ${info.shape.at(-1)}, which blocks of 32 do not fill; take F16`);
    }
    const values = (): Float32Array => {
      const out = new Float32Array(size);
      dequantizeBlocks(info.dtype, read(), out);
      return out;
    };
    const data = (): Uint8Array => dtype === "F16" ? new Uint8Array(toF16(values()).buffer) : toQ8(values());
    return { name, dtype, shape: info.shape, data, byteLength: dtype === "F16" ? size * 2 : size / 32 * 34 };
  });
  writeGguf(to, metadata, tensors);
}
