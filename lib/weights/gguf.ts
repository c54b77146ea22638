/**
 * The GGUF format, versions 2 and 3, little-endian: `"GGUF" | u32 version | u64 tensors | u64 metadata entries | metadata |
 * tensor descriptions | padding | tensor bytes`. A metadata entry is a name, a type and a value; a description is a name,
 * sizes with the contiguous dimension first, a type, and an offset from where the tensor bytes begin, a multiple of
 * `general.alignment`. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 *
 * @module
 */

import { closeSync } from "node:fs";
import { GgufReader, type GgufValue } from "./gguf_reader.ts";
import { refuseLfsPointer, WeightsError } from "./json.ts";
import { openFile, readAll } from "./read.ts";
import type { TensorFile, TensorInfo } from "./tensor_file.ts";

export type { GgufValue } from "./gguf_reader.ts";

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

const MAGIC = 0x46554747;
const MAX_TENSORS = 1 << 17;
const MAX_ENTRIES = 1 << 16;
const MAX_DIMENSIONS = 4;
const MAX_NAME = 65535;
/** Files of one model. */
const MAX_PARTS = 9999;

interface Entry extends TensorInfo {
  readonly path: string;
  readonly fd: number;
  readonly position: number;
}

/** The head of one file. */
interface Part {
  readonly path: string;
  readonly fd: number;
  readonly metadata: Map<string, GgufValue>;
  /** Entries with a text that is not UTF-8. */
  readonly broken: Set<string>;
  readonly tensors: Map<string, Entry>;
}

/**
 * The metadata and tensors of one GGUF file, or of one that is split in parts (`name-00001-of-00003.gguf`). Only heads are read when it
 * opens; tensor bytes are read when asked for. Holds file descriptors: close it, or declare it with `using`.
 */
export class Gguf implements TensorFile {
  /** The file; of parts the first. */
  readonly path: string;
  /** The metadata, in the order of the file; of parts the first one's. */
  readonly metadata: ReadonlyMap<string, GgufValue>;
  /** Entries of the metadata in which something is not UTF-8: U+FFFD stands there. */
  readonly broken: ReadonlySet<string>;
  readonly #tensors: ReadonlyMap<string, Entry>;
  #fds: number[] | undefined;

  private constructor(parts: readonly Part[], tensors: ReadonlyMap<string, Entry>) {
    const [{ path, metadata, broken }] = parts;
    this.path = path;
    this.metadata = metadata;
    this.broken = broken;
    this.#tensors = tensors;
    this.#fds = parts.map(({ fd }) => fd);
  }

