/**
 * Messages in the one form that every chat template takes: their content is text.
 *
 * @module
 */

import { TokenizerError } from "./vocabulary.ts";

/** One message of a chat. Further fields reach the template as they are. */
export interface ChatMessage {
  /** Who speaks: "system", "user", "assistant", "tool". */
  readonly role: string;
  /** What is said: text, or a list of parts `{type: "text", text}`, which are joined; null and absent are the empty text. */
  readonly content?: unknown;
  /** Whatever else the template reads, e.g. `tool_calls`. */
  readonly [field: string]: unknown;
}

/** The messages with text for content. Throws {@link TokenizerError} that names the message and the part it cannot take. */
export function plainMessages(messages: readonly ChatMessage[]): ChatMessage[] {
  return messages.map((message, i) => ({ ...message, content: textOf(message.content, `messages[${i}].content`) }));
}

function textOf(content: unknown, place: string): unknown {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  if (Array.isArray(content)) return content.map((part, i) => partText(part, `${place}[${i}]`)).join("");
  // A tool's result may be an object: some templates write it as JSON.
  if (typeof content === "object") return content;
  throw new TokenizerError(`${place}: expected text, a list of parts or null, found ${JSON.stringify(content)}`);
}

function partText(part: unknown, place: string): string {
  const { type, text } = (part ?? {}) as { type?: unknown; text?: unknown };
  if (type !== "text") {
    const found = type === undefined ? JSON.stringify(part)?.slice(0, 60) : `a part of type ${JSON.stringify(type)}`;
    throw new TokenizerError(`${place}: ${found} is not supported; supported: {"type": "text", "text": "..."}`);
  }
  if (typeof text !== "string") throw new TokenizerError(`${place}.text: expected text, found ${JSON.stringify(text)}`);
  return text;
}
