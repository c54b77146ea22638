/**
 * What /openapi.json says: the routes as they are registered.
 *
 * @module
 */

import type { OpenAPIHono } from "@hono/zod-openapi";
import meta from "../../deno.json" with { type: "json" };
import { anything, type Env, json, register } from "./route.ts";

/** Adds /openapi.json, which describes itself and all routes that were registered before. */
export function registerDescription(app: OpenAPIHono<Env>, secured: boolean): void {
  if (secured) app.openAPIRegistry.registerComponent("securitySchemes", "bearer", { type: "http", scheme: "bearer" });
  let text = "";
  register(app, {
    method: "get",
    path: "/openapi.json",
    summary: "This description",
    responses: { 200: json(anything, "OpenAPI 3.1") },
    handler: () => new Response(text, { headers: { "content-type": "application/json" } }),
  }, secured);
  // Made once: it takes a fifth of a second.
  text = JSON.stringify(app.getOpenAPI31Document({
    openapi: "3.1.0",
    info: {
      title: "VecInfer",
      version: meta.version,
      description: "A server with OpenAI's API over a vector-quantized KV cache.",
    },
  }));
}
