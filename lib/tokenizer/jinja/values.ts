/**
 * Python's values as a template sees them, and how they turn into text, are compared and are counted.
 * Source: https://docs.python.org/3/reference/datamodel.html
 *
 * @module
 */

import { JinjaError } from "./lexer.ts";

/** A name that stands for nothing. It prints as nothing, counts as false, and may not be used otherwise. */
export class Undefined {
  /** What was looked for, for messages. */
  readonly what: string;

  /** Remembers what was looked for. */
  constructor(what: string) {
    this.what = what;
  }
}

/** A float that is whole: Python writes 1.0, where JavaScript's number would be 1. */
export class Float {
  /** Its value. */
  readonly value: number;

  /** Of a number. */
  constructor(value: number) {
    this.value = value;
  }
}

/** A text that `safe` made: joined to others with `+`, these are escaped for HTML. Otherwise it is as a text. */
export class Markup {
  /** The text. */
  readonly value: string;

  /** Of a text that needs no escaping. */
  constructor(value: string) {
    this.value = value;
  }
}

/** A value, with a text in place of {@link Markup}. */
export function plain(value: Value): Exclude<Value, Markup> {
  return value instanceof Markup ? value.value : value;
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  "'": "&#39;",
  '"': "&#34;",
};

/** A value's text with HTML's own characters escaped, but not in {@link Markup}. */
export function escaped(value: Value): Markup {
  if (value instanceof Markup) return value;
  return new Markup(text(value).replace(/[&<>'"]/g, (character) => ENTITIES[character]));
}

/** A list that does not change. */
export class Tuple extends Array<Value> {
}

/** What `namespace()` makes: its attributes may be set anywhere. */
export class Namespace {
  /** Its attributes. */
  readonly attributes: Map<Value, Value> = new Map();
}

/** Something that can be called: a method, a global, a macro. `positional` are the arguments by position. */
export type Callable = (positional: Value[], named: Map<string, Value>) => Value;

/** An object of the renderer's own whose attributes are read by name: the loop, a cycler. */
export interface Attributes {
  /** The attribute, or undefined. */
  attribute(name: string): Value | undefined;
}

/** A value: JavaScript's where Python's is alike; null is None, a Map is a dict. */
export type Value =
  | string
  | number
  | boolean
  | null
  | Undefined
  | Markup
  | Float
  | Namespace
  | Attributes
  | Callable
  | Value[]
  | Map<Value, Value>;

/** A JavaScript value as a template sees it: objects become dicts. What is undefined in an object is left out. */
export function fromJavaScript(value: unknown): Value {
  if (Array.isArray(value)) return value.map((item) => fromJavaScript(item));
  if (value instanceof Map || typeof value === "function") return value as Value;
  if (typeof value === "bigint") return Number(value);
  if (typeof value === "object" && value !== null) {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined);
    return new Map(entries.map(([key, item]) => [key, fromJavaScript(item)]));
  }
  return value === undefined ? new Undefined("a value") : value as Value;
}

/** A whole number as an int; any other as a float. */
export function float(value: number): Value {
  return Number.isInteger(value) ? new Float(value) : value;
}

/** The number behind an int, a float or a bool; undefined where the value is none. */
export function numeric(value: Value): number | undefined {
  if (value instanceof Float) return value.value;
  return typeof value === "number" || typeof value === "boolean" ? Number(value) : undefined;
}

/** Whether a number is a float in Python. */
export function isFloat(value: Value): boolean {
  return value instanceof Float || (typeof value === "number" && !Number.isInteger(value));
}

/** What Python calls the value's type. */
export function typeName(value: Value): string {
  if (value === null) return "NoneType";
  if (value instanceof Undefined) return "Undefined";
  if (value instanceof Markup) return "Markup";
  if (value instanceof Tuple) return "tuple";
  if (Array.isArray(value)) return "list";
  if (value instanceof Map) return "dict";
  if (value instanceof Namespace) return "Namespace";
  if (typeof value === "string") return "str";
  if (typeof value === "boolean") return "bool";
  if (numeric(value) !== undefined) return isFloat(value) ? "float" : "int";
  return typeof value === "function" ? "function" : "object";
}

/** Whether a value counts as true. */
export function truth(value: Value): boolean {
  value = plain(value);
  if (value === null || value instanceof Undefined) return false;
  if (typeof value === "string" || Array.isArray(value)) return value.length > 0;
  if (value instanceof Map) return value.size > 0;
  const number = numeric(value);
  return number === undefined || number !== 0;
}

/** A value's text, as `str` gives it. */
export function text(value: Value): string {
  if (typeof value === "string") return value;
  if (value instanceof Markup) return value.value;
  return value instanceof Undefined ? "" : repr(value);
}

/** A value's text inside a list, as `repr` gives it. */
export function repr(value: Value): string {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "string") return quoted(value);
  if (value instanceof Undefined) return "Undefined";
  if (value instanceof Markup) return `Markup(${quoted(value.value)})`;
  if (numeric(value) !== undefined) return numberText(value as number | Float);
  if (value instanceof Tuple) return value.length === 1 ? `(${repr(value[0])},)` : `(${value.map(repr).join(", ")})`;
  if (Array.isArray(value)) return `[${value.map(repr).join(", ")}]`;
  if (value instanceof Map) return `{${[...value].map(([key, item]) => `${repr(key)}: ${repr(item)}`).join(", ")}}`;
  if (value instanceof Namespace) return `<Namespace ${repr(value.attributes)}>`;
  return `<${typeName(value)}>`;
}

function numberText(value: number | Float): string {
  const number = value instanceof Float ? value.value : value;
  if (!Number.isFinite(number)) return Number.isNaN(number) ? "nan" : number > 0 ? "inf" : "-inf";
  if (!isFloat(value)) return number.toLocaleString("fullwide", { useGrouping: false });
  if (Object.is(number, -0)) return "-0.0";
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-4 || size >= 1e16)) {
    return number.toExponential().replace(/e([+-])(\d)$/, "e$10$2");
  }
  return Number.isInteger(number) ? `${number}.0` : String(number);
}

