/**
 * JSON schemas as grammars. Every text that the grammar lets through is valid by the schema; of what the schema allows, texts
 * with other spacing, members in another order, or members that the schema does not name are left out.
 *
 * @module
 */

import type { Vocabulary } from "../tokenizer/vocabulary.ts";
import { byte, choice, Grammar, repeat, type Rule, sequence, text } from "./grammar.ts";

/** A schema that cannot be a grammar: the message names the place and what is not supported. */
export class SchemaError extends RangeError {
  /** Always "SchemaError". */
  override readonly name: string = "SchemaError";
}

type Json = Record<string, unknown>;

/** Keywords that say nothing about which values are valid. By JSON Schema's default, `format` is one. */
const ANNOTATIONS = new Set([
  "$schema",
  "$id",
  "$anchor",
  "$comment",
  "$defs",
  "definitions",
  "title",
  "description",
  "default",
  "examples",
  "deprecated",
  "readOnly",
  "writeOnly",
  "format",
  "contentEncoding",
  "contentMediaType",
  "strict",
]);

const KEYWORDS = new Set([
  "type",
  "enum",
  "const",
  "anyOf",
  "oneOf",
  "allOf",
  "$ref",
  "properties",
  "required",
  "additionalProperties",
  "items",
  "prefixItems",
  "minItems",
  "maxItems",
  "minLength",
  "maxLength",
  "minimum",
  "maximum",
]);

/** Digits of a number's parts at most: a model must not be able to write digits without end. */
const DIGITS = 15;

const tail = byte([0x80, 0xbf]), hex = byte("09", "af", "AF"), digit = byte("09"), space = repeat(text(" "), 0, 1);

/** A character of a string: any but controls, `"` and `\` as UTF-8 (RFC 3629), and escapes but lone surrogates. */
const character = choice(
  byte([0x20, 0x21], [0x23, 0x5b], [0x5d, 0x7f]),
  sequence(byte([0xc2, 0xdf]), tail),
  sequence(text("\\"), byte('"', "\\", "/", "b", "f", "n", "r", "t")),
  sequence(
    text("\\u"),
    choice(sequence(byte("09", "ac", "ef", "AC", "EF"), hex), sequence(byte("d", "D"), byte("07"))),
    hex,
    hex,
  ),
  sequence(rawByte(0xe0), byte([0xa0, 0xbf]), tail),
  sequence(byte([0xe1, 0xec], [0xee, 0xef]), tail, tail),
  sequence(rawByte(0xed), byte([0x80, 0x9f]), tail),
  sequence(rawByte(0xf0), byte([0x90, 0xbf]), tail, tail),
  sequence(byte([0xf1, 0xf3]), tail, tail, tail),
  sequence(rawByte(0xf4), byte([0x80, 0x8f]), tail, tail),
);

function rawByte(value: number): Rule {
  return byte([value, value]);
}

const string = (least = 0, most = Infinity): Rule => sequence(text('"'), repeat(character, least, most), text('"'));

const whole = choice(text("0"), sequence(byte("19"), repeat(digit, 0, DIGITS - 1)));
const sign = repeat(text("-"), 0, 1);
const fraction = repeat(sequence(text("."), repeat(digit, 1, DIGITS)), 0, 1);
const exponent = repeat(sequence(byte("e", "E"), repeat(byte("+", "-"), 0, 1), repeat(digit, 1, 2)), 0, 1);

/** Any JSON value. */
const value: Rule = {
  kind: "call",
  rule: () => anyValue,
};
const anyValue = choice(
  string(),
  sequence(sign, whole, fraction, exponent),
  text("true"),
  text("false"),
  text("null"),
  list(value, 0, Infinity),
  members(value),
);

