/**
 * Jinja2's filters: what stands after `|`. `tojson` is that of transformers, which escapes nothing for HTML.
 * Source: https://jinja.palletsprojects.com/en/stable/templates/#builtin-filters
 *
 * @module
 */

import { getter, item } from "./access.ts";
import { fixed, printed } from "./format.ts";
import { JinjaError } from "./lexer.ts";
import { capital, center, entriesOf, lines, replace, strip } from "./methods.ts";
import { arithmetic } from "./operators.ts";
import { testOf } from "./tests.ts";
import {
  type Attributes,
  equal,
  escaped,
  float,
  isFloat,
  iterate,
  json,
  length,
  Markup,
  numeric,
  order,
  repr,
  text,
  truth,
  Tuple,
  typeName,
  Undefined,
  undefinedError,
  type Value,
} from "./values.ts";

/** What a filter makes of a value. */
export type Filter = (value: Value, given: Given) => Value;

/** What a filter is given besides its subject. */
export class Given {
  /** By position. */
  readonly positional: Value[];
  /** By name. */
  readonly named: Map<string, Value>;

  /** Of a call. */
  constructor(positional: Value[], named: Map<string, Value>) {
    this.positional = positional;
    this.named = named;
  }

  /** The argument at a place or of a name, else `otherwise`. */
  get<T extends Value | undefined>(at: number, name: string, otherwise: T): Value | T {
    const value = at < this.positional.length ? this.positional[at] : this.named.get(name);
    return value !== undefined ? value : otherwise;
  }

  /** The same as a whole number. */
  whole(at: number, name: string, otherwise: number): number {
    const value = numeric(this.get(at, name, otherwise));
    if (value === undefined) throw new JinjaError(`${name} must be a number`);
    return value;
  }
}

/** Small letters only, where case does not count. */
function folded(value: Value): Value {
  return typeof value === "string" ? value.toLowerCase() : value;
}

/** What a sequence is compared by: an attribute, without case unless asked. */
function comparedBy(given: Given, sensitiveAt: number, attributeAt: number): (value: Value) => Value {
  const path = given.get(attributeAt, "attribute", null), get = path === null ? (value: Value) => value : getter(path);
  return truth(given.get(sensitiveAt, "case_sensitive", false)) ? get : (value) => folded(get(value));
}

function sorted(values: Value[], by: (value: Value) => Value, reverse: boolean): Value[] {
  const keyed = values.map((value) => ({ value, key: by(value) }));
  return keyed.sort((a, b) => reverse ? order(b.key, a.key) : order(a.key, b.key)).map(({ value }) => value);
}

function extreme(value: Value, given: Given, sign: number): Value {
  const by = comparedBy(given, 0, 1), values = iterate(value);
  if (values.length === 0) return new Undefined("the extreme of an empty sequence");
  return values.reduce((best, next) => sign * order(by(next), by(best)) > 0 ? next : best);
}

/** select, reject and their kin: which items stay. */
function chosen(value: Value, given: Given, keep: boolean, byAttribute: boolean): Value {
  if (!truth(value)) return [];
  const [first, ...rest] = given.positional;
  const get = byAttribute ? getter(first) : (item: Value) => item;
  const [name, ...arguments_] = byAttribute ? rest : given.positional;
  const test = name === undefined ? truth : (item: Value) => testOf(text(name))(item, arguments_);
  return iterate(value).filter((item) => test(get(item)) === keep);
}

function mapped(value: Value, given: Given): Value {
  if (!truth(value)) return [];
  const path = given.named.get("attribute");
  if (path !== undefined) return iterate(value).map(getter(path, given.named.get("default")));
  const [name, ...rest] = given.positional;
  if (name === undefined) throw new JinjaError("map requires a filter argument");
  const filter = filterOf(text(name));
  return iterate(value).map((item) => filter(item, new Given(rest, given.named)));
}

/** One group of `groupby`: a pair that also has names. */
class Group extends Tuple implements Attributes {
  attribute(name: string): Value | undefined {
    return name === "grouper" ? this[0] : name === "list" ? this[1] : undefined;
  }
}

function grouped(value: Value, given: Given): Value {
  const get = getter(given.get(0, "attribute", ""), given.get(1, "default", undefined));
  const sensitive = truth(given.get(2, "case_sensitive", false));
  const by = sensitive ? get : (item: Value) => folded(get(item));
  const groups: { key: Value; items: Value[] }[] = [];
  for (const item of sorted([...iterate(value)], by, false)) {
    const key = by(item), last = groups.at(-1);
    if (last && equal(last.key, key)) last.items.push(item);
    else groups.push({ key, items: [item] });
  }
  return groups.map(({ items }) => Group.of<Value>(get(items[0]), items));
}

