/**
 * The numbers, texts and lists of a GGUF file's head, one after another.
 *
 * @module
 */

import { WeightsError } from "./json.ts";
import { readAll } from "./read.ts";

/** A value of the metadata. Whole numbers over 2^53 are bigint. */
export type GgufValue = number | bigint | boolean | string | GgufValue[];

/** Bytes of one text. The longest in use are chat templates of some 10 KB. */
const MAX_STRING = 1 << 24;
/** Elements of all lists together; a vocabulary takes three lists of up to 256000. */
const MAX_ELEMENTS = 1 << 24;
const MAX_DEPTH = 4;

/** Least bytes that a value of each type takes in the file. */
const valueBytes: readonly number[] = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];

/** Reads them from pieces of the file. Its errors name the file. */
export class GgufReader {
  /** The file. */
  readonly path: string;
  /** The open file. */
  readonly fd: number;
  /** Its bytes. */
  readonly size: number;
  /** Where it is in the file. */
  position = 0;
  /** Whether a text of a value was not UTF-8, since this was set to false. */
  broken = false;
  #elements = 0;
  #piece: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #view: DataView<ArrayBuffer> = new DataView(new ArrayBuffer(0));
  #start = 0;

  /** Begins at the file's first byte. */
  constructor(path: string, fd: number, size: number) {
    this.path = path;
    this.fd = fd;
    this.size = size;
  }

  /** Throws WeightsError. */
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

  /** A u32. */
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

  #bytes(what: string, most: number): Uint8Array {
    const length = this.count(`the length of ${what}`, Math.min(most, this.size)), at = this.#take(length, what);
    return this.#piece.subarray(at, at + length);
  }

  /** A name of at most so many bytes. */
  name(what: string, most: number): string {
    const bytes = this.#bytes(what, most);
    try {
      return utf8.decode(bytes);
    } catch {
      return this.fail(`${what} is not valid UTF-8`);
    }
  }

  /** A text that may be of no use: what is not UTF-8 in it becomes U+FFFD, and `broken` says so. */
  #text(what: string): string {
    const bytes = this.#bytes(what, MAX_STRING);
    try {
      return utf8.decode(bytes);
    } catch {
      this.broken = true;
      return new TextDecoder().decode(bytes);
    }
  }

  /** A value of a type. */
  value(type: number, what: string, depth: number = 0): GgufValue {
    if (type >= valueBytes.length) this.fail(`${what} has the unknown type ${type}`);
    if (type === 8) return this.#text(what);
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
    this.#elements += length;
    if (this.#elements > MAX_ELEMENTS) this.fail(`its lists have over ${MAX_ELEMENTS} elements`);
    const list: GgufValue[] = [];
    for (let i = 0; i < length; i++) list.push(this.value(type, what, depth + 1));
    return list;
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function narrow(value: bigint): number | bigint {
  return Number.isSafeInteger(Number(value)) ? Number(value) : value;
}
