/**
 * What the engine is asked and what it answers: plain objects that pass between threads.
 *
 * @module
 */

import type { ChatOptions } from "../chat/chat.ts";
import type { CallDelta } from "../chat/tool.ts";
import { GrammarError } from "../grammar/grammar.ts";
import type { ChatMessage } from "../tokenizer/tokenizer.ts";
import type { EffectiveConfig } from "./load.ts";
import type { SamplingOptions } from "./sampler.ts";

/** Why generation ended: an end token or stop string, or the length. */
export type FinishReason = "stop" | "length";

/** What to generate. */
export interface GenerationRequest {
  /** Text, token ids, or a chat. */
  prompt: string | readonly number[] | readonly ChatMessage[];
  /** Tokens at most, for each choice; 0 only reads the prompt. Default: what the context has room for. */
  maxTokens?: number;
  /** Generation ends before the first of these strings. Default none. */
  stop?: readonly string[];
  /** Ids that end the generation as the model's own ends do. Default none. */
  stopIds?: readonly number[];
  /** The model's own ends do not end the generation. Default false. */
  ignoreEnds?: boolean;
  /** Before so many tokens no end is drawn and no stop string looked for. Default 0. */
  minTokens?: number;
  /** How tokens are drawn; choice i has the seed `seed + i`. */
  sampling?: SamplingOptions;
  /** Choices. The prompt is read once. Default 1. */
  n?: number;
  /** Log-probabilities of the drawn token, and of this many of the most probable ones, come with each token. */
  logprobs?: number;
  /** The prompt's text comes before that of the choices. Default false. */
  echo?: boolean;
  /**
   * The prompt's tokens come with log-probabilities, and with this many of the most probable tokens in the place of each. The
   * prompt is then read token by token through the cache, as what is generated is, and shares nothing with other prompts.
   */
  promptLogprobs?: number;
  /** Nothing is generated: the answer is the prompt's embedding, the mean over its tokens or the last one's, of length 1. */
  embedding?: Pooling;
  /** Of a chat: tools, and how its prompt is made. Default: no tools. */
  chat?: ChatOptions;
  /** The answer is JSON: any object (`true`), or what this JSON schema describes. */
  json?: true | Record<string, unknown>;
}

/** Whose a request is. */
export interface Owner {
  /** Who asks: clients have equal shares of an engine, and take turns. */
  client: string;
  /** Requests find each other's prompts in the cache only where this is the same. */
  salt: string;
}

/** Whether a prompt is token ids. */
export function isTokens(prompt: GenerationRequest["prompt"]): prompt is readonly number[] {
  return typeof prompt !== "string" && (prompt.length === 0 || typeof prompt[0] === "number");
}

/** A token with its log-probability. */
export interface TokenLogprob {
  /** Its id. */
  id: number;
  /** Its text; U+FFFD stands for parts of a character. */
  text: string;
  /** Its bytes. */
  bytes: number[];
  /** Its log-probability under the model, before temperature, penalties and biases. */
  logprob: number;
}

/** A drawn token, with the most probable ones in its place where they were asked for. */
export interface GeneratedToken extends TokenLogprob {
  /** The most probable tokens, in order. */
  top: TokenLogprob[];
}

/** How a prompt's hidden states become one vector. */
export type Pooling = "mean" | "last";

/** A token of a prompt. The first one has no log-probability: nothing comes before it. */
export interface PromptToken extends Omit<GeneratedToken, "logprob"> {
  /** Its log-probability under the model, or null. */
  logprob: number | null;
  /** Where in the prompt's text it begins. */
  offset: number;
}

/** How long a choice took, in milliseconds. */
export interface Timings {
  /** Reading its prompt. */
  promptMs: number;
  /** From there to its end. */
  generatedMs: number;
}

/**
 * What the engine tells about a request, in order: accepted, start, what was asked of the prompt, then text and end for each choice;
 * or an error.
 */
