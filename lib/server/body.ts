/**
 * The body of a request: its size, UTF-8, depth, JSON and fields are checked, in this order.
 *
 * @module
 */

import type { z } from "@hono/zod-openapi";
import { ApiError, invalid } from "./error.ts";

/** Brackets inside each other at most; a parser must not run out of stack. */
const DEPTH = 128;

/** Reads a body of at most so many bytes. Throws ApiError for the first thing that is wrong with it. */
export async function readBody<T>(request: Request, schema: z.ZodType<T>, most: number): Promise<T> {
  return checked(schema, parsed(decoded(await readBytes(request, most))));
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
  for await (const part of (request.body ?? []) as AsyncIterable<Uint8Array>) {
    size += part.byteLength;
    if (size > most) throw tooLarge();
    parts.push(part);
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
  if (depthOf(text) > DEPTH) throw invalid(`the body is nested more than ${DEPTH} levels deep`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw invalid(`the body is not JSON: ${(error as Error).message.slice(0, 200)}`);
  }
}

/** Deepest nesting of brackets in a JSON text. */
export function depthOf(text: string): number {
  let depth = 0, deepest = 0, inString = false;
  for (let i = 0; i < text.length; i++) {
    const character = text.charCodeAt(i);
    if (inString) {
      if (character === 0x5c) i++;
      else if (character === 0x22) inString = false;
    } else if (character === 0x22) inString = true;
    else if (character === 0x7b || character === 0x5b) deepest = Math.max(deepest, ++depth);
    else if (character === 0x7d || character === 0x5d) depth--;
  }
  return deepest;
}

/** What a schema makes of a body; the error names the first field at fault. */
function checked<T>(schema: z.ZodType<T>, body: unknown): T {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const issue = result.error.issues[0], path = issue.path.map(String).join(".");
  throw invalid(`${path || "body"}: ${issue.message}`, path || null);
}
