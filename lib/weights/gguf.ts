/**
 * The GGUF format, versions 2 and 3, little-endian: `"GGUF" | u32 version | u64 tensors | u64 metadata entries | metadata |
 * tensor descriptions | padding | tensor bytes`. A metadata entry is a name, a type and a value; a description is a name,
 * sizes with the contiguous dimension first, a type, and an offset from where the tensor bytes begin, a multiple of
 * `general.alignment`. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 *
 * @module
 */

import { closeSync, fstatSync, openSync } from "node:fs";
import { fileErrorCause, WeightsError } from "./json.ts";
import { readAll } from "./read.ts";
import type { TensorFile, TensorInfo } from "./tensor_file.ts";

/** A tensor type of the format: elements of a block, and its bytes. */
export interface GgufType {
  /** Its name in the format's description. */
  readonly name: string;
  /** Elements that share a scale; 1 for plain numbers. Rows are whole blocks. */
  readonly elements: number;
  /** Bytes of a block. */
  readonly bytes: number;
}

/** The types by their numbers in the file. Those that the runtime does not read are here to be named. */
const types: Readonly<Record<number, GgufType>> = {
  0: { name: "F32", elements: 1, bytes: 4 },
  1: { name: "F16", elements: 1, bytes: 2 },
  2: { name: "Q4_0", elements: 32, bytes: 18 },
  3: { name: "Q4_1", elements: 32, bytes: 20 },
  6: { name: "Q5_0", elements: 32, bytes: 22 },
  7: { name: "Q5_1", elements: 32, bytes: 24 },
  8: { name: "Q8_0", elements: 32, bytes: 34 },
  9: { name: "Q8_1", elements: 32, bytes: 36 },
  10: { name: "Q2_K", elements: 256, bytes: 84 },
  11: { name: "Q3_K", elements: 256, bytes: 110 },
  12: { name: "Q4_K", elements: 256, bytes: 144 },
  13: { name: "Q5_K", elements: 256, bytes: 176 },
  14: { name: "Q6_K", elements: 256, bytes: 210 },
  15: { name: "Q8_K", elements: 256, bytes: 292 },
  16: { name: "IQ2_XXS", elements: 256, bytes: 66 },
  17: { name: "IQ2_XS", elements: 256, bytes: 74 },
  18: { name: "IQ3_XXS", elements: 256, bytes: 98 },
  19: { name: "IQ1_S", elements: 256, bytes: 50 },
  20: { name: "IQ4_NL", elements: 32, bytes: 18 },
  21: { name: "IQ3_S", elements: 256, bytes: 110 },
  22: { name: "IQ2_S", elements: 256, bytes: 82 },
  23: { name: "IQ4_XS", elements: 256, bytes: 136 },
  24: { name: "I8", elements: 1, bytes: 1 },
  25: { name: "I16", elements: 1, bytes: 2 },
  26: { name: "I32", elements: 1, bytes: 4 },
  27: { name: "I64", elements: 1, bytes: 8 },
  28: { name: "F64", elements: 1, bytes: 8 },
  29: { name: "IQ1_M", elements: 256, bytes: 56 },
  30: { name: "BF16", elements: 1, bytes: 2 },
  34: { name: "TQ1_0", elements: 256, bytes: 54 },
  35: { name: "TQ2_0", elements: 256, bytes: 66 },
  39: { name: "MXFP4", elements: 32, bytes: 17 },
};

/** A value of the metadata. Whole numbers over 2^53 are bigint. */
export type GgufValue = number | bigint | boolean | string | GgufValue[];

const MAGIC = 0x46554747;
/** Bytes of one text. The longest in use are chat templates of some 10 KB. */
const MAX_STRING = 1 << 24;
/** Elements of all lists together; a vocabulary takes three lists of up to 256000. */
const MAX_ELEMENTS = 1 << 24;
const MAX_TENSORS = 1 << 17;
const MAX_ENTRIES = 1 << 16;
const MAX_DIMENSIONS = 4;
const MAX_DEPTH = 4;

/** Least bytes that a value of each type takes in the file. */
const valueBytes: readonly number[] = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];

interface Entry extends TensorInfo {
  readonly position: number;
}

/**
 * The metadata and tensors of one GGUF file. Only the head is read when it opens; tensor bytes are read when asked for.
 * Holds a file descriptor: close it, or declare it with `using`.
 */
export class Gguf implements TensorFile {
  /** The file. */
  readonly path: string;
  /** The metadata, in the order of the file. */
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly #tensors: ReadonlyMap<string, Entry>;
  #fd: number | undefined;

  private constructor(path: string, fd: number) {
    this.path = path;
    const stat = fstatSync(fd);
    if (stat.isDirectory()) throw new WeightsError(`${path}: is a folder, not a file`);
    const reader = new Reader(path, fd, stat.size), { metadata, tensors } = readHead(reader);
    this.metadata = metadata;
    this.#tensors = tensors;
    this.#fd = fd;
  }

