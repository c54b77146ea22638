/**
 * Shapes: values of one type and what they have to satisfy. A schema is a list of shapes, of which a value has to have one.
 *
 * @module
 */

import { isMultiple, type NumberRange } from "./number.ts";

/** Schemas that a value has to be valid by, or with `negate` must not be; all of them. */
export type Terms = readonly Term[];

/** A schema, or its opposite. */
export interface Term {
  /** Equal for the same schema. */
  readonly id: number;
  readonly schema: unknown;
  /** Where it stands. */
  readonly path: string;
  readonly negate: boolean;
}

/** The schemas that a schema is made of, and what they say. */
export interface Schemas {
  /** A schema as something to be valid by. */
  term(schema: unknown, path: string, negate?: boolean): Term;
  /** The shapes of values that are valid by all terms. */
  shapes(terms: Terms): readonly Shape[];
  /** Shapes of both lists. */
  meet(a: readonly Shape[], b: readonly Shape[]): readonly Shape[];
  /** Whether certainly no value is valid by all terms. */
  isDisjoint(terms: Terms): boolean;
  /** Says that values were left out. */
  leaveOut(): readonly Shape[];
  /** Whether values were left out since the last call. */
  takeLossy(): boolean;
}

/** One value. */
export interface ValueShape {
  readonly type: "value";
  readonly value: unknown;
}

/** Numbers. */
export interface NumberShape extends NumberRange {
  readonly type: "number";
}

/** Strings: characters at least and at most, expressions that match, or with `negate` do not, and values left out. */
export interface StringShape {
  readonly type: "string";
  readonly least: number;
  readonly most: number;
  readonly patterns: readonly { readonly source: string; readonly negate: boolean }[];
  readonly excluded: readonly string[];
}

/** What one schema says of items: of the first ones, and of the rest. */
export interface ItemFacet {
  readonly prefix: readonly Terms[];
  readonly rest: Terms;
  /** It speaks of the rest. */
  readonly open: boolean;
  /** It comes from the opposite of a schema, which evaluates nothing. */
  readonly negated: boolean;
}

/** Lists. Each facet says what the first items and the rest are; an item has to be valid by all facets. */
export interface ArrayShape {
  readonly type: "array";
  readonly least: number;
  readonly most: number;
  readonly unique: boolean;
  readonly facets: readonly ItemFacet[];
  readonly contains: readonly { readonly item: Terms; readonly least: number; readonly most: number }[];
}

/** What one schema says of members: by name, by an expression for names, and of all others. */
export interface Facet {
  readonly properties: ReadonlyMap<string, Terms>;
  readonly patterns: readonly { readonly source: string; readonly terms: Terms }[];
  readonly additional: Terms;
  /** It speaks of members that it does not name. */
  readonly open: boolean;
  /** It comes from the opposite of a schema, which evaluates nothing. */
  readonly negated: boolean;
}

/** Objects. */
export interface ObjectShape {
  readonly type: "object";
  readonly least: number;
  readonly most: number;
  readonly required: ReadonlySet<string>;
  readonly facets: readonly Facet[];
  readonly names: readonly Terms[];
}

/** Values of one type. */
export type Shape = ValueShape | NumberShape | StringShape | ArrayShape | ObjectShape;

/** Any number. */
export const NUMBER: NumberShape = { type: "number", integer: false, multiples: [], excluded: [] };
/** Any string. */
export const STRING: StringShape = { type: "string", least: 0, most: Infinity, patterns: [], excluded: [] };
/** Any list. */
export const ARRAY: ArrayShape = { type: "array", least: 0, most: Infinity, unique: false, facets: [], contains: [] };
/** Any object. */
export const OBJECT: ObjectShape = {
  type: "object",
  least: 0,
  most: Infinity,
  required: new Set(),
  facets: [],
  names: [],
};

/** `null`, `true`, `false`. */
export const SINGLE: readonly ValueShape[] = [null, true, false].map((value) => ({ type: "value", value }));

