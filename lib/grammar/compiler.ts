/**
 * Shapes of values as rules for their texts.
 *
 * @module
 */

import { ANY, complement, intersection, isEmpty, texts, written } from "./automaton.ts";
import { Budget, SchemaError } from "./budget.ts";
import { anyCharacter } from "./characters.ts";
import { Expansion } from "./expansion.ts";
import { numbers } from "./number.ts";
import { productive } from "./productive.ts";
import { byte, choice, empty, literal, repeat, type Rule, sequence } from "./rule.ts";
import {
  ALL,
  type ArrayShape,
  canonical,
  type ObjectShape,
  type Shape,
  type StringShape,
  type Terms,
} from "./shape.ts";

const digit = byte("09"), space = repeat(literal(" "), 0, 1), comma = sequence(literal(","), space);
const colon = sequence(literal(":"), space), quote = literal('"');

/** Numbers without bounds: 15 digits before and after the point at most, so that a model cannot write them without end. */
const whole = choice(literal("0"), sequence(byte("19"), repeat(digit, 0, 14)));
const sign = repeat(literal("-"), 0, 1);
const fraction = repeat(sequence(literal("."), repeat(digit, 1, 15)), 0, 1);
const exponent = repeat(sequence(byte("e", "E"), repeat(byte("+", "-"), 0, 1), repeat(digit, 1, 2)), 0, 1);

const string = (least: number, most: number): Rule => sequence(quote, repeat(anyCharacter, least, most), quote);

/** Any JSON value. */
export const value: Rule = { kind: "call", rule: () => anyValue };
const anyValue = choice(
  string(0, Infinity),
  sequence(sign, whole, fraction, exponent),
  literal("true"),
  literal("false"),
  literal("null"),
  list(value, 0, Infinity),
  members(value),
);

/** `[`, values, `]`. */
function list(item: Rule, least: number, most: number): Rule {
  if (most === 0) return literal("[]");
  const some = sequence(item, repeat(sequence(comma, item), Math.max(0, least - 1), most - 1));
  return sequence(literal("["), least > 0 ? some : repeat(some, 0, 1), literal("]"));
}

/** `{`, members of any names, `}`. */
export function members(item: Rule): Rule {
  const member = sequence(string(0, Infinity), colon, item);
  return sequence(literal("{"), repeat(sequence(member, repeat(sequence(comma, member))), 0, 1), literal("}"));
}

/** States of a graph that are made when they are first met. */
class Graph<K> {
  readonly states: { ends: boolean; arcs: { rule: Rule; to: number }[] }[] = [];
  readonly #numbers = new Map<string, number>();
  readonly #open: K[] = [];
  readonly #budget: Budget;

  constructor(budget: Budget) {
    this.#budget = budget;
  }

  state(key: K): number {
    const text = JSON.stringify(key);
    let number = this.#numbers.get(text);
    if (number === undefined) {
      this.#numbers.set(text, number = this.#numbers.size);
      this.#open.push(key);
    }
    return number;
  }

  /** The rule, from what each state leads to. */
  rule(start: K, leads: (key: K) => { ends: boolean; arcs: { rule: Rule; to: number }[] }): Rule {
    this.state(start);
    for (const key of this.#open) {
      const state = leads(key);
      this.#budget.spend(2 + state.arcs.length);
      this.states.push(state);
    }
    return { kind: "graph", states: this.states };
  }
}

/** Lists of different values in any order, where there are at most so many values. */
const ANY_ORDER = 6;

/** Compiles a schema. */
export class Compiler {
  readonly #budget = new Budget();
  readonly #expansion: Expansion;
  readonly #rules = new Map<string, Rule>();
  readonly #open: { key: string; terms: Terms }[] = [];
  readonly #root: Terms;

  constructor(schema: unknown) {
    this.#expansion = new Expansion(schema, this.#budget);
    this.#root = [this.#expansion.term(schema, "#")];
  }