  /** Opens a file. Throws {@link WeightsError} where it is missing, unreadable or malformed. */
  static open(path: string): Gguf {
    let fd: number;
    try {
      fd = openSync(path, "r");
    } catch (error) {
      throw new WeightsError(`${path}: ${fileErrorCause(error)}`);
    }
    try {
      return new Gguf(path, fd);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** The tensors' names, in the order of the file. */
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

  /** Fills `target` with the tensor's bytes from byte `offset` on. Throws RangeError where the tensor ends before the target. */
  readInto(name: string, offset: number, target: Uint8Array): void {
    const { position, byteLength } = this.#entry(name);
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + target.byteLength > byteLength) {
      throw new RangeError(
        `${this.path}: bytes ${offset} to ${offset + target.byteLength} of ${name} asked for, it has ${byteLength}`,
      );
    }
    readAll({ path: this.path, fd: this.#fd! }, position + offset, target);
  }

  /** Closes the file. Reading afterwards throws. */
  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  /** The same as {@link close}, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  #entry(name: string): Entry {
    if (this.#fd === undefined) throw new WeightsError(`${this.path}: used after close`);
    const entry = this.#tensors.get(name);
    if (!entry) throw new WeightsError(`${this.path}: has no tensor ${name} (it holds ${this.#tensors.size} others)`);
    return entry;
  }
}

/** Reads numbers and texts one after another, from pieces of the file. */
class Reader {
  readonly path: string;
  readonly fd: number;
  readonly size: number;
  /** Where it is in the file. */
  position = 0;
  /** List elements read so far. */
  elements = 0;
  #piece: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #view: DataView<ArrayBuffer> = new DataView(new ArrayBuffer(0));
  #start = 0;

  constructor(path: string, fd: number, size: number) {
    this.path = path;
    this.fd = fd;
    this.size = size;
  }

  fail(cause: string): never {
    throw new WeightsError(`${this.path}: ${cause}`);
  }

  /** Moves over `count` bytes and returns where they are in the piece. */
  #take(count: number, what: string): number {
    if (count > this.size - this.position) {
      this.fail(
        `is truncated: ${what} at byte ${this.position} takes ${count} bytes, the file has ${this.size}; download it again`,
      );
    }
    if (this.position + count > this.#start + this.#piece.byteLength) {
      this.#piece = new Uint8Array(Math.min(this.size - this.position, Math.max(count, 1 << 20)));
      readAll(this, this.position, this.#piece);
      this.#view = new DataView(this.#piece.buffer);
      this.#start = this.position;
    }
    const at = this.position - this.#start;
    this.position += count;
    return at;
  }

  u32(what: string): number {
    const at = this.#take(4, what);
    return this.#view.getUint32(at, true);
  }

  /** A u64 that counts something: at most `most`. */
  count(what: string, most: number): number {
    const at = this.#take(8, what), value = this.#view.getBigUint64(at, true);
    if (value > BigInt(most)) this.fail(`${what} is ${value}, over the limit of ${most}`);
    return Number(value);
  }

  text(what: string, most: number = MAX_STRING): string {
    const length = this.count(`the length of ${what}`, Math.min(most, this.size)), at = this.#take(length, what);
    try {
      return utf8.decode(this.#piece.subarray(at, at + length));
    } catch {
      return this.fail(`${what} is not valid UTF-8`);
    }
  }

  value(type: number, what: string, depth: number = 0): GgufValue {
    if (type >= valueBytes.length) this.fail(`${what} has the unknown type ${type}`);
    if (type === 8) return this.text(what);
    if (type === 9) return this.#list(what, depth);
    const at = this.#take(valueBytes[type], what), view = this.#view;
    switch (type) {
      case 0:
        return view.getUint8(at);
      case 1:
        return view.getInt8(at);
      case 2:
        return view.getUint16(at, true);
      case 3:
        return view.getInt16(at, true);
      case 4:
        return view.getUint32(at, true);
      case 5:
        return view.getInt32(at, true);
      case 6:
        return view.getFloat32(at, true);
      case 7: {
        const bit = view.getUint8(at);
        return bit > 1 ? this.fail(`${what} is ${bit}, neither true nor false`) : bit === 1;
      }
      case 10:
        return narrow(view.getBigUint64(at, true));
      case 11:
        return narrow(view.getBigInt64(at, true));
      default:
        return view.getFloat64(at, true);
    }
  }

  #list(what: string, depth: number): GgufValue[] {
    if (depth >= MAX_DEPTH) this.fail(`${what} is a list in ${MAX_DEPTH} lists`);
    const type = this.u32(what), length = this.count(`the length of ${what}`, MAX_ELEMENTS);
    if (type >= valueBytes.length) this.fail(`${what} is a list of the unknown type ${type}`);
    if (length * valueBytes[type] > this.size - this.position) {
      this.fail(`is truncated: ${what} has ${length} elements, the file ${this.size} bytes; download it again`);
    }
    this.elements += length;
    if (this.elements > MAX_ELEMENTS) this.fail(`its lists have over ${MAX_ELEMENTS} elements`);
    const list: GgufValue[] = [];
    for (let i = 0; i < length; i++) list.push(this.value(type, what, depth + 1));
    return list;
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function narrow(value: bigint): number | bigint {
  return Number.isSafeInteger(Number(value)) ? Number(value) : value;
}

function readHead(reader: Reader): { metadata: Map<string, GgufValue>; tensors: Map<string, Entry> } {
  if (reader.size < 24) reader.fail(`has ${reader.size} bytes, too few for a GGUF file; download it again`);
  const magic = reader.u32("the magic number");
  if (magic !== MAGIC) {
    const found = magic.toString(16).padStart(8, "0");
    reader.fail(`is not a GGUF file: it begins with 0x${found}, not with 0x${MAGIC.toString(16)}; download it again`);
  }
  const version = reader.u32("the version");
  if (version > 0xffff && (version & 0xffff) === 0) reader.fail("is a big-endian GGUF file, which is not supported");
  if (version !== 2 && version !== 3) reader.fail(`is GGUF version ${version}; versions 2 and 3 are supported`);
  const tensorCount = reader.count("the number of tensors", MAX_TENSORS);
  const entryCount = reader.count("the number of metadata entries", MAX_ENTRIES);

  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < entryCount; i++) {
    const key = reader.text(`the name of metadata entry ${i}`, 65535);
    if (metadata.has(key)) reader.fail(`has the metadata entry ${key} twice`);
    metadata.set(key, reader.value(reader.u32(`the type of ${key}`), key));
  }
  const alignment = metadata.get("general.alignment") ?? 32;
  if (typeof alignment !== "number" || alignment < 1 || alignment > 1 << 20 || (alignment & (alignment - 1)) !== 0) {
    reader.fail(`general.alignment is ${alignment}; powers of 2 up to ${1 << 20} are possible`);
  }

  const offsets = new Map<string, TensorInfo & { offset: number }>();
  for (let i = 0; i < tensorCount; i++) {
    const name = reader.text(`the name of tensor ${i}`, 65535);
    if (offsets.has(name)) reader.fail(`has the tensor ${name} twice`);
    offsets.set(name, readTensor(reader, name, alignment));
  }
  const start = Math.ceil(reader.position / alignment) * alignment;
  const tensors = new Map<string, Entry>();
  for (const [name, { offset, ...info }] of offsets) tensors.set(name, { ...info, position: start + offset });
  checkCoverage(reader, tensors, start, alignment);
  return { metadata, tensors };
}

function readTensor(reader: Reader, name: string, alignment: number): TensorInfo & { offset: number } {
  const fail = (cause: string): never => reader.fail(`tensor ${name}: ${cause}`);
  const dimensions = reader.u32(`the dimensions of ${name}`);
  if (dimensions < 1 || dimensions > MAX_DIMENSIONS) {
    fail(`has ${dimensions} dimensions; 1 to ${MAX_DIMENSIONS} are possible`);
  }
  const sizes: number[] = [];
  for (let i = 0; i < dimensions; i++) sizes.push(reader.count(`a size of ${name}`, Number.MAX_SAFE_INTEGER));
  const number = reader.u32(`the type of ${name}`), type = types[number];
  if (!Object.hasOwn(types, number)) fail(`has the unknown type ${number}`);
  if (sizes.some((size) => size < 1)) fail(`the shape [${sizes.toReversed()}] has a size that is not at least 1`);
  if (sizes[0] % type.elements !== 0) {
    fail(`its rows have ${sizes[0]} elements, blocks of ${type.name} ${type.elements}`);
  }
  // Multiplied one by one, so that a product over 2^53 is seen before it loses digits.
  let blocks = sizes[0] / type.elements;
  for (const size of sizes.slice(1)) {
    blocks *= size;
    if (blocks * type.bytes > reader.size) break;
  }
  const byteLength = blocks * type.bytes, offset = reader.count(`the offset of ${name}`, Number.MAX_SAFE_INTEGER);
  if (byteLength > reader.size) {
    fail(
      `${type.name} [${
        sizes.toReversed().join(", ")
      }] does not fit a file of ${reader.size} bytes: it is truncated; download it again`,
    );
  }
  if (offset % alignment !== 0) fail(`begins at byte ${offset}, not a multiple of the alignment ${alignment}`);
  return { dtype: type.name, shape: Object.freeze(sizes.reverse()), byteLength, offset };
}

/** The tensors lie one after another to the end of the file, each filled up to the alignment. */
function checkCoverage(reader: Reader, tensors: ReadonlyMap<string, Entry>, start: number, alignment: number): void {
  const ordered = [...tensors].sort(([, a], [, b]) => a.position - b.position || a.byteLength - b.byteLength);
  let end = start, last = "the head";
  for (const [name, { position, byteLength }] of ordered) {
    if (position + byteLength > reader.size) {
      reader.fail(
        `tensor ${name} ends at byte ${
          position + byteLength
        } of ${reader.size}: the file is truncated or the offset wrong; download it again`,
      );
    }
    if (position < end) reader.fail(`the tensors ${last} and ${name} overlap`);
    if (position - end >= alignment) reader.fail(`${position - end} bytes before ${name} belong to no tensor`);
    end = position + byteLength;
    last = name;
  }
  if (reader.size - end >= alignment) reader.fail(`the last ${reader.size - end} bytes belong to no tensor`);
}
