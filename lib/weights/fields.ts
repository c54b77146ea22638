/**
 * The fields of a JSON file, checked and typed.
 *
 * @module
 */

import { isObject, type JsonObject, WeightsError } from "./json.ts";

/** Typed access to the fields of one JSON object of a file. */
export class Fields {
  /** The file. */
  readonly path: string;
  readonly #object: JsonObject;
  readonly #prefix: string;

  /** Of an object of the file `path`; `prefix` stands before its fields in messages. */
  constructor(path: string, object: JsonObject, prefix: string = "") {
    this.path = path;
    this.#object = object;
    this.#prefix = prefix;
  }

  /** The value; null counts as absent. */
  value(name: string): unknown {
    return Object.hasOwn(this.#object, name) ? this.#object[name] ?? undefined : undefined;
  }

  /** Whether the field is there, be it null. */
  has(name: string): boolean {
    return Object.hasOwn(this.#object, name);
  }

  /** The error for a field that is not what was expected. */
  wrong(name: string, expected: string): WeightsError {
    const value = this.value(name);
    const found = value === undefined ? "nothing" : JSON.stringify(value).slice(0, 80);
    return new WeightsError(`${this.path}: ${this.#prefix}${name}: expected ${expected}, found ${found}`);
  }

  /** A whole number from 1 on, or undefined. */
  optionalCount(name: string): number | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    if (!Number.isInteger(value) || (value as number) < 1 || (value as number) >= 2 ** 31) {
      throw this.wrong(name, "a whole number >= 1");
    }
    return value as number;
  }

  /** The same where there must be one. */
  count(name: string): number {
    const value = this.optionalCount(name);
    if (value === undefined) throw this.wrong(name, "a whole number >= 1");
    return value;
  }

  /** A number > 0, or undefined. */
  optionalPositive(name: string): number | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    if (typeof value !== "number" || !(value > 0) || value === Infinity) throw this.wrong(name, "a number > 0");
    return value;
  }

  /** The same where there must be one. */
  positive(name: string): number {
    const value = this.optionalPositive(name);
    if (value === undefined) throw this.wrong(name, "a number > 0");
    return value;
  }

  /** A number >= 0, or undefined. */
  optionalNumber(name: string): number | undefined {
    return this.value(name) === 0 ? 0 : this.optionalPositive(name);
  }

  /** A list, empty where absent. `what` says in messages what it is a list of. */
  list(name: string, what: string, is: (value: unknown) => boolean): unknown[] {
    const value = this.value(name) ?? [];
    if (!Array.isArray(value) || !value.every(is)) throw this.wrong(name, `a list of ${what}`);
    return value;
  }

  /** A list of `count` numbers > 0. */
  positives(name: string, count: number): number[] {
    const value = this.value(name), is = (x: unknown) => typeof x === "number" && x > 0 && x < Infinity;
    if (!Array.isArray(value) || value.length !== count || !value.every(is)) {
      throw this.wrong(name, `a list of ${count} numbers > 0`);
    }
    return value;
  }

  /** True or false; `absent`, by default false, where it is absent. */
  flag(name: string, absent: boolean = false): boolean {
    const value = this.value(name);
    if (value !== undefined && typeof value !== "boolean") throw this.wrong(name, "true or false");
    return value ?? absent;
  }

  /** An id or a list of ids; absent means none. */
  ids(name: string): number[] {
    const value = this.value(name);
    if (value === undefined) return [];
    const ids: unknown[] = Array.isArray(value) ? value : [value];
    if (!ids.every((id) => Number.isInteger(id) && (id as number) >= 0)) {
      throw this.wrong(name, "a token id or a list of token ids");
    }
    return ids as number[];
  }

  /** An object, or undefined. */
  object(name: string): Fields | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    if (!isObject(value)) throw this.wrong(name, "an object");
    return new Fields(this.path, value, `${this.#prefix}${name}.`);
  }
}
