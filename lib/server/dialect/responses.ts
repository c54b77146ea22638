/**
 * Responses of OpenAI's API, without a memory: what was said before comes with each request.
 * Source: https://platform.openai.com/docs/api-reference/responses
 *
 * @module
 */

import type { GenerationRequest } from "../../engine/request.ts";
import type { ChatMessage } from "../../tokenizer/tokenizer.ts";
import { type ApiError, invalid } from "../error.ts";
import type { ResponsesRequest } from "../responses_schema.ts";
import type { ServerSentEvent } from "../sse.ts";
import { checkChoice, options, plainTool, variables } from "../tool_schema.ts";
import { type Block, type BlockEvent, Blocks, blocksOf } from "./blocks.ts";
import { drawingOf, limitOf, refuse } from "./completion.ts";
import type { Answer, Choice, Dialect, Job } from "./dialect.ts";

type Json = Record<string, unknown>;

/** POST /v1/responses. */
export const responses: Dialect<ResponsesRequest> = {
  prefix: "resp",
  parse,
  whole: (answer) => response(answer, statusOf(answer.choices[0]), blocksOf(answer.choices[0]).map(itemOf(answer))),
  first(answer) {
    const begun = response(answer, "in_progress", []), { event } = streamOf(answer);
    return [event("response.created", { response: begun }), event("response.in_progress", { response: begun })];
  },
  delta(answer, _, piece) {
    const { blocks, event } = streamOf(answer);
    return [...blocks.push(piece)].flatMap((change) => changed(answer, change, event));
  },
  last(answer) {
    const { blocks, event } = streamOf(answer);
    return [...blocks.end()].flatMap((change) => changed(answer, change, event));
  },
  done(answer) {
    const { blocks, event } = streamOf(answer), status = statusOf(answer.choices[0]);
    const whole = response(answer, status, blocks.all.map(itemOf(answer)));
    return [event(`response.${status}`, { response: whole })];
  },
  failed(answer, { code, message }: ApiError) {
    const { blocks, event } = streamOf(answer), error = { code: code ?? "server_error", message };
    const failed = { ...response(answer, "failed", blocks.all.map(itemOf(answer))), error };
    return [event("error", { ...error, param: null }), event("response.failed", { response: failed })];
  },
};

/** Where a stream is. */
interface Stream {
  readonly blocks: Blocks;
  /** The next event of it. */
  readonly event: (type: string, fields: Json) => ServerSentEvent;
}

const streams = new WeakMap<Answer, Stream>();

function streamOf(answer: Answer): Stream {
  let stream = streams.get(answer), count = 0;
  if (!stream) {
    const event = (type: string, fields: Json): ServerSentEvent => ({
      event: type,
      data: JSON.stringify({ type, sequence_number: count++, ...fields }),
    });
    streams.set(answer, stream = { blocks: new Blocks(), event });
  }
  return stream;
}

function changed(
  answer: Answer,
  { type, block, ...rest }: BlockEvent & { text?: string },
  event: Stream["event"],
): ServerSentEvent[] {
  const id = itemId(answer, block), place = { item_id: id, output_index: block.index };
  const part = { ...place, content_index: 0 },
    item = itemOf(answer)(block),
    { content: [content] = [] } = item as { content?: Json[] };
  const open = { ...item, status: "in_progress", ...(block.type === "call" ? { arguments: "" } : { content: [] }) };
  const name = block.type === "text" ? "output_text" : "reasoning_text";
  const logprobs = block.type === "text" ? { logprobs: [] } : {};
  switch (type) {
    case "begin": {
      const added = event("response.output_item.added", { output_index: block.index, item: open });
      if (block.type === "call") return [added];
      return [added, event("response.content_part.added", { ...part, part: { ...content, text: "" } })];
    }
    case "more":
      if (block.type === "call") {
        return [event("response.function_call_arguments.delta", { ...place, delta: rest.text })];
      }
      return [event(`response.${name}.delta`, { ...part, delta: rest.text, ...logprobs })];
    case "end": {
      const done = event.bind(null, "response.output_item.done", { output_index: block.index, item });
      if (block.type === "call") {
        const { name, text } = block;
        return [event("response.function_call_arguments.done", { ...place, name, arguments: text }), done()];
      }
      return [
        event(`response.${name}.done`, { ...part, text: block.text, ...logprobs }),
        event("response.content_part.done", { ...part, part: content }),
        done(),
      ];
    }
  }
}

const PREFIXES = { reasoning: "rs", text: "msg", call: "fc" } as const;

/** The id of a block's item: the answer's, so that it is the same in all events. */
function itemId({ identity }: Answer, { type, index }: Block): string {
  return `${PREFIXES[type]}_${identity.id.slice("resp-".length)}_${index}`;
}

function itemOf(answer: Answer): (block: Block) => Json {
  return (block) => {
    const { type, text, id: call, name } = block, id = itemId(answer, block), status = "completed";
    switch (type) {
      case "call":
        return { id, type: "function_call", status, call_id: call, name, arguments: text };
      case "reasoning":
        return { id, type: "reasoning", status, summary: [], content: [{ type: "reasoning_text", text }] };
      case "text": {
        const content = [{ type: "output_text", text, annotations: [], logprobs: [] }];
        return { id, type: "message", status, role: "assistant", content };
      }
    }
  };
}

