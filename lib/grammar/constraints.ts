/**
 * What the keywords of one type say of numbers, strings, lists and objects, as shapes; or what their opposite says.
 *
 * @module
 */

import { SchemaError } from "./budget.ts";
import { FORMATS, LONGEST } from "./format.ts";
import { isObject, type References } from "./reference.ts";
import {
  ALL,
  ARRAY,
  type ArrayShape,
  type Facet,
  NUMBER,
  type NumberShape,
  OBJECT,
  type ObjectShape,
  type Schemas,
  type Shape,
  STRING,
  type StringShape,
  type Terms,
} from "./shape.ts";

type Json = Record<string, unknown>;
type Shapes = readonly Shape[];

/** One schema, or its opposite. */
export class Constraints {
  protected readonly expansion: Schemas;
  protected readonly references: References;
  protected readonly schema: Json;
  protected readonly path: string;
  protected readonly negate: boolean;

  constructor(expansion: Schemas, references: References, schema: Json, path: string, negate: boolean) {
    this.expansion = expansion;
    this.references = references;
    this.schema = schema;
    this.path = path;
    this.negate = negate;
  }

  protected error(keyword: string, message: string): SchemaError {
    return new SchemaError(`${this.path}/${keyword} ${message}`);
  }

  protected term(keyword: string, schema: unknown = this.schema[keyword], negate: boolean = this.negate): Terms {
    if (schema === undefined) return [];
    return [this.expansion.term(schema, `${this.path}/${keyword}`, negate)];
  }

