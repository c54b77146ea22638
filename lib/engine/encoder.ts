/**
 * Prompts to token ids: text, or a chat through the model's template.
 *
 * @module
 */

import { Chat, type ChatOptions } from "../chat/chat.ts";
import { plainMessages } from "../tokenizer/messages.ts";
import type { ChatMessage, Tokenizer } from "../tokenizer/tokenizer.ts";
import { type EngineConfig, EngineError, type GenerationRequest, isTokens } from "./request.ts";

/** What to do with a chat where the model has no template. */
export type ChatFallback = "plain" | "refuse";

/** How a chat becomes text. */
export function chatTemplateOf(tokenizer: Tokenizer, fallback: ChatFallback = "plain"): EngineConfig["chatTemplate"] {
  return tokenizer.hasChatTemplate ? "model" : fallback === "plain" ? "plain" : "none";
}

/** Characters of a piece that a long text's tokens are counted in. */
const PIECE = 2048;

/** Tokens that a cut between two pieces adds at most. */
const CUT = 4;

/** Encodes the prompts of one model. */
export class Encoder {
  readonly #tokenizer: Tokenizer;
  readonly #chatTemplate: EngineConfig["chatTemplate"];
  readonly #chat: Chat;
  /** Bytes of the longest token. */
  readonly #longest: number;

  /** Looks through the vocabulary once. */
  constructor(tokenizer: Tokenizer, fallback?: ChatFallback, toolForm?: string) {
    this.#tokenizer = tokenizer;
    this.#chatTemplate = chatTemplateOf(tokenizer, fallback);
    this.#chat = new Chat(tokenizer, !tokenizer.hasChatTemplate, toolForm);
    this.#longest = Array.from({ length: tokenizer.vocabularySize }, (_, id) => tokenizer.tokenBytes(id))
      .reduce((most, { length }) => Math.max(most, length), 1);
  }

  /** The ids of a request's prompt, for a context of so many tokens. Throws EngineError: invalid_request, context_length. */
  encode({ prompt, chat }: GenerationRequest, context: number): number[] {
    const tokenizer = this.#tokenizer;
    if (typeof prompt === "string") return tokenizer.encode(this.#fits(prompt, context));
    if (isTokens(prompt)) return [...prompt];
    const rendered = this.#rendered(prompt, chat);
    this.#fits(rendered.text, context);
    return rendered.encode();
  }

  /** The text of a chat as it is encoded. Throws EngineError (invalid_request). */
  render(messages: readonly ChatMessage[], options?: ChatOptions): string {
    return this.#rendered(messages, options).text;
  }

  #rendered(chat: readonly ChatMessage[], chatOptions?: ChatOptions): { text: string; encode: () => number[] } {
    const tokenizer = this.#tokenizer, { messages, options } = this.#chat.prepare(chat, chatOptions);
    if (this.#chatTemplate === "none") {
      throw invalid(
        "the model has no chat template: use /v1/completions, or start the server with the plain chat fallback",
      );
    }
    if (this.#chatTemplate === "plain") {
      const text = plainChat(messages);
      return { text, encode: () => tokenizer.encode(text, { parseSpecialTokens: false }) };
    }
    try {
      return tokenizer.renderChat(messages, options);
    } catch (error) { // whatever a template throws, it is of these messages
      throw invalid((error as Error).message);
    }
  }

  /** Throws for a text that cannot fit, before time goes into finding all of its tokens. */
  #fits(text: string, context: number): string {
    const least = Math.ceil(text.length / this.#longest);
    if (least > context) throw tooLong(context, least);
    // What has about as many characters as tokens that fit is encoded in no time. Merging the tokens of a longer one takes
    // more than its share of time where it has no gaps: pieces are enough to tell that there are too many.
    if (text.length <= 4 * context + PIECE) return text;
    let tokens = 0;
    for (let begin = 0; begin < text.length; begin += PIECE) {
      const piece = text.slice(begin, begin + PIECE).toWellFormed();
      tokens += Math.max(0, this.#tokenizer.encode(piece, { addSpecialTokens: false }).length - CUT);
      if (tokens > context) throw tooLong(context, tokens);
    }
    return text;
  }
}

/** The messages' texts alone. */
function plainChat(messages: readonly ChatMessage[]): string {
  try {
    const texts = plainMessages(messages).map(({ content }) =>
      typeof content === "string" ? content : JSON.stringify(content)
    );
    return texts.filter(Boolean).join("\n\n");
  } catch (error) {
    throw invalid((error as Error).message);
  }
}

function tooLong(context: number, least: number): EngineError {
  return new EngineError(
    "context_length",
    `This model's maximum context length is ${context} tokens. However, the prompt has at least ${least}. ` +
      "Please reduce its length.",
    "prompt",
  );
}

function invalid(message: string): EngineError {
  return new EngineError("invalid_request", message, "messages");
}
