/**
 * How a template reaches into a value: `value.name` and `value[key]`.
 *
 * @module
 */

import { method } from "./methods.ts";
import {
  type Attributes,
  keyOf,
  Namespace,
  numeric,
  plain,
  typeName,
  Undefined,
  undefinedError,
  type Value,
} from "./values.ts";

function missing(value: Value, name: string): Undefined {
  return new Undefined(`'${typeName(value)} object' has no attribute '${name}', which`);
}

function own(value: Value, name: string): Value | undefined {
  if (value instanceof Namespace) return value.attributes.get(name);
  const found = method(value, name);
  if (found) return found;
  const attribute = (value as Partial<Attributes> | null)?.attribute;
  return typeof attribute === "function" ? attribute.call(value, name) : undefined;
}

/** `value.name`: a method or attribute, else a dict's entry. Throws where the value itself is undefined. */
export function attribute(value: Value, name: string): Value {
  if (value instanceof Undefined) throw undefinedError(value);
  const found = own(value, name);
  if (found !== undefined) return found;
  const entry = value instanceof Map ? value.get(name) : undefined;
  return entry !== undefined ? entry : missing(value, name);
}

/** `value[key]`: an entry or item, else an attribute. Throws where the value itself is undefined. */
export function item(value: Value, key: Value): Value {
  if (value instanceof Undefined) throw undefinedError(value);
  [value, key] = [plain(value), plain(key)];
  if (value instanceof Map) {
    const found = Array.isArray(key) || key instanceof Map ? undefined : value.get(keyOf(key));
    if (found !== undefined) return found;
  } else if (Array.isArray(value) || typeof value === "string") {
    const at = numeric(key);
    if (at !== undefined) {
      const found = typeof value === "string" ? [...value].at(at) : value.at(at);
      return found !== undefined ? found : new Undefined(`'${typeName(value)} object' has no element ${at}, which`);
    }
  }
  const found = typeof key === "string" ? own(value, key) : undefined;
  return found !== undefined ? found : missing(value, String(key));
}

/** A getter by path, as filters take it: `"function.name"`, `"0"`, or a number. */
export function getter(path: Value, otherwise?: Value): (value: Value) => Value {
  const parts: Value[] = typeof path === "string"
    ? path.split(".").map((part) => /^\d+$/.test(part) ? Number(part) : part)
    : [path];
  return (value) => {
    for (const part of parts) {
      value = item(value, part);
      if (value instanceof Undefined && otherwise !== undefined) value = otherwise;
    }
    return value;
  };
}
