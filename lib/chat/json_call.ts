/**
 * A call as a JSON object, `{"name": ..., "arguments": {...}}`, read as it comes.
 *
 * @module
 */

import type { Reading, Sink, Source } from "./reader.ts";

/** What the arguments are called: most say "arguments", Llama 3 says "parameters". */
const ARGUMENTS: readonly string[] = ["arguments", "parameters"];

/** Reads a JSON value, passing its text on as it is. False where it is none, or is cut off. */
export function* jsonValue(source: Source, take: (text: string) => void): Reading<boolean> {
  const start = yield* source.peek();
  if (start === '"') return yield* jsonString(source, take);
  if (start !== "{" && start !== "[") {
    let text = "";
    while (/[-+.\w]/.test(yield* source.peek())) text += next(source);
    take(text);
    return /^(true|false|null|-?\d+(\.\d+)?([eE][-+]?\d+)?)$/.test(text);
  }
  const open: string[] = [];
  do {
    let at = 0;
    for (; at < source.text.length; at++) {
      const character = source.text[at];
      if (character === '"') break;
      if (character === "{" || character === "[") open.push(character === "{" ? "}" : "]");
      else if ((character === "}" || character === "]") && open.pop() !== character) return false;
      if (open.length === 0) {
        at++;
        break;
      }
    }
    take(source.text.slice(0, at));
    source.text = source.text.slice(at);
    if (open.length > 0 && (yield* source.peek()) === '"' && !(yield* jsonString(source, take))) return false;
    if (open.length > 0 && (yield* source.peek()) === "") return false;
  } while (open.length > 0);
  return true;
}

function* jsonString(source: Source, take: (text: string) => void): Reading<boolean> {
  take(next(source));
  for (;;) {
    const plain = /^[^"\\]*/.exec(source.text)![0];
    take(plain);
    source.text = source.text.slice(plain.length);
    const character = yield* source.peek();
    if (character === "") return false;
    if (character === "\\") {
      take(next(source));
      if ((yield* source.peek()) === "") return false;
      take(next(source));
    } else if (character === '"') {
      take(next(source));
      return true;
    }
  }
}

function next(source: Source): string {
  const character = source.text[0];
  source.text = source.text.slice(1);
  return character;
}

/** A JSON text's value, or undefined where it is none. */
export function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Arguments as text: an object as it is, one that was written as a string unwrapped, nothing as an empty object. */
export function argumentsText(text: string): string {
  const value = parsed(text);
  if (typeof value === "string") return argumentsText(value.trim() || "{}");
  return value === null ? "{}" : text;
}

/**
 * Reads a call. Undefined where it was one; else the text that was read, which is none. `accept` says which names are tools';
 * `strict` refuses objects with other members than a call has.
 */
export function* jsonCall(
  source: Source,
  sink: Sink,
  accept: (name: string) => boolean,
  strict = false,
): Reading<string | undefined> {
  let raw = "", name: string | undefined, held: string | undefined, begun = false;
  const take = (text: string): void => void (raw += text);
  const token = function* (character: string): Reading<boolean> {
    take(yield* source.spaces());
    if ((yield* source.peek()) !== character) return false;
    take(next(source));
    return true;
  };
  const member = function* (): Reading<boolean> {
    take(yield* source.spaces());
    let key = "";
    const isKey = (yield* source.peek()) === '"' && (yield* jsonString(source, (text) => void (key += text)));
    take(key);
    if (!isKey || !(yield* token(":"))) return false;
    take(yield* source.spaces());
    const is = parsed(key);
    let text = "";
    if (typeof is === "string" && ARGUMENTS.includes(is) && !begun) {
      const streams = name !== undefined && (yield* source.peek()) === "{";
      if (!streams) {
        const whole = yield* jsonValue(source, (part) => void (text += part));
        take(text);
        held = argumentsText(text);
        return whole;
      }
      sink.begin(name!);
      begun = true;
      return yield* jsonValue(source, (part) => sink.arguments(part));
    }
    if (strict && is !== "name" && is !== "type" && is !== "id" && !begun) return false;
    const whole = yield* jsonValue(source, (part) => void (text += part));
    take(text);
    if (is !== "name" || !whole || begun) return whole;
    const value = parsed(text);
    if (typeof value !== "string" || !accept(value)) return false;
    name = value;
    return true;
  };
  if (!(yield* token("{"))) return raw;
  take(yield* source.spaces());
  if ((yield* source.peek()) !== "}") {
    do if (!(yield* member())) return begun ? undefined : raw; while (yield* token(","));
  }
  const closed = yield* token("}");
  if (begun) return undefined;
  if (!closed || name === undefined) return raw;
  sink.begin(name);
  sink.arguments(held ?? "{}");
  return undefined;
}
