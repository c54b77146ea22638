/**
 * Messages of Anthropic's API.
 * Source: https://docs.anthropic.com/en/api/messages
 *
 * @module
 */

import type { ToolChoice } from "../../chat/tool.ts";
import type { GenerationRequest } from "../../engine/request.ts";
import type { ChatMessage } from "../../tokenizer/tokenizer.ts";
import { type ApiError, invalid } from "../error.ts";
import type { MessagesRequest } from "../messages_schema.ts";
import type { ServerSentEvent } from "../sse.ts";
import { checkChoice, options, plainTool, variables } from "../tool_schema.ts";
import { type Block, type BlockEvent, Blocks, blocksOf } from "./blocks.ts";
import { drawingOf, refuse } from "./completion.ts";
import type { Answer, Choice, Dialect, Job } from "./dialect.ts";

type Json = Record<string, unknown>;

/** POST /v1/messages. */
export const messages: Dialect<MessagesRequest> = {
  prefix: "msg",
  parse,
  whole: (answer) => message(answer, blocksOf(answer.choices[0]).map(contentOf), stopOf(answer.choices[0])),
  first: (answer) => [event("message_start", { message: message(answer, [], null) }), event("ping", {})],
  delta: (answer, _, piece) => [...blocksAt(answer).push(piece)].map(changed),
  last(answer) {
    const choice = answer.choices[0], closed = [...blocksAt(answer).end()].map(changed);
    const delta = { stop_reason: stopOf(choice), stop_sequence: choice.stop ?? null };
    return [...closed, event("message_delta", { delta, usage: usageOf(answer) })];
  },
  done: () => [event("message_stop", {})],
  failed: (_, error) => [event("error", { error: errorOf(error) })],
};

const streams = new WeakMap<Answer, Blocks>();

function blocksAt(answer: Answer): Blocks {
  let blocks = streams.get(answer);
  if (!blocks) streams.set(answer, blocks = new Blocks());
  return blocks;
}

function event(type: string, fields: Json): ServerSentEvent {
  return { event: type, data: JSON.stringify({ type, ...fields }) };
}

function changed(change: BlockEvent): ServerSentEvent {
  const { type, block } = change, { index } = block;
  switch (type) {
    case "begin":
      return event("content_block_start", { index, content_block: contentOf({ ...block, text: "" }) });
    case "more":
      return event("content_block_delta", { index, delta: deltaOf(block, change.text) });
    case "end":
      return event("content_block_stop", { index });
  }
}

function deltaOf({ type }: Block, text: string): Json {
  switch (type) {
    case "text":
      return { type: "text_delta", text };
    case "reasoning":
      return { type: "thinking_delta", thinking: text };
    case "call":
      return { type: "input_json_delta", partial_json: text };
  }
}

function contentOf({ type, text, id, name }: Block): Json {
  switch (type) {
    case "text":
      return { type, text };
    case "reasoning":
      return { type: "thinking", thinking: text, signature: "" };
    case "call":
      return { type: "tool_use", id, name, input: inputOf(text) };
  }
}

/** A call's arguments; an answer that was cut off may have only a part of them, which is given as text. */
function inputOf(json: string): unknown {
  if (json === "") return {};
  try {
    return JSON.parse(json);
  } catch {
    return { partial_json: json };
  }
}

function stopOf({ reason, calls, stop }: Choice): string {
  if (reason === "length") return "max_tokens";
  return calls.length > 0 ? "tool_use" : stop === undefined ? "end_turn" : "stop_sequence";
}

function usageOf({ promptTokens, cachedTokens, completionTokens }: Answer): Json {
  return {
    input_tokens: promptTokens - cachedTokens,
    cache_read_input_tokens: cachedTokens,
    cache_creation_input_tokens: 0,
    output_tokens: completionTokens,
  };
}

function message(answer: Answer, content: Json[], stop: string | null): Json {
  const { id, model } = answer.identity;
  return {
    id: id.replace("-", "_"),
    type: "message",
    role: "assistant",
    model,
    content,
    stop_reason: stop,
    stop_sequence: stop === "stop_sequence" ? answer.choices[0].stop : null,
    usage: usageOf(answer),
  };
}

