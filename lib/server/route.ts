/**
 * A route: what /openapi.json says of it and what answers it, as one object.
 *
 * @module
 */

import { createRoute, type OpenAPIHono, type RouteConfig, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import type { Env } from "./env.ts";
import { wantsKey } from "./keys.ts";
import { errorBody } from "./schema.ts";

export type { Env } from "./env.ts";

/** A route of the server. */
export interface Route {
  /** Method. */
  readonly method: "get" | "post";
  /** Path, with parameters as `{id}`. */
  readonly path: string;
  /** The router's pattern, where a parameter is more than one segment of the path. Default: made of `path`. */
  readonly pattern?: string;
  /** What it does. */
  readonly summary: string;
  /** What a request holds. */
  readonly request?: RouteConfig["request"];
  /** What it answers, by status; 401 comes of itself. */
  readonly responses: RouteConfig["responses"];
  /** Answers it. */
  readonly handler: (context: Context<Env>) => Response | Promise<Response>;
}

/**
 * Adds a route to an app and to its description. Not `app.openapi`: that reads a body before its size and depth are
 * known, and refuses bodies without a content type.
 */
export function register(app: OpenAPIHono<Env>, route: Route, secured: boolean): void {
  const { pattern, handler, ...described } = route, closed = secured && wantsKey(route.path);
  const security = closed ? [{ bearer: [] }] : [], responses = { ...route.responses, ...(closed ? errors(401) : {}) };
  const created = createRoute({ ...described, security, responses });
  app.openAPIRegistry.registerPath(created);
  app.on(route.method, pattern ?? created.getRoutingPath(), handler);
}

/** A response's or a request's JSON. */
export function json<T extends z.ZodType>(schema: T, description: string): {
  description: string;
  content: { "application/json": { schema: T } };
} {
  return { description, content: { "application/json": { schema } } };
}

/** A JSON object of which no more is said. */
export const anything: z.ZodType = z.record(z.string(), z.unknown());

/** Errors of a route by their status. */
export function errors(...statuses: (keyof typeof ERRORS)[]): RouteConfig["responses"] {
  return Object.fromEntries(statuses.map((status) => [status, json(errorBody, ERRORS[status])]));
}

const ERRORS = {
  400: "A field is wrong",
  401: "No key, or a wrong one",
  404: "No such model",
  413: "The body is too large",
  415: "The body does not say that it is JSON",
  429: "Too many requests; see retry-after",
  500: "The server failed",
  501: "Not offered",
  503: "Loading, or shutting down",
  504: "It took longer than allowed",
} as const;
