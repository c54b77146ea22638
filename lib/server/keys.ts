/**
 * Bearer keys, and the paths that want one.
 *
 * @module
 */

import { createHash, timingSafeEqual } from "node:crypto";
import type { Context, MiddlewareHandler } from "hono";
import type { Owner } from "../engine/request.ts";
import type { Env } from "./env.ts";
import { ApiError } from "./error.ts";

/** Paths that want a key where there are keys. */
export const KEY_PATHS: readonly string[] = [
  "/v1/*",
  "/tokenize",
  "/detokenize",
  "/apply-template",
  "/config",
  "/stats",
  "/metrics",
];

/** Whether a path wants a key. */
export function wantsKey(path: string): boolean {
  return KEY_PATHS.some((key) => key.endsWith("*") ? path.startsWith(key.slice(0, -1)) : path === key);
}

/** Lets requests with one of the keys in, or all where there are none. Where there are several, notes whose one is. */
export function authorize(keys: readonly string[]): MiddlewareHandler<Env> {
  const digests = keys.map(digest), several = new Set(keys).size > 1;
  return async (context, next) => {
    if (digests.length > 0) {
      // Anthropic's client has a header of its own.
      const bearer = /^Bearer +(.+)$/i.exec(context.req.header("authorization") ?? "")?.[1];
      const given = digest(bearer ?? context.req.header("x-api-key") ?? "");
      // All keys are compared, and digests of one length, so that the time tells nothing.
      if (digests.map((key) => timingSafeEqual(key, given)).filter(Boolean).length === 0) {
        throw new ApiError(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.");
      }
      if (several) context.set("key", given.toString("hex"));
    }
    await next();
  };
}

/**
 * Whose a request is: that of its key where there are several, else of its connection. Prompts of different keys find
 * nothing of each other in the cache, unless `share` says so; `salt` (the field `cache_salt`) parts those of one key as well.
 */
export function ownerOf(context: Context<Env>, share: boolean, salt: string | null | undefined): Owner {
  const key = context.get("key"), connection = context.env?.connection ?? context.get("entry").id as string;
  return { client: key ?? connection, salt: JSON.stringify([share ? "" : key ?? "", salt ?? ""]) };
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