export type GenerationEvent =
  | { type: "accepted"; promptTokens: number }
  | { type: "start"; cachedTokens: number }
  | { type: "prompt"; text: string; tokens: PromptToken[] }
  | { type: "embedding"; values: Float32Array }
  | {
    type: "text";
    choice: number;
    text: string;
    /** What the model wrote to itself, where its template has marks for that. */
    reasoning?: string;
    /** Parts of tool calls. */
    calls?: CallDelta[];
    tokens: GeneratedToken[];
    count: number;
  }
  | { type: "end"; choice: number; reason: FinishReason; stop?: string; completionTokens: number; timings?: Timings }
  | { type: "error"; error: EngineErrorData };

/** Why a request failed. */
export type EngineErrorCode =
  | "invalid_request"
  | "context_length"
  | "queue_full"
  | "unavailable"
  | "timeout"
  | "cancelled"
  | "internal";

/** An error as it passes between threads. */
export interface EngineErrorData {
  /** What kind of error. */
  code: EngineErrorCode;
  /** What happened and what to do. */
  message: string;
  /** The field of the request at fault. */
  param?: string;
}

/** A request failed; `code` says how. */
export class EngineError extends Error {
  /** Always "EngineError". */
  override readonly name: string = "EngineError";
  /** What kind of error. */
  readonly code: EngineErrorCode;
  /** The field of the request at fault. */
  readonly param: string | undefined;

  /** Makes an error of a kind. */
  constructor(code: EngineErrorCode, message: string, param?: string) {
    super(message);
    this.code = code;
    this.param = param;
  }

  /** An error as one of the engine: what is none already is internal. */
  static from(error: unknown): EngineError {
    if (error instanceof EngineError) return error;
    if (error instanceof GrammarError) return new EngineError("invalid_request", error.message, "response_format");
    return new EngineError("internal", error instanceof Error ? error.message : String(error));
  }

  /** The error as plain data. */
  get data(): EngineErrorData {
    return { code: this.code, message: this.message, ...(this.param === undefined ? {} : { param: this.param }) };
  }
}

/** How much one cache of the engine is used, now and since the start. */
export interface CacheStats {
  /** Requests that are being read or answered. */
  running: number;
  /** Requests that wait. */
  waiting: number;
  /** Sequences that are being read or answered. */
  sequences: number;
  /** Prefix states kept. */
  prefixes: number;
  /** Pages in all, free, held by prefix states alone, and held by more than one sequence. */
  pages: { total: number; free: number; prefix: number; shared: number };
  /** Bytes in use: pages of codes, and the exact rows (newest tokens and sinks) of sequences and prefix states. */
  bytes: { pages: number; exact: number };
  /** What a bf16 cache would use for the same pages. */
  bf16Bytes: number;
  /** Since the start. */
  totals: {
    /** Prompt tokens, also those found in the prefix cache. */
    promptTokens: number;
    /** Tokens generated. */
    generatedTokens: number;
    /** Prompt tokens looked up in the prefix cache. */
    prefixQueries: number;
    /** Prompt tokens found there. */
    prefixHits: number;
    /** Steps of all rows. */
    steps: number;
  };
}

/** How the engine is used. */
export interface EngineStats {
  /** By name of the cache. */
  caches: Record<string, CacheStats>;
  /** Bytes allocated on the device. */
  deviceBytes: number;
}

/** One of the caches that an engine offers, as effective. */
export interface CacheConfig extends EffectiveConfig {
  /** Sequences that are answered at once. */
  sequences: number;
  /** Requests that may wait. */
  queue: number;
  /** Tokens in all pages together. */
  cacheTokens: number;
  /** Bytes that a token would take in bf16. */
  bf16BytesPerToken: number;
  /** Tokens of a block of a prompt. */
  block: number;
  /** Prefix states kept at most. */
  prefixes: number;
}

/** What an engine runs with. */
export interface EngineConfig {
  /** The caches on offer; the first is the default. */
  caches: CacheConfig[];
  /** How a chat becomes text. */
  chatTemplate: "model" | "plain" | "none";
  /** How tools get into the prompt (by the model's template or a built-in text), and in which form calls are read. */
  tools: { prompt: "model" | "built-in"; form: string };
  /** Hash of the model's weights. */
  fingerprint: string;
  /** Tokens of the vocabulary. */
  vocabularySize: number;
  /** Tokens of the longest context that the model was trained for. */
  trainedContext: number;
  /** Channels of a hidden state, and so of an embedding. */
  hiddenSize: number;
}
