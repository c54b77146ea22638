/**
 * What stands between texts and tokens, by the names of vLLM's and llama.cpp's servers.
 *
 * @module
 */

import type { EngineGenerateOptions } from "../../engine/engine.ts";
import type { TextQuestion } from "../../engine/text_question.ts";
import { foreignToken } from "../../engine/validation.ts";
import { readBody } from "../body.ts";
import { invalid } from "../error.ts";
import { ownerOf } from "../keys.ts";
import { findModel } from "../models.ts";
import { errors, json, type Route } from "../route.ts";
import {
  detokenizeAnswer,
  detokenizeRequest,
  templateAnswer,
  templateRequest,
  tokenizeAnswer,
  tokenizeRequest,
} from "../schema.ts";
import { messagesOf } from "../dialect/chat.ts";
import { chatOptionsOf } from "../tool_schema.ts";
import type { z } from "@hono/zod-openapi";
import type { ServerState } from "../state.ts";

/** Who asks, and until when. */
type Asker = Pick<EngineGenerateOptions, "client" | "signal">;

/** POST /tokenize, /detokenize and /apply-template. */
export function textRoutes(state: ServerState): Route[] {
  const { engine } = state;
  const route = <Body>(
    path: string,
    summary: string,
    request: z.ZodType<Body>,
    answer: z.ZodType,
    of: (body: Body, asker: Asker) => Promise<Record<string, unknown>>,
  ): Route => ({
    method: "post",
    path,
    summary,
    request: { body: { required: true, content: { "application/json": { schema: request } } } },
    responses: { 200: json(answer, "The answer"), ...errors(400, 404, 413, 415, 429, 503) },
    async handler(context) {
      state.models();
      const { raw } = context.req, body = await readBody(raw, request, state.bodyBytes);
      const { client } = ownerOf(context, state.sharePrefixes, undefined);
      return Response.json(await of(body, { client, signal: raw.signal }));
    },
  });
  return [
    route("/tokenize", "The tokens of a text or a chat", tokenizeRequest, tokenizeAnswer, async (body, asker) => {
      const { cache: { context } } = findModel(state.models(), body.model);
      const { ids, texts, pieces } = await engine.ask({
        type: "tokenize",
        ...textOf(body),
        texts: body.return_token_strs ?? false,
        pieces: body.with_pieces ?? false,
      }, asker);
      return {
        count: ids.length,
        max_model_len: context,
        tokens: pieces ? ids.map((id, i) => ({ id, piece: pieces[i] })) : ids,
        token_strs: texts ?? null,
      };
    }),
    route(
      "/detokenize",
      "The text of tokens",
      detokenizeRequest,
      detokenizeAnswer,
      async ({ model, tokens }, asker) => {
        findModel(state.models(), model);
        const { vocabularySize } = engine.config, foreign = foreignToken(tokens, vocabularySize);
        if (foreign !== undefined) {
          throw invalid(`token ${foreign} is outside the vocabulary of ${vocabularySize}`, "tokens");
        }
        const text = await engine.ask({ type: "detokenize", ids: tokens }, asker);
        return { prompt: text, content: text };
      },
    ),
    route("/apply-template", "A chat as the model reads it", templateRequest, templateAnswer, async (body, asker) => {
      findModel(state.models(), body.model);
      const { messages } = body, chat = chatOptionsOf(body);
      return { prompt: await engine.ask({ type: "template", messages: messagesOf(messages), chat }, asker) };
    }),
  ];
}

/** What is to be tokenized. Throws ApiError unless it is one thing. */
function textOf(
  body: z.infer<typeof tokenizeRequest>,
): Pick<TextQuestion & { type: "tokenize" }, "text" | "addSpecialTokens" | "parseSpecialTokens"> {
  const given = ["prompt", "content", "messages"].filter((name) => body[name] != null);
  if (given.length !== 1) throw invalid("give one of prompt, content and messages", given[1] ?? "prompt");
  const parseSpecialTokens = body.parse_special ?? true;
  if (body.messages) {
    const messages = messagesOf(body.messages), chat = { messages, chat: chatOptionsOf({ ...body, messages }) };
    return { text: chat, addSpecialTokens: body.add_special_tokens ?? false, parseSpecialTokens };
  }
  const prompt = typeof body.prompt === "string";
  return {
    text: prompt ? body.prompt! : body.content!,
    addSpecialTokens: body.add_special_tokens ?? body.add_special ?? prompt,
    parseSpecialTokens,
  };
}
