/**
 * Python's two ways to put values into a text: `"%s" % value` and `"{}".format(value)`.
 * Source: https://docs.python.org/3/library/stdtypes.html#old-string-formatting and
 * https://docs.python.org/3/library/string.html#formatspec
 *
 * @module
 */

import { JinjaError } from "./lexer.ts";
import { float, numeric, repr, text, Tuple, typeName, type Value } from "./values.ts";

/** `pattern % given`: a tuple holds several values, a dict named ones. */
export function printed(pattern: string, given: Value): string {
  const values = given instanceof Tuple ? [...given] : [given];
  let next = 0;
  const result = pattern.replace(
    /%(?:\(([^)]*)\))?([-+ #0]*)(\*|\d+)?(?:\.(\d+))?([hlL]?)([^])/g,
    (_all, name, flags, width, precision, _size, kind) => {
      if (kind === "%") return "%";
      const take = (): Value => {
        if (next >= values.length) throw new JinjaError("not enough arguments for format string");
        return values[next++];
      };
      const wide = width === "*" ? numeric(take()) ?? 0 : Number(width ?? 0);
      let value: Value;
      if (name === undefined) value = take();
      else {
        const found = given instanceof Map ? given.get(name) : undefined;
        if (found === undefined) throw new JinjaError(`KeyError: ${repr(name)}`);
        value = found;
      }
      return padded(converted(value, kind, flags, precision), wide, flags.includes("-") ? "<" : ">", {
        fill: flags.includes("0") && !flags.includes("-") && !"sra".includes(kind) ? "0" : " ",
      });
    },
  );
  if (next < values.length && !(given instanceof Map)) {
    throw new JinjaError("not all arguments converted during string formatting");
  }
  return result;
}

function converted(value: Value, kind: string, flags: string, precision: string | undefined): string {
  if (kind === "s" || kind === "r" || kind === "a") {
    const all = kind === "s" ? text(value) : repr(value);
    return precision === undefined ? all : [...all].slice(0, Number(precision)).join("");
  }
  const number = numeric(value);
  if (kind === "c") return number === undefined ? text(value) : String.fromCodePoint(number);
  if (number === undefined) throw new JinjaError(`%${kind} format: a number is required, not ${typeName(value)}`);
  const sign = number < 0 || Object.is(number, -0) && "eEfFgG".includes(kind)
    ? "-"
    : flags.includes("+")
    ? "+"
    : flags.includes(" ")
    ? " "
    : "";
  return sign + digits(Math.abs(number), kind, precision === undefined ? undefined : Number(precision));
}

/** A number with so many decimals. Python rounds what is exactly a half to the even neighbour, JavaScript away from 0. */
export function fixed(number: number, decimals: number): string {
  const written = number.toFixed(decimals);
  if (decimals > 70 || Math.abs(number) >= 1e21) return written;
  const [, kept, rest] = /^([^]*?)(\d{30})$/.exec(number.toFixed(decimals + 30))!;
  if (!/^50*$/.test(rest)) return written;
  const even = kept.replace(/\.$/, "");
  return "02468".includes(even.at(-1)!) ? even : written;
}

function digits(number: number, kind: string, precision: number | undefined): string {
  const exponent = (written: string): string => written.replace(/e([+-])(\d)$/, "e$10$2");
  switch (kind) {
    case "d":
    case "i":
    case "u":
      return String(Math.trunc(number)).padStart(precision ?? 0, "0");
    case "x":
      return Math.trunc(number).toString(16);
    case "X":
      return Math.trunc(number).toString(16).toUpperCase();
    case "o":
      return Math.trunc(number).toString(8);
    case "b":
      return Math.trunc(number).toString(2);
    case "f":
    case "F":
      return fixed(number, precision ?? 6);
    case "%":
      return `${fixed(number * 100, precision ?? 6)}%`;
    case "e":
      return exponent(number.toExponential(precision ?? 6));
    case "g": {
      const places = precision === 0 ? 1 : precision ?? 6, power = number === 0 ? 0 : Math.floor(Math.log10(number));
      if (power < -4 || power >= places) {
        return exponent(number.toExponential(places - 1).replace(/\.?0+e/, "e"));
      }
      const fixed = number.toFixed(Math.max(0, places - 1 - power));
      return fixed.includes(".") ? fixed.replace(/\.?0+$/, "") : fixed;
    }
    default:
      throw new JinjaError(`unsupported format character '${kind}'`);
  }
}

function padded(value: string, width: number, align: string, { fill = " " } = {}): string {
  const missing = width - [...value].length;
  if (missing <= 0) return value;
  if (fill === "0" && align === ">") return value.replace(/^[+-]?/, (sign) => sign + "0".repeat(missing));
  if (align === "<") return value + fill.repeat(missing);
  if (align === "^") return fill.repeat(missing >> 1) + value + fill.repeat(missing - (missing >> 1));
  return fill.repeat(missing) + value;
}

/** `pattern.format(...)`: `{}`, `{0}`, `{name}`, `{name.key}`, `{name[key]}`, with `!r` and `:width` after them. */
export function formatted(pattern: string, given: Value[], named: Map<string, Value>): string {
  let next = 0;
  return pattern.replace(
    /\{\{|\}\}|\{([^{}!:]*)(?:!([rsa]))?(?::([^{}]*))?\}|[{}]/g,
    (all, field, conversion, spec) => {
      if (all === "{{" || all === "}}") return all[0];
      if (field === undefined) throw new JinjaError(`Single '${all}' encountered in format string`);
      const [, base, path] = /^([^.[]*)([^]*)$/.exec(field)!;
      let value = base === "" ? given[next++] : /^\d+$/.test(base) ? given[Number(base)] : named.get(base);
      for (const [, attribute, key] of path.matchAll(/\.([^.[]+)|\[([^\]]+)\]/g)) {
        const at = attribute ?? key;
        value = value instanceof Map ? value.get(at) : Array.isArray(value) ? value[Number(at)] : undefined;
      }
      if (value === undefined) throw new JinjaError(`no value for {${field}} in a format string`);
      if (conversion === "r" || conversion === "a") value = repr(value);
      return specified(conversion === "s" ? text(value) : value, spec ?? "");
    },
  );
}

function specified(value: Value, spec: string): string {
  const form = /^(?:(.)?([<>=^]))?([-+ ]?)(#?)(0?)(\d*)([,_]?)(?:\.(\d+))?([a-zA-Z%]?)$/u.exec(spec);
  if (!form) throw new JinjaError(`the format ${JSON.stringify(spec)} is not known`);
  const [, fill, align, sign, , zero, width, group, precision, kind] = form;
  const number = numeric(value);
  let written: string;
  if (number === undefined || typeof value === "boolean" && kind === "") {
    written = precision === undefined ? text(value) : [...text(value)].slice(0, Number(precision)).join("");
  } else if (kind === "" && precision === undefined) {
    written = (sign === "+" && number >= 0 ? "+" : "") + text(value);
  } else if (kind === "") written = converted(float(number), "g", sign, precision);
  else written = converted(value, kind === "n" ? "d" : kind, sign, precision);
  if (group) written = written.replace(/\d+/, (run) => run.replace(/\B(?=(\d{3})+$)/g, group));
  const side = align === "=" ? ">" : align ?? (number === undefined ? "<" : ">");
  return padded(written, Number(width), side, { fill: align === "=" || (zero && !align) ? "0" : fill ?? " " });
}
