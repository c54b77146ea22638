/**
 * A request whose prompt is tokens, checked: limits, settings, form. What the request is at fault for is an EngineError here.
 *
 * @module
 */

import type { Chat } from "../chat/chat.ts";
import { grammarOf, jsonGrammar, SchemaError } from "../grammar/json_schema.ts";
import { tokenTree } from "../grammar/tokens.ts";
import { StopError, StopMatcher } from "../tokenizer/stop.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { ModelConfig } from "../weights/config.ts";
import type { BatchRequest } from "./batch.ts";
import { endsOf } from "./output.ts";
import { EngineError, type GenerationRequest } from "./request.ts";
import { TOP_LOGPROBS } from "./runner.ts";
import { biasOf, type SamplingOptions, SettingError, settingsOf } from "./sampler.ts";

/** The first id outside the vocabulary, or undefined. */
export function foreignToken(ids: readonly number[], vocabulary: number): number | undefined {
  return ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabulary);
}

/** Tokens at the end of a prompt that tell whether the answer begins inside of reasoning. */
const PROMPT_END = 16;

/** Characters of a stop string at most. */
const STOP = 1024;

/** Checks the requests of one model. */
export class Validation {
  readonly #tokenizer: Tokenizer;
  readonly #model: ModelConfig;
  readonly #chat: Chat;

  /** Takes what requests are checked against. */
  constructor(tokenizer: Tokenizer, model: ModelConfig, chat: Chat) {
    this.#tokenizer = tokenizer;
    this.#model = model;
    this.#chat = chat;
    // Made now, and not while others wait for their next token.
    tokenTree(tokenizer.vocabulary);
  }

  /**
   * A request ready for a batch over a cache of `context` tokens; `ids` are its prompt's. Throws EngineError: invalid_request,
   * context_length.
   */
  check(request: GenerationRequest, ids: readonly number[], context: number): BatchRequest {
    const { sampling = {}, stop = [], logprobs } = request;
    if (ids.length === 0) throw invalid("the prompt has no tokens", "prompt");
    const { vocabularySize } = this.#model, foreign = foreignToken(ids, vocabularySize);
    if (foreign !== undefined) {
      throw invalid(`token ${foreign} is outside the vocabulary of ${vocabularySize}`, "prompt");
    }
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
    const rest = this.#rest(request, maxTokens);
    return { ids, maxTokens, sampling, stop, logprobs, n: request.n ?? 1, ...rest, ...this.#form(request, ids) };
  }

  /** What is asked of the prompt, and what else decides the end. */
  #rest(request: GenerationRequest, maxTokens: number): Omit<Partial<BatchRequest>, "ids" | "n" | "maxTokens"> {
    const { echo, promptLogprobs, embedding, stopIds = [], ignoreEnds = false, minTokens = 0, json, chat } = request;
    const { vocabularySize } = this.#model, foreign = foreignToken(stopIds, vocabularySize);
    if (foreign !== undefined) {
      throw invalid(`stop token ${foreign} is outside the vocabulary of ${vocabularySize}`, "stop_token_ids");
    }
    if (promptLogprobs !== undefined && !(promptLogprobs >= 0 && promptLogprobs <= TOP_LOGPROBS)) {
      throw invalid(
        `${promptLogprobs} log-probabilities of the prompt were asked for; 0 to ${TOP_LOGPROBS} are possible`,
        "prompt_logprobs",
      );
    }
    if (minTokens > maxTokens) {
      throw invalid(`min_tokens is ${minTokens}, more than the ${maxTokens} that there can be`, "min_tokens");
    }
    if ((json !== undefined || chat?.tools?.length) && (ignoreEnds || minTokens > 0)) {
      const name = ignoreEnds ? "ignore_eos" : "min_tokens";
      throw invalid(`${name} does not go with tools or a form of the answer, which decide where it ends`, name);
    }
    const alone = promptLogprobs !== undefined || embedding !== undefined;
    return { echo, promptLogprobs, embedding, stopIds, ignoreEnds, minTokens, alone };
  }

  #settings(sampling: SamplingOptions, stop: readonly string[]): void {
    // Each is compared with the end of the text at every token.
    const long = stop.findIndex((text) => text.length > STOP);
    if (long >= 0) {
      throw invalid(`stop string ${long} has ${stop[long].length} characters; ${STOP} are possible`, "stop");
    }
    try {
      settingsOf(sampling);
      biasOf(sampling, this.#model.vocabularySize);
      new StopMatcher(stop);
    } catch (error) {
      throw error instanceof SettingError || error instanceof StopError ? invalid(error.message) : error;
    }
  }

  /** What an answer is held to, and how it is read. */
  #form(request: GenerationRequest, ids: readonly number[]): Pick<BatchRequest, "grammar" | "reader" | "visible"> {
    const { json: schema, chat: options } = request, { vocabulary } = this.#tokenizer;
    const sizes = { size: this.#model.vocabularySize, ends: [...endsOf(this.#tokenizer, this.#model)] };
    try {
      if (!options) {
        return { grammar: schema === undefined ? undefined : jsonGrammar(schema, vocabulary, sizes) };
      }
      const chat = this.#chat, end = this.#tokenizer.decode(ids.slice(-PROMPT_END), { skipSpecialTokens: false });
      const thinks = chat.thinks(end), reads = chat.reader(options, thinks) !== undefined;
      const { tools, toolChoice, parallelToolCalls } = options;
      const key = JSON.stringify([chat.form.name, tools, toolChoice, parallelToolCalls, thinks, schema]);
      const rule = () => chat.rule(options, thinks, schema);
      return {
        grammar: chat.constrains(options, schema) ? grammarOf(key, rule, vocabulary, sizes) : undefined,
        ...(reads ? { reader: () => chat.reader(options, thinks), visible: chat.visible } : {}),
      };
    } catch (error) {
      const param = request.json === undefined ? "tools" : "response_format";
      throw error instanceof SchemaError ? invalid(error.message, param) : error;
    }
  }
}

function invalid(message: string, param?: string): EngineError {
  return new EngineError("invalid_request", message, param);
}
