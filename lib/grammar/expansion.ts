/**
 * Schemas as lists of shapes: what `allOf`, `anyOf`, `oneOf`, `not`, `if`, `$ref` and the other keywords say together, exact or
 * refused. The opposite of a schema is pushed down to its keywords. Where the opposite of a keyword is no shape, those
 * values are left out, which never lets too much through.
 *
 * @module
 */

import { type Automaton, matches } from "./automaton.ts";
import { type Budget, SchemaError } from "./budget.ts";
import { Keywords } from "./keywords.ts";
import { pattern } from "./pattern.ts";
import { isObject, References } from "./reference.ts";
import {
  ALL,
  type ArrayShape,
  canonical,
  inRange,
  isEqual,
  meet,
  type ObjectShape,
  type Schemas,
  type Shape,
  type Term,
  type Terms,
} from "./shape.ts";

type Json = Record<string, unknown>;

/** Schemas inside schemas at most, on the way of one value. */
const MOST_DEPTH = 120;

const NOTHING: readonly Shape[] = [];

/** What an expansion found: the shapes, and whether values were left out on the way. */
interface Expanded {
  readonly shapes: readonly Shape[];
  readonly lossy: boolean;
}

/** Expands the parts of one schema. */
export class Expansion implements Schemas {
  readonly #references: References;
  readonly #budget: Budget;
  readonly #ids = new Map<unknown, number>();
  readonly #known = new Map<string, Expanded>();
  /** Terms that are being expanded, and those that are asked for values. */
  #open = new Set<string>();
  readonly #asked = new Set<string>();
  readonly #patterns = new Map<string, Automaton>();
  #depth = 0;
  #lossy = false;

  constructor(root: unknown, budget: Budget) {
    this.#references = new References(root);
    this.#budget = budget;
  }

  /** A schema as something to be valid by. */
  term(schema: unknown, path: string, negate: boolean = false): Term {
    if (typeof schema !== "boolean" && !isObject(schema)) {
      throw new SchemaError(`the schema at ${path} is not an object`);
    }
    let id = this.#ids.get(schema);
    if (id === undefined) this.#ids.set(schema, id = this.#ids.size);
    return { id, schema, path, negate };
  }

  /** The automaton of a regular expression, or of its opposite. */
  pattern(source: string, negate: boolean = false): Automaton {
    const key = `${negate}${source}`;
    let automaton = this.#patterns.get(key);
    if (!automaton) this.#patterns.set(key, automaton = pattern(source, this.#budget, negate));
    return automaton;
  }

  /** Equal for terms that say the same. */
  key(terms: Terms): string {
    return [...new Set(terms.map(({ id, negate }) => negate ? -id - 1 : id))].sort((a, b) => a - b).join();
  }

  /** The shapes of values that are valid by all terms. Throws {@link SchemaError}. */
  shapes(terms: Terms): readonly Shape[] {
    return this.#expand(terms).shapes;
  }

