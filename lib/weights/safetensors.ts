/**
 * The safetensors format: `u64 header length (little-endian) | JSON header | tensor bytes`. The header maps a tensor's
 * name to `{dtype, shape, data_offsets: [begin, end]}`, offsets counted from the end of the header; the tensors cover the
 * rest of the file without holes or overlap. A sharded model has several such files and `model.safetensors.index.json`.
 * Source: https://huggingface.co/docs/safetensors
 *
 * @module
 */

import { closeSync, existsSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileErrorCause, isObject, parseObject, readObject, refuseLfsPointer, WeightsError } from "./json.ts";
import { openFile, readAll } from "./read.ts";
import type { TensorFile, TensorInfo } from "./tensor_file.ts";

export { WeightsError } from "./json.ts";

/** Element types that are read or written. */
export type SafetensorsType =
  | "F64"
  | "F32"
  | "F16"
  | "BF16"
  | "F8_E4M3"
  | "F8_E5M2"
  | "I64"
  | "I32"
  | "I16"
  | "I8"
  | "U64"
  | "U32"
  | "U16"
  | "U8"
  | "BOOL";

/** Bytes of one element. */
export const DTYPE_BYTES: Readonly<Record<SafetensorsType, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
};

/** A tensor to write. */
export interface TensorData {
  /** Element type. */
  readonly dtype: SafetensorsType;
  /** Sizes of the dimensions. */
  readonly shape: readonly number[];
  /** The elements, little-endian; their length is that of shape and dtype. */
  readonly data: Uint8Array;
}

/** The largest header that is read, as in the reference implementation. */
const MAX_HEADER_BYTES = 100_000_000;

/** One open file. */
interface Shard {
  readonly path: string;
  readonly fd: number;
  readonly tensors: Map<string, Entry>;
  readonly metadata: Record<string, string>;
}

/** A tensor and where its bytes begin in its file. */
interface Entry extends TensorInfo {
  readonly path: string;
  readonly fd: number;
  readonly position: number;
}

/**
 * The tensors of one safetensors file or of a sharded model. Only headers are read when it opens; tensor bytes are read
 * when asked for. Holds file descriptors: close it, or declare it with `using`.
 */
export class Safetensors implements TensorFile {
  /** The file: the safetensors file, or the index of a sharded model. */
  readonly path: string;
  /** The header's `__metadata__` (of all shards together); an object without prototype. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly #tensors: Map<string, Entry>;
  #fds: number[] | undefined;

  private constructor(path: string, shards: Shard[], tensors: Map<string, Entry>) {
    this.path = path;
    this.metadata = Object.assign(Object.create(null), ...shards.map((shard) => shard.metadata));
    this.#tensors = tensors;
    this.#fds = shards.map((shard) => shard.fd);
  }

  /** Opens one safetensors file. Throws {@link WeightsError} where the file is missing, unreadable or malformed. */
  static open(path: string): Safetensors {
    const shard = openShard(path);
    return new Safetensors(path, [shard], shard.tensors);
  }

  /** Opens all shards that an index file names. Throws {@link WeightsError} where one is missing or lacks a tensor. */
  static openIndex(path: string): Safetensors {
    const weightMap = readObject(path).weight_map;
    if (!isObject(weightMap)) throw new WeightsError(`${path}: weight_map is missing or not an object`);
    const shards = new Map<string, Shard>();
    const tensors = new Map<string, Entry>();
    try {
      for (const [name, file] of Object.entries(weightMap)) {
        if (typeof file !== "string" || !/^[^/\\\0]+$/.test(file) || file === "." || file === "..") {
          throw new WeightsError(`${path}: ${name} is in ${JSON.stringify(file)}, which is not the name of a file`);
        }
        let shard = shards.get(file);
        if (!shard) shards.set(file, shard = openShard(join(dirname(path), file)));
        const entry = shard.tensors.get(name);
        if (!entry) throw new WeightsError(`${shard.path}: has no tensor ${name}, but ${path} says it is there`);
        tensors.set(name, entry);
      }
    } catch (error) {
      for (const { fd } of shards.values()) closeSync(fd);
      throw error;
    }
    if (tensors.size === 0) throw new WeightsError(`${path}: names no tensor`);
    return new Safetensors(path, [...shards.values()], tensors);
  }

