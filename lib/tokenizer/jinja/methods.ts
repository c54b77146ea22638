/**
 * The methods of Python's texts, lists and dicts that templates call.
 * Source: https://docs.python.org/3/library/stdtypes.html
 *
 * @module
 */

import { formatted } from "./format.ts";
import { JinjaError } from "./lexer.ts";
import {
  type Callable,
  equal,
  iterate,
  keyOf,
  Namespace,
  numeric,
  order,
  plain,
  repr,
  text,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

/** A method of a value, ready to be called, or undefined where its type has none of this name. */
export function method(value: Value, name: string): Callable | undefined {
  value = plain(value);
  if (typeof value === "string") return bound(TEXT, name, value);
  if (value instanceof Map) return bound(DICT, name, value);
  if (Array.isArray(value)) {
    return value instanceof Tuple && name !== "index" && name !== "count" ? undefined : bound(LIST, name, value);
  }
  return undefined;
}

type Method<T> = (self: T, given: Value[], named: Map<string, Value>) => Value;

function bound<T>(methods: Readonly<Record<string, Method<T>>>, name: string, self: T): Callable | undefined {
  if (!Object.hasOwn(methods, name)) return undefined;
  return (given, named) => methods[name](self, given, named);
}

function textOf(value: Value | undefined, of: string): string {
  const written = value === undefined ? undefined : plain(value);
  if (typeof written === "string") return written;
  throw new JinjaError(`${of} needs a text, not ${value === undefined ? "nothing" : typeName(value)}`);
}

function whole(value: Value | undefined, of: string): number {
  if (typeof value === "number" && Number.isInteger(value)) return value;
  throw new JinjaError(`${of} needs a whole number, not ${value === undefined ? "nothing" : repr(value)}`);
}

/** White space as `str.strip` and `str.split` know it. */
const SPACE = "[\\s\\x1c-\\x1f\\x85]";

/** What ends a line, as `str.splitlines` knows it. */
const LINE_END = "(?:\\r\\n|[\\n\\r\\v\\f\\x1c-\\x1e\\x85\\u2028\\u2029])";

/** The lines of a text, with what ends them or without. */
export function lines(self: string, keepEnds: boolean): string[] {
  const found: string[] = [];
  let at = 0;
  for (const end of self.matchAll(new RegExp(LINE_END, "g"))) {
    const after = end.index + end[0].length;
    found.push(self.slice(at, keepEnds ? after : end.index));
    at = after;
  }
  if (at < self.length) found.push(self.slice(at));
  return found;
}

/** Takes characters away at the ends; those of `characters`, or white space. */
export function strip(self: string, characters: Value | undefined, left: boolean, right: boolean): string {
  const set = characters === undefined || characters === null
    ? SPACE
    : `[${textOf(characters, "strip").replace(/[\\\]^-]/g, "\\$&")}]`;
  if (set === "[]") return self;
  const cut = left ? self.replace(new RegExp(`^${set}+`, "u"), "") : self;
  if (!right) return cut;
  const one = new RegExp(`^${set}$`, "u"), kept = [...cut];
  while (kept.length > 0 && one.test(kept.at(-1)!)) kept.pop();
  return kept.join("");
}

function split(self: string, given: Value[], named: Map<string, Value>, fromRight: boolean): Value {
  const separator = given[0] ?? named.get("sep") ?? null, most = numeric(given[1] ?? named.get("maxsplit") ?? -1)!;
  const limit = most < 0 ? Infinity : most;
  if (separator === null) {
    const words = fromRight
      ? [...strip(self, null, false, true).matchAll(new RegExp(`(?:(?!${SPACE})[^])+`, "gu"))]
      : [...strip(self, null, true, false).matchAll(new RegExp(`(?:(?!${SPACE})[^])+`, "gu"))];
    const base = strip(self, null, !fromRight, fromRight);
    if (words.length <= limit + 1 && limit === Infinity) return words.map(([word]) => word);
    if (words.length <= limit) return words.map(([word]) => word);
    if (fromRight) {
      const kept = words.slice(words.length - limit);
      const rest = strip(base.slice(0, kept[0]?.index ?? base.length), null, false, true);
      return [...(rest === "" ? [] : [rest]), ...kept.map(([word]) => word)];
    }
    const rest = base.slice(words[limit].index);
    return [...words.slice(0, limit).map(([word]) => word), rest];
  }
  const by = textOf(separator, "split");
  if (by === "") throw new JinjaError("empty separator");
  const parts = self.split(by);
  if (parts.length <= limit + 1) return parts;
  return fromRight
    ? [parts.slice(0, parts.length - limit).join(by), ...parts.slice(parts.length - limit)]
    : [...parts.slice(0, limit), parts.slice(limit).join(by)];
}

/** A text's place counted in code points, as Python counts. */
function found(self: string, at: number): number {
  return at < 0 ? -1 : [...self.slice(0, at)].length;
}

function within(self: string, start: Value | undefined, end: Value | undefined): { part: string; from: number } {
  const characters = [...self], { length } = characters;
  const place = (bound: Value | undefined, missing: number): number => {
    if (bound === undefined || bound === null) return missing;
    const at = whole(bound, "a bound");
    return Math.min(Math.max(at < 0 ? at + length : at, 0), length);
  };
  const from = place(start, 0);
  return { part: characters.slice(from, place(end, length)).join(""), from };
}

function affix(self: string, given: Value[], test: "startsWith" | "endsWith"): boolean {
  const { part } = within(self, given[1], given[2]);
  const options = given[0] instanceof Tuple ? given[0] : [given[0]];
  return options.some((option) => part[test](textOf(option, test.toLowerCase())));
}

/** Puts `fresh` for `old`, at most `count` times. */
export function replace(self: string, old: string, fresh: string, count: number): string {
  if (count < 0) return old === "" ? between(self, fresh, Infinity) : self.replaceAll(old, () => fresh);
  if (old === "") return between(self, fresh, count);
  const parts = self.split(old), most = Math.min(count, parts.length - 1);
  return [...parts.slice(0, most), parts.slice(most).join(old)].join(fresh);
}

function between(self: string, fresh: string, count: number): string {
  const characters = [...self];
  return characters.map((character, i) => (i < count ? fresh : "") + character).join("") +
    (characters.length < count ? fresh : "");
}

/** Every word with a capital, all other letters small; words end at any character but a letter. */
export function title(self: string): string {
  return self.replace(/\p{L}[\p{L}\p{M}]*/gu, capital);
}

/** The first letter large, all others small. */
export function capital(self: string): string {
  const [first = "", ...rest] = self;
  return first.toUpperCase() + rest.join("").toLowerCase();
}

/** Spaces around a text up to a width. */
export function center(self: string, width: number, fill: string = " "): string {
  const missing = width - [...self].length;
  if (missing <= 0) return self;
  const left = Math.floor(missing / 2) + (missing & width & 1);
  return fill.repeat(left) + self + fill.repeat(missing - left);
}

const every = (pattern: RegExp) => (self: string): boolean => self !== "" && pattern.test(self);
const cased = (self: string): boolean => /\p{Lu}|\p{Ll}|\p{Lt}/u.test(self);

const TEXT: Readonly<Record<string, Method<string>>> = {
  upper: (self) => self.toUpperCase(),
  lower: (self) => self.toLowerCase(),
  casefold: (self) => self.toLowerCase().replaceAll("ß", "ss"),
  capitalize: (self) => capital(self),
  title: (self) => title(self),
  swapcase: (self) => self.replace(/[^]/gu, (c) => c === c.toUpperCase() ? c.toLowerCase() : c.toUpperCase()),
  strip: (self, [characters]) => strip(self, characters, true, true),
  lstrip: (self, [characters]) => strip(self, characters, true, false),
  rstrip: (self, [characters]) => strip(self, characters, false, true),
  split: (self, given, named) => split(self, given, named, false),
  rsplit: (self, given, named) => split(self, given, named, true),
  splitlines: (self, [keep]) => lines(self, keep === true),
  replace: (self, [old, fresh, count], named) =>
    replace(
      self,
      textOf(old, "replace"),
      textOf(fresh, "replace"),
      whole(count ?? named.get("count") ?? -1, "replace"),
    ),
  startswith: (self, given) => affix(self, given, "startsWith"),
  endswith: (self, given) => affix(self, given, "endsWith"),
  find: (self, [part, start, end]) => {
    const range = within(self, start, end), at = found(range.part, range.part.indexOf(textOf(part, "find")));
    return at < 0 ? -1 : at + range.from;
  },
  rfind: (self, [part, start, end]) => {
    const range = within(self, start, end), at = found(range.part, range.part.lastIndexOf(textOf(part, "rfind")));
    return at < 0 ? -1 : at + range.from;
  },
  index: (self, [part]) => {
    const at = self.indexOf(textOf(part, "index"));
    if (at < 0) throw new JinjaError("substring not found");
    return found(self, at);
  },
  count: (self, [part]) => {
    const of = textOf(part, "count");
    return of === "" ? [...self].length + 1 : self.split(of).length - 1;
  },
  join: (self, [items]) =>
    iterate(items).map((item, i) => {
      if (typeof item === "string") return item;
      throw new JinjaError(`sequence item ${i}: expected str instance, ${typeName(item)} found`);
    }).join(self),
  format: (self, given, named) => formatted(self, given, named),
  removeprefix: (self, [part]) => self.startsWith(textOf(part, "removeprefix")) ? self.slice(text(part).length) : self,
  removesuffix: (self, [part]) => {
    const suffix = textOf(part, "removesuffix");
    return suffix !== "" && self.endsWith(suffix) ? self.slice(0, -suffix.length) : self;
  },
  partition: (self, [by]) => {
    const separator = textOf(by, "partition"), at = self.indexOf(separator);
    return at < 0
      ? Tuple.of<Value>(self, "", "")
      : Tuple.of<Value>(self.slice(0, at), separator, self.slice(at + separator.length));
  },
  rpartition: (self, [by]) => {
    const separator = textOf(by, "rpartition"), at = self.lastIndexOf(separator);
    return at < 0
      ? Tuple.of<Value>("", "", self)
      : Tuple.of<Value>(self.slice(0, at), separator, self.slice(at + separator.length));
  },
  center: (self, [width, fill]) => center(self, whole(width, "center"), fill === undefined ? " " : text(fill)),
  ljust: (self, [width, fill]) =>
    self + (fill === undefined ? " " : text(fill)).repeat(Math.max(0, whole(width, "ljust") - [...self].length)),
  rjust: (self, [width, fill]) =>
    (fill === undefined ? " " : text(fill)).repeat(Math.max(0, whole(width, "rjust") - [...self].length)) + self,
  zfill: (self, [width]) => {
    const [, sign, digits] = /^([+-]?)([^]*)$/.exec(self)!;
    return sign + digits.padStart(whole(width, "zfill") - sign.length, "0");
  },
  expandtabs: (self, [size]) => self.replaceAll("\t", " ".repeat(size === undefined ? 8 : whole(size, "expandtabs"))),
  isdigit: every(/^[\p{Nd}²³¹⁰-⁹₀-₉]+$/u),
  isdecimal: every(/^\p{Nd}+$/u),
  isnumeric: every(/^\p{N}+$/u),
  isalpha: every(/^\p{L}+$/u),
  isalnum: every(/^[\p{L}\p{N}]+$/u),
  isspace: every(new RegExp(`^${SPACE}+$`, "u")),
  isascii: (self) => !/[^\p{ASCII}]/u.test(self),
  isupper: (self) => cased(self) && self === self.toUpperCase(),
  islower: (self) => cased(self) && self === self.toLowerCase(),
  istitle: (self) => cased(self) && self === title(self),
  isidentifier: every(/^[\p{L}_][\p{L}\p{M}\p{N}_]*$/u),
};

const LIST: Readonly<Record<string, Method<Value[]>>> = {
  append: (self, [item]) => (self.push(item), null),
  extend: (self, [items]) => (self.push(...iterate(items)), null),
  insert: (self, [at, item]) => (self.splice(whole(at, "insert"), 0, item), null),
  pop: (self, [at]) => {
    const [item] = self.splice(at === undefined ? -1 : whole(at, "pop"), 1);
    if (item === undefined) throw new JinjaError("pop from an empty list");
    return item;
  },
  remove: (self, [item]) => (self.splice(place(self, item), 1), null),
  clear: (self) => (self.splice(0), null),
  reverse: (self) => (self.reverse(), null),
  copy: (self) => [...self],
  sort: (self, _, named) => {
    self.sort((a, b) => order(a, b));
    if (named.get("reverse") === true) self.reverse();
    return null;
  },
  index: (self, [item]) => place(self, item),
  count: (self, [item]) => self.filter((other) => equal(other, item)).length,
};

function place(self: readonly Value[], item: Value): number {
  const at = self.findIndex((other) => equal(other, item));
  if (at < 0) throw new JinjaError(`${repr(item)} is not in list`);
  return at;
}

const DICT: Readonly<Record<string, Method<Map<Value, Value>>>> = {
  keys: (self) => [...self.keys()],
  values: (self) => [...self.values()],
  items: (self) => [...self].map((entry) => Tuple.from<Value>(entry)),
  get: (self, [key, missing = null], named) => {
    const value = self.get(keyOf(key));
    return value !== undefined ? value : named.get("default") ?? missing;
  },
  copy: (self) => new Map(self),
  pop: (self, [key, missing]) => {
    const held = self.get(keyOf(key)), value = held !== undefined ? held : missing;
    if (value === undefined) throw new JinjaError(`KeyError: ${repr(key)}`);
    self.delete(keyOf(key));
    return value;
  },
  setdefault: (self, [key, value = null]) => {
    if (!self.has(keyOf(key))) self.set(keyOf(key), value);
    return self.get(keyOf(key))!;
  },
  update: (self, [other], named) => {
    for (const [key, value] of entriesOf(other)) self.set(key, value);
    for (const [key, value] of named) self.set(key, value);
    return null;
  },
  clear: (self) => (self.clear(), null),
};

/** The entries of a dict, a namespace or a list of pairs. */
export function entriesOf(value: Value | undefined): [Value, Value][] {
  if (value === undefined || value instanceof Undefined) return [];
  if (value instanceof Map) return [...value];
  if (value instanceof Namespace) return [...value.attributes];
  return iterate(value).map((pair) => {
    const entry = iterate(pair);
    if (entry.length !== 2) throw new JinjaError("a dict is made from pairs");
    return [keyOf(entry[0]), entry[1]];
  });
}