function quoted(value: string): string {
  const quote = value.includes("'") && !value.includes('"') ? '"' : "'";
  const short: Record<string, string> = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", [quote]: `\\${quote}` };
  const escaped = value.replace(/[^]/gu, (character) => {
    if (short[character] !== undefined) return short[character];
    if (character === " " || !/[\p{C}\p{Z}]/u.test(character)) return character;
    const hex = character.codePointAt(0)!.toString(16);
    if (hex.length <= 2) return `\\x${hex.padStart(2, "0")}`;
    return hex.length <= 4 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
  });
  return quote + escaped + quote;
}

/** Python's `==`. */
export function equal(a: Value, b: Value): boolean {
  [a, b] = [plain(a), plain(b)];
  const x = numeric(a), y = numeric(b);
  if (x !== undefined || y !== undefined) return x === y;
  if (a instanceof Undefined) return b instanceof Undefined;
  if (Array.isArray(a) && Array.isArray(b)) {
    if (a.length !== b.length || a instanceof Tuple !== b instanceof Tuple) return false;
    return a.every((item, i) => equal(item, b[i]));
  }
  if (a instanceof Map && b instanceof Map) {
    return a.size === b.size && [...a].every(([key, item]) => b.has(key) && equal(item, b.get(key)!));
  }
  return a === b;
}

