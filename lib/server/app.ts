/**
 * The routes of the server.
 *
 * @module
 */

import { createHash, randomUUID, timingSafeEqual } from "node:crypto";
import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { cors } from "hono/cors";
import type { Engine } from "../engine/engine.ts";
import { EngineError } from "../engine/request.ts";
import { chatJob, completionJob, eventStream, type Job, type Outcome, run } from "./completion.ts";
import { ApiError, apiError, invalid } from "./error.ts";
import { Metrics } from "./metrics.ts";
import { PAGE } from "./page.ts";
import { chatAnswer, chatRequest, completionAnswer, completionRequest, errorBody, model } from "./schema.ts";

/** One line of the log. */
export type LogEntry = Record<string, string | number | boolean | null | undefined>;

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

/** Brackets inside each other in a body at most; a parser must not run out of stack. */
const DEPTH = 128;

type Env = { Variables: { requestId: string; entry: LogEntry } };

/** Makes the routes over an engine. */
export function createApp(engine: Engine, options: AppOptions = {}): App {
  const { bodyBytes = 1 << 20, timeout = 600, log = () => {} } = options;
  const created = Math.floor(Date.now() / 1000);
  const keys = options.keys?.map(digest) ?? [];
  let active = 0, draining = false;

  /** Every cache under a name of its own; the first also under the bare one. */
  const models = (): { name: string; cache: string }[] => {
    const { caches } = engine.config;
    const base = options.name ?? caches[0].model.replace(/[/\\]+$/, "").split(/[/\\]/).at(-1)!;
    return caches.map(({ kv }, i) => ({ name: i === 0 ? base : `${base}:${kv}`, cache: kv }));
  };
  const find = (name: string): { name: string; cache: string } => {
    const all = models(), found = all.find((model) => model.name === name || `${all[0].name}:${model.cache}` === name);
    if (found) return found;
    throw new ApiError(
      404,
      "invalid_request_error",
      "model_not_found",
      `The model '${name}' does not exist; there is ${all.map(({ name }) => name).join(", ")}`,
      { param: "model" },
    );
  };
  const metrics = new Metrics(engine, models);

  const app = new OpenAPIHono<Env>();
  app.use(async (context, next) => {
    const started = performance.now(), given = context.req.header("x-request-id");
    const id = given && /^[\w.-]{1,128}$/.test(given) ? given : `req_${randomUUID().replaceAll("-", "")}`;
    const entry: LogEntry = { time: new Date().toISOString(), id, method: context.req.method, path: context.req.path };
    context.set("requestId", id);
    context.set("entry", entry);
    await next();
    context.header("x-request-id", id);
    const { status } = context.res, path = context.req.routePath.includes("*") ? "other" : context.req.routePath;
    metrics.requests.inc({ path, status });
    entry.status = status;
    // A stream writes its line when it ends.
    if (entry.stream) return;
    entry.ms = Math.round(performance.now() - started);
    log(entry);
  });
  if (options.cors?.length) {
    const origin = options.cors.includes("*") ? "*" : [...options.cors];
    app.use(cors({ origin, exposeHeaders: ["x-request-id", "retry-after"], maxAge: 600 }));
  }
  const authorize = async (context: Context<Env>, next: () => Promise<void>): Promise<void> => {
    if (keys.length > 0) {
      const given = digest(/^Bearer +(.+)$/i.exec(context.req.header("authorization") ?? "")?.[1] ?? "");
      // All keys are compared, and digests of one length, so that the time tells nothing.
      if (keys.map((key) => timingSafeEqual(key, given)).filter(Boolean).length === 0) {
        throw new ApiError(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.");
      }
    }
    await next();
  };
  for (const path of ["/v1/*", "/config", "/stats", "/metrics"]) app.use(path, authorize);
  app.onError((error, context) => {
    const told = apiError(error), entry = context.get("entry");
    if (entry) {
      entry.error = told.code ?? told.type;
      if (told.status === 500) entry.detail = error.stack ?? String(error);
    }
    return told.response();
  });
  app.notFound((context) =>
    new ApiError(404, "invalid_request_error", "not_found", `There is no ${context.req.method} ${context.req.path}.`)
      .response()
  );

  /** Answers a request for completions. */
  const complete = async (context: Context<Env>, parse: (body: unknown) => { job: Job; model: string }) => {
    const started = performance.now(), entry = context.get("entry");
    if (draining) throw new EngineError("unavailable", "the server is shutting down");
    if (engine.state !== "ready") void engine.config;
    const { job, model } = parse(await readJson(context.req.raw, bodyBytes));
    const { name, cache } = find(model);
    const config = engine.config.caches.find(({ kv }) => kv === cache)!;
    const identity = {
      id: `${job.chat ? "chatcmpl" : "cmpl"}-${randomUUID().replaceAll("-", "")}`,
      created: Math.floor(Date.now() / 1000),
      model: name,
      fingerprint: `fp_${
        digest(`${engine.config.fingerprint} ${config.kv} ${config.calibration}`).toString("hex").slice(0, 12)
      }`,
    };
    const outcome: Outcome = {
      promptTokens: 0,
      cachedTokens: 0,
      completionTokens: 0,
      reasons: [],
      firstText: undefined,
      lastText: undefined,
      onToken(seconds, count) {
        for (let i = 0; i < count; i++) metrics.betweenTokens.observe({ model_name: name }, seconds);
      },
    };
    const abort = new AbortController(), { signal } = context.req.raw;
    const leave = (): void => abort.abort(new EngineError("cancelled", "the client left"));
    const timer = setTimeout(() => {
      abort.abort(new EngineError("timeout", `the request took longer than the ${timeout} s that this server allows`));
    }, timeout * 1000);
    if (signal.aborted) leave();
    signal.addEventListener("abort", leave);
    active++;
    let ended = false;
    const end = (error?: unknown): void => {
      if (ended) return;
      ended = true;
      active--;
      clearTimeout(timer);
      signal.removeEventListener("abort", leave);
      // One prompt of several failed: the others are of no use any more.
      if (error !== undefined) leave();
      const now = performance.now();
      if (outcome.firstText !== undefined) {
        metrics.firstToken.observe({ model_name: name }, (outcome.firstText - started) / 1000);
        entry.ttft_ms = Math.round(outcome.firstText - started);
      }
      metrics.request.observe({ model_name: name }, (now - started) / 1000);
      const left = error instanceof EngineError && error.code === "cancelled";
      for (let i = 0; i < job.requests.length * job.n; i++) {
        metrics.finished.inc({ model_name: name, finished_reason: outcome.reasons[i] ?? (left ? "abort" : "error") });
      }
      Object.assign(entry, {
        model: name,
        stream: job.stream,
        prompt_tokens: outcome.promptTokens,
        cached_tokens: outcome.cachedTokens,
        completion_tokens: outcome.completionTokens,
        finish: error === undefined ? outcome.reasons.join(",") : left ? "abort" : "error",
      });
      if (!job.stream || entry.status === undefined) return;
      if (error !== undefined && !left) entry.error = apiError(error).code ?? apiError(error).type;
      entry.ms = Math.round(now - started);
      log(entry);
    };
    try {
      const answer = await run(engine, cache, job, identity, abort, outcome);
      if ("body" in answer) {
        end();
        return Response.json(answer.body);
      }
      entry.stream = true;
      return new Response(eventStream(answer.events, leave, end), {
        headers: {
          "content-type": "text/event-stream; charset=utf-8",
          "cache-control": "no-cache",
          "x-accel-buffering": "no",
        },
      });
    } catch (error) {
      end(error);
      entry.stream = undefined;
      throw error;
    }
  };
  app.post("/v1/chat/completions", (context) =>
    complete(context, (body) => {
      const checked = check(chatRequest, body);
      return { job: chatJob(checked), model: checked.model };
    }));
  app.post("/v1/completions", (context) =>
    complete(context, (body) => {
      const checked = check(completionRequest, body);
      return { job: completionJob(checked), model: checked.model };
    }));

  const describe = ({ name }: { name: string }) => ({ id: name, object: "model", created, owned_by: "vecinfer" });
  app.get("/v1/models", () => Response.json({ object: "list", data: models().map(describe) }));
  app.get("/v1/models/:id{.+}", (context) => Response.json(describe(find(context.req.param("id")))));
  for (const path of ["/v1/embeddings", "/v1/responses"]) {
    app.post(path, () => {
      throw new ApiError(501, "invalid_request_error", "not_implemented", `${path} is not offered by this server.`, {
        headers: { "x-should-retry": "false" },
      });
    });
  }
  app.get("/health", () => {
    const { state } = engine, ok = state === "ready" && !draining;
    return Response.json({ status: draining ? "draining" : state === "ready" ? "ok" : state }, {
      status: ok ? 200 : 503,
    });
  });
  app.get("/config", () => {
    const { caches, ...rest } = engine.config, names = models();
    return Response.json({
      ...rest,
      chatTemplate: CHAT_TEMPLATES[rest.chatTemplate],
      limits: { bodyBytes, timeoutSeconds: timeout },
      models: caches.map((cache, i) => ({ id: names[i].name, ...cache })),
    });
  });
  app.get("/stats", () => {
    const { caches, deviceBytes } = engine.stats;
    return Response.json({ deviceBytes, models: models().map(({ name, cache }) => ({ id: name, ...caches[cache] })) });
  });
  app.get(
    "/metrics",
    async () => new Response(await metrics.text(), { headers: { "content-type": metrics.contentType } }),
  );
  app.get("/", () =>
    new Response(PAGE, {
      headers: {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy":
          "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
      },
    }));

  describeRoutes(app, keys.length > 0);
  return {
    fetch: async (request) => await app.fetch(request),
    drain: () => void (draining = true),
    get active() {
      return active;
    },
    [Symbol.dispose]: () => metrics[Symbol.dispose](),
  };
}

const CHAT_TEMPLATES = {
  model: "the model's own",
  plain: "plain: the model has none, so the messages' texts are joined by blank lines and continued",
  none: "none: the model has no template; chats are refused",
};

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}