/** `[`, values, `]`. */
function list(item: Rule, least: number, most: number, first: readonly Rule[] = []): Rule {
  const comma = sequence(text(","), space), parts: Rule[] = [];
  first.forEach((rule, i) => parts.push(...(i > 0 ? [comma] : []), rule));
  const [from, to] = [Math.max(0, least - first.length), most - first.length];
  if (first.length > 0) parts.push(repeat(sequence(comma, item), from, to));
  else if (to > 0) {
    const some = sequence(item, repeat(sequence(comma, item), Math.max(0, from - 1), to - 1));
    parts.push(from > 0 ? some : repeat(some, 0, 1));
  }
  return sequence(text("["), ...parts, text("]"));
}

/** `{`, members of any names, `}`. */
function members(item: Rule): Rule {
  const member = sequence(string(), text(":"), space, item);
  const some = sequence(member, repeat(sequence(text(","), space, member)));
  return sequence(text("{"), repeat(some, 0, 1), text("}"));
}

/** Whole numbers from `low` to `high`, both of `count` digits, as digits. */
function digits(low: string, high: string): Rule {
  if (low.length === 0) return text("");
  if (low === high) return text(low);
  const rest = low.length - 1, nines = "9".repeat(rest), zeros = "0".repeat(rest);
  if (low[0] === high[0]) return sequence(text(low[0]), digits(low.slice(1), high.slice(1)));
  const of = [
    sequence(text(low[0]), digits(low.slice(1), nines)),
    sequence(text(high[0]), digits(zeros, high.slice(1))),
  ];
  const [from, to] = [low.charCodeAt(0) + 1, high.charCodeAt(0) - 1];
  if (from <= to) of.push(sequence(byte([from, to]), repeat(digit, rest, rest)));
  return choice(...of);
}

function naturals(low: number, high: number): Rule[] {
  const of: Rule[] = [];
  for (let count = String(low).length; count <= String(high).length; count++) {
    const from = Math.max(low, count === 1 ? 0 : 10 ** (count - 1)), to = Math.min(high, 10 ** count - 1);
    if (from <= to) of.push(digits(String(from), String(to)));
  }
  return of;
}

