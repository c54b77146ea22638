/**
 * Messages with tool calls as a template expects them, or as plain text for one that knows no tools.
 *
 * @module
 */

import { createHash } from "node:crypto";
import type { ChatMessage } from "../tokenizer/tokenizer.ts";
import type { ToolForm } from "./form.ts";
import { parsed } from "./json_call.ts";
import type { CallStyle } from "./probe.ts";
import type { Tool } from "./tool.ts";

/** A call in a message. */
interface Call {
  readonly id: string;
  readonly name: string;
  /** JSON text. */
  readonly json: string;
}

/** The calls of a message, whatever a client left out or wrote as text. */
function callsOf(message: ChatMessage): Call[] {
  const calls = Array.isArray(message.tool_calls) ? message.tool_calls : [];
  return calls.map((call, i) => {
    const { id = `call_${i}`, function: { name = "", arguments: values = {} } = {} } = call ?? {};
    const json = typeof values === "string" ? values.trim() || "{}" : JSON.stringify(values);
    return { id: String(id), name: String(name), json };
  });
}

/** Nine letters and digits that stand for an id. */
function shortId(id: string): string {
  if (/^[a-zA-Z0-9]{9}$/.test(id)) return id;
  return createHash("sha256").update(id).digest("hex").slice(0, 9);
}

/** The messages for a template that knows calls. `thinking`: it takes reasoning under this name. */
export function templateHistory(messages: readonly ChatMessage[], style: CallStyle): ChatMessage[] {
  const names = new Map<string, string>(), idOf = (id: string) => style.shortIds ? shortId(id) : id;
  const plain = messages.map((message): ChatMessage => {
    const { tool_calls: _, ...rest } = message, calls = callsOf(message);
    if (message.role === "tool") {
      const id = String(message.tool_call_id ?? ""), name = message.name ?? names.get(id);
      return { ...rest, ...(name === undefined ? {} : { name }), tool_call_id: idOf(id) };
    }
    if (calls.length === 0) return rest;
    const written = calls.map(({ id, name, json }) => {
      names.set(id, name);
      const value = style.objects ? parsed(json) ?? json : json;
      return { id: idOf(id), type: "function", function: { name, arguments: value } };
    });
    return { ...rest, tool_calls: written };
  });
  return style.several ? plain : oneByOne(plain);
}

/** For templates with one call a message: each call of a message is followed by its result. */
function oneByOne(messages: readonly ChatMessage[]): ChatMessage[] {
  const out: ChatMessage[] = [];
  for (let at = 0; at < messages.length; at++) {
    const message = messages[at], calls = (message.tool_calls ?? []) as { id: string }[];
    if (calls.length < 2) {
      out.push(message);
      continue;
    }
    const results: ChatMessage[] = [];
    while (messages[at + 1]?.role === "tool") results.push(messages[++at]);
    calls.forEach((call, i) => {
      const result = results.filter(({ tool_call_id }) => tool_call_id === call.id);
      out.push({ ...message, ...(i > 0 ? { content: "" } : {}), tool_calls: [call] }, ...result);
    });
    out.push(...results.filter(({ tool_call_id }) => !calls.some(({ id }) => id === tool_call_id)));
  }
  return out;
}

/** The messages for a template that knows no calls: they are texts, and results come from the user. */
export function textHistory(messages: readonly ChatMessage[], form: ToolForm): ChatMessage[] {
  const out: ChatMessage[] = [];
  let results = false;
  for (const message of messages) {
    const { tool_calls: _, tool_call_id: _id, ...rest } = message, calls = callsOf(message), content = textOf(message);
    if (message.role === "tool") {
      const text = `<tool_response>\n${content}\n</tool_response>`, last = out.at(-1);
      if (results && last) out[out.length - 1] = { ...last, content: `${last.content}\n${text}` };
      else out.push({ role: "user", content: text });
      results = true;
      continue;
    }
    results = false;
    const texts = calls.map(({ name, json }) => form.write(name, json));
    out.push(calls.length > 0 ? { ...rest, content: [content, ...texts].filter(Boolean).join("\n") } : rest);
  }
  return out;
}

function textOf({ content }: ChatMessage): string {
  if (Array.isArray(content)) return content.map((part) => part?.text ?? "").join("");
  return typeof content === "string"
    ? content
    : content === null || content === undefined
    ? ""
    : JSON.stringify(content);
}

/** What a model whose template knows no tools is told of them. */
export function toolText(tools: readonly Tool[], form: ToolForm): string {
  const lines = tools.map(({ name, description = "", parameters = {} }) =>
    JSON.stringify({ name, description, parameters })
  );
  return [
    "You can call functions. These are all that there are, each with the JSON schema of its arguments:",
    "<tools>",
    ...lines,
    "</tools>",
    "To call a function, answer in this form, with its name and its arguments, once for each call:",
    form.write("name", "{...}"),
    "What it returned comes between <tool_response> and </tool_response>. Answer as usual where no function helps.",
  ].join("\n");
}

/** The messages with a text in the system message, or in the first one where the template knows no system. */
export function withSystemText(messages: readonly ChatMessage[], text: string, system: boolean): ChatMessage[] {
  const [first, ...rest] = messages;
  const join = (message: ChatMessage): ChatMessage => ({ ...message, content: `${textOf(message)}\n\n${text}` });
  if (first?.role === "system") return [join(first), ...rest];
  if (system || !first) return [{ role: "system", content: text }, ...messages];
  return [{ ...first, content: `${text}\n\n${textOf(first)}` }, ...rest];
}
