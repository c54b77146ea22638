/**
 * The metadata of a GGUF file, checked and typed.
 *
 * @module
 */

import type { Gguf, GgufValue } from "./gguf.ts";
import { WeightsError } from "./json.ts";

/** Typed access to the metadata of a GGUF file. Errors name the file and the entry. */
export class GgufFields {
  readonly #file: Gguf;

  /** Of an open file. */
  constructor(file: Gguf) {
    this.#file = file;
  }

  /** The file. */
  get path(): string {
    return this.#file.path;
  }

  /** The error for an entry that is not what was expected. */
  wrong(key: string, expected: string): WeightsError {
    const value = this.#file.metadata.get(key);
    const found = value === undefined
      ? "nothing"
      : typeof value === "bigint"
      ? String(value)
      : JSON.stringify(value, (_, v) => typeof v === "bigint" ? String(v) : v).slice(0, 80);
    return new WeightsError(`${this.#file.path}: ${key}: expected ${expected}, found ${found}`);
  }

  #optional<T extends GgufValue>(key: string, expected: string, is: (value: GgufValue) => value is T): T | undefined {
    const value = this.#file.metadata.get(key);
    if (value === undefined) return undefined;
    if (this.#file.broken.has(key)) throw new WeightsError(`${this.#file.path}: ${key} is not valid UTF-8`);
    if (!is(value)) throw this.wrong(key, expected);
    return value;
  }

  /** A text, or undefined where there is none. */
  text(key: string): string | undefined {
    return this.#optional(key, "a text", (value): value is string => typeof value === "string");
  }

  /** True or false, or undefined. */
  flag(key: string): boolean | undefined {
    return this.#optional(key, "true or false", (value): value is boolean => typeof value === "boolean");
  }

  /** A whole number from `least` on, or undefined. */
  count(key: string, least: number = 1): number | undefined {
    const is = (value: GgufValue): value is number =>
      typeof value === "number" && Number.isInteger(value) && value >= least && value < 2 ** 31;
    return this.#optional(key, `a whole number >= ${least}`, is);
  }

  /** A token id, or undefined; 2^32 - 1, which is -1, says that there is none. */
  id(key: string): number | undefined {
    const value = this.#file.metadata.get(key);
    return value === 0xffffffff || value === -1 ? undefined : this.count(key, 0);
  }

  /** The same where there must be one. */
  needed(key: string): number {
    const value = this.count(key);
    if (value === undefined) throw this.wrong(key, "a whole number >= 1");
    return value;
  }

  /** A number > 0, or undefined where there is none or it is 0, which for a factor says the same. */
  factor(key: string): number | undefined {
    return this.#file.metadata.get(key) === 0 ? undefined : this.positive(key);
  }

  /** A number > 0, or undefined. */
  positive(key: string): number | undefined {
    const is = (value: GgufValue): value is number => typeof value === "number" && value > 0 && value < Infinity;
    return this.#optional(key, "a number > 0", is);
  }

  /** A list of true and false, or undefined. */
  flags(key: string): boolean[] | undefined {
    const is = (value: GgufValue): value is boolean[] =>
      Array.isArray(value) && value.every((item) => typeof item === "boolean");
    return this.#optional(key, "a list of true and false", is);
  }

  /** A list of texts, or undefined. */
  texts(key: string): string[] | undefined {
    const is = (value: GgufValue): value is string[] =>
      Array.isArray(value) && value.every((item) => typeof item === "string");
    return this.#optional(key, "a list of texts", is);
  }

  /** A list of numbers, or undefined. */
  numbers(key: string): number[] | undefined {
    const is = (value: GgufValue): value is number[] =>
      Array.isArray(value) && value.every((item) => typeof item === "number");
    return this.#optional(key, "a list of numbers", is);
  }
}
