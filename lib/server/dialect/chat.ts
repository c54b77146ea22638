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
import { chunk, end, finite, formOf, head, limitOf, refuse, requestOf, usageOf } from "./completion.ts";
import { chatOptionsOf } from "../tool_schema.ts";
import type { Answer, Choice, Dialect, Job, ToolCall } from "./dialect.ts";

const CHUNK = "chat.completion.chunk";

/** POST /v1/chat/completions. */
export const chat: Dialect<ChatRequest> = {
  prefix: "chatcmpl",
  parse,
  whole: (answer): ChatAnswer => ({
    ...head(answer, "chat.completion"),
    choices: answer.choices.map((choice, index) => ({
      index,
      message: {
        role: "assistant",
        content: choice.text === "" && choice.calls.length > 0 ? null : choice.text,
        refusal: null,
        ...(choice.reasoning ? { reasoning_content: choice.reasoning } : {}),
        ...(choice.calls.length > 0 ? { tool_calls: choice.calls.map(called) } : {}),
      },
      logprobs: logprobs(answer, choice.tokens),
      finish_reason: finish(choice),
    })),
    usage: usageOf(answer),
  }),
  first: (answer) => answer.choices.flatMap((_, index) => part(answer, index, { role: "assistant", content: "" })),
  delta: (answer, index, { text, reasoning, calls, tokens }) => {
    const delta: Record<string, unknown> = {};
    if (reasoning) delta.reasoning_content = reasoning;
    if (text || (!reasoning && !calls?.length)) delta.content = text;
    if (calls?.length) {
      delta.tool_calls = calls.map(({ index, id, name, arguments: json }) =>
        id === undefined || name === undefined
          ? { index, function: { arguments: json } }
          : { index, ...called({ id, name, arguments: json }) }
      );
    }
    return part(answer, index, delta, logprobs(answer, tokens));
  },
  last: (answer, index) => part(answer, index, {}, null, finish(answer.choices[index])),
  done: (answer) => end(answer, CHUNK),
};

function called({ id, name, arguments: json }: ToolCall): {
  id: string;
  type: "function";
  function: { name: string; arguments: string };
} {
  return { id, type: "function", function: { name, arguments: json } };
}

function finish({ reason = "length", calls }: Choice): "stop" | "length" | "tool_calls" {
  return reason === "stop" && calls.length > 0 ? "tool_calls" : reason;
}

function part(
  answer: Answer,
  index: number,
  delta: Record<string, unknown>,
  logprobs: unknown = null,
  reason: string | null = null,
): ServerSentEvent[] {
  return [chunk(answer, CHUNK, [{ index, delta, logprobs, finish_reason: reason }])];
}

/** Messages as templates know them: a developer is the system. */
export function messagesOf(messages: ChatRequest["messages"]): ChatMessage[] {
  return messages.map((message) => ({ ...message, role: message.role === "developer" ? "system" : message.role }));
}

function parse(body: ChatRequest): Job {
  refuse(body, ["functions", "audio", "prediction", "web_search_options", "prompt_logprobs"]);
  if (body.top_logprobs != null && !body.logprobs) {
    throw invalid("top_logprobs needs logprobs: true", "top_logprobs");
  }
  const form = formOf(body);
  const messages = messagesOf(body.messages);
  const request: GenerationRequest = { prompt: messages, ...requestOf(body) };
  const chat = chatOptionsOf(body);
  if (Object.keys(chat).length > 0) request.chat = chat;
  const most = limitOf(body.max_completion_tokens ?? body.max_tokens);
  if (most !== undefined) request.maxTokens = most;
  if (body.logprobs) request.logprobs = body.top_logprobs ?? 0;
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
