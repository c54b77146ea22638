/**
 * The server without its socket: what every request passes through, and the list of routes.
 *
 * @module
 */

import { randomUUID } from "node:crypto";
import { OpenAPIHono } from "@hono/zod-openapi";
import type { MiddlewareHandler } from "hono";
import { cors } from "hono/cors";
import type { Engine } from "../engine/engine.ts";
import { errorResponse } from "./dialect/messages.ts";
import { ApiError, apiError, noteError } from "./error.ts";
import { authorize, KEY_PATHS } from "./keys.ts";
import { knownPath } from "./log.ts";
import { type MetricNames, Metrics } from "./metrics.ts";
import { servedModels } from "./models.ts";
import { registerDescription } from "./openapi.ts";
import { fromHere } from "./origin.ts";
import { type Env, register } from "./route.ts";
import { completionRoutes } from "./routes/completions.ts";
import { embeddingRoute } from "./routes/embeddings.ts";
import { modelRoutes } from "./routes/models.ts";
import { pageRoute } from "./routes/page.ts";
import { statusRoutes } from "./routes/status.ts";
import { textRoutes } from "./routes/text.ts";
import type { LogEntry, ServerState } from "./state.ts";

/** Settings of {@linkcode createApp}. */
export interface AppOptions {
  /** What the model is called. Default: the name of its folder. */
  name?: string;
  /** Bearer keys that are let in. Default: everyone is. */
  keys?: readonly string[];
  /** Origins that browsers may call from, or "*". Default: none but the server's own page. */
  cors?: readonly string[];
  /** Names that clients may call the server by, besides those of loopback. Default: any. */
  hosts?: readonly string[];
  /** Whether prompts of one key are found in the cache for another one. Default false. */
  sharePrefixes?: boolean;
  /** Whose names metrics have: vLLM's are for dashboards and routers made for it. Default "vecinfer". */
  metricNames?: MetricNames;
  /** Bytes of a request's body at most. Default 1 MiB. */
  bodyBytes?: number;
  /** Seconds that a request may take, {@linkcode LONGEST_TIMEOUT} at most; 0 is no limit. Default 600. */
  timeout?: number;
  /** Gets a line for each request. Default: none. */
  log?: (entry: LogEntry) => void;
}

/** A server without its socket. */
export interface App {
  /** Answers a request. `connection` names where it came on: those of one connection share what one client may have. */
  fetch(request: Request, connection?: string): Promise<Response>;
  /** From here on requests for completions are refused with 503. */
  drain(): void;
  /** Completions that are running or waiting. */
  readonly active: number;
  /** Stops its timers. */
  [Symbol.dispose](): void;
}

/** Seconds of the longest timeout: timers count milliseconds in 31 bits. */
export const LONGEST_TIMEOUT: number = Math.floor((2 ** 31 - 1) / 1000);

/** Makes the routes over an engine. Throws RangeError for a timeout that cannot be. */
export function createApp(engine: Engine, options: AppOptions = {}): App {
  const { bodyBytes = 1 << 20, timeout = 600, log = () => {}, keys = [], sharePrefixes = false } = options;
  if (!(timeout >= 0 && timeout <= LONGEST_TIMEOUT)) {
    throw new RangeError(`timeout is ${timeout} s; it must be from 0 (no limit) to ${LONGEST_TIMEOUT}`);
  }
  const models = () => servedModels(engine, options.name);
  const metrics = new Metrics(engine, models, options.metricNames);
  const state: ServerState = {
    engine,
    models,
    metrics,
    log,
    bodyBytes,
    timeout,
    sharePrefixes,
    draining: false,
    active: 0,
  };
  const app = new OpenAPIHono<Env>(), secured = keys.length > 0, paths: string[] = [];

  app.use(logged(state, paths));
  if (options.cors?.length) {
    const origin = options.cors.includes("*") ? "*" : [...options.cors];
    app.use(cors({ origin, exposeHeaders: ["x-request-id", "retry-after"], maxAge: 600 }));
  }
  app.use(fromHere(options));
  const authorized = authorize(keys);
  for (const path of KEY_PATHS) app.use(path, authorized);
  app.onError((error, context) => {
    const entry = context.get("entry"), told = apiError(error, entry?.id as string);
    if (entry) noteError(entry, error);
    return context.req.path.startsWith("/v1/messages") ? errorResponse(told) : told.response();
  });
  app.notFound(({ req }) =>
    new ApiError(404, "invalid_request_error", "not_found", `There is no ${req.method} ${req.path}.`).response()
  );
  const posts = [...completionRoutes(state), embeddingRoute(state), ...textRoutes(state)];
  for (const route of [...posts, ...modelRoutes(state), ...statusRoutes(state), pageRoute]) {
    register(app, route, secured);
    paths.push(route.path);
  }
  registerDescription(app, secured);

  return {
    fetch: async (request, connection) => await app.fetch(request, { connection }),
    drain: () => void (state.draining = true),
    get active() {
      return state.active;
    },
    [Symbol.dispose]: () => metrics[Symbol.dispose](),
  };
}

/** Gives each request an id, counts it and writes its line of the log. */
function logged({ metrics, log }: ServerState, paths: readonly string[]): MiddlewareHandler<Env> {
  return async (context, next) => {
    const started = performance.now(), given = context.req.header("x-request-id");
    const id = given && /^[\w.-]{1,128}$/.test(given) ? given : `req_${randomUUID().replaceAll("-", "")}`;
    const entry: LogEntry = { time: new Date().toISOString(), id, method: context.req.method, path: "" };
    context.set("entry", entry);
    await next();
    context.header("x-request-id", id);
    const { status } = context.res, path = context.req.routePath.includes("*") ? "other" : context.req.routePath;
    metrics.requests.inc({ path, status });
    entry.path = knownPath(context.req.path, paths);
    entry.status = status;
    // A stream that still runs writes its line when it ends.
    if (entry.stream && entry.finish === undefined) return;
    entry.ms = Math.round(performance.now() - started);
    log(entry);
  };
}
