/**
 * A request as it came, checked: prompt to tokens, limits, settings. What the request is at fault for is an EngineError here.
 *
 * @module
 */

import type { Grammar } from "../grammar/grammar.ts";
import { jsonGrammar, SchemaError } from "../grammar/json_schema.ts";
import { plainMessages } from "../tokenizer/messages.ts";
import { StopError, StopMatcher } from "../tokenizer/stop.ts";
import type { ChatMessage, Tokenizer } from "../tokenizer/tokenizer.ts";
import type { ModelConfig } from "../weights/config.ts";
import type { BatchRequest } from "./batch.ts";
import { endsOf } from "./output.ts";
import { type EngineConfig, EngineError, type GenerationRequest } from "./request.ts";
import { TOP_LOGPROBS } from "./runner.ts";
import { biasOf, type SamplingOptions, SettingError, settingsOf } from "./sampler.ts";

/** Whether a prompt is token ids. */
export function isTokens(prompt: GenerationRequest["prompt"]): prompt is readonly number[] {
  return typeof prompt !== "string" && (prompt.length === 0 || typeof prompt[0] === "number");
}

/** The first id outside the vocabulary, or undefined. */
export function foreignToken(ids: readonly number[], vocabulary: number): number | undefined {
  return ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabulary);
}

/** Checks the requests of one model. */
export class Validation {
  readonly #tokenizer: Tokenizer;
  readonly #model: ModelConfig;
  readonly #chatTemplate: EngineConfig["chatTemplate"];
  /** Bytes of the longest token. */
  #longest: number | undefined;

  /** Takes what requests are checked against. */
  constructor(tokenizer: Tokenizer, model: ModelConfig, chatTemplate: EngineConfig["chatTemplate"]) {
    this.#tokenizer = tokenizer;
    this.#model = model;
    this.#chatTemplate = chatTemplate;
  }

  /** A request ready for a batch over a cache of `context` tokens. Throws EngineError: invalid_request, context_length. */
  check(request: GenerationRequest, context: number): BatchRequest {
    const ids = this.#encode(request.prompt, context), { sampling = {}, stop = [], logprobs } = request;
    if (ids.length === 0) throw invalid("the prompt has no tokens", "prompt");
    // The last generated token needs no room: nothing follows it.
    const room = context - ids.length + 1, maxTokens = Math.min(request.maxTokens ?? room, room);
    if (room < 1 || (request.maxTokens ?? 1) > room) {
      throw new EngineError(
        "context_length",
        `This model's maximum context length is ${context} tokens. However, you requested ` +
          `${ids.length + (request.maxTokens ?? 1)} tokens (${ids.length} in the prompt, ` +
          `${request.maxTokens ?? "at least 1"} for the completion). Please reduce the length of either.`,
        "prompt",
      );
    }
    if (logprobs !== undefined && !(Number.isInteger(logprobs) && logprobs >= 0 && logprobs <= TOP_LOGPROBS)) {
      throw invalid(`${logprobs} log-probabilities were asked for; 0 to ${TOP_LOGPROBS} are possible`, "top_logprobs");
    }
    this.#settings(sampling, stop);
    const grammar = request.json === undefined ? undefined : this.#grammar(request.json);
    return { ids, maxTokens, sampling, stop, logprobs, grammar, n: request.n ?? 1 };
  }

  #settings(sampling: SamplingOptions, stop: readonly string[]): void {
    try {
      settingsOf(sampling);
      biasOf(sampling, this.#model.vocabularySize);
      new StopMatcher(stop);
    } catch (error) {
      throw error instanceof SettingError || error instanceof StopError ? invalid(error.message) : error;
    }
  }

  #grammar(json: NonNullable<GenerationRequest["json"]>): Grammar {
    try {
      return jsonGrammar(json, this.#tokenizer.vocabulary, {
        size: this.#model.vocabularySize,
        ends: [...endsOf(this.#tokenizer, this.#model)],
      });
    } catch (error) {
      throw error instanceof SchemaError ? invalid(error.message, "response_format") : error;
    }
  }

  #encode(prompt: GenerationRequest["prompt"], context: number): number[] {
    const tokenizer = this.#tokenizer;
    if (typeof prompt === "string") return tokenizer.encode(this.#fits(prompt, context));
    if (isTokens(prompt)) {
      const { vocabularySize } = this.#model, foreign = foreignToken(prompt, vocabularySize);
      if (foreign === undefined) return [...prompt];
      throw invalid(`token ${foreign} is outside the vocabulary of ${vocabularySize}`, "prompt");
    }
    if (this.#chatTemplate === "plain") {
      return tokenizer.encode(this.#fits(this.#chat(prompt), context), { parseSpecialTokens: false });
    }
    return tokenizer.encode(this.#fits(this.#chat(prompt), context), { addSpecialTokens: false });
  }

  /** A chat as text: by the model's template, or the messages' texts alone. */
  #chat(messages: readonly ChatMessage[]): string {
    if (this.#chatTemplate === "none") {
      throw invalid(
        "the model has no chat template: use /v1/completions, or start the server with the plain chat fallback",
        "messages",
      );
    }
    try {
      if (this.#chatTemplate === "model") return this.#tokenizer.applyChatTemplate(messages);
      const texts = plainMessages(messages).map(({ content }) =>
        typeof content === "string" ? content : JSON.stringify(content)
      );
      return texts.filter(Boolean).join("\n\n");
    } catch (error) { // whatever a template throws, it is of these messages
      throw invalid((error as Error).message, "messages");
    }
  }

  /** Throws for a text that cannot fit whatever its tokens, before time of everyone's goes into finding them. */
  #fits(text: string, context: number): string {
    this.#longest ??= Array.from({ length: this.#tokenizer.vocabularySize }, (_, id) => this.#tokenizer.tokenBytes(id))
      .reduce((most, { length }) => Math.max(most, length), 1);
    const least = Math.ceil(text.length / this.#longest);
    if (least <= context) return text;
    throw new EngineError(
      "context_length",
      `This model's maximum context length is ${context} tokens. However, the prompt has at least ${least}. ` +
        "Please reduce its length.",
      "prompt",
    );
  }
}

function invalid(message: string, param?: string): EngineError {
  return new EngineError("invalid_request", message, param);
}
