/**
 * Completions: one route for each dialect.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { EngineError } from "../../engine/request.ts";
import { readBody } from "../body.ts";
import { Call } from "../call.ts";
import { chat } from "../dialect/chat.ts";
import type { Dialect } from "../dialect/dialect.ts";
import { messages } from "../dialect/messages.ts";
import { responses } from "../dialect/responses.ts";
import { text } from "../dialect/text.ts";
import { ownerOf } from "../keys.ts";
import { findModel } from "../models.ts";
import { messagesAnswer, messagesRequest } from "../messages_schema.ts";
import { responsesAnswer, responsesRequest } from "../responses_schema.ts";
import { errors, json, type Route } from "../route.ts";
import { chatAnswer, chatRequest, completionAnswer, completionRequest } from "../schema.ts";
import type { ServerState } from "../state.ts";

/** All routes for completions. */
export function completionRoutes(state: ServerState): Route[] {
  return [
    route(state, "/v1/chat/completions", "Answers a chat", chat, chatRequest, chatAnswer),
    route(state, "/v1/completions", "Continues a text", text, completionRequest, completionAnswer),
    route(state, "/v1/responses", "Answers items of a conversation", responses, responsesRequest, responsesAnswer),
    route(state, "/v1/messages", "Answers messages as Anthropic's API does", messages, messagesRequest, messagesAnswer),
  ];
}

function route<Body extends { model?: string | null; cache_salt?: string | null }>(
  state: ServerState,
  path: string,
  summary: string,
  dialect: Dialect<Body>,
  request: z.ZodType<Body>,
  answer: z.ZodType,
): Route {
  const found = json(answer, "The answer, or with `stream` its chunks as server-sent events");
  const events = { "text/event-stream": { schema: z.string() } };
  return {
    method: "post",
    path,
    summary,
    request: { body: { required: true, content: { "application/json": { schema: request } } } },
    responses: {
      200: { ...found, content: { ...found.content, ...events } },
      ...errors(400, 404, 413, 415, 429, 500, 503, 504),
    },
    async handler(context) {
      const started = performance.now(), entry = context.get("entry"), { raw } = context.req;
      if (state.draining) throw new EngineError("unavailable", "the server is shutting down");
      // Before the body is read: until the model is loaded, this refuses.
      const models = state.models();
      const body = await readBody(raw, request, state.bodyBytes), job = dialect.parse(body);
      const model = findModel(models, body.model);
      const owner = ownerOf(context, state.sharePrefixes, body.cache_salt);
      return await new Call(state, { dialect, job, model, owner, signal: raw.signal, entry, started }).respond();
    },
  };
}