  /** The rule of the whole schema. */
  compile(): Rule {
    const root = this.#rule(this.#root), rootKey = this.#expansion.key(this.#root);
    for (const { key, terms } of this.#open) this.#rules.set(key, this.#choice(terms));
    const rules = productive(this.#rules, this.#budget);
    for (const [key, rule] of rules) this.#rules.set(key, rule);
    if (!rules.has(rootKey)) throw new SchemaError("no value is valid by the schema, or none that can be written");
    return root;
  }

  /** A call of what is valid by terms; compiled later, since it may refer to itself. */
  #rule(terms: Terms): Rule {
    const key = this.#expansion.key(terms);
    if (!this.#rules.has(key)) {
      this.#rules.set(key, empty);
      this.#open.push({ key, terms });
    }
    return { kind: "call", name: key, rule: () => this.#rules.get(key)! };
  }

  #choice(terms: Terms): Rule {
    const path = terms[0]?.path ?? "#", written = new Set<string>(), of: Rule[] = [];
    if (terms.every(({ schema, negate }) => schema === !negate || (!negate && isAnything(schema)))) return value;
    for (const shape of meant(this.#expansion.shapes(terms))) {
      this.#budget.spend(4);
      const key = shape.type === "value" ? JSON.stringify(shape.value) : undefined;
      if (key !== undefined && written.has(key)) continue;
      if (key !== undefined) written.add(key);
      const rule = this.#shape(shape, path);
      if (rule) of.push(rule);
    }
    return choice(...of);
  }

  /** Undefined where there is no value of the shape. */
  #shape(shape: Shape, path: string): Rule | undefined {
    switch (shape.type) {
      case "value":
        return literal(JSON.stringify(shape.value));
      case "number": {
        const { integer, fractional, low, high, multiples, excluded } = shape;
        const isFree = !fractional && multiples.length + excluded.length === 0 && low === undefined &&
          high === undefined;
        if (isFree) return integer ? sequence(sign, whole) : sequence(sign, whole, fraction, exponent);
        try {
          return written(numbers(shape, this.#budget), this.#budget);
        } catch (error) {
          throw error instanceof SchemaError ? new SchemaError(`${path}: ${error.message}`) : error;
        }
      }
      case "string":
        return this.#string(shape, path);
      case "array":
        return this.#array(shape, path);
      case "object":
        return this.#object(shape, path);
    }
  }

  #string({ least, most, patterns, excluded }: StringShape, path: string): Rule | undefined {
    if (patterns.length === 0 && excluded.length === 0) return string(least, most);
    try {
      const budget = this.#budget;
      let automaton = ANY;
      for (const { source, negate } of patterns) {
        automaton = intersection(automaton, this.#expansion.pattern(source, negate), budget);
      }
      if (excluded.length > 0) automaton = intersection(automaton, complement(texts(excluded, budget)), budget);
      const inside = written(automaton, budget, least, most);
      return inside && sequence(quote, inside, quote);
    } catch (error) {
      throw error instanceof SchemaError ? new SchemaError(`${path}: ${error.message}`) : error;
    }
  }

  #array(shape: ArrayShape, path: string): Rule | undefined {
    const { least, most, unique, facets } = shape;
    if (unique && most > 1) return this.#different(shape, path);
    const contains = shape.contains.filter((one) => one.least > 0 || one.most < Infinity);
    const prefix = Math.max(0, ...facets.map((facet) => facet.prefix.length));
    const item = this.#expansion.item(shape, prefix), rest = this.#rule(item);
    if (prefix === 0 && contains.length === 0) {
      const none = most > 0 && this.#expansion.isImpossible(item);
      return none && least > 0 ? undefined : list(rest, least, none ? 0 : most);
    }
    // A state: how many items there are, and how many of them satisfy each `contains`, as far as that matters.
    const last = Math.max(prefix, least, most === Infinity ? 0 : most, 1), graph = new Graph<number[]>(this.#budget);
    const inside = graph.rule([0, ...contains.map(() => 0)], ([count, ...found]) => {
      const ends = count >= least && found.every((n, i) => n >= contains[i].least);
      const arcs: { rule: Rule; to: number }[] = [];
      if (count >= most) return { ends, arcs };
      const terms = this.#expansion.item(shape, Math.min(count, prefix)), next = Math.min(count + 1, last);
      // Each way in which the item satisfies some of them and not the others.
      for (let chosen = 0; chosen < 2 ** contains.length; chosen++) {
        const is = (i: number) => (chosen >> i & 1) === 1;
        if (contains.some((one, i) => is(i) && (one.most < Infinity ? found[i] >= one.most : found[i] >= one.least))) {
          continue;
        }
        const more = contains.flatMap((one, i) =>
          is(i) ? one.item : one.most < Infinity ? this.#opposite(one.item, path) : []
        );
        const together = [...terms, ...more];
        if (this.#expansion.isImpossible(together)) continue;
        const rule = count > 0 ? sequence(comma, this.#rule(together)) : this.#rule(together);
        arcs.push({ rule, to: graph.state([next, ...found.map((n, i) => is(i) ? n + 1 : n)]) });
      }
      return { ends, arcs };
    });
    return sequence(literal("["), inside, literal("]"));
  }

  #opposite(terms: Terms, path: string): Terms {
    if (terms.length !== 1) throw new SchemaError(`the schema at ${path} has a "maxContains" that is not supported`);
    return [this.#expansion.term(terms[0].schema, terms[0].path, !terms[0].negate)];
  }

  /** Lists without two equal items, of the few values that there are. */
  #different(shape: ArrayShape, path: string): Rule | undefined {
    const terms = this.#expansion.item(shape, 0), shapes = this.#expansion.shapes(terms);
    const values = new Map(
      shapes.map((each) => each.type === "value" ? [canonical(each.value), each.value] : ["", undefined]),
    );
    const isPlain = shape.contains.length === 0 && shape.facets.every(({ prefix }) => prefix.length === 0);
    if (!isPlain || values.has("")) {
      throw new SchemaError(
        `the schema at ${path} has "uniqueItems" for items that are no enumeration, which is not supported`,
      );
    }
    const all = [...values.values()], { least, most } = shape, free = all.length <= ANY_ORDER;
    // A state: the items so far, as a sum of 2^i; in order, the next that may come; and how many there are.
    const graph = new Graph<[used: number, count: number]>(this.#budget);
    const inside = graph.rule([0, 0], ([used, count]) => {
      const arcs = all.flatMap((value, i) => {
        if (count >= most || (free ? (used >> i & 1) === 1 : i < used)) return [];
        const item = literal(JSON.stringify(value)), to = graph.state([free ? used | 1 << i : i + 1, count + 1]);
        return [{ rule: count > 0 ? sequence(comma, item) : item, to }];
      });
      return { ends: count >= least, arcs };
    });
    return sequence(literal("["), inside, literal("]"));
  }

  /** The names that members can have, in order, and the rules of those that the schema does not name. */
  #names(shape: ObjectShape, path: string): { named: string[]; others: Rule[] } {
    const expansion = this.#expansion, { facets, required } = shape;
    const finite = shape.names.map((terms) => expansion.shapes(terms)).find((shapes) =>
      shapes.every(({ type }) => type === "value")
    );
    const own = new Set(facets.flatMap(({ properties }) => [...properties.keys()]));
    const known = new Set([...own, ...required]);
    for (const each of finite ?? []) {
      if (each.type === "value" && typeof each.value === "string") known.add(each.value);
    }
    const named = [...known].filter((name) =>
      shape.names.every((terms) => expansion.shapes(terms).some((each) => expansion.has(each, name)))
    );
    const isOpen = facets.some(({ open }) => open) || known.size === 0 || shape.least > named.length;
    return { named, others: finite || !isOpen ? [] : this.#others(shape, known, path) };
  }

  /** Members of names that the schema does not name: by the expressions that match the name. */
  #others({ facets, names }: ObjectShape, known: ReadonlySet<string>, path: string): Rule[] {
    const budget = this.#budget,
      sources = [...new Set(facets.flatMap(({ patterns }) => patterns.map(({ source }) => source)))];
    const allowed = names.map((terms): StringShape[] => {
      const shapes = this.#expansion.shapes(terms);
      return shapes.filter((each) => each.type === "string");
    });
    if (allowed.some((shapes) => shapes.length !== 1)) {
      throw new SchemaError(`the schema at ${path} has a "propertyNames" with alternatives, which is not supported`);
    }
    let start = known.size > 0 ? complement(texts([...known], budget)) : ANY;
    const least = Math.max(0, ...allowed.map(([shape]) => shape.least));
    const most = Math.min(Infinity, ...allowed.map(([shape]) => shape.most));
    for (const [{ patterns, excluded }] of allowed) {
      for (const { source, negate } of patterns) {
        start = intersection(start, this.#expansion.pattern(source, negate), budget);
      }
      if (excluded.length > 0) start = intersection(start, complement(texts(excluded, budget)), budget);
    }
    let kinds = [{ automaton: start, matched: new Set<string>() }];
    for (const source of sources) {
      const one = this.#expansion.pattern(source), other = this.#expansion.pattern(source, true);
      kinds = kinds.flatMap(({ automaton, matched }) => [
        { automaton: intersection(automaton, one, budget), matched: new Set([...matched, source]) },
        { automaton: intersection(automaton, other, budget), matched },
      ]).filter(({ automaton }) => !isEmpty(automaton));
    }
    return kinds.flatMap(({ automaton, matched }) => {
      const terms = facets.flatMap(({ patterns, additional }) => {
        const matching = patterns.filter(({ source }) => matched.has(source));
        return matching.length > 0 ? matching.flatMap(({ terms }) => terms) : additional;
      });
      if (this.#expansion.isImpossible(terms)) return [];
      const name = automaton === ANY ? repeat(anyCharacter, least, most) : written(automaton, budget, least, most);
      return name ? [sequence(quote, name, quote, colon, this.#rule(terms))] : [];
    });
  }

  #object(shape: ObjectShape, path: string): Rule | undefined {
    const { least, most, required } = shape, { named, others } = this.#names(shape, path);
    if ([...required].some((name) => !named.includes(name))) return undefined;
    const possible = named.flatMap((name) => {
      const terms = this.#expansion.member(shape, name);
      if (this.#expansion.isImpossible(terms)) return [];
      return [{ name, member: sequence(literal(JSON.stringify(name)), colon, this.#rule(terms)) }];
    });
    const needed = required.size + others.length + possible.length;
    if (least > possible.length + Math.min(1, others.length)) {
      if (others.length === 0) return undefined;
      throw new SchemaError(
        `the schema at ${path} has a "minProperties" of more members than it names, which is not supported`,
      );
    }
    // Counts that cannot be missed need not be kept.
    const counts = least > required.size || most < (others.length > 0 ? Infinity : needed);
    const top = most < Infinity ? most : least;
    const graph = new Graph<[at: number, count: number, some: boolean, other: boolean]>(this.#budget);
    const inside = graph.rule([0, 0, false, false], ([at, count, some, other]) => {
      const arcs: { rule: Rule; to: number }[] = [], more = counts ? Math.min(count + 1, top) : 0;
      const add = (rule: Rule, to: number) => arcs.push({ rule: some ? sequence(comma, rule) : rule, to });
      const isFull = counts && count >= most;
      if (at < possible.length) {
        const { name, member } = possible[at];
        if (!isFull) add(member, graph.state([at + 1, more, true, false]));
        if (!required.has(name)) arcs.push({ rule: empty, to: graph.state([at + 1, count, some, false]) });
        return { ends: false, arcs };
      }
      // Of two members that the schema does not name, the names may be the same: they count as one where few are too few.
      const next = other && most === Infinity ? count : more;
      if (!isFull) { for (const rule of others) add(rule, graph.state([at, next, true, true])); }
      return { ends: !counts || count >= least, arcs };
    });
    return sequence(literal("{"), inside, literal("}"));
  }
}

/** Of a schema that speaks of one type and forbids no other, that type: `properties` without a `type` means an object. */
function meant(shapes: readonly Shape[]): readonly Shape[] {
  const plain = shapes.filter((shape) => ALL.includes(shape)), rest = shapes.filter((shape) => !ALL.includes(shape));
  const types = new Set(rest.map(({ type }) => type));
  return types.size === 1 && ALL.every((shape) => plain.includes(shape) !== types.has(shape.type)) ? rest : shapes;
}

/** Whether a schema says nothing. */
function isAnything(schema: unknown): boolean {
  return typeof schema === "object" && schema !== null && Object.keys(schema).length === 0;
}