/** Below 0 where `a` comes before `b`, 0 where they are equal. Throws where Python has no order for the two. */
export function order(a: Value, b: Value, operator: string = "<"): number {
  [a, b] = [plain(a), plain(b)];
  const x = numeric(a), y = numeric(b);
  if (x !== undefined && y !== undefined) return x - y;
  if (typeof a === "string" && typeof b === "string") return a === b ? 0 : byCodePoint(a, b);
  if (Array.isArray(a) && Array.isArray(b)) {
    const at = a.findIndex((item, i) => i >= b.length || !equal(item, b[i]));
    if (at < 0) return a.length - b.length;
    return at >= b.length ? 1 : order(a[at], b[at], operator);
  }
  if (a instanceof Undefined || b instanceof Undefined) {
    throw undefinedError(a instanceof Undefined ? a : b as Undefined);
  }
  throw new JinjaError(`'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
}

function byCodePoint(a: string, b: string): number {
  const x = [...a], y = [...b];
  const at = x.findIndex((character, i) => character !== y[i]);
  return at < 0 ? -1 : at >= y.length ? 1 : x[at].codePointAt(0)! - y[at].codePointAt(0)!;
}

/** The error for the use of what is not there. */
export function undefinedError(value: Undefined): JinjaError {
  return new JinjaError(`${value.what} is undefined`);
}

/** What a loop goes over: a list's items, a dict's keys, a text's characters; nothing for the undefined. */
export function iterate(value: Value): Value[] {
  value = plain(value);
  if (Array.isArray(value)) return value;
  if (typeof value === "string") return [...value];
  if (value instanceof Map) return [...value.keys()];
  if (value instanceof Undefined) return [];
  throw new JinjaError(`'${typeName(value)}' object is not iterable`);
}

/** Python's `len`. */
export function length(value: Value): number {
  value = plain(value);
  if (Array.isArray(value)) return value.length;
  if (typeof value === "string") return [...value].length;
  if (value instanceof Map) return value.size;
  if (value instanceof Undefined) return 0;
  throw new JinjaError(`object of type '${typeName(value)}' has no len()`);
}

/** Python's `in`. */
export function contains(container: Value, item: Value): boolean {
  [container, item] = [plain(container), plain(item)];
  if (typeof container === "string") {
    if (typeof item === "string") return container.includes(item);
    throw new JinjaError(`'in <string>' requires string as left operand, not ${typeName(item)}`);
  }
  if (container instanceof Map) return container.has(keyOf(item));
  return iterate(container).some((other) => equal(other, item));
}

/** A value as a dict's key: True is 1 and 1.0 is 1. */
export function keyOf(value: Value): Value {
  if (Array.isArray(value) || value instanceof Map) throw new JinjaError(`unhashable type: '${typeName(value)}'`);
  return numeric(value) ?? plain(value);
}

/** Where a text, list or tuple is cut: `[start:stop:step]`. */
export function slice(value: Value, bounds: readonly (Value | undefined)[]): Value {
  value = plain(value);
  const [start, stop, step = 1] = bounds.map((bound) => {
    if (bound === undefined || bound === null) return undefined;
    if (typeof bound !== "number") throw new JinjaError("slice indices must be integers or None");
    return bound;
  });
  if (step === 0) throw new JinjaError("slice step cannot be zero");
  if (typeof value !== "string" && !Array.isArray(value)) {
    if (value instanceof Undefined) throw undefinedError(value);
    throw new JinjaError(`'${typeName(value)}' object cannot be sliced`);
  }
  const items = typeof value === "string" ? [...value] : value, { length } = items;
  const [low, high] = step > 0 ? [0, length] : [-1, length - 1];
  const place = (at: number | undefined, missing: number): number =>
    at === undefined ? missing : Math.min(Math.max(at < 0 ? at + length : at, low), high);
  const first = place(start, step > 0 ? low : high), last = place(stop, step > 0 ? high : low), cut: Value[] = [];
  for (let at = first; step > 0 ? at < last : at > last; at += step) cut.push(items[at]);
  if (typeof value === "string") return cut.join("");
  return value instanceof Tuple ? Tuple.from(cut) : cut;
}

/** How `json.dumps` is asked to write. */
export interface JsonForm {
  /** What a level is indented by; undefined for one line. */
  readonly indent?: string;
  /** Between items, and between key and value. */
  readonly separators?: readonly [item: string, key: string];
  /** Whether keys are sorted. */
  readonly sortKeys?: boolean;
  /** Whether every character but ASCII is escaped. */
  readonly ascii?: boolean;
}

/** A value as Python's `json.dumps` writes it. */
export function json(value: Value, form: JsonForm, depth: number = 0): string {
  value = plain(value);
  if (typeof value === "string") return jsonText(value, form);
  if (value === null || typeof value === "boolean") return String(value);
  if (numeric(value) !== undefined) {
    return numberText(value as number | Float).replace(
      /^-?(nan|inf)$/,
      (name) => name.replace("nan", "NaN").replace("inf", "Infinity"),
    );
  }
  const [between, colon] = form.separators ?? [form.indent === undefined ? ", " : ",", ": "];
  const inner = form.indent === undefined ? "" : `\n${form.indent.repeat(depth + 1)}`;
  const outer = form.indent === undefined ? "" : `\n${form.indent.repeat(depth)}`;
  const put = (open: string, items: string[], close: string): string =>
    items.length === 0 ? open + close : open + inner + items.join(between + inner) + outer + close;
  if (Array.isArray(value)) return put("[", value.map((item) => json(item, form, depth + 1)), "]");
  if (value instanceof Map) {
    const entries = [...value].map(([key, item]): [string, Value] => [jsonKey(key), item]);
    if (form.sortKeys) entries.sort(([a], [b]) => a === b ? 0 : byCodePoint(a, b));
    return put("{", entries.map(([key, item]) => jsonText(key, form) + colon + json(item, form, depth + 1)), "}");
  }
  throw new JinjaError(`Object of type ${typeName(value)} is not JSON serializable`);
}

function jsonKey(key: Value): string {
  if (typeof key === "string") return key;
  return key === null || typeof key === "boolean" ? String(key) : numberText(key as number);
}

function jsonText(value: string, { ascii }: JsonForm): string {
  const written = JSON.stringify(value);
  if (!ascii) return written;
  return written.replace(
    /[\u007f-\uffff]/g,
    (unit) => unit === "\x7f" ? unit : `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
