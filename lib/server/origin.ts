/**
 * Where a request may come from: the names that a server answers to, and the pages that may call it.
 *
 * A page of any site can make a browser send requests to a server on the same machine, under a name of the site's own that
 * leads there (DNS rebinding), or as a request that browsers send without asking first. So a server on loopback answers to
 * the names of loopback alone, and foreign origins are refused. (A body must say that it is JSON, which makes browsers ask.)
 *
 * @module
 */

import type { MiddlewareHandler } from "hono";
import { ApiError } from "./error.ts";

/** Where requests may come from. */
export interface OriginOptions {
  /** Names, without port, that clients may call the server by besides those of loopback. Undefined: any. */
  readonly hosts?: readonly string[];
  /** Origins of pages that may call, or "*"; besides pages of the server itself. */
  readonly cors?: readonly string[];
}

/** Whether a name or an address is this machine's own. */
export function isLoopback(host: string): boolean {
  return /^(localhost|(.+\.)?localhost|127(\.\d{1,3}){3}|\[?::1\]?)\.?$/i.test(host);
}

/** A Host header without its port. */
function nameOf(host: string): string {
  return host.replace(/:\d*$/, "").toLowerCase();
}

/** Refuses what comes from elsewhere. */
export function fromHere({ hosts, cors = [] }: OriginOptions): MiddlewareHandler {
  const names = hosts && new Set(hosts.map((host) => host.toLowerCase()));
  return async ({ req }, next) => {
    const host = req.header("host"), origin = req.header("origin");
    if (names && host !== undefined && !isLoopback(nameOf(host)) && !names.has(nameOf(host))) {
      throw refused("host_not_allowed", "This server does not answer to this host name; see its --allow-host.");
    }
    if (origin !== undefined && !cors.includes("*") && !cors.includes(origin) && !isOwn(origin, host)) {
      throw refused("origin_not_allowed", "Pages of this origin may not call this server; see its --cors.");
    }
    await next();
  };
}

/** Whether a page is of the server itself. Behind a proxy that ends TLS the scheme may differ. */
function isOwn(origin: string, host: string | undefined): boolean {
  const { host: from } = URL.canParse(origin) ? new URL(origin) : { host: "" };
  return from !== "" && from === host?.toLowerCase().replace(/:(80|443)$/, "") ||
    from !== "" && from === host?.toLowerCase();
}

function refused(code: string, message: string): ApiError {
  return new ApiError(403, "invalid_request_error", code, message);
}