  /** The tensors' names, in the order of the header. */
  get names(): string[] {
    return [...this.#tensors.keys()];
  }

  /** Whether there is a tensor of that name. */
  has(name: string): boolean {
    return this.#tensors.has(name);
  }

  /** Type, shape and size of a tensor. Throws {@link WeightsError} where it is missing. */
  info(name: string): TensorInfo {
    const { dtype, shape, byteLength } = this.#entry(name);
    return { dtype, shape, byteLength };
  }

  /**
   * Like {@link info}, and throws {@link WeightsError} where the tensor has another dtype than one of `dtypes`, or,
   * where `shape` is given, another shape.
   */
  expect(
    name: string,
    dtypes: SafetensorsType | readonly SafetensorsType[],
    shape?: readonly number[],
  ): TensorInfo<SafetensorsType> {
    const entry = this.#entry(name);
    const allowed: readonly string[] = typeof dtypes === "string" ? [dtypes] : dtypes;
    if (!allowed.includes(entry.dtype)) {
      throw new WeightsError(`${entry.path}: tensor ${name} is ${entry.dtype}, expected ${allowed.join(" or ")}`);
    }
    if (shape && (shape.length !== entry.shape.length || shape.some((size, i) => size !== entry.shape[i]))) {
      throw new WeightsError(
        `${entry.path}: tensor ${name} has the shape [${entry.shape.join(", ")}], expected [${shape.join(", ")}]`,
      );
    }
    return this.info(name) as TensorInfo<SafetensorsType>;
  }

  /** The bytes of a whole tensor, little-endian, in a buffer of their own. */
  read(name: string): Uint8Array<ArrayBuffer> {
    const entry = this.#entry(name);
    const bytes = new Uint8Array(entry.byteLength);
    readAll(entry, entry.position, bytes);
    return bytes;
  }

  /**
   * Fills `target` with the tensor's bytes from byte `offset` on: for tensors too big to be held twice.
   * Throws RangeError where the tensor ends before the target does.
   */
  readInto(name: string, offset: number, target: Uint8Array): void {
    const entry = this.#entry(name);
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + target.byteLength > entry.byteLength) {
      throw new RangeError(
        `${entry.path}: bytes ${offset} to ${offset + target.byteLength} of ${name} asked for, ` +
          `it has ${entry.byteLength}`,
      );
    }
    readAll(entry, entry.position + offset, target);
  }

