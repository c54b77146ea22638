/**
 * Questions about texts, and what a tokenizer answers.
 *
 * @module
 */

import type { ChatOptions } from "../chat/chat.ts";
import type { ChatMessage } from "../tokenizer/messages.ts";
import { type Tokenizer, TokenizerError } from "../tokenizer/tokenizer.ts";
import type { Encoder } from "./encoder.ts";
import { EngineError } from "./request.ts";

/** A chat, for the model's template. */
export interface ChatText {
  /** Its messages. */
  messages: readonly ChatMessage[];
  /** Tools, and how it is rendered. */
  chat?: ChatOptions;
}

/** What can be asked. */
export type TextQuestion =
  | {
    type: "tokenize";
    text: string | ChatText;
    addSpecialTokens: boolean;
    parseSpecialTokens: boolean;
    /** Whether the tokens' spellings in the vocabulary are wanted. */
    texts: boolean;
    /** Whether the tokens' texts are wanted, as bytes where they are none. */
    pieces: boolean;
  }
  | { type: "detokenize"; ids: readonly number[] }
  | { type: "template" } & ChatText;

/** The tokens of a text. */
export interface TokenizedText {
  /** Their ids. */
  ids: number[];
  /** Their spellings, where they were asked for. */
  texts?: string[];
  /** Their texts, where they were asked for; bytes where those are no UTF-8. */
  pieces?: (string | number[])[];
}

/** What is answered to a question. */
export type TextAnswer<Q extends TextQuestion> = Q extends { type: "tokenize" } ? TokenizedText : string;

/** Answers. Throws EngineError (invalid_request) where the question is at fault, as with whatever a template throws. */
export function answerOf(tokenizer: Tokenizer, encoder: Encoder, question: TextQuestion): TokenizedText | string {
  try {
    switch (question.type) {
      case "detokenize":
        return tokenizer.decode(question.ids, { skipSpecialTokens: false });
      case "template":
        return encoder.render(question.messages, question.chat);
      case "tokenize":
        return tokenized(tokenizer, encoder, question);
    }
  } catch (error) {
    throw error instanceof TokenizerError ? new EngineError("invalid_request", error.message) : error;
  }
}

function tokenized(
  tokenizer: Tokenizer,
  encoder: Encoder,
  { text, addSpecialTokens, parseSpecialTokens, texts, pieces }: TextQuestion & { type: "tokenize" },
): TokenizedText {
  // A chat's contents are not searched for control tokens: its tokens are those that an answer would follow.
  const ids = typeof text === "string"
    ? tokenizer.encode(text, { addSpecialTokens, parseSpecialTokens })
    : addSpecialTokens
    ? tokenizer.encode(encoder.render(text.messages, text.chat))
    : encoder.encode({ prompt: text.messages, chat: text.chat }, Infinity);
  return {
    ids,
    ...(texts && { texts: ids.map((id) => tokenizer.vocabulary.token(id) ?? "") }),
    ...(pieces && { pieces: ids.map((id) => pieceOf(tokenizer.tokenBytes(id))) }),
  };
}

function pieceOf(bytes: Uint8Array): string | number[] {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return [...bytes];
  }
}