const TYPES: Readonly<Record<number, string>> = {
  400: "invalid_request_error",
  401: "authentication_error",
  403: "permission_error",
  404: "not_found_error",
  413: "request_too_large",
  429: "rate_limit_error",
  503: "overloaded_error",
  504: "timeout_error",
};

/** An error as Anthropic's API has it. */
function errorOf({ status, message }: ApiError): { type: string; message: string } {
  return { type: TYPES[status] ?? (status < 500 ? "invalid_request_error" : "api_error"), message };
}

/** An error as a response of Anthropic's API. */
export function errorResponse(error: ApiError): Response {
  return Response.json({ type: "error", error: errorOf(error) }, { status: error.status, headers: error.headers });
}

function parse(body: MessagesRequest): Job {
  refuse(body, ["container", "mcp_servers", "context_management", "output_config", "output_format"]);
  const tools = (body.tools ?? []).map(({ input_schema: parameters, ...tool }) => plainTool({ ...tool, parameters }));
  const { tool_choice: choice, thinking } = body;
  const toolChoice = choiceOf(choice);
  checkChoice(tools, toolChoice);
  // Templates that can leave thinking out know this variable.
  const kwargs = { ...(thinking?.type === "disabled" ? { enable_thinking: false } : {}), ...body.chat_template_kwargs };
  const told = variables({ chat_template_kwargs: Object.keys(kwargs).length > 0 ? kwargs : undefined });
  const chat = options(tools, toolChoice, !choice?.disable_parallel_tool_use, told), prompt = messagesOf(body);
  const request: GenerationRequest = {
    prompt,
    stop: body.stop_sequences ?? [],
    sampling: drawingOf(body),
    n: 1,
    maxTokens: body.max_tokens,
    // A last message of the assistant is the beginning of the answer.
    chat: { ...chat, ...(prompt.at(-1)?.role === "assistant" ? { continueFinal: true } : {}) },
  };
  return { requests: [request], n: 1, stream: body.stream ?? false, includeUsage: true };
}

function choiceOf(choice: MessagesRequest["tool_choice"]): ToolChoice | undefined {
  switch (choice?.type) {
    case "any":
      return "required";
    case "tool":
      if (!choice.name) throw invalid("tool_choice of type tool needs a name", "tool_choice.name");
      return { name: choice.name };
    default:
      return choice?.type;
  }
}

function messagesOf({ system, messages }: MessagesRequest): ChatMessage[] {
  const out: ChatMessage[] = [], told = system == null ? "" : textOf(system, "system");
  if (told) out.push({ role: "system", content: told });
  messages.forEach(({ role, content }, i) => {
    const place = `messages[${i}].content`;
    if (typeof content === "string") return void out.push({ role, content });
    // Results of tools come before what the user says beside them.
    const results = content.filter(({ type }) => type === "tool_result");
    for (const { tool_use_id: id, content: result, is_error: failed } of results) {
      const text = textOf(result, place);
      out.push({ role: "tool", tool_call_id: String(id), content: failed ? `Error: ${text}` : text });
    }
    const rest = content.filter((block) => !results.includes(block));
    if (rest.length === 0 && results.length > 0) return;
    const calls = rest.filter(({ type }) => type === "tool_use").map(({ id, name, input }) => ({
      id,
      type: "function",
      function: { name, arguments: JSON.stringify(input ?? {}) },
    }));
    const thoughts = rest.filter(({ type }) => type === "thinking").map(({ thinking }) => String(thinking)).join("\n");
    const said = rest.filter(({ type }) => type !== "tool_use" && type !== "thinking" && type !== "redacted_thinking");
    out.push({
      role,
      content: textOf(said, place),
      ...(thoughts ? { reasoning_content: thoughts } : {}),
      ...(calls.length > 0 ? { tool_calls: calls } : {}),
    });
  });
  return out;
}

function textOf(content: unknown, place: string): string {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) throw invalid(`${place}: expected a text or a list of blocks`, "messages");
  return content.map((block: Json) => {
    if (block?.type === "text" && typeof block.text === "string") return block.text;
    throw invalid(
      `${place}: blocks of type ${JSON.stringify(block?.type)} are not supported by this server, which reads text`,
      "messages",
    );
  }).join("");
}