  /** Closes the files. Reading afterwards throws. */
  close(): void {
    for (const fd of this.#fds ?? []) closeSync(fd);
    this.#fds = undefined;
  }

  /** The same as {@link close}, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  #entry(name: string): Entry {
    if (!this.#fds) throw new WeightsError(`${this.path}: used after close`);
    const entry = this.#tensors.get(name);
    if (!entry) throw new WeightsError(`${this.path}: has no tensor ${name} (it holds ${this.#tensors.size} others)`);
    return entry;
  }
}

/**
 * Opens the weights in a model's folder: `model.safetensors`, else `model.safetensors.index.json` and its shards.
 * Throws {@link WeightsError} where there are none.
 */
export function openModel(folder: string): Safetensors {
  const single = join(folder, "model.safetensors");
  if (existsSync(single)) return Safetensors.open(single);
  const index = join(folder, "model.safetensors.index.json");
  if (existsSync(index)) return Safetensors.openIndex(index);
  if (!existsSync(folder)) throw new WeightsError(`${folder}: no such folder`);
  throw new WeightsError(`${folder}: holds neither model.safetensors nor model.safetensors.index.json`);
}

function openShard(path: string): Shard {
  return openFile(path, (fd, size) => readHeader(path, fd, size));
}

function readHeader(path: string, fd: number, size: number): Shard {
  const first = new Uint8Array(Math.min(size, 64));
  readAll({ path, fd }, 0, first);
  refuseLfsPointer(path, first);
  if (size < 8) throw new WeightsError(`${path}: has ${size} bytes, too few for a safetensors file`);
  const lead = new Uint8Array(8);
  readAll({ path, fd }, 0, lead);
  const length = new DataView(lead.buffer).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw new WeightsError(`${path}: announces a header of ${length} bytes, over the limit of ${MAX_HEADER_BYTES}`);
  }
  const dataStart = 8 + Number(length);
  if (dataStart > size) {
    throw new WeightsError(`${path}: is truncated: the header takes ${dataStart} bytes, the file has ${size}`);
  }
  const header = new Uint8Array(Number(length));
  readAll({ path, fd }, 8, header);
  const object = parseObject(header, path, "the header");

  const metadata: Record<string, string> = Object.create(null);
  const tensors = new Map<string, Entry>();
  for (const [name, value] of Object.entries(object)) {
    if (name !== "__metadata__") {
      tensors.set(name, { ...tensorInfo(path, name, value, size - dataStart, dataStart), path, fd });
      continue;
    }
    if (!isObject(value)) throw new WeightsError(`${path}: __metadata__ is not an object`);
    for (const [key, text] of Object.entries(value)) {
      if (typeof text !== "string") throw new WeightsError(`${path}: __metadata__ has no text at "${key}"`);
      metadata[key] = text;
    }
  }
  checkCoverage(path, tensors, dataStart, size);
  return { path, fd, tensors, metadata };
}

function tensorInfo(
  path: string,
  name: string,
  value: unknown,
  dataBytes: number,
  dataStart: number,
): TensorInfo & { position: number } {
  const fail = (cause: string): never => {
    throw new WeightsError(`${path}: tensor ${name}: ${cause}`);
  };
  if (!isObject(value)) return fail("its description is not an object");
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string") return fail("dtype is missing or not text");
  const isCount = (n: unknown): n is number => Number.isSafeInteger(n) && (n as number) >= 0;
  if (!Array.isArray(shape)) return fail("shape is missing or not a list");
  if (!shape.every(isCount)) {
    return fail(`the shape ${JSON.stringify(shape)} has a size that is not a whole number >= 0`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    return fail(`data_offsets ${JSON.stringify(offsets)} are not two whole numbers >= 0`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end) return fail(`it begins at byte ${begin} and ends before, at ${end}`);
  if (end > dataBytes) return fail(`it ends at byte ${end} of ${dataBytes}: the file is truncated or the offset wrong`);
  if (!/^[A-Z][A-Z0-9_]*$/.test(dtype)) return fail(`unknown dtype ${dtype}`);
  // Of other types (F8_E8M0, F4, C64) the offsets alone say the size: a file is read for the tensors that are used.
  const known = Object.hasOwn(DTYPE_BYTES, dtype) ? DTYPE_BYTES[dtype as SafetensorsType] : undefined;
  const byteLength = known === undefined ? end - begin : shape.reduce((product, size) => product * size, known);
  if (byteLength !== end - begin) {
    return fail(`${dtype} [${shape.join(", ")}] takes ${byteLength} bytes, data_offsets span ${end - begin}`);
  }
  return { dtype, shape: Object.freeze([...shape]), byteLength, position: dataStart + begin };
}

/** The tensors lie one after another from the end of the header to the end of the file. */
function checkCoverage(path: string, tensors: Map<string, Entry>, dataStart: number, fileBytes: number): void {
  const ordered = [...tensors].sort(([, a], [, b]) => a.position - b.position || a.byteLength - b.byteLength);
  let end = dataStart;
  let last = "the header";
  for (const [name, { position, byteLength }] of ordered) {
    if (position < end) throw new WeightsError(`${path}: the tensors ${last} and ${name} overlap`);
    if (position > end) throw new WeightsError(`${path}: ${position - end} bytes before ${name} belong to no tensor`);
    end = position + byteLength;
    last = name;
  }
  if (end < fileBytes) throw new WeightsError(`${path}: the last ${fileBytes - end} bytes belong to no tensor`);
}

/**
 * Writes a safetensors file: beside `path` first, then renamed, so that a reader never sees half a file. Wider dtypes
 * come first, so that every tensor is aligned to its elements. Throws {@link WeightsError} where a tensor's bytes do not
 * fit its shape, or the file cannot be written.
 */
export function writeSafetensors(
  path: string,
  tensors: Readonly<Record<string, TensorData>>,
  metadata: Readonly<Record<string, string>> = {},
): void {
  const ordered = Object.entries(tensors).sort(([a, x], [b, y]) =>
    DTYPE_BYTES[y.dtype] - DTYPE_BYTES[x.dtype] || (a < b ? -1 : 1)
  );
  const header: Record<string, unknown> = Object.keys(metadata).length > 0 ? { __metadata__: metadata } : {};
  let offset = 0;
  for (const [name, { dtype, shape, data }] of ordered) {
    if (name === "__metadata__" || name === "__proto__") {
      throw new WeightsError(`${path}: no tensor can be named ${name}`);
    }
    const bytes = shape.reduce((product, size) => product * size, DTYPE_BYTES[dtype]);
    if (bytes !== data.byteLength) {
      throw new WeightsError(
        `${path}: tensor ${name}: ${dtype} [${shape.join(", ")}] takes ${bytes} bytes, ${data.byteLength} were given`,
      );
    }
    header[name] = { dtype, shape, data_offsets: [offset, offset += bytes] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  // The format pads the header with spaces, so that the data begins at a multiple of 8.
  const head = new Uint8Array(8 + Math.ceil(text.byteLength / 8) * 8).fill(0x20);
  new DataView(head.buffer).setBigUint64(0, BigInt(head.byteLength - 8), true);
  head.set(text, 8);

  const temporary = `${path}.${process.pid}-${Math.random().toString(36).slice(2)}.tmp`;
  try {
    const fd = openSync(temporary, "wx");
    try {
      for (const part of [head, ...ordered.map(([, tensor]) => tensor.data)]) {
        for (let done = 0; done < part.byteLength;) done += writeSync(fd, part, done, part.byteLength - done);
      }
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw new WeightsError(`${path}: cannot be written: ${fileErrorCause(error)}`);
  }
}