/** Every value. */
export const ALL: readonly Shape[] = [...SINGLE, NUMBER, STRING, ARRAY, OBJECT];

/** Values that have both shapes, by their bounds alone; undefined where there is none, or where the types differ. */
export function meet<S extends Exclude<Shape, ValueShape>>(a: S, b: Shape): S | undefined {
  if (a.type === "number" && b.type === "number") return meetNumbers(a, b) as S | undefined;
  if (a.type === "string" && b.type === "string") {
    const { least, most } = bounds(a, b);
    const patterns = [...a.patterns];
    for (const one of b.patterns) {
      if (!patterns.some(({ source, negate }) => source === one.source && negate === one.negate)) patterns.push(one);
    }
    return least > most
      ? undefined
      : { ...a, least, most, patterns, excluded: [...new Set([...a.excluded, ...b.excluded])] };
  }
  if (a.type === "array" && b.type === "array") {
    const { least, most } = bounds(a, b);
    if (least > most) return undefined;
    const unique = a.unique || b.unique;
    return { ...a, least, most, unique, facets: [...a.facets, ...b.facets], contains: [...a.contains, ...b.contains] };
  }
  if (a.type === "object" && b.type === "object") {
    const { least, most } = bounds(a, b), required = new Set([...a.required, ...b.required]);
    if (Math.max(least, required.size) > most) return undefined;
    return { ...a, least, most, required, facets: [...a.facets, ...b.facets], names: [...a.names, ...b.names] };
  }
  return undefined;
}

function bounds(
  a: { least: number; most: number },
  b: { least: number; most: number },
): { least: number; most: number } {
  return { least: Math.max(a.least, b.least), most: Math.min(a.most, b.most) };
}

function meetNumbers(a: NumberShape, b: NumberShape): NumberShape | undefined {
  const multiples = [...new Set([...a.multiples, ...b.multiples])],
    excluded = [...new Set([...a.excluded, ...b.excluded])];
  const [low, aboveLow] = (a.low ?? -Infinity) === (b.low ?? -Infinity)
    ? [a.low, a.aboveLow || b.aboveLow]
    : (a.low ?? -Infinity) > (b.low ?? -Infinity)
    ? [a.low, a.aboveLow]
    : [b.low, b.aboveLow];
  const [high, belowHigh] = (a.high ?? Infinity) === (b.high ?? Infinity)
    ? [a.high, a.belowHigh || b.belowHigh]
    : (a.high ?? Infinity) < (b.high ?? Infinity)
    ? [a.high, a.belowHigh]
    : [b.high, b.belowHigh];
  const integer = a.integer || b.integer, fractional = a.fractional || b.fractional;
  if (low !== undefined && high !== undefined && (low > high || (low === high && (aboveLow || belowHigh)))) {
    return undefined;
  }
  if (integer && fractional) return undefined;
  return { type: "number", integer, fractional, low, aboveLow, high, belowHigh, multiples, excluded };
}

/** Whether a number is in a range. */
export function inRange(value: number, range: NumberRange): boolean {
  const { integer, fractional, low = -Infinity, aboveLow, high = Infinity, belowHigh, multiples, excluded } = range;
  return (!integer || Number.isInteger(value)) && (!fractional || !Number.isInteger(value)) &&
    (aboveLow ? value > low : value >= low) && (belowHigh ? value < high : value <= high) &&
    multiples.every((multiple) => isMultiple(value, multiple)) && !excluded.includes(value);
}

/** Whether two values are equal, as JSON Schema says. */
export function isEqual(a: unknown, b: unknown): boolean {
  return canonical(a) === canonical(b);
}

/** A value as text, members in order of their names. */
export function canonical(value: unknown): string {
  return JSON.stringify(
    value,
    (_, part) =>
      typeof part === "object" && part !== null && !Array.isArray(part)
        ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => a < b ? -1 : 1))
        : part,
  );
}