function indent(value: Value, given: Given): Value {
  const width = given.get(0, "width", 4), by = typeof width === "string" ? width : " ".repeat(numeric(width) ?? 0);
  const [head = "", ...rest] = lines(`${text(value)}\n`, false);
  const blank = truth(given.get(2, "blank", false));
  const indented = [head, ...rest.map((line) => blank || line !== "" ? by + line : line)];
  return (truth(given.get(1, "first", false)) ? by : "") + indented.join("\n");
}

function truncated(value: Value, given: Given): Value {
  const most = given.whole(0, "length", 255), end = text(given.get(2, "end", "..."));
  const characters = [...text(value)], leeway = given.whole(3, "leeway", 5);
  if (characters.length <= most + leeway) return text(value);
  const cut = characters.slice(0, most - [...end].length).join("");
  if (truth(given.get(1, "killwords", false))) return cut + end;
  const space = cut.lastIndexOf(" ");
  return (space < 0 ? cut : cut.slice(0, space)) + end;
}

function toInt(value: Value, given: Given): Value {
  const base = given.whole(1, "base", 10), number = numeric(value);
  if (number !== undefined) return Math.trunc(number);
  if (typeof value === "string") {
    const written = value.trim().replace(base === 16 ? /^([+-]?)0x/i : /^$/, "$1").replaceAll("_", "");
    const legal = "0123456789abcdefghijklmnopqrstuvwxyz".slice(0, base);
    if (new RegExp(`^[+-]?[${legal}]+$`, "i").test(written)) return parseInt(written, base);
    if (/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(written)) return Math.trunc(Number(written));
  }
  return given.get(0, "default", 0);
}

function toFloat(value: Value, given: Given): Value {
  const number = numeric(value);
  if (number !== undefined) return float(number);
  const written = typeof value === "string" ? value.trim() : "";
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(written)
    ? float(Number(written))
    : given.get(0, "default", float(0));
}

function rounded(value: Value, given: Given): Value {
  const number = numeric(value), method = text(given.get(1, "method", "common"));
  if (number === undefined) throw new JinjaError(`round needs a number, not ${typeName(value)}`);
  const scale = 10 ** given.whole(0, "precision", 0), scaled = number * scale;
  if (method === "ceil") return float(Math.ceil(scaled) / scale);
  if (method === "floor") return float(Math.floor(scaled) / scale);
  if (!isFloat(value)) return number;
  const decimals = given.whole(0, "precision", 0);
  if (decimals >= 0) return float(Number(fixed(number, decimals)));
  return float(Math.round(scaled) / scale);
}

function toJson(value: Value, given: Given): Value {
  const indent = given.get(1, "indent", null), separators = given.get(2, "separators", null);
  const pair = separators === null ? undefined : iterate(separators).map(text);
  return json(value, {
    ascii: truth(given.get(0, "ensure_ascii", false)),
    indent: indent === null ? undefined : typeof indent === "string" ? indent : " ".repeat(numeric(indent) ?? 0),
    separators: pair && [pair[0], pair[1]],
    sortKeys: truth(given.get(3, "sort_keys", false)),
  });
}

function batch(value: Value, given: Given): Value {
  const size = given.whole(0, "linecount", 1), fill = given.get(1, "fill_with", null), rows: Value[][] = [];
  const values = iterate(value);
  for (let at = 0; at < values.length; at += size) rows.push(values.slice(at, at + size));
  const last = rows.at(-1);
  while (fill !== null && last && last.length < size) last.push(fill);
  return rows;
}

function sliced(value: Value, given: Given): Value {
  const count = given.whole(0, "slices", 1), fill = given.get(1, "fill_with", null), values = iterate(value);
  const size = Math.floor(values.length / count), longer = values.length % count;
  return Array.from({ length: count }, (_, i) => {
    const from = i * size + Math.min(i, longer), part = values.slice(from, from + size + (i < longer ? 1 : 0));
    return fill !== null && i >= longer && longer > 0 ? [...part, fill] : part;
  });
}

function dictSorted(value: Value, given: Given): Value {
  const sensitive = truth(given.get(0, "case_sensitive", false)), at = given.get(1, "by", "key") === "value" ? 1 : 0;
  const pairs = entriesOf(value).map((entry) => Tuple.from<Value>(entry));
  const by = (pair: Value): Value => sensitive ? item(pair, at) : folded(item(pair, at));
  return sorted(pairs, by, truth(given.get(2, "reverse", false)));
}

function defaulted(value: Value, given: Given): Value {
  const missing = value instanceof Undefined || (truth(given.get(1, "boolean", false)) && !truth(value));
  return missing ? given.get(0, "default_value", "") : value;
}