/** Whole numbers from `low` to `high`, both included. */
function integers(low: number, high: number): Rule {
  const of = high >= 0 && high >= low ? naturals(Math.max(0, low), high) : [];
  if (low < 0) of.push(...naturals(Math.max(1, -high), -low).map((rule) => sequence(text("-"), rule)));
  if (of.length === 0) throw new SchemaError(`the schema has an integer from ${low} to ${high}; there is none`);
  return choice(...of);
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Compiles a schema; remembers what `$ref` points to. */
class Compiler {
  readonly #root: Json;
  readonly #targets = new Map<string, Rule>();

  constructor(root: Json) {
    this.#root = root;
  }

  rule(schema: unknown, path: string): Rule {
    if (schema === true) return value;
    if (!isObject(schema)) throw new SchemaError(`the schema at ${path} is not an object`);
    for (const keyword of Object.keys(schema)) {
      if (!KEYWORDS.has(keyword) && !ANNOTATIONS.has(keyword)) {
        throw new SchemaError(
          `the schema at ${path} has "${keyword}", which is not supported; supported are ${[...KEYWORDS].join(", ")}`,
        );
      }
    }
    if (schema.$ref !== undefined) return this.#reference(schema.$ref, path);
    if (schema.const !== undefined) return text(JSON.stringify(schema.const));
    if (schema.enum !== undefined) return this.#enumeration(schema, path);
    for (const keyword of ["anyOf", "oneOf", "allOf"]) {
      const of = schema[keyword];
      if (of === undefined) continue;
      if (!Array.isArray(of) || of.length === 0) throw new SchemaError(`${path}/${keyword} is not a list of schemas`);
      if (keyword === "allOf" && of.length > 1) {
        throw new SchemaError(`${path}/allOf: only one schema in it is supported`);
      }
      const beside = Object.keys(schema).find((other) => KEYWORDS.has(other) && other !== keyword && other !== "type");
      if (beside) {
        throw new SchemaError(`the schema at ${path} has "${beside}" beside "${keyword}", which is not supported`);
      }
      return choice(...of.map((part, i) => this.rule(part, `${path}/${keyword}/${i}`)));
    }
    const types = schema.type === undefined ? [inferred(schema)] : [schema.type].flat();
    if (types.length === 0) throw new SchemaError(`${path}/type is an empty list`);
    return choice(...types.map((type) => this.#typed(type, schema, path)));
  }

  #enumeration(schema: Json, path: string): Rule {
    if (!Array.isArray(schema.enum)) throw new SchemaError(`${path}/enum is not a list`);
    const types = schema.type === undefined ? undefined : [schema.type].flat();
    const values = schema.enum.filter((value) => !types || types.some((type) => isOf(value, type)));
    if (values.length === 0) throw new SchemaError(`${path}/enum has no value of its type`);
    return choice(...values.map((value) => text(JSON.stringify(value))));
  }

  #typed(type: unknown, schema: Json, path: string): Rule {
    const number = (keyword: string, otherwise: number): number => {
      const value = schema[keyword] ?? otherwise;
      if (typeof value !== "number" || value < 0 || (!Number.isInteger(value) && value !== Infinity)) {
        throw new SchemaError(`${path}/${keyword} is not a whole number from 0 on`);
      }
      return value;
    };
    switch (type) {
      case "any":
        return value;
      case "null":
        return text("null");
      case "boolean":
        return choice(text("true"), text("false"));
      case "integer":
      case "number":
        return this.#number(type, schema, path);
      case "string": {
        const least = number("minLength", 0), most = number("maxLength", Infinity);
        if (least > most) throw new SchemaError(`${path}: minLength is above maxLength`);
        return string(least, most);
      }
      case "array": {
        const prefix = schema.prefixItems ?? [];
        if (!Array.isArray(prefix)) throw new SchemaError(`${path}/prefixItems is not a list`);
        const first = prefix.map((item, i) => this.rule(item, `${path}/prefixItems/${i}`));
        const closed = schema.items === false, item = closed ? value : this.rule(schema.items ?? true, `${path}/items`);
        const least = Math.max(number("minItems", 0), first.length);
        const most = closed ? first.length : number("maxItems", Infinity);
        if (least > most) throw new SchemaError(`${path}: more items are needed than are allowed`);
        return list(item, least, most, first);
      }
      case "object":
        return this.#object(schema, path);
      default:
        throw new SchemaError(`${path}/type: ${JSON.stringify(type)} is no type`);
    }
  }

  #number(type: "integer" | "number", schema: Json, path: string): Rule {
    const { minimum, maximum } = schema;
    for (const bound of [minimum, maximum]) {
      if (bound !== undefined && typeof bound !== "number") throw new SchemaError(`${path}: a bound is not a number`);
    }
    const bounded = minimum !== undefined || maximum !== undefined;
    if (type === "integer" && bounded) {
      const limit = 10 ** DIGITS - 1;
      const low = Math.max(Math.ceil((minimum as number | undefined) ?? -limit), -limit);
      return integers(low, Math.min(Math.floor((maximum as number | undefined) ?? limit), limit));
    }
    if (bounded && !(minimum === 0 && maximum === undefined)) {
      throw new SchemaError(`${path}: bounds of a number that is no integer are not supported, but for a minimum of 0`);
    }
    const signs = bounded ? [] : [sign];
    return type === "integer" ? sequence(...signs, whole) : sequence(...signs, whole, fraction, exponent);
  }

  #object(schema: Json, path: string): Rule {
    const properties = schema.properties ?? {}, required = schema.required ?? [];
    if (!isObject(properties)) throw new SchemaError(`${path}/properties is not an object`);
    if (!Array.isArray(required) || !required.every((name) => typeof name === "string")) {
      throw new SchemaError(`${path}/required is not a list of names`);
    }
    const names = [...new Set([...Object.keys(properties), ...required as string[]])];
    const additional = schema.additionalProperties ?? true;
    if (names.length === 0) {
      return additional === false ? text("{}") : members(this.rule(additional, `${path}/additionalProperties`));
    }
    // Members in the schema's order. rest[e]: what follows when a member stands before (e = 1), or none (e = 0).
    let rest: [Rule, Rule] = [text("}"), text("}")];
    for (const name of names.reverse()) {
      const rule = Object.hasOwn(properties, name) ? this.rule(properties[name], `${path}/properties/${name}`) : value;
      const member = sequence(text(`${JSON.stringify(name)}:`), space, rule);
      const with_ = [sequence(member, rest[1]), sequence(text(","), space, member, rest[1])] as const;
      rest = required.includes(name) ? [with_[0], with_[1]] : [choice(with_[0], rest[0]), choice(with_[1], rest[1])];
    }
    return sequence(text("{"), rest[0]);
  }

  #reference(reference: unknown, path: string): Rule {
    if (typeof reference !== "string" || !reference.startsWith("#")) {
      throw new SchemaError(
        `${path}/$ref is ${JSON.stringify(reference)}; only references inside the schema are supported`,
      );
    }
    let target: unknown = this.#root;
    for (const part of reference.slice(1).split("/").slice(1)) {
      const name = decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~");
      target = isObject(target) && Object.hasOwn(target, name) ? target[name] : undefined;
    }
    if (target === undefined) throw new SchemaError(`${path}/$ref: there is no ${reference}`);
    if (!this.#targets.has(reference)) {
      // First a place for it, since it may refer to itself.
      this.#targets.set(reference, { kind: "call", rule: () => this.#targets.get(reference)! });
      this.#targets.set(reference, this.rule(target, reference));
    }
    return { kind: "call", rule: () => this.#targets.get(reference)! };
  }
}

