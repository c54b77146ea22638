/**
 * Bearer keys, and the paths that want one.
 *
 * @module
 */

import { createHash, timingSafeEqual } from "node:crypto";
import type { MiddlewareHandler } from "hono";
import { ApiError } from "./error.ts";

/** Paths that want a key where there are keys. */
export const KEY_PATHS: readonly string[] = ["/v1/*", "/config", "/stats", "/metrics"];

/** Whether a path wants a key. */
export function wantsKey(path: string): boolean {
  return KEY_PATHS.some((key) => key.endsWith("*") ? path.startsWith(key.slice(0, -1)) : path === key);
}

/** Lets requests with one of the keys in, or all where there are none. */
export function authorize(keys: readonly string[]): MiddlewareHandler {
  const digests = keys.map(digest);
  return async (context, next) => {
    if (digests.length > 0) {
      const given = digest(/^Bearer +(.+)$/i.exec(context.req.header("authorization") ?? "")?.[1] ?? "");
      // All keys are compared, and digests of one length, so that the time tells nothing.
      if (digests.map((key) => timingSafeEqual(key, given)).filter(Boolean).length === 0) {
        throw new ApiError(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.");
      }
    }
    await next();
  };
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