  /** Shapes that hold as well; with those of other types, of which a keyword says nothing. */
  #and(result: Shapes, shape: Exclude<Shape, { type: "value" }>): Shapes {
    return this.expansion.meet(result, ALL.map((other) => other.type === shape.type ? shape : other));
  }

  protected map(keyword: string): Json {
    const map = this.schema[keyword] ?? {};
    if (!isObject(map)) throw this.error(keyword, "is not an object");
    return map;
  }

  #number(keyword: string): number | undefined {
    const value = this.schema[keyword];
    if (value === undefined) return undefined;
    if (typeof value !== "number") throw this.error(keyword, "is not a number");
    return value;
  }

  #count(keyword: string): number | undefined {
    const value = this.#number(keyword);
    if (value !== undefined && !(Number.isInteger(value) && value >= 0)) {
      throw this.error(keyword, "is not a whole number from 0 on");
    }
    return value;
  }

  protected numbers(result: Shapes): Shapes {
    const { exclusiveMinimum, exclusiveMaximum } = this.schema, minimum = this.#number("minimum");
    const maximum = this.#number("maximum"), multiple = this.#number("multipleOf");
    const shapes: NumberShape[] = [];
    // Drafts before the sixth have a boolean here.
    const bound = (low: number | undefined, high: number | undefined, open: boolean) => {
      if (low !== undefined) shapes.push({ ...NUMBER, low, aboveLow: open });
      if (high !== undefined) shapes.push({ ...NUMBER, high, belowHigh: open });
    };
    if (typeof exclusiveMinimum !== "boolean") {
      const low = this.#number("exclusiveMinimum");
      this.negate ? bound(undefined, low, false) : bound(low, undefined, true);
    }
    if (typeof exclusiveMaximum !== "boolean") {
      const high = this.#number("exclusiveMaximum");
      this.negate ? bound(high, undefined, false) : bound(undefined, high, true);
    }
    if (this.negate) {
      bound(undefined, minimum, exclusiveMinimum !== true);
      bound(maximum, undefined, exclusiveMaximum !== true);
      return multiple === undefined ? shapes : [...shapes, ...this.expansion.leaveOut()];
    }
    bound(minimum, undefined, exclusiveMinimum === true);
    bound(undefined, maximum, exclusiveMaximum === true);
    // OpenAPI's formats of numbers, which validators keep.
    if (/^int(32|64)$/.test(String(this.schema.format))) shapes.push({ ...NUMBER, integer: true });
    if (multiple !== undefined) {
      if (multiple <= 0) throw this.error("multipleOf", "is not above 0");
      shapes.push({ ...NUMBER, multiples: [multiple] });
    }
    return shapes.reduce<Shapes>((result, shape) => this.#and(result, shape), result);
  }

  protected strings(result: Shapes): Shapes {
    const least = this.#count("minLength"), most = this.#count("maxLength"), shapes: StringShape[] = [];
    const { pattern, format } = this.schema;
    if (pattern !== undefined && typeof pattern !== "string") throw this.error("pattern", "is not a string");
    if (this.negate) {
      if (least) shapes.push({ ...STRING, most: least - 1 });
      if (most !== undefined) shapes.push({ ...STRING, least: most + 1 });
      if (pattern !== undefined) shapes.push({ ...STRING, patterns: [{ source: pattern, negate: true }] });
      if (FORMATS.has(format as string) || /^int(32|64)$/.test(String(format))) this.expansion.leaveOut();
      return shapes;
    }
    if (least !== undefined) shapes.push({ ...STRING, least });
    if (most !== undefined) shapes.push({ ...STRING, most });
    const longest = LONGEST.get(format as string);
    if (longest !== undefined) shapes.push({ ...STRING, most: longest });
    const sources = [pattern, FORMATS.get(format as string)].filter((source) => source !== undefined);
    for (const source of sources) shapes.push({ ...STRING, patterns: [{ source, negate: false }] });
    return shapes.reduce<Shapes>((result, shape) => this.#and(result, shape), result);
  }

  protected items(result: Shapes): Shapes {
    const { items, contains, uniqueItems } = this.schema,
      least = this.#count("minItems"),
      most = this.#count("maxItems");
    // Drafts before 2020-12 have a list in `items`, and the rest in `additionalItems`.
    const list = Array.isArray(items) ? items : this.schema.prefixItems ?? [],
      place = Array.isArray(items) ? "items" : "prefixItems";
    if (!Array.isArray(list)) throw this.error("prefixItems", "is not a list");
    const restOf = Array.isArray(items) ? "additionalItems" : "items";
    const prefix = list.map((schema, i) => this.term(`${place}/${i}`, schema)), rest = this.term(restOf);
    const minContains = this.#count("minContains") ?? 1, maxContains = this.#count("maxContains") ?? Infinity;
    const shapes: ArrayShape[] = [];
    if (this.negate) {
      if (least) shapes.push({ ...ARRAY, most: least - 1 });
      if (most !== undefined) shapes.push({ ...ARRAY, least: most + 1 });
      prefix.forEach((terms, i) => {
        const facet = { prefix: [...Array<Terms>(i).fill([]), terms], rest: [], open: false, negated: true };
        shapes.push({ ...ARRAY, least: i + 1, facets: [facet] });
      });
      if (rest.length > 0 && prefix.length === 0) {
        shapes.push({ ...ARRAY, contains: [{ item: rest, least: 1, most: Infinity }] });
      } else if (rest.length > 0) this.expansion.leaveOut();
      if (contains !== undefined && minContains === 1) {
        const facet = { prefix: [], rest: this.term("contains"), open: true, negated: true };
        shapes.push({ ...ARRAY, facets: [facet] });
      }
      if (contains !== undefined && minContains > 1 || maxContains < Infinity || uniqueItems === true) {
        this.expansion.leaveOut();
      }
      return shapes;
    }
    const facet = { prefix, rest, open: rest.length > 0, negated: false };
    if (prefix.length > 0 || rest.length > 0) shapes.push({ ...ARRAY, facets: [facet] });
    if (least !== undefined) shapes.push({ ...ARRAY, least });
    if (most !== undefined) shapes.push({ ...ARRAY, most });
    if (uniqueItems === true) shapes.push({ ...ARRAY, unique: true });
    if (contains !== undefined) {
      shapes.push({ ...ARRAY, contains: [{ item: this.term("contains"), least: minContains, most: maxContains }] });
    }
    return shapes.reduce<Shapes>((result, shape) => this.#and(result, shape), result);
  }

  #names(keyword: string, list: unknown): string[] {
    if (!Array.isArray(list) || !list.every((name) => typeof name === "string")) {
      throw this.error(keyword, "is not a list of names");
    }
    return list;
  }

  /** A member that must not be there. */
  #absent(name: string): ObjectShape {
    const never = [this.expansion.term(false, this.path)];
    return { ...OBJECT, facets: [facetOf(new Map([[name, never]]), true)] };
  }

  protected members(result: Shapes): Shapes {
    const properties = this.map("properties"), patterns = this.map("patternProperties");
    const { additionalProperties, propertyNames } = this.schema, least = this.#count("minProperties");
    const most = this.#count("maxProperties"), required = this.#names("required", this.schema.required ?? []);
    const terms = new Map(
      Object.keys(properties).map((name) => [name, this.term(`properties/${name}`, properties[name])]),
    );
    if (this.negate) {
      const shapes: ObjectShape[] = required.map((name) => this.#absent(name));
      if (least) shapes.push({ ...OBJECT, most: least - 1 });
      if (most !== undefined) shapes.push({ ...OBJECT, least: most + 1 });
      for (const [name, term] of terms) {
        shapes.push({ ...OBJECT, required: new Set([name]), facets: [facetOf(new Map([[name, term]]), true)] });
      }
      if (Object.keys(patterns).length > 0 || (additionalProperties ?? true) !== true || propertyNames !== undefined) {
        this.expansion.leaveOut();
      }
      return shapes;
    }
    const shapes: ObjectShape[] = [];
    const sources = Object.keys(patterns);
    if (terms.size > 0 || sources.length > 0 || additionalProperties !== undefined) {
      shapes.push({
        ...OBJECT,
        facets: [{
          properties: terms,
          patterns: sources.map((source) => ({
            source,
            terms: this.term(`patternProperties/${source}`, patterns[source]),
          })),
          additional: this.term("additionalProperties"),
          open: additionalProperties !== undefined || sources.length > 0,
          negated: false,
        }],
      });
    }
    if (required.length > 0) shapes.push({ ...OBJECT, required: new Set(required) });
    if (least !== undefined) shapes.push({ ...OBJECT, least });
    if (most !== undefined) shapes.push({ ...OBJECT, most });
    if (propertyNames !== undefined) shapes.push({ ...OBJECT, names: [this.term("propertyNames")] });
    return shapes.reduce<Shapes>((result, shape) => this.#and(result, shape), result);
  }

  protected dependent(result: Shapes): Shapes {
    for (const keyword of ["dependentRequired", "dependentSchemas", "dependencies"]) {
      for (const [name, what] of Object.entries(this.map(keyword))) {
        const there: ObjectShape = { ...OBJECT, required: new Set([name]) };
        const path = `${keyword}/${name}`;
        if (this.negate) {
          const broken = Array.isArray(what)
            ? this.#names(path, what).map((other) => this.#absent(other))
            : this.expansion.shapes(this.term(path, what));
          result = [...result, ...this.expansion.meet([there], broken)];
          continue;
        }
        const kept: Shapes = Array.isArray(what)
          ? [{ ...OBJECT, required: new Set([name, ...this.#names(path, what)]) }]
          : this.expansion.meet([there], this.expansion.shapes(this.term(path, what)));
        const others = ALL.filter((shape) => shape !== OBJECT);
        result = this.expansion.meet(result, [...others, this.#absent(name), ...kept]);
      }
    }
    return result;
  }
}

function facetOf(properties: ReadonlyMap<string, Terms>, negated: boolean): Facet {
  return { properties, patterns: [], additional: [], open: false, negated };
}