/** The type that a schema without one is about. */
function inferred(schema: Json): string {
  const has = (...keywords: string[]) => keywords.some((keyword) => schema[keyword] !== undefined);
  if (has("properties", "required", "additionalProperties")) return "object";
  if (has("items", "prefixItems", "minItems", "maxItems")) return "array";
  if (has("minLength", "maxLength")) return "string";
  return has("minimum", "maximum") ? "number" : "any";
}

function isOf(value: unknown, type: unknown): boolean {
  switch (type) {
    case "null":
      return value === null;
    case "integer":
      return Number.isInteger(value);
    case "array":
      return Array.isArray(value);
    case "object":
      return isObject(value);
    default: {
      const kind: string = typeof value;
      return kind === type;
    }
  }
}

/** Characters of a schema at most: building its states takes time of everyone's. */
const MOST_CHARACTERS = 1 << 16;

/** Grammars kept, so that requests with one schema share its states. */
const KEPT = 8;

const kept = new WeakMap<Vocabulary, Map<string, Grammar>>();

/**
 * The grammar of a JSON schema, or with `true` of any JSON object. Throws SchemaError that names the place and what is not
 * supported. `size`: columns of the logits; `ends`: tokens that end a text.
 */
export function jsonGrammar(
  schema: true | Record<string, unknown>,
  vocabulary: Vocabulary,
  options: { size: number; ends: readonly number[] },
): Grammar {
  const grammars = kept.get(vocabulary) ?? new Map<string, Grammar>(), key = JSON.stringify(schema);
  kept.set(vocabulary, grammars);
  if (key.length > MOST_CHARACTERS) {
    throw new SchemaError(`the schema has ${key.length} characters; ${MOST_CHARACTERS} are possible`);
  }
  const grammar = grammars.get(key) ??
    new Grammar(schema === true ? members(value) : new Compiler(schema).rule(schema, "#"), vocabulary, options);
  grammars.delete(key);
  grammars.set(key, grammar);
  if (grammars.size > KEPT) grammars.delete(grammars.keys().next().value!);
  return grammar;
}
