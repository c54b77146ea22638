/**
 * What chat and text completions of OpenAI's API have in common: fields of a request, and the frame around choices.
 *
 * @module
 */

import type { GenerationRequest } from "../../engine/request.ts";
import { invalid } from "../error.ts";
import type { ChatRequest, CompletionRequest } from "../schema.ts";
import type { ServerSentEvent } from "../sse.ts";
import type { Answer, Job } from "./dialect.ts";

type Sampling = NonNullable<GenerationRequest["sampling"]>;

/** Sampling settings; OpenAI's default temperature is 1. */
function samplingOf(body: ChatRequest | CompletionRequest): Sampling {
  const options: Sampling = { temperature: body.temperature ?? 1 };
  if (body.top_p != null) options.topP = body.top_p;
  if (body.top_k != null) options.topK = body.top_k;
  if (body.min_p != null) options.minP = body.min_p;
  if (body.repetition_penalty != null) options.repetitionPenalty = body.repetition_penalty;
  if (body.presence_penalty != null) options.presencePenalty = body.presence_penalty;
  if (body.frequency_penalty != null) options.frequencyPenalty = body.frequency_penalty;
  // OpenAI: -100 bans a token. Not by infinity, so that something is left where all are banned.
  if (body.logit_bias) {
    options.logitBias = Object.fromEntries(
      Object.entries(body.logit_bias).map(([id, bias]) => [id, bias <= -100 ? -1e9 : bias]),
    );
  }
  if (body.seed != null) options.seed = body.seed;
  return options;
}

/** What each prompt's request says alike. */
export function requestOf(body: ChatRequest | CompletionRequest): Pick<GenerationRequest, "stop" | "sampling" | "n"> {
  const stop = body.stop == null ? [] : typeof body.stop === "string" ? [body.stop] : body.stop;
  return { stop, sampling: samplingOf(body), n: body.n ?? 1 };
}

/** How the answer is to come. Throws ApiError for settings of a stream where none is asked for. */
export function formOf(body: ChatRequest | CompletionRequest): Pick<Job, "n" | "stream" | "includeUsage"> {
  if (body.stream_options && !body.stream) {
    throw invalid("stream_options is for streams: set stream to true", "stream_options");
  }
  return {
    n: body.n ?? 1,
    stream: body.stream ?? false,
    includeUsage: body.stream_options?.include_usage ?? false,
  };
}

/** Throws ApiError for fields of OpenAI's API that would change the answer and are not there yet. */
export function refuse(body: Record<string, unknown>, fields: readonly string[]): void {
  for (const field of fields) {
    const value = body[field];
    if (value === undefined || value === null || value === false || value === "none") continue;
    if (Array.isArray(value) && value.length === 0) continue;
    throw invalid(`${field} is not supported by this server; leave it out`, field, "unsupported_parameter");
  }
}

/** What goes before the choices, in a whole answer and in a chunk. */
export function head<Name extends string>({ identity }: Answer, object: Name): {
  id: string;
  object: Name;
  created: number;
  model: string;
  system_fingerprint: string;
} {
  const { id, created, model, fingerprint } = identity;
  return { id, object, created, model, system_fingerprint: fingerprint };
}

/** Tokens read and written. */
export function usageOf({ promptTokens, completionTokens, cachedTokens }: Answer): {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
} {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}

/** Choices as one chunk. With include_usage all chunks have a usage, which is null but in the last. */
export function chunk(answer: Answer, object: string, choices: unknown[], usage: unknown = null): ServerSentEvent {
  return {
    data: JSON.stringify({ ...head(answer, object), choices, ...(answer.job.includeUsage ? { usage } : {}) }),
  };
}

/** What ends a stream. */
export function end(answer: Answer, object: string): ServerSentEvent[] {
  const usage = answer.job.includeUsage ? [chunk(answer, object, [], usageOf(answer))] : [];
  return [...usage, { data: "[DONE]" }];
}

/** JSON has no infinity: OpenAI's value for "impossible". */
export function finite(logprob: number): number {
  return Math.max(logprob, -9999);
}
