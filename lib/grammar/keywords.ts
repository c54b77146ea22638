/**
 * What the keywords of one schema say, as shapes; or what their opposite says.
 *
 * @module
 */

import { SchemaError } from "./budget.ts";
import { Constraints } from "./constraints.ts";
import { isObject, shown } from "./reference.ts";
import {
  ALL,
  ARRAY,
  type ArrayShape,
  isEqual,
  NUMBER,
  OBJECT,
  type ObjectShape,
  type Shape,
  SINGLE,
  STRING,
  type Terms,
} from "./shape.ts";

type Json = Record<string, unknown>;
type Shapes = readonly Shape[];

/** Keywords that are assertions and are not kept. */
const REFUSED = ["$recursiveRef", "extends", "disallow", "divisibleBy"];

const TYPES: ReadonlyMap<string, Shapes> = new Map<string, Shapes>([
  ["null", SINGLE.slice(0, 1)],
  ["boolean", SINGLE.slice(1)],
  ["integer", [{ ...NUMBER, integer: true }]],
  ["number", [NUMBER]],
  ["string", [STRING]],
  ["array", [ARRAY]],
  ["object", [OBJECT]],
]);

/** The keywords of a schema. */
export class Keywords extends Constraints {
  /** The shapes of values for which all keywords hold; of the opposite, for which one does not. */
  shapes(): Shapes {
    const refused = REFUSED.find((keyword) => this.schema[keyword] !== undefined);
    if (refused) throw new SchemaError(`the schema at ${this.path} has "${refused}", which is not supported`);
    const all = [
      this.#type,
      this.#enum,
      this.#reference,
      this.#combined,
      this.#oneOf,
      this.#not,
      this.#if,
      this.numbers,
      this.strings,
      this.items,
      this.members,
      this.dependent,
      this.#unevaluated,
    ];
    let result: Shapes = this.negate ? [] : ALL;
    for (const keyword of all) {
      if (this.negate) result = [...result, ...keyword.call(this, [])];
      else result = keyword.call(this, result);
    }
    return result;
  }

