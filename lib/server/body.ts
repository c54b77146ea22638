/**
 * The body of a request: its type, size, UTF-8, depth, JSON, lengths and fields are checked, in this order.
 *
 * @module
 */

import type { z } from "@hono/zod-openapi";
import { ApiError, invalid } from "./error.ts";

/** Brackets inside each other at most; a parser must not run out of stack. */
const DEPTH = 128;

/** Fields of all objects together at most, those of schemas as well: parsing a megabyte of them takes long. */
const FIELDS = 50_000;

/** Reads a body of at most so many bytes. Throws ApiError for the first thing that is wrong with it. */
export async function readBody<T>(request: Request, schema: z.ZodType<T>, most: number): Promise<T> {
  if (!/^application\/(.+\+)?json *(;|$)/i.test(request.headers.get("content-type") ?? "")) {
    const message = "the body must be JSON and say so; send the header content-type: application/json";
    throw new ApiError(415, "invalid_request_error", "unsupported_media_type", message);
  }
  const body = parsed(decoded(await readBytes(request, most))), lists = shortened(body);
  return lengthened(checked(schema, body), lists);
}

async function readBytes(request: Request, most: number): Promise<Uint8Array> {
  const tooLarge = () =>
    new ApiError(
      413,
      "invalid_request_error",
      "request_too_large",
      `the body has more than the ${most} bytes that this server takes`,
    );
  if (Number(request.headers.get("content-length") ?? 0) > most) throw tooLarge();
  const parts: Uint8Array[] = [];
  let size = 0;
  try {
    for await (const part of (request.body ?? []) as AsyncIterable<Uint8Array>) {
      size += part.byteLength;
      if (size > most) throw tooLarge();
      parts.push(part);
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw invalid("the body ended before all of it had come");
  }
  return Buffer.concat(parts);
}

function decoded(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw invalid("the body is not UTF-8");
  }
}

function parsed(text: string): unknown {
  const { depth, fields } = shapeOf(text);
  if (depth > DEPTH) throw invalid(`the body is nested more than ${DEPTH} levels deep`);
  if (fields > FIELDS) throw invalid(`the body has more than ${FIELDS} fields`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw invalid(`the body is not JSON: ${(error as Error).message.slice(0, 200)}`);
  }
}

/** Deepest nesting of brackets in a JSON text, and the fields of all of its objects. */
export function shapeOf(text: string): { depth: number; fields: number } {
  let depth = 0, deepest = 0, fields = 0, inString = false;
  for (let i = 0; i < text.length; i++) {
    const character = text.charCodeAt(i);
    if (inString) {
      if (character === 0x5c) i++;
      else if (character === 0x22) inString = false;
    } else if (character === 0x22) inString = true;
    else if (character === 0x7b || character === 0x5b) deepest = Math.max(deepest, ++depth);
    else if (character === 0x7d || character === 0x5d) depth--;
    else if (character === 0x3a) fields++;
  }
  return { depth: deepest, fields };
}

/*
 * A schema looks at every value, whatever is wrong with the first, and takes microseconds for each: a body of a megabyte
 * would hold up everyone for seconds. So long lists, which can only be of token ids, are checked here, and the schema sees
 * their first id alone; of other values there may be so many.
 */

/** Values of a list that is of token ids. */
const LIST = 256;

/** Values of a body, besides long lists, and what is free in form. */
const VALUES = 10_000;

/** Fields whose values a schema takes as they are. */
const FREE: ReadonlySet<string> = new Set(["schema", "parameters", "input_schema", "metadata"]);

/** A list that was cut to its first id. */
interface Shortened {
  readonly path: readonly string[];
  readonly ids: readonly number[];
}

/** Cuts long lists of token ids in a body, and counts its other values. */
function shortened(body: unknown): Shortened[] {
  const lists: Shortened[] = [];
  let values = 0;
  const visit = (value: unknown, path: readonly string[]): void => {
    if (typeof value !== "object" || value === null) return;
    // Not over Object.entries, which makes all before the first is seen.
    for (const name in value) {
      if (FREE.has(name)) continue;
      const inner = (value as Record<string, unknown>)[name];
      const here = [...path, name];
      if (Array.isArray(inner) && inner.length > LIST && typeof inner[0] === "number") {
        const wrong = inner.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < 2 ** 31));
        if (wrong >= 0) throw invalid(`${here.join(".")}.${wrong}: not a token id, in a list of many`, here.join("."));
        lists.push({ path: here, ids: inner });
        (value as Record<string, unknown>)[name] = [inner[0]];
      } else if (++values > VALUES) throw invalid(`the body has more than ${VALUES} values`, path[0] ?? null);
      else visit(inner, here);
    }
  };
  visit(body, []);
  return lists;
}

/** Puts the lists back. */
function lengthened<T>(body: T, lists: readonly Shortened[]): T {
  for (const { path, ids } of lists) {
    const parent = path.slice(0, -1).reduce<unknown>(
      (at, name) => (at as Record<string, unknown> | undefined)?.[name],
      body,
    );
    const fields = parent as Record<string, unknown> | undefined, name = path.at(-1)!, left = fields?.[name];
    if (Array.isArray(left) && left.length === 1 && left[0] === ids[0]) fields![name] = ids;
  }
  return body;
}

/** What a schema makes of a body; the error names the first field at fault. */
function checked<T>(schema: z.ZodType<T>, body: unknown): T {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const issue = result.error.issues[0], path = issue.path.map(String).join(".");
  throw invalid(`${path || "body"}: ${issue.message}`, path || null);
}