  /** Opens a file, and with a first part all others. Throws {@link WeightsError} where one is missing, unreadable or malformed. */
  static open(path: string): Gguf {
    const parts = [openPart(path)];
    try {
      const paths = partPaths(parts[0]), tensors = new Map(parts[0].tensors);
      for (const [i, path] of paths.entries()) {
        const part = openPart(path);
        parts.push(part);
        if (part.metadata.get("split.no") !== i + 1) {
          throw new WeightsError(
            `${path}: says that it is part ${part.metadata.get("split.no")}, its name part ${i + 1}, from 0 on`,
          );
        }
        for (const [name, entry] of part.tensors) {
          if (tensors.has(name)) {
            throw new WeightsError(`${path}: has the tensor ${name}, which is in another part too`);
          }
          tensors.set(name, entry);
        }
      }
      const expected = parts[0].metadata.get("split.tensors.count") ?? tensors.size;
      if (paths.length > 0 && expected !== tensors.size) {
        throw new WeightsError(
          `${path}: its parts have ${tensors.size} tensors, it says ${expected}; download them again`,
        );
      }
      return new Gguf(parts, tensors);
    } catch (error) {
      for (const { fd } of parts) closeSync(fd);
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
    const entry = this.#entry(name), { position, byteLength } = entry;
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + target.byteLength > byteLength) {
      throw new RangeError(
        `${this.path}: bytes ${offset} to ${offset + target.byteLength} of ${name} asked for, it has ${byteLength}`,
      );
    }
    readAll(entry, position + offset, target);
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
    if (this.#fds === undefined) throw new WeightsError(`${this.path}: used after close`);
    const entry = this.#tensors.get(name);
    if (!entry) throw new WeightsError(`${this.path}: has no tensor ${name} (it holds ${this.#tensors.size} others)`);
    return entry;
  }
}

function openPart(path: string): Part {
  return openFile(path, (fd, size) => readHead(new GgufReader(path, fd, size)));
}

/** The files of a model after its first, in order. Throws WeightsError for a part that is not the first, or is named as none. */
function partPaths({ path, metadata }: Part): string[] {
  const count = metadata.get("split.count") ?? 0, own = metadata.get("split.no") ?? 0;
  if (count === 0 || count === 1) return [];
  if (typeof count !== "number" || !(count > 1 && count <= MAX_PARTS)) {
    throw new WeightsError(`${path}: split.count is ${count}; 1 to ${MAX_PARTS} parts are possible`);
  }
  const number = (part: number): string => String(part).padStart(5, "0"), of = `-of-${number(count)}.gguf`;
  if (own !== 0) {
    throw new WeightsError(
      `${path}: is part ${Number(own) + 1} of ${count}; give the first, whose name ends in -${number(1)}${of}`,
    );
  }
  const end = `-${number(1)}${of}`;
  if (!path.toLowerCase().endsWith(end)) {
    throw new WeightsError(
      `${path}: is the first of ${count} parts, whose names must end in ${end} and so on for the others to be found`,
    );
  }
  const stem = path.slice(0, -end.length);
  return Array.from({ length: count - 1 }, (_, i) => `${stem}-${number(i + 2)}-of-${path.slice(-10)}`);
}

function readHead(reader: GgufReader): Part {
  const { path, fd } = reader, first = new Uint8Array(Math.min(reader.size, 64));
  readAll(reader, 0, first);
  refuseLfsPointer(path, first);
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

  const metadata = new Map<string, GgufValue>(), broken = new Set<string>();
  for (let i = 0; i < entryCount; i++) {
    const key = reader.name(`the name of metadata entry ${i}`, MAX_NAME);
    if (metadata.has(key)) reader.fail(`has the metadata entry ${key} twice`);
    reader.broken = false;
    metadata.set(key, reader.value(reader.u32(`the type of ${key}`), key));
    if (reader.broken) broken.add(key);
  }
  const alignment = metadata.get("general.alignment") ?? 32;
  if (typeof alignment !== "number" || alignment < 1 || alignment > 1 << 20 || (alignment & (alignment - 1)) !== 0) {
    reader.fail(`general.alignment is ${alignment}; powers of 2 up to ${1 << 20} are possible`);
  }

  const offsets = new Map<string, TensorInfo & { offset: number }>();
  for (let i = 0; i < tensorCount; i++) {
    const name = reader.name(`the name of tensor ${i}`, MAX_NAME);
    if (offsets.has(name)) reader.fail(`has the tensor ${name} twice`);
    offsets.set(name, readTensor(reader, name, alignment));
  }
  const start = Math.ceil(reader.position / alignment) * alignment;
  const tensors = new Map<string, Entry>();
  for (const [name, { offset, ...info }] of offsets) tensors.set(name, { ...info, path, fd, position: start + offset });
  checkCoverage(reader, tensors, start, alignment);
  return { path, fd, metadata, broken, tensors };
}

function readTensor(reader: GgufReader, name: string, alignment: number): TensorInfo & { offset: number } {
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

/** The tensors lie one after another, each filled up to the alignment. As for llama.cpp, what comes after the last does not matter. */
function checkCoverage(
  reader: GgufReader,
  tensors: ReadonlyMap<string, Entry>,
  start: number,
  alignment: number,
): void {
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
}
