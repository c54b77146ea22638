/**
 * What `$ref` points to: by address, by name (`$anchor`), or by a path of keys and places in lists.
 *
 * @module
 */

import { SchemaError } from "./budget.ts";

type Json = Record<string, unknown>;

/** Whether a value is a JSON object. */
export function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Keywords whose value is a schema, a list of schemas or an object of them. */
const SCHEMAS = [
  "items",
  "additionalItems",
  "additionalProperties",
  "unevaluatedItems",
  "unevaluatedProperties",
  "contains",
  "propertyNames",
  "not",
  "if",
  "then",
  "else",
];
const LISTS = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const MAPS = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];

const ROOT = "schema:///root";

/** A schema with the names of its parts. */
export class References {
  /** By address: a schema that has one. */
  readonly #resources = new Map<string, unknown>();
  /** By address, `#` and name. */
  readonly #anchors = new Map<string, unknown>();
  /** By name: how many parts have it as a dynamic anchor. */
  readonly #dynamic = new Map<string, number>();
  /** The address that references in a schema are relative to. */
  readonly #bases = new Map<unknown, string>();

  /** Whether a part of the schema is the opposite of a schema. */
  readonly hasNot: boolean;

  /** Reads the addresses of a schema's parts. */
  constructor(root: unknown) {
    this.#resources.set(ROOT, root);
    let hasNot = false;
    const open: { schema: unknown; base: string }[] = [{ schema: root, base: ROOT }];
    while (open.length > 0) {
      const { schema, base: outer } = open.pop()!;
      if (!isObject(schema) || this.#bases.has(schema)) continue;
      const base = this.#name(schema, outer);
      this.#bases.set(schema, base);
      hasNot ||= schema.not !== undefined;
      const add = (part: unknown) => open.push({ schema: part, base });
      for (const keyword of SCHEMAS) if (isObject(schema[keyword])) add(schema[keyword]);
      for (const keyword of LISTS) if (Array.isArray(schema[keyword])) schema[keyword].forEach(add);
      for (const keyword of MAPS) if (isObject(schema[keyword])) Object.values(schema[keyword]).forEach(add);
    }
    this.hasNot = hasNot;
  }

  #name(schema: Json, outer: string): string {
    let base = outer;
    // `id` is what drafts before the sixth call `$id`.
    const id = schema.$id ?? schema.id;
    if (typeof id === "string" && URL.canParse(id, outer)) {
      const url = new URL(id, outer), { hash } = url;
      url.hash = "";
      if (!id.startsWith("#")) this.#resources.set(base = url.href, schema);
      if (hash.length > 1) this.#anchors.set(base + hash, schema);
    }
    for (const name of [schema.$anchor, schema.$dynamicAnchor]) {
      if (typeof name === "string") this.#anchors.set(`${base}#${name}`, schema);
    }
    const dynamic = schema.$dynamicAnchor;
    if (typeof dynamic === "string") this.#dynamic.set(dynamic, (this.#dynamic.get(dynamic) ?? 0) + 1);
    return base;
  }

  /** The schema that a reference in `schema` points to. Throws {@link SchemaError} where there is none inside the schema. */
  target(reference: unknown, schema: unknown, path: string): unknown {
    const base = this.#bases.get(schema) ?? ROOT;
    if (typeof reference !== "string" || !URL.canParse(reference, base)) {
      throw new SchemaError(`${path}/$ref is ${shown(reference)}, which is no reference`);
    }
    const url = new URL(reference, base), fragment = url.hash.slice(1);
    url.hash = "";
    const resource = this.#resources.get(url.href);
    if (resource === undefined) {
      throw new SchemaError(`${path}/$ref is ${shown(reference)}; only references inside the schema are supported`);
    }
    let name: string;
    try {
      name = decodeURIComponent(fragment);
    } catch {
      throw new SchemaError(`${path}/$ref is ${shown(reference)}, which has a "%" that is no escape`);
    }
    const found = name === "" || name.startsWith("/")
      ? this.#follow(resource, name)
      : this.#anchors.get(`${url.href}#${name}`) ?? this.#anchors.get(`${url.href}#${fragment}`);
    if (found === undefined) throw new SchemaError(`${path}/$ref: there is no ${shown(reference)}`);
    if (isObject(found) && !this.#bases.has(found)) this.#bases.set(found, url.href);
    return found;
  }

  /** Whether a dynamic reference can only point to what a plain one would. */
  isStatic(reference: unknown): boolean {
    const name = typeof reference === "string" ? reference.slice(reference.indexOf("#") + 1) : "";
    return (this.#dynamic.get(name) ?? 0) <= 1;
  }

  #follow(resource: unknown, path: string): unknown {
    let target = resource;
    for (const part of path.split("/").slice(1)) {
      const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
      if (Array.isArray(target) && /^\d+$/.test(key)) target = target[Number(key)];
      else target = isObject(target) && Object.hasOwn(target, key) ? target[key] : undefined;
    }
    return target;
  }
}

/** A value in a message, cut. */
export function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}