  #expand(terms: Terms): Expanded {
    const key = this.key(terms), known = this.#known.get(key);
    if (known) {
      this.#lossy ||= known.lossy;
      return known;
    }
    const outer = this.#lossy;
    this.#lossy = false;
    let shapes = ALL;
    for (const term of terms) {
      if (shapes.length === 0) break;
      shapes = this.meet(shapes, this.#term(term));
    }
    const found = { shapes, lossy: this.#lossy };
    this.#known.set(key, found);
    this.#lossy ||= outer;
    return found;
  }

  /** Whether no value is valid, as far as one looks; what is being asked already counts as possible. */
  isImpossible(terms: Terms): boolean {
    const key = this.key(terms);
    if (this.#asked.has(key) || this.#depth > MOST_DEPTH / 3) return false;
    // A schema inside itself, with a value between, is no circle.
    const outer = this.#open;
    this.#open = new Set();
    this.#asked.add(key);
    try {
      return this.#enter(terms[0]?.path ?? "#", () => this.#expand(terms).shapes.length === 0);
    } finally {
      this.#asked.delete(key);
      this.#open = outer;
    }
  }

  #enter<T>(path: string, inside: () => T): T {
    if (++this.#depth > MOST_DEPTH) throw new SchemaError(`the schema at ${path} is inside too many others`);
    try {
      return inside();
    } finally {
      this.#depth--;
    }
  }

  /** Shapes of both lists. */
  meet(a: readonly Shape[], b: readonly Shape[]): readonly Shape[] {
    if (a === ALL) return b;
    if (b === ALL) return a;
    const result: Shape[] = [];
    for (const one of a) {
      for (const other of b) {
        this.#budget.spend(4);
        const both = this.#both(one, other);
        if (both) result.push(both);
      }
    }
    return result;
  }

  #both(a: Shape, b: Shape): Shape | undefined {
    if (a.type === "value") return this.has(b, a.value) ? a : undefined;
    if (b.type === "value") return this.has(a, b.value) ? b : undefined;
    const both = meet(a, b);
    if (both?.type !== "object") return both;
    this.#budget.spend(both.facets.length * both.required.size);
    for (const name of both.required) if (this.isImpossible(this.member(both, name))) return undefined;
    return both;
  }

  /** What a member of a name has to be valid by. */
  member(shape: ObjectShape, name: string): Terms {
    return this.#all(shape.facets.flatMap((facet) => {
      const terms = [...facet.properties.get(name) ?? []];
      let known = facet.properties.has(name);
      for (const { source, terms: more } of facet.patterns) {
        if (!matches(this.pattern(source), name)) continue;
        known = true;
        terms.push(...more);
      }
      return known ? terms : facet.additional;
    }));
  }

  /** What an item has to be valid by. */
  item(shape: ArrayShape, at: number): Terms {
    return this.#all(shape.facets.flatMap(({ prefix, rest }) => prefix[at] ?? rest));
  }

  #all(terms: Terms): Terms {
    const seen = new Set<number>();
    return terms.filter(({ id, negate }) => {
      const key = negate ? -id - 1 : id, isNew = !seen.has(key);
      seen.add(key);
      return isNew;
    });
  }

  /** Whether a value has a shape. */
  has(shape: Shape, value: unknown): boolean {
    this.#budget.spend(1);
    const valid = (terms: Terms, part: unknown) =>
      this.#enter("#", () => this.shapes(terms).some((each) => this.has(each, part)));
    switch (shape.type) {
      case "value":
        return isEqual(shape.value, value);
      case "number":
        return typeof value === "number" && inRange(value, shape);
      case "string": {
        if (typeof value !== "string" || shape.excluded.includes(value)) return false;
        const { length } = [...value];
        return length >= shape.least && length <= shape.most &&
          shape.patterns.every(({ source, negate }) => matches(this.pattern(source, negate), value));
      }
      case "array":
        return Array.isArray(value) && value.length >= shape.least && value.length <= shape.most &&
          (!shape.unique || new Set(value.map(canonical)).size === value.length) &&
          value.every((item, i) => valid(this.item(shape, i), item)) &&
          shape.contains.every(({ item, least, most }) => {
            const count = value.filter((each) => valid(item, each)).length;
            return count >= least && count <= most;
          });
      case "object": {
        if (!isObject(value)) return false;
        const names = Object.keys(value);
        return names.length >= shape.least && names.length <= shape.most &&
          [...shape.required].every((name) => Object.hasOwn(value, name)) &&
          names.every((name) => shape.names.every((terms) => valid(terms, name))) &&
          names.every((name) => valid(this.member(shape, name), value[name]));
      }
    }
  }

  #term(term: Term): readonly Shape[] {
    const { schema, path, negate, id } = term;
    if (typeof schema === "boolean") return schema !== negate ? ALL : NOTHING;
    const key = `${negate ? -id - 1 : id}!`, known = this.#known.get(key);
    if (known) {
      this.#lossy ||= known.lossy;
      return known.shapes;
    }
    if (this.#open.has(key)) throw new SchemaError(`the schema at ${path} refers to itself without a value between`);
    this.#open.add(key);
    const outer = this.#lossy;
    this.#lossy = false;
    const shapes = this.#enter(path, () => {
      this.#budget.spend(10);
      return new Keywords(this, this.#references, schema as Json, path, negate).shapes();
    });
    this.#open.delete(key);
    this.#known.set(key, { shapes, lossy: this.#lossy });
    this.#lossy ||= outer;
    return shapes;
  }

  /** Says that values were left out. */
  leaveOut(): readonly Shape[] {
    this.#lossy = true;
    return NOTHING;
  }

  /** Whether values were left out since the last call. */
  takeLossy(): boolean {
    const lossy = this.#lossy;
    this.#lossy = false;
    return lossy;
  }

  /** Whether certainly no value is valid by all terms. */
  isDisjoint(terms: Terms): boolean {
    const outer = this.takeLossy(), { shapes, lossy } = this.#expand(terms);
    this.#lossy = outer;
    return shapes.length === 0 && !lossy;
  }
}