/** Reads a body. Throws ApiError for one that is too large, is not UTF-8 or is not JSON. */
async function readJson(request: Request, most: number): Promise<unknown> {
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
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(parts));
  } catch {
    throw invalid("the body is not UTF-8");
  }
  if (depthOf(text) > DEPTH) throw invalid(`the body is nested more than ${DEPTH} levels deep`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw invalid(`the body is not JSON: ${(error as Error).message.slice(0, 200)}`);
  }
}

/** Deepest nesting of brackets in a JSON text. */
function depthOf(text: string): number {
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

/** Checks a body by its schema; the error names the first field at fault. */
function check<T>(schema: z.ZodType<T>, body: unknown): T {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const issue = result.error.issues[0], path = issue.path.map(String).join(".");
  throw invalid(`${path || "body"}: ${issue.message}`, path || null);
}

/** What /openapi.json says. The routes check and answer by themselves; this describes them by the same schemas. */
function describeRoutes(app: OpenAPIHono<Env>, secured: boolean): void {
  const security = secured ? [{ bearer: [] }] : [];
  const json = (schema: z.ZodType, description: string) => ({
    description,
    content: { "application/json": { schema } },
  });
  const errors = Object.fromEntries(
    ([[400, "A field is wrong"], [401, "No key, or a wrong one"], [404, "No such model"], [
      413,
      "The body is too large",
    ], [
      429,
      "Too many requests; see retry-after",
    ], [503, "Loading, or shutting down"]] as const).map(([status, text]) => [status, json(errorBody, text)]),
  );
  const register = (
    method: "get" | "post",
    path: string,
    summary: string,
    responses: Record<number, unknown>,
    request?: unknown,
  ) => {
    app.openAPIRegistry.registerPath(
      createRoute({ method, path, summary, security, responses, ...(request ? { request } : {}) } as never),
    );
  };
  const body = (schema: z.ZodType) => ({ body: { required: true, content: { "application/json": { schema } } } });
  const events = { "text/event-stream": { schema: z.string() } };
  for (
    const [path, schema, answer] of [
      ["/v1/chat/completions", chatRequest, chatAnswer],
      ["/v1/completions", completionRequest, completionAnswer],
    ] as const
  ) {
    const found = json(answer, "The answer, or with `stream` its chunks as server-sent events");
    const responses = { 200: { ...found, content: { ...found.content, ...events } }, ...errors };
    register("post", path, path.includes("chat") ? "Answers a chat" : "Continues a text", responses, body(schema));
  }
  const list = z.object({ object: z.literal("list"), data: z.array(model) });
  register("get", "/v1/models", "The model with each of its caches", { 200: json(list, "The list") });
  register("get", "/v1/models/{id}", "One of them", { 200: json(model, "The model"), 404: errors[404] }, {
    params: z.object({ id: z.string() }),
  });
  const anything = z.record(z.string(), z.unknown());
  register("get", "/health", "Whether requests are answered", {
    200: json(anything, "Yes"),
    503: json(anything, "Not yet, or not any more"),
  });
  register("get", "/config", "The configuration in effect", { 200: json(anything, "Device, caches, limits") });
  register("get", "/stats", "How the caches are used now", { 200: json(anything, "Sequences, pages, bytes, totals") });
  register("get", "/metrics", "Metrics for Prometheus", {
    200: { description: "Text", content: { "text/plain": { schema: z.string() } } },
  });
  if (secured) app.openAPIRegistry.registerComponent("securitySchemes", "bearer", { type: "http", scheme: "bearer" });
  // Made once: it takes a fifth of a second.
  const document = JSON.stringify(app.getOpenAPI31Document({
    openapi: "3.1.0",
    info: {
      title: "VecInfer",
      version: "0.1.0",
      description: "A server with OpenAI's API over a vector-quantized KV cache.",
    },
  }));
  app.get("/openapi.json", () => new Response(document, { headers: { "content-type": "application/json" } }));
}
