/**
 * How the server is: whether it answers, what it runs with, how it is used.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { anything, errors, json, type Route } from "../route.ts";
import type { ServerState } from "../state.ts";

const CHAT_TEMPLATES = {
  model: "the model's own",
  plain: "plain: the model has none, so the messages' texts are joined by blank lines and continued",
  none: "none: the model has no template; chats are refused",
};

/** Health, configuration, statistics and metrics. */
export function statusRoutes(state: ServerState): Route[] {
  const { engine, metrics, bodyBytes, timeout } = state;
  return [{
    method: "get",
    path: "/health",
    summary: "Whether requests are answered",
    responses: { 200: json(anything, "Yes"), 503: json(anything, "Not yet, or not any more") },
    handler() {
      const status = state.draining ? "draining" : engine.state === "ready" ? "ok" : engine.state;
      return Response.json({ status }, { status: status === "ok" ? 200 : 503 });
    },
  }, {
    method: "get",
    path: "/config",
    summary: "The configuration in effect",
    responses: { 200: json(anything, "Device, caches, limits"), ...errors(503) },
    handler() {
      const { caches: _, ...rest } = engine.config;
      return Response.json({
        ...rest,
        chatTemplate: CHAT_TEMPLATES[rest.chatTemplate],
        limits: { bodyBytes, timeoutSeconds: timeout },
        models: state.models().map(({ name, cache }) => ({ id: name, ...cache })),
      });
    },
  }, {
    method: "get",
    path: "/stats",
    summary: "How the caches are used now",
    responses: { 200: json(anything, "Sequences, pages, bytes, totals"), ...errors(503) },
    handler() {
      const { caches, deviceBytes } = engine.stats;
      const models = state.models().map(({ name, cache }) => ({ id: name, ...caches[cache.kv] }));
      return Response.json({ deviceBytes, models });
    },
  }, {
    method: "get",
    path: "/metrics",
    summary: "Metrics for Prometheus",
    responses: { 200: { description: "Text", content: { "text/plain": { schema: z.string() } } } },
    handler: async () => new Response(await metrics.text(), { headers: { "content-type": metrics.contentType } }),
  }];
}
