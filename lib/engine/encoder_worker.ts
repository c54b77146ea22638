/**
 * The thread that encodes prompts: a text of a megabyte takes seconds, in which neither steps nor clients may wait.
 *
 * @module
 */

import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { localPath } from "../weights/local.ts";
import { type ChatFallback, Encoder } from "./encoder.ts";
import { EMBEDDED_MODEL } from "./embedded.ts";
import { EngineError, type EngineErrorData, type GenerationRequest } from "./request.ts";
import { answerOf, type TextQuestion, type TokenizedText } from "./text_question.ts";
import { openTokenizer } from "./tokenizer.ts";

/** Messages to this thread. Each is answered before the next one is sent. */
export type ToEncoder =
  | { type: "load"; model: string | undefined; chatFallback: ChatFallback | undefined; toolForm: string | undefined }
  | { type: "encode"; request: GenerationRequest; context: number }
  | { type: "ask"; question: TextQuestion };

/** Its answers. */
export type FromEncoder =
  | { type: "loaded" }
  | { type: "encoded"; ids: number[] }
  | { type: "answered"; answer: TokenizedText | string }
  | { type: "failed"; error: EngineErrorData };

// The global of a dedicated worker; the types of the main thread are in force here.
const scope = globalThis as unknown as {
  postMessage(message: FromEncoder): void;
  onmessage: ((event: { data: ToEncoder }) => void) | null;
};

let tokenizer: Tokenizer | undefined, encoder: Encoder | undefined;

scope.onmessage = ({ data }) => {
  try {
    if (data.type === "load") {
      tokenizer = openTokenizer(localPath(data.model ?? EMBEDDED_MODEL));
      encoder = new Encoder(tokenizer, data.chatFallback, data.toolForm);
      scope.postMessage({ type: "loaded" });
    } else if (data.type === "ask") {
      scope.postMessage({ type: "answered", answer: answerOf(tokenizer!, encoder!, data.question) });
    } else scope.postMessage({ type: "encoded", ids: encoder!.encode(data.request, data.context) });
  } catch (error) {
    scope.postMessage({ type: "failed", error: EngineError.from(error).data });
  }
};
