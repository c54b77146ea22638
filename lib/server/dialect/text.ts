/**
 * Text completions of OpenAI's API.
 *
 * @module
 */

import type { GenerationRequest, PromptToken, TokenLogprob } from "../../engine/request.ts";
import { invalid } from "../error.ts";
import type { CompletionAnswer, CompletionRequest } from "../schema.ts";
import type { ServerSentEvent } from "../sse.ts";
import { chunk, end, finite, formOf, head, limitOf, refuse, requestOf, usageOf } from "./completion.ts";
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
      logprobs: logprobs(answer, [
        ...(answer.job.echo ? answer.prompts[promptOf(answer, index)].tokens : []),
        ...placed(tokens, echo(answer, index).length),
      ]),
      finish_reason: reason,
      ...promptLogprobs(answer, promptOf(answer, index)),
    })),
    usage: usageOf(answer),
  }),
  first: (answer) =>
    answer.choices.flatMap((_, index) => {
      const text = answer.job.echo?.[promptOf(answer, index)];
      return typeof text === "string" ? part(answer, index, text) : [];
    }),
  prompt: (answer, index, { text, tokens }) =>
    Array.from(
      { length: answer.job.n },
      (_, i) => part(answer, index + i, text, tokens.length ? logprobs(answer, tokens) : null),
    )
      .flat(),
  delta: (answer, index, { text, tokens }, offset) => {
    const start = answer.prompts[promptOf(answer, index)].text.length + offset;
    return part(answer, index, text, logprobs(answer, placed(tokens, start)));
  },
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

/** The prompt of a choice. */
function promptOf({ job }: Answer, index: number): number {
  return Math.floor(index / job.n);
}

/** What a choice begins with: its prompt, or nothing. */
function echo(answer: Answer, index: number): string {
  const prompt = promptOf(answer, index), { echo } = answer.job;
  return echo ? echo[prompt] ?? answer.prompts[prompt].text : "";
}

function parse(body: CompletionRequest): Job {
  refuse(body, ["suffix"]);
  if (body.best_of != null && body.best_of !== (body.n ?? 1)) {
    throw invalid("best_of is not supported by this server; ask for n choices", "best_of", "unsupported_parameter");
  }
  const form = formOf(body), { prompt, echo, logprobs, prompt_logprobs: asked } = body;
  if (asked != null && form.stream) {
    throw invalid("prompt_logprobs do not come in streams: set stream to false, or ask for echo", "prompt_logprobs");
  }
  const prompts = (Array.isArray(prompt) && typeof prompt[0] !== "number" ? prompt : [prompt]) as (string | number[])[];
  const scores = Math.max(echo ? logprobs ?? -1 : -1, asked ?? -1);
  const maxTokens = limitOf(body.max_tokens === undefined || body.max_tokens === null ? 16 : body.max_tokens);
  const requests = prompts.map((prompt): GenerationRequest => ({
    prompt,
    ...(maxTokens === undefined ? {} : { maxTokens }),
    ...requestOf(body),
    ...(logprobs == null ? {} : { logprobs }),
    ...(scores < 0 ? {} : { promptLogprobs: scores }),
    ...(echo && typeof prompt !== "string" ? { echo } : {}),
  }));
  // A text is told as it came; tokens, and texts in tokens, as the engine tells them.
  const known = (prompt: string | number[]) => typeof prompt === "string" && scores < 0 ? prompt : null;
  return {
    ...form,
    requests,
    ...(echo ? { echo: prompts.map(known) } : {}),
    ...(asked == null ? {} : { promptLogprobs: asked }),
  };
}

/** A token, and where in the text it begins. */
type Placed = Pick<PromptToken, "text" | "logprob" | "top" | "offset">;

/** Tokens that follow one another from a place on. */
function placed(tokens: readonly (TokenLogprob & { top: TokenLogprob[] })[], offset: number): Placed[] {
  return tokens.map(({ text, logprob, top }) => {
    const at = offset;
    offset += text.length;
    return { text, logprob, top, offset: at };
  });
}

/** Null where none were asked for. */
function logprobs({ job }: Answer, tokens: readonly Placed[]): Record<string, unknown> | null {
  const count = job.requests[0].logprobs;
  if (count === undefined) return null;
  return {
    tokens: tokens.map(({ text }) => text),
    token_logprobs: tokens.map(({ logprob }) => logprob === null ? null : finite(logprob)),
    top_logprobs: count === 0 ? null : tokens.map((token) => token.logprob === null ? null : topOf(token, count)),
    text_offset: tokens.map(({ offset }) => offset),
  };
}

/** The most probable tokens and the token itself, by their texts; of those with one text, the most probable. */
function topOf({ text, logprob, top }: Placed, count: number): Record<string, number> {
  const found = new Map<string, number>();
  for (const entry of [...top.slice(0, count), { text, logprob: logprob! }]) {
    if (!found.has(entry.text)) found.set(entry.text, finite(entry.logprob));
  }
  return Object.fromEntries(found);
}

/** vLLM's form: null for the first token; for each other one itself and the most probable ones in its place, by their ids. */
function promptLogprobs({ job, prompts }: Answer, prompt: number): { prompt_logprobs?: unknown } {
  const count = job.promptLogprobs;
  if (count === undefined) return {};
  const entry = (token: { id: number; text: string; logprob: number | null }, rank: number | null) => [
    token.id,
    { logprob: finite(token.logprob!), rank, decoded_token: token.text },
  ];
  const of = (token: PromptToken) => {
    if (token.logprob === null) return null;
    const top = token.top.slice(0, count).map((other, i) => entry(other, i + 1));
    const rank = token.top.findIndex(({ id }) => id === token.id);
    return Object.fromEntries([...top, entry(token, rank < 0 ? null : rank + 1)]);
  };
  return { prompt_logprobs: prompts[prompt].tokens.map(of) };
}
