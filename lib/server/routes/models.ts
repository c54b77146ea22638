/**
 * Which models there are.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { findModel } from "../models.ts";
import { errors, json, type Route } from "../route.ts";
import { model } from "../schema.ts";
import type { ServerState } from "../state.ts";

/** The list of models, and each of them. */
export function modelRoutes(state: ServerState): Route[] {
  const created = Math.floor(Date.now() / 1000);
  const entry = (name: string): z.infer<typeof model> => ({
    id: name,
    object: "model",
    created,
    owned_by: "vecinfer",
  });
  return [{
    method: "get",
    path: "/v1/models",
    summary: "The model with each of its caches",
    responses: { 200: json(z.object({ object: z.literal("list"), data: z.array(model) }), "The list"), ...errors(503) },
    handler: () => Response.json({ object: "list", data: state.models().map(({ name }) => entry(name)) }),
  }, {
    method: "get",
    path: "/v1/models/{id}",
    pattern: "/v1/models/:id{.+}",
    summary: "One of them",
    request: { params: z.object({ id: z.string() }) },
    responses: { 200: json(model, "The model"), ...errors(404, 503) },
    handler: (context) => Response.json(entry(findModel(state.models(), context.req.param("id")!).name)),
  }];
}