function summed(value: Value, given: Given): Value {
  const path = given.get(0, "attribute", null), get = path === null ? (item: Value) => item : getter(path);
  return iterate(value).map(get).reduce((sum, item) => arithmetic("+", sum, item), given.get(1, "start", 0));
}

function joined(value: Value, given: Given): Value {
  const path = given.get(1, "attribute", null), get = path === null ? (item: Value) => item : getter(path);
  return iterate(value).map((item) => text(get(item))).join(text(given.get(0, "d", "")));
}

function unique(value: Value, given: Given): Value {
  const by = comparedBy(given, 0, 1), seen: Value[] = [];
  return iterate(value).filter((item) => {
    const key = by(item);
    return seen.some((other) => equal(other, key)) ? false : seen.push(key);
  });
}

function ends(value: Value, at: number): Value {
  const found = iterate(value).at(at);
  return found !== undefined ? found : new Undefined(`the ${at === 0 ? "first" : "last"} item of an empty sequence`);
}

/** All filters by name. */
const FILTERS: Readonly<Record<string, Filter>> = {
  abs: (value) => isFloat(value) ? float(Math.abs(numeric(value)!)) : Math.abs(numeric(value) ?? NaN),
  attr: (value, given) => value instanceof Map ? new Undefined("an attribute") : item(value, given.get(0, "name", "")),
  batch,
  capitalize: (value) => capital(text(value)),
  center: (value, given) => center(text(value), given.whole(0, "width", 80)),
  count: (value) => length(value),
  d: defaulted,
  default: defaulted,
  dictsort: dictSorted,
  e: escaped,
  escape: escaped,
  first: (value) => ends(value, 0),
  float: toFloat,
  forceescape: escaped,
  format: (value, given) =>
    printed(text(value), given.named.size > 0 ? new Map<Value, Value>(given.named) : Tuple.from(given.positional)),
  groupby: grouped,
  indent,
  int: toInt,
  items: (value) => {
    if (!(value instanceof Map || value instanceof Undefined)) {
      throw new JinjaError("Can only get item pairs from a mapping.");
    }
    return entriesOf(value).map((entry) => Tuple.from<Value>(entry));
  },
  join: joined,
  last: (value) => ends(value, -1),
  length: (value) => length(value),
  list: (value) => [...iterate(value)],
  lower: (value) => text(value).toLowerCase(),
  map: mapped,
  max: (value, given) => extreme(value, given, 1),
  min: (value, given) => extreme(value, given, -1),
  pprint: (value) => repr(value),
  reject: (value, given) => chosen(value, given, false, false),
  rejectattr: (value, given) => chosen(value, given, false, true),
  replace: (value, given) =>
    replace(text(value), text(given.get(0, "old", "")), text(given.get(1, "new", "")), given.whole(2, "count", -1)),
  reverse: (value) => typeof value === "string" ? [...value].reverse().join("") : [...iterate(value)].reverse(),
  round: rounded,
  safe: (value) => new Markup(text(value)),
  select: (value, given) => chosen(value, given, true, false),
  selectattr: (value, given) => chosen(value, given, true, true),
  slice: sliced,
  sort: (value, given) => sorted([...iterate(value)], comparedBy(given, 1, 2), truth(given.get(0, "reverse", false))),
  string: (value) => text(value),
  striptags: (value) => text(value).replace(/<!--[^]*?-->|<[^>]*>/g, "").split(/\s+/).join(" ").trim(),
  sum: summed,
  title: (value) => text(value).split(/([-\s({[<]+)/).map(capital).join(""),
  tojson: toJson,
  trim: (value, given) => strip(text(value), given.get(0, "chars", null), true, true),
  truncate: truncated,
  unique,
  upper: (value) => text(value).toUpperCase(),
  urlencode: (value) =>
    value instanceof Map
      ? [...value].map((entry) => entry.map((part) => encoded(text(part)).replaceAll("%20", "+")).join("=")).join("&")
      : encoded(text(value)),
  wordcount: (value) => (text(value).match(/[\p{L}\p{M}\p{N}_]+/gu) ?? []).length,
};

function encoded(value: string): string {
  return encodeURIComponent(value).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`)
    .replaceAll("%2F", "/");
}

/** Filters that make something of what is undefined; all others print it as nothing or go over nothing. */
const NEEDS_VALUE = new Set(["abs", "round", "tojson", "attr"]);

/** The filter of a name. Throws {@link JinjaError} where there is none. */
export function filterOf(name: string): Filter {
  if (!Object.hasOwn(FILTERS, name)) throw new JinjaError(`no filter named ${JSON.stringify(name)}`);
  const filter = FILTERS[name];
  if (!NEEDS_VALUE.has(name)) return filter;
  return (value, given) => {
    if (value instanceof Undefined) throw undefinedError(value);
    return filter(value, given);
  };
}
