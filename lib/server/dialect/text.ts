/**
 * Text completions of OpenAI's API.
 *
 * @module
 */

import type { GeneratedToken, GenerationRequest } from "../../engine/request.ts";
import { invalid } from "../error.ts";
import type { CompletionAnswer, CompletionRequest } from "../schema.ts";
import type { ServerSentEvent } from "../sse.ts";
import { chunk, end, finite, formOf, head, refuse, requestOf, usageOf } from "./completion.ts";
import type { Answer, Dialect, Job } from "./dialect.ts";

const OBJECT = "text_completion";

/** POST /v1/completions. */
export const text: Dialect<CompletionRequest> = {
  prefix: "cmpl",
  parse,
  whole: (answer): CompletionAnswer => ({
    ...head(answer, OBJECT),
    choices: answer.choices.map(({ text, tokens, reason = "length" }, index) => ({
      index,
      text: echo(answer, index) + text,
      logprobs: logprobs(answer, tokens, 0),
      finish_reason: reason,
    })),
    usage: usageOf(answer),
  }),
  first: (answer) =>
    answer.job.echo ? answer.choices.flatMap((_, index) => part(answer, index, echo(answer, index))) : [],
  delta: (answer, index, { text, tokens }, offset) => part(answer, index, text, logprobs(answer, tokens, offset)),
  last: (answer, index) => part(answer, index, "", null, answer.choices[index].reason),
  done: (answer) => end(answer, OBJECT),
};

function part(
  answer: Answer,
  index: number,
  text: string,
  logprobs: unknown = null,
  reason: string | null = null,
): ServerSentEvent[] {
  return [chunk(answer, OBJECT, [{ index, text, logprobs, finish_reason: reason }])];
}

/** What a choice begins with: its prompt, or nothing. */
function echo({ job }: Answer, index: number): string {
  return job.echo?.[Math.floor(index / job.n)] ?? "";
}

function parse(body: CompletionRequest): Job {
  refuse(body, ["suffix"]);
  if (body.best_of != null && body.best_of !== (body.n ?? 1)) {
    throw invalid("best_of is not supported by this server; ask for n choices", "best_of", "unsupported_parameter");
  }
  const form = formOf(body), { prompt } = body;
  const prompts = (Array.isArray(prompt) && typeof prompt[0] !== "number" ? prompt : [prompt]) as (string | number[])[];
  if (body.echo && (body.logprobs != null || prompts.some((prompt) => typeof prompt !== "string"))) {
    throw invalid("echo is for text prompts, without logprobs", "echo", "unsupported_parameter");
  }
  const requests = prompts.map((prompt): GenerationRequest => ({
    prompt,
    maxTokens: body.max_tokens ?? 16,
    ...requestOf(body),
    ...(body.logprobs == null ? {} : { logprobs: body.logprobs }),
  }));
  return { ...form, requests, ...(body.echo ? { echo: prompts as string[] } : {}) };
}

/** Null where none were asked for; `offset` is where in the text the first token begins. */
function logprobs(
  { job }: Answer,
  tokens: readonly GeneratedToken[],
  offset: number,
): Record<string, unknown> | null {
  const top = job.requests[0].logprobs;
  if (top === undefined) return null;
  const offsets: number[] = [];
  for (const token of tokens) {
    offsets.push(offset);
    offset += token.text.length;
  }
  return {
    tokens: tokens.map(({ text }) => text),
    token_logprobs: tokens.map(({ logprob }) => finite(logprob)),
    top_logprobs: top === 0
      ? null
      : tokens.map((token) => Object.fromEntries(token.top.map(({ text, logprob }) => [text, finite(logprob)]))),
    text_offset: offsets,
  };
}
