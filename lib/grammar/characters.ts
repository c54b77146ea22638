/**
 * Sets of characters, and how their members are written inside a JSON string.
 *
 * @module
 */

import { byte, choice, literal, type Rule, sequence } from "./rule.ts";

/** A set of code points: first and last of each range, one after the other, in order and with gaps between. */
export type Characters = readonly number[];

const LAST = 0x10ffff;

/** Every character. */
export const ALL: Characters = [0, LAST];

/** The set of these ranges, in any order. */
export function ranges(pairs: readonly (readonly [number, number])[]): Characters {
  const set: number[] = [];
  for (const [low, high] of [...pairs].sort((a, b) => a[0] - b[0])) {
    if (low > high) continue;
    if (set.length > 0 && low <= set[set.length - 1] + 1) set[set.length - 1] = Math.max(set[set.length - 1], high);
    else set.push(low, high);
  }
  return set;
}

/** Characters of one of the sets. */
export function union(...sets: Characters[]): Characters {
  const pairs: [number, number][] = [];
  for (const set of sets) for (let i = 0; i < set.length; i += 2) pairs.push([set[i], set[i + 1]]);
  return ranges(pairs);
}

/** Characters that are not of the set. */
export function except(set: Characters): Characters {
  const rest: number[] = [];
  let from = 0;
  for (let i = 0; i < set.length; i += 2) {
    if (set[i] > from) rest.push(from, set[i] - 1);
    from = set[i + 1] + 1;
  }
  if (from <= LAST) rest.push(from, LAST);
  return rest;
}

/** Characters of both sets. */
export function both(a: Characters, b: Characters): Characters {
  const set: number[] = [];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    const low = Math.max(a[i], b[j]), high = Math.min(a[i + 1], b[j + 1]);
    if (low <= high) set.push(low, high);
    if (a[i + 1] < b[j + 1]) i += 2;
    else j += 2;
  }
  return set;
}

/** Whether a set has a character. */
export function has(set: Characters, character: number): boolean {
  for (let i = 0; i < set.length && set[i] <= character; i += 2) if (character <= set[i + 1]) return true;
  return false;
}

/** The characters that a class of a regular expression, e.g. `\p{Lu}`, has; for properties that only the runtime knows. */
export function where(source: string): Characters {
  const pairs: [number, number][] = [], runs = new RegExp(`(?:${source})+`, "gu");
  for (let from = 0; from <= LAST; from += 0x1000) {
    const codes = Array.from({ length: 0x1000 }, (_, i) => from + i).filter((code) => code < 0xd800 || code > 0xdfff);
    for (const { 0: run } of String.fromCodePoint(...codes).matchAll(runs)) {
      const first = run.codePointAt(0)!, last = run.codePointAt(run.length - (from > 0xffff ? 2 : 1))!;
      pairs.push([first, last]);
    }
  }
  return both(ranges(pairs), ranges([[0, 0xd7ff], [0xe000, LAST]]));
}

const tail = byte([0x80, 0xbf]), hex = byte("09", "af", "AF");

/** Any character of a string: all but controls, `"` and `\` as UTF-8 (RFC 3629), and all escapes but of surrogates. */
export const anyCharacter: Rule = choice(
  byte([0x20, 0x21], [0x23, 0x5b], [0x5d, 0x7f]),
  sequence(byte([0xc2, 0xdf]), tail),
  sequence(literal("\\"), byte('"', "\\", "/", "b", "f", "n", "r", "t")),
  sequence(
    literal("\\u"),
    choice(sequence(byte("09", "ac", "ef", "AC", "EF"), hex), sequence(byte("d", "D"), byte("07"))),
    hex,
    hex,
  ),
  sequence(byte([0xe0, 0xe0]), byte([0xa0, 0xbf]), tail),
  sequence(byte([0xe1, 0xec], [0xee, 0xef]), tail, tail),
  sequence(byte([0xed, 0xed]), byte([0x80, 0x9f]), tail),
  sequence(byte([0xf0, 0xf0]), byte([0x90, 0xbf]), tail, tail),
  sequence(byte([0xf1, 0xf3]), tail, tail, tail),
  sequence(byte([0xf4, 0xf4]), byte([0x80, 0x8f]), tail, tail),
);

/** Controls, `"`, `\`, and surrogates, which are no characters. */
const NOT_PLAIN: Characters = ranges([[0, 0x1f], [0x22, 0x22], [0x5c, 0x5c], [0xd800, 0xdfff]]);
const PLAIN: Characters = except(NOT_PLAIN);

/** UTF-8 (RFC 3629): code points of as many bytes, and the bits before the first byte's own. */
const LENGTHS = [[0, 0x7f, 0x00], [0x80, 0x7ff, 0xc0], [0x800, 0xffff, 0xe0], [0x10000, LAST, 0xf0]] as const;

const written = new Map<string, Rule>();

/**
 * A character of a set inside a JSON string: as UTF-8, or where that is not possible as the escape that `JSON.stringify` writes.
 * Undefined where the set has no character that can be written. All characters have all escapes.
 */
export function writtenCharacter(set: Characters): Rule | undefined {
  if (set.length === 2 && set[0] === 0 && set[1] === LAST) return anyCharacter;
  const key = set.join();
  let rule = written.get(key);
  if (rule) return rule;
  const plain = both(set, PLAIN), of: Rule[] = [];
  LENGTHS.forEach(([low, high, lead], more) => {
    const part = both(plain, [low, high]);
    if (part.length > 0) of.push(utf8(part, more, lead));
  });
  for (const code of [...Array(0x20).keys(), 0x22, 0x5c]) {
    if (has(set, code)) of.push(literal(JSON.stringify(String.fromCharCode(code)).slice(1, -1)));
  }
  if (of.length === 0) return undefined;
  rule = choice(...of);
  if (written.size > 1000) written.clear();
  written.set(key, rule);
  return rule;
}

/** Code points whose first byte, after `lead`, is followed by `more` bytes of six bits. */
function utf8(set: Characters, more: number, lead: number): Rule {
  const shift = 6 * more, groups = new Map<string, { allowed: Uint8Array; rest: number[] }>();
  for (let i = 0; i < set.length;) {
    const top = set[i] >>> shift, base = top * 2 ** shift, rest: number[] = [];
    for (; i < set.length && set[i] >>> shift === top; i += 2) {
      const high = Math.min(set[i + 1], base + 2 ** shift - 1);
      rest.push(set[i] - base, high - base);
      if (high < set[i + 1]) {
        set = [...set.slice(0, i), high + 1, ...set.slice(i + 1)];
        break;
      }
    }
    const key = rest.join(), group = groups.get(key) ?? { allowed: new Uint8Array(256), rest };
    groups.set(key, group);
    group.allowed[lead + top] = 1;
  }
  const of = Array.from(groups.values(), ({ allowed, rest }): Rule => {
    const first: Rule = { kind: "byte", allowed };
    return more === 0 ? first : sequence(first, utf8(rest, more - 1, 0x80));
  });
  return choice(...of);
}
