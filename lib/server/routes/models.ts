/**
 * Which models there are.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { findModel, type ServedModel } from "../models.ts";
import { errors, json, type Route } from "../route.ts";
import { model } from "../schema.ts";
import type { ServerState } from "../state.ts";

/** The list of models, and each of them. */
export function modelRoutes(state: ServerState): Route[] {
  const created = Math.floor(Date.now() / 1000);
  const entry = ({ name, cache: { context } }: ServedModel): z.infer<typeof model> => ({
    id: name,
    object: "model",
    created,
    owned_by: "vecinfer",
    // The names of vLLM, of OpenRouter, of Groq and of llama.cpp.
    max_model_len: context,
    context_length: context,
    context_window: context,
    meta: {
      n_ctx: context,
      n_ctx_train: state.engine.config.trainedContext,
      n_vocab: state.engine.config.vocabularySize,
    },
  });
  return [{
    method: "get",
    path: "/v1/models",
    summary: "The model with each of its caches",
    responses: { 200: json(z.object({ object: z.literal("list"), data: z.array(model) }), "The list"), ...errors(503) },
    handler: () => Response.json({ object: "list", data: state.models().map(entry) }),
  }, {
    method: "get",
    path: "/v1/models/{id}",
    pattern: "/v1/models/:id{.+}",
    summary: "One of them",
    request: { params: z.object({ id: z.string() }) },
    responses: { 200: json(model, "The model"), ...errors(404, 503) },
    handler: (context) => Response.json(entry(findModel(state.models(), context.req.param("id")!))),
  }];
}
