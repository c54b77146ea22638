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
import { ApiError, apiError } from "./error.ts";
import { authorize, KEY_PATHS } from "./keys.ts";
import { Metrics } from "./metrics.ts";
import { servedModels } from "./models.ts";
import { registerDescription } from "./openapi.ts";
import { type Env, register } from "./route.ts";
import { completionRoutes } from "./routes/completions.ts";
import { modelRoutes } from "./routes/models.ts";
import { pageRoute } from "./routes/page.ts";
import { statusRoutes } from "./routes/status.ts";
import type { LogEntry, ServerState } from "./state.ts";

/** Settings of {@linkcode createApp}. */
export interface AppOptions {
  /** What the model is called. Default: the name of its folder. */
  name?: string;
  /** Bearer keys that are let in. Default: everyone is. */
  keys?: readonly string[];
  /** Origins that browsers may call from, or "*". Default: none. */
  cors?: readonly string[];
  /** Bytes of a request's body at most. Default 1 MiB. */
  bodyBytes?: number;
  /** Seconds that a request may take. Default 600. */
  timeout?: number;
  /** Gets a line for each request. Default: none. */
  log?: (entry: LogEntry) => void;
}

/** A server without its socket. */
export interface App {
  /** Answers a request. */
  fetch(request: Request): Promise<Response>;
  /** From here on requests for completions are refused with 503. */
  drain(): void;
  /** Completions that are running or waiting. */
  readonly active: number;
  /** Stops its timers. */
  [Symbol.dispose](): void;
}

/** Makes the routes over an engine. */
export function createApp(engine: Engine, options: AppOptions = {}): App {
  const { bodyBytes = 1 << 20, timeout = 600, log = () => {}, keys = [] } = options;
  const models = () => servedModels(engine, options.name), metrics = new Metrics(engine, models);
  const state: ServerState = { engine, models, metrics, log, bodyBytes, timeout, draining: false, active: 0 };
  const app = new OpenAPIHono<Env>(), secured = keys.length > 0;

  app.use(logged(state));
  if (options.cors?.length) {
    const origin = options.cors.includes("*") ? "*" : [...options.cors];
    app.use(cors({ origin, exposeHeaders: ["x-request-id", "retry-after"], maxAge: 600 }));
  }
  const authorized = authorize(keys);
  for (const path of KEY_PATHS) app.use(path, authorized);
  app.onError((error, context) => {
    const told = apiError(error), entry = context.get("entry");
    if (entry) {
      entry.error = told.code ?? told.type;
      if (told.status === 500) entry.detail = error.stack ?? String(error);
    }
    return told.response();
  });
  app.notFound(({ req }) =>
    new ApiError(404, "invalid_request_error", "not_found", `There is no ${req.method} ${req.path}.`).response()
  );
  for (const route of [...completionRoutes(state), ...modelRoutes(state), ...statusRoutes(state), pageRoute]) {
    register(app, route, secured);
  }
  registerDescription(app, secured);

  return {
    fetch: async (request) => await app.fetch(request),
    drain: () => void (state.draining = true),
    get active() {
      return state.active;
    },
    [Symbol.dispose]: () => metrics[Symbol.dispose](),
  };
}

/** Gives each request an id, counts it and writes its line of the log. */
function logged({ metrics, log }: ServerState): MiddlewareHandler<Env> {
  return async (context, next) => {
    const started = performance.now(), given = context.req.header("x-request-id");
    const id = given && /^[\w.-]{1,128}$/.test(given) ? given : `req_${randomUUID().replaceAll("-", "")}`;
    const entry: LogEntry = { time: new Date().toISOString(), id, method: context.req.method, path: context.req.path };
    context.set("entry", entry);
    await next();
    context.header("x-request-id", id);
    const { status } = context.res, path = context.req.routePath.includes("*") ? "other" : context.req.routePath;
    metrics.requests.inc({ path, status });
    entry.status = status;
    // A stream that still runs writes its line when it ends.
    if (entry.stream && entry.finish === undefined) return;
    entry.ms = Math.round(performance.now() - started);
    log(entry);
  };
}