function statusOf({ reason }: Choice): "completed" | "incomplete" {
  return reason === "length" ? "incomplete" : "completed";
}

function response(answer: Answer, status: string, output: Json[]): Json {
  const { identity: { id, created, model }, job, promptTokens, cachedTokens, completionTokens } = answer;
  const usage = {
    input_tokens: promptTokens,
    input_tokens_details: { cached_tokens: cachedTokens },
    output_tokens: completionTokens,
    output_tokens_details: { reasoning_tokens: 0 },
    total_tokens: promptTokens + completionTokens,
  };
  return {
    id: id.replace("-", "_"),
    object: "response",
    created_at: created,
    status,
    background: false,
    error: null,
    incomplete_details: status === "incomplete" ? { reason: "max_output_tokens" } : null,
    model,
    output,
    previous_response_id: null,
    store: false,
    truncation: "disabled",
    ...job.echoed,
    usage: status === "in_progress" ? null : usage,
  };
}

function parse(body: ResponsesRequest): Job {
  refuse(body, ["previous_response_id", "conversation", "background", "prompt", "max_tool_calls"]);
  if (body.top_logprobs) refuse(body, ["top_logprobs"]);
  const { tool_choice: choice, text, temperature, top_p: topP } = body, maxTokens = limitOf(body.max_output_tokens);
  let tools = (body.tools ?? []).map(plainTool);
  const toolChoice = typeof choice === "object" && choice !== null
    ? choice.type === "function" ? { name: choice.name } : choice.mode
    : choice ?? undefined;
  if (typeof choice === "object" && choice?.type === "allowed_tools") {
    const names = choice.tools.map(({ name }) => name);
    tools = tools.filter(({ name }) => names.includes(name));
  }
  checkChoice(tools, toolChoice);
  const told = variables({ chat_template_kwargs: body.chat_template_kwargs, reasoning_effort: body.reasoning?.effort });
  const format = text?.format, chat = options(tools, toolChoice, body.parallel_tool_calls, told);
  const request: GenerationRequest = {
    prompt: messagesOf(body),
    stop: [],
    sampling: drawingOf(body),
    n: 1,
    ...(maxTokens == null ? {} : { maxTokens }),
    ...(Object.keys(chat).length > 0 ? { chat } : {}),
  };
  if (format?.type === "json_object") request.json = true;
  if (format?.type === "json_schema") request.json = format.schema;
  const echoed = {
    instructions: body.instructions ?? null,
    max_output_tokens: maxTokens ?? null,
    metadata: body.metadata ?? {},
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    reasoning: { effort: body.reasoning?.effort ?? null, summary: null },
    temperature: temperature ?? 1,
    text: { ...text, format: format ?? { type: "text" } },
    tool_choice: choice ?? "auto",
    tools: (body.tools ?? []).map((tool) => ({ strict: false, ...tool })),
    top_p: topP ?? 1,
  };
  return { requests: [request], n: 1, stream: body.stream ?? false, includeUsage: true, echoed };
}

/** Items as messages: what one turn of the assistant wrote (reasoning, text, calls) is one message. */
function messagesOf({ input, instructions }: ResponsesRequest): ChatMessage[] {
  const messages: Json[] = instructions ? [{ role: "system", content: instructions }] : [];
  const items: Json[] = typeof input === "string" ? [{ role: "user", content: input }] : input;
  let turn: Json | undefined;
  const said = (fields: Json): void => {
    if (turn) Object.assign(turn, fields);
    else messages.push(turn = { role: "assistant", content: "", ...fields });
  };
  items.forEach((item, i) => {
    const place = `input[${i}]`, type = item.type ?? "message";
    if (type === "function_call") {
      const { call_id: id, name, arguments: json = "{}" } = item;
      said({
        tool_calls: [...(turn?.tool_calls as Json[] ?? []), {
          id,
          type: "function",
          function: { name, arguments: json },
        }],
      });
    } else if (type === "reasoning") {
      turn = undefined;
      const text = textOf(item.content ?? item.summary, place);
      if (text) said({ reasoning_content: text });
    } else if (type === "message" && item.role === "assistant") {
      if (turn?.content || turn?.tool_calls) turn = undefined;
      said({ content: textOf(item.content, place) });
    } else if (type === "message") {
      turn = undefined;
      const role = item.role === "developer" ? "system" : item.role ?? "user";
      messages.push({ role, content: textOf(item.content, place) });
    } else if (type === "function_call_output") {
      turn = undefined;
      messages.push({ role: "tool", tool_call_id: item.call_id, content: textOf(item.output, place) });
    } else throw invalid(`${place}: items of type ${JSON.stringify(type)} are not supported by this server`, "input");
  });
  return messages as unknown as ChatMessage[];
}

function textOf(content: unknown, place: string): string {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return JSON.stringify(content);
  return content.map((part: Json, i) => {
    const text = part?.type === "refusal" ? part.refusal : part?.text;
    if (typeof text === "string") return text;
    throw invalid(
      `${place}.content[${i}]: parts of type ${
        JSON.stringify(part?.type)
      } are not supported by this server, which reads text`,
      "input",
    );
  }).join("");
}
