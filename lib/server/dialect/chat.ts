/**
 * Chat completions of OpenAI's API.
 *
 * @module
 */

import type { GeneratedToken, GenerationRequest } from "../../engine/request.ts";
import type { ChatMessage } from "../../tokenizer/tokenizer.ts";
import { invalid } from "../error.ts";
import type { ChatAnswer, ChatRequest } from "../schema.ts";
import type { ServerSentEvent } from "../sse.ts";
import { chunk, end, finite, formOf, head, refuse, requestOf, usageOf } from "./completion.ts";
import type { Answer, Dialect, Job } from "./dialect.ts";

const CHUNK = "chat.completion.chunk";

/** POST /v1/chat/completions. */
export const chat: Dialect<ChatRequest> = {
  prefix: "chatcmpl",
  parse,
  whole: (answer): ChatAnswer => ({
    ...head(answer, "chat.completion"),
    choices: answer.choices.map(({ text, tokens, reason = "length" }, index) => ({
      index,
      message: { role: "assistant", content: text, refusal: null },
      logprobs: logprobs(answer, tokens),
      finish_reason: reason,
    })),
    usage: usageOf(answer),
  }),
  first: (answer) => answer.choices.flatMap((_, index) => part(answer, index, { role: "assistant", content: "" })),
  delta: (answer, index, { text, tokens }) => part(answer, index, { content: text }, logprobs(answer, tokens)),
  last: (answer, index) => part(answer, index, {}, null, answer.choices[index].reason),
  done: (answer) => end(answer, CHUNK),
};

function part(
  answer: Answer,
  index: number,
  delta: Record<string, string>,
  logprobs: unknown = null,
  reason: string | null = null,
): ServerSentEvent[] {
  return [chunk(answer, CHUNK, [{ index, delta, logprobs, finish_reason: reason }])];
}

function parse(body: ChatRequest): Job {
  refuse(body, ["tools", "functions", "audio", "prediction", "web_search_options"]);
  if (body.top_logprobs != null && !body.logprobs) {
    throw invalid("top_logprobs needs logprobs: true", "top_logprobs");
  }
  const form = formOf(body);
  const messages = body.messages.map((message): ChatMessage => ({
    ...message,
    role: message.role === "developer" ? "system" : message.role,
  }));
  const format = body.response_format, request: GenerationRequest = { prompt: messages, ...requestOf(body) };
  const most = body.max_completion_tokens ?? body.max_tokens;
  if (most != null) request.maxTokens = most;
  if (body.logprobs) request.logprobs = body.top_logprobs ?? 0;
  if (format?.type === "json_object") request.json = true;
  if (format?.type === "json_schema") request.json = format.json_schema.schema;
  return { ...form, requests: [request] };
}

/** Null where none were asked for. */
function logprobs({ job }: Answer, tokens: readonly GeneratedToken[]): Record<string, unknown> | null {
  if (job.requests[0].logprobs === undefined) return null;
  const entry = ({ text, logprob, bytes }: { text: string; logprob: number; bytes: number[] }) => ({
    token: text,
    logprob: finite(logprob),
    bytes,
  });
  return { content: tokens.map((token) => ({ ...entry(token), top_logprobs: token.top.map(entry) })), refusal: null };
}
