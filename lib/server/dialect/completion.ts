/**
 * What chat and text completions of OpenAI's API have in common: fields of a request, and the frame around choices.
 *
 * @module
 */

import type { GenerationRequest } from "../../engine/request.ts";
import { type ApiError, invalid } from "../error.ts";
import { jsonForm } from "./json_form.ts";
import type { ChatRequest, CompletionRequest } from "../schema.ts";
import type { ServerSentEvent } from "../sse.ts";
import type { Answer, Job } from "./dialect.ts";

type Sampling = NonNullable<GenerationRequest["sampling"]>;

/** What most dialects say of drawing; OpenAI's and Anthropic's default temperature is 1. */
export function drawingOf(
  body: { temperature?: number | null; top_p?: number | null; top_k?: number | null; seed?: number | null },
): Sampling {
  const options: Sampling = { temperature: body.temperature ?? 1 };
  // No mass keeps one token.
  if (body.top_p === 0) options.temperature = 0;
  else if (body.top_p != null) options.topP = body.top_p;
  if (body.top_k != null) options.topK = Math.max(body.top_k, 0);
  if (body.seed != null && body.seed !== -1) options.seed = body.seed;
  return options;
}

/** All sampling settings. */
function samplingOf(body: ChatRequest | CompletionRequest): Sampling {
  const options = drawingOf(body);
  if (body.min_p != null) options.minP = body.min_p;
  const repetition = body.repetition_penalty ?? body.repeat_penalty;
  if (repetition != null) options.repetitionPenalty = repetition;
  if (body.presence_penalty != null) options.presencePenalty = body.presence_penalty;
  if (body.frequency_penalty != null) options.frequencyPenalty = body.frequency_penalty;
  // OpenAI: -100 bans a token. Not by infinity, so that something is left where all are banned.
  if (body.logit_bias) {
    const pairs = Array.isArray(body.logit_bias) ? body.logit_bias : Object.entries(body.logit_bias);
    options.logitBias = Object.fromEntries(
      pairs.map(([id, bias]) => [id, bias === false || bias <= -100 ? -1e9 : bias]),
    );
  }
  return options;
}

/** Fields of vLLM's and llama.cpp's that would change the answer and are not there. */
const ABSENT: readonly string[] = [
  "allowed_token_ids",
  "bad_words",
  "include_stop_str_in_output",
  "logits_processors",
  "truncate_prompt_tokens",
  "use_beam_search",
];

/** What each prompt's request says alike. Throws ApiError for a form of the answer that there is not. */
export function requestOf(body: ChatRequest | CompletionRequest): Omit<GenerationRequest, "prompt"> {
  const stop = body.stop == null ? [] : typeof body.stop === "string" ? [body.stop] : body.stop;
  refuse(body, ABSENT);
  if (body.skip_special_tokens === false) throw absent("skip_special_tokens: false");
  const json = jsonForm(body), { stop_token_ids: stopIds, min_tokens: minTokens } = body;
  return {
    // As for llama.cpp, an empty one is none.
    stop: stop.filter(Boolean),
    sampling: samplingOf(body),
    n: body.n ?? 1,
    ...(stopIds?.length ? { stopIds } : {}),
    ...(body.ignore_eos ? { ignoreEnds: true } : {}),
    ...(minTokens ? { minTokens } : {}),
    ...(json === undefined ? {} : { json }),
  };
}

/** The limit of an answer's length that a request has: none for -1 and where none is given. */
export function limitOf(tokens: number | null | undefined): number | undefined {
  return tokens == null || tokens === -1 ? undefined : tokens;
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
    if (value === undefined || value === null || value === false || value === "none" || value === "") continue;
    if (Array.isArray(value) && value.length === 0) continue;
    throw absent(field);
  }
}

function absent(field: string): ApiError {
  return invalid(
    `${field} is not supported by this server; leave it out`,
    field.split(":")[0],
    "unsupported_parameter",
  );
}

/** What goes before the choices, in a whole answer and in a chunk. */
export function head<Name extends string>(answer: Answer, object: Name): {
  id: string;
  object: Name;
  created: number;
  model: string;
  system_fingerprint: string;
  timings?: Record<string, number>;
} {
  const { id, created, model, fingerprint } = answer.identity, timings = timingsOf(answer);
  return { id, object, created, model, system_fingerprint: fingerprint, ...(timings && { timings }) };
}

/** How long an answer took, by llama.cpp's names, once it is whole. */
function timingsOf(answer: Answer): Record<string, number> | undefined {
  const { timings, promptTokens, cachedTokens, completionTokens } = answer;
  if (!timings) return undefined;
  const { promptMs, generatedMs } = timings, read = promptTokens - cachedTokens;
  const each = (ms: number, count: number) => count > 0 ? ms / count : 0;
  const rate = (ms: number, count: number) => ms > 0 ? 1000 * count / ms : 0;
  return {
    cache_n: cachedTokens,
    prompt_n: read,
    prompt_ms: promptMs,
    prompt_per_token_ms: each(promptMs, read),
    prompt_per_second: rate(promptMs, read),
    predicted_n: completionTokens,
    predicted_ms: generatedMs,
    predicted_per_token_ms: each(generatedMs, completionTokens),
    predicted_per_second: rate(generatedMs, completionTokens),
  };
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