  #list(keyword: string): unknown[] | undefined {
    const list = this.schema[keyword];
    if (list === undefined) return undefined;
    if (!Array.isArray(list) || list.length === 0) throw this.error(keyword, "is not a list of schemas");
    return list;
  }

  #type(result: Shapes): Shapes {
    const { type } = this.schema;
    if (type === undefined) return result;
    const names = new Set([type].flat());
    if (names.size === 0) throw this.error("type", "is an empty list");
    for (const name of names) {
      if (!TYPES.has(name as string)) throw this.error("type", `has ${shown(name)}, which is no type`);
    }
    if (names.has("number")) names.delete("integer");
    if (!this.negate) return this.expansion.meet(result, [...names].flatMap((name) => TYPES.get(name as string)!));
    const others = [...TYPES].filter(([name]) => name !== "integer" && !names.has(name)).flatMap(([, shapes]) =>
      shapes
    );
    return names.has("integer")
      ? others.map((shape) => shape === NUMBER ? { ...NUMBER, fractional: true } : shape)
      : others;
  }

  #enum(result: Shapes): Shapes {
    for (const keyword of ["enum", "const"]) {
      if (!Object.hasOwn(this.schema, keyword)) continue;
      const values = keyword === "enum" ? this.schema.enum : [this.schema.const];
      if (!Array.isArray(values)) throw this.error(keyword, "is not a list");
      if (this.negate) result = [...result, ...this.#notOf(values)];
      else result = this.expansion.meet(result, values.map((value) => ({ type: "value", value })));
    }
    return result;
  }

  /** Values other than these. Of lists and objects only such as have more parts than any of these. */
  #notOf(values: unknown[]): Shapes {
    const single = SINGLE.filter((shape) => !values.some((value) => isEqual(shape.value, value)));
    const lists = values.filter((value) => Array.isArray(value)), objects = values.filter(isObject);
    if (lists.length + objects.length > 0) this.expansion.leaveOut();
    const parts = (of: unknown[]) => Math.max(-1, ...of.map((value) => Object.keys(value as Json).length)) + 1;
    return [
      ...single,
      { ...NUMBER, excluded: values.filter((value) => typeof value === "number") },
      { ...STRING, excluded: values.filter((value) => typeof value === "string") },
      { ...ARRAY, least: parts(lists) },
      { ...OBJECT, least: parts(objects) },
    ];
  }

  #reference(result: Shapes): Shapes {
    for (const keyword of ["$ref", "$dynamicRef"]) {
      const reference = this.schema[keyword];
      if (reference === undefined) continue;
      if (keyword === "$dynamicRef" && !this.references.isStatic(reference)) {
        throw new SchemaError(`the schema at ${this.path} has "$dynamicRef", which is not supported`);
      }
      const target = this.references.target(reference, this.schema, this.path);
      result = this.#also(result, [this.expansion.term(target, String(reference), this.negate)]);
    }
    return result;
  }

  /** With terms as well; of the opposite, or with these. */
  #also(result: Shapes, terms: Terms): Shapes {
    const shapes = this.expansion.shapes(terms);
    return this.negate ? [...result, ...shapes] : this.expansion.meet(result, shapes);
  }

  #combined(result: Shapes): Shapes {
    for (const keyword of ["allOf", "anyOf"]) {
      const list = this.#list(keyword);
      if (!list) continue;
      const terms = list.map((schema, i) => this.expansion.term(schema, `${this.path}/${keyword}/${i}`, this.negate));
      // By De Morgan, the opposite of all is one of the opposites.
      const together = (keyword === "allOf") !== this.negate;
      const each = new Map(terms.map((term) => [term.id, term]));
      const shapes = together
        ? this.expansion.shapes([...each.values()])
        : [...each.values()].flatMap((term) => this.expansion.shapes([term]));
      result = this.negate ? [...result, ...shapes] : this.expansion.meet(result, shapes);
    }
    return result;
  }

  #oneOf(result: Shapes): Shapes {
    const list = this.#list("oneOf"), expansion = this.expansion;
    if (!list) return result;
    const term = (i: number, negate: boolean) => expansion.term(list[i], `${this.path}/oneOf/${i}`, negate);
    const indices = [...list.keys()];
    if (this.negate) {
      const none = expansion.shapes(indices.map((i) => term(i, true)));
      const two = indices.flatMap((i) =>
        indices.slice(i + 1).flatMap((j) => expansion.shapes([term(i, false), term(j, false)]))
      );
      return [...result, ...none, ...two];
    }
    const one = indices.flatMap((i) => {
      const before = expansion.shapes([term(i, false)]);
      let shapes = before;
      for (const j of indices) {
        if (j === i || shapes.length === 0 || expansion.isDisjoint([term(i, false), term(j, false)])) continue;
        const outer = expansion.takeLossy();
        shapes = expansion.meet(shapes, expansion.shapes([term(j, true)]));
        const lossy = expansion.takeLossy();
        if (outer || lossy) expansion.leaveOut();
        if (lossy && shapes.length === 0) {
          throw this.error(
            "oneOf",
            `has alternatives ${i} and ${j}, which one value can satisfy both: this is not supported`,
          );
        }
      }
      return shapes;
    });
    return expansion.meet(result, one);
  }

  #not(result: Shapes): Shapes {
    return this.schema.not === undefined ? result : this.#also(result, this.term("not", this.schema.not, !this.negate));
  }

  #if(result: Shapes): Shapes {
    if (this.schema.if === undefined) return result;
    const shapes = (negate: boolean, keyword: string): Shapes =>
      this.schema[keyword] === undefined && this.negate ? [] : this.expansion.shapes([
        ...this.term("if", this.schema.if, negate),
        ...this.term(keyword),
      ]);
    const both = [...shapes(false, "then"), ...shapes(true, "else")];
    return this.negate ? [...result, ...both] : this.expansion.meet(result, both);
  }

  /** What no other keyword of this schema has looked at. */
  #unevaluated(result: Shapes): Shapes {
    const { unevaluatedProperties: members, unevaluatedItems: items } = this.schema;
    if ((members ?? items) !== undefined && this.negate) return this.expansion.leaveOut();
    if (members === undefined && items === undefined) return result;
    // What is looked at inside of `not` does not count, and the opposite of an opposite is not told from what it is of.
    if (this.references.hasNot) {
      throw new SchemaError(
        `the schema at ${this.path} has "unevaluated..." in a schema with "not", which is not supported`,
      );
    }
    const closed = result.flatMap((shape): Shapes => {
      if (shape.type === "object" && members !== undefined) return [this.#closedObject(shape)];
      if (shape.type === "array" && items !== undefined) return [this.#closedArray(shape)];
      // What is in a value was looked at by nobody, or it is not known.
      const isPlain = shape.type !== "value" || typeof shape.value !== "object" ||
        Object.keys(shape.value ?? {}).length === 0;
      return isPlain ? [shape] : this.expansion.leaveOut();
    });
    return this.expansion.meet(closed, [...ALL]);
  }

  #closedObject(shape: ObjectShape): ObjectShape {
    const seen = shape.facets.filter(({ negated }) => !negated);
    if (seen.some(({ additional }) => additional.length > 0)) return shape;
    const names = seen.flatMap((facet) => [...facet.properties.keys()]);
    const properties = new Map(names.map((name): [string, Terms] => [name, []]));
    const patterns = seen.flatMap((facet) => facet.patterns.map(({ source }) => ({ source, terms: [] })));
    const additional = this.term("unevaluatedProperties");
    return { ...shape, facets: [...shape.facets, { properties, patterns, additional, open: true, negated: false }] };
  }

  #closedArray(shape: ArrayShape): ArrayShape {
    const seen = shape.facets.filter(({ negated }) => !negated);
    if (seen.some(({ open }) => open)) return shape;
    const prefix = Array<Terms>(Math.max(0, ...seen.map((facet) => facet.prefix.length))).fill([]);
    const facet = { prefix, rest: this.term("unevaluatedItems"), open: true, negated: false };
    return { ...shape, facets: [...shape.facets, facet] };
  }
}
