/**
 * What a dialect of the API is: how a request's body becomes requests to the engine, and how the engine's events become
 * JSON or a stream of server-sent events. A dialect knows nothing of HTTP.
 *
 * @module
 */

import type { GeneratedToken, GenerationEvent, GenerationRequest } from "../../engine/request.ts";
import { apiError } from "../error.ts";
import type { ServerSentEvent } from "../sse.ts";

/** What to generate, and how the answer is to look. */
export interface Job {
  /** One for each prompt. */
  readonly requests: readonly GenerationRequest[];
  /** Choices for each prompt. */
  readonly n: number;
  /** Whether the answer is a stream. */
  readonly stream: boolean;
  /** Whether the stream ends with its usage. */
  readonly includeUsage: boolean;
  /** Texts that the choices of each prompt begin with. Default none. */
  readonly echo?: readonly string[];
}

/** What all chunks of an answer share. */
export interface Identity {
  /** "chatcmpl-..." or "cmpl-...". */
  readonly id: string;
  /** Seconds since 1970. */
  readonly created: number;
  /** Model and cache. */
  readonly model: string;
  /** Hash of the model and its cache. */
  readonly fingerprint: string;
}

/** One choice of an answer, as far as it has come. */
export interface Choice {
  /** Its text. */
  text: string;
  /** Its tokens, where log-probabilities were asked for. */
  tokens: GeneratedToken[];
  /** Why it ended; undefined until it has. */
  reason: Extract<GenerationEvent, { type: "end" }>["reason"] | undefined;
}

/** An engine's event, with the index of the choice in the whole answer. */
export interface ChoiceEvent {
  /** Of the choice; that of the prompt's first one where the event is of the whole prompt. */
  readonly index: number;
  /** What happened. */
  readonly event: GenerationEvent;
}

/** The answer to a job, as far as it has come. */
export class Answer {
  /** All choices of the first prompt, then those of the second, and so on. */
  readonly choices: readonly Choice[];
  /** Tokens of all prompts. */
  promptTokens = 0;
  /** Of them, those that were in the prefix cache. */
  cachedTokens = 0;
  /** Tokens generated. */
  completionTokens = 0;

  /** An empty answer. */
  constructor(readonly identity: Identity, readonly job: Job) {
    const length = job.requests.length * job.n;
    this.choices = Array.from({ length }, () => ({ text: "", tokens: [], reason: undefined }));
  }

  /** Takes an event in. */
  add({ index, event }: ChoiceEvent): void {
    switch (event.type) {
      case "accepted":
        this.promptTokens += event.promptTokens;
        break;
      case "start":
        this.cachedTokens += event.cachedTokens;
        break;
      case "text":
        this.completionTokens += event.count;
        this.choices[index].text += event.text;
        this.choices[index].tokens.push(...event.tokens);
        break;
      case "end":
        this.choices[index].reason = event.reason;
    }
  }
}

/** A dialect. `Body` is a checked body of its requests. */
export interface Dialect<Body> {
  /** What the ids of its answers begin with. */
  readonly prefix: string;
  /** The job of a body. Throws ApiError where fields do not go together or are not supported. */
  parse(body: Body): Job;
  /** The body of a whole answer. */
  whole(answer: Answer): Record<string, unknown>;
  /** What a stream begins with. */
  first(answer: Answer): ServerSentEvent[];
  /** A piece of a choice's text; `offset` is where in that text it begins. */
  delta(answer: Answer, index: number, piece: Pick<Choice, "text" | "tokens">, offset: number): ServerSentEvent[];
  /** What ends a choice. */
  last(answer: Answer, index: number): ServerSentEvent[];
  /** What ends a stream that did not fail. */
  done(answer: Answer): ServerSentEvent[];
}

/** An answer as a stream. Where the events fail, the last thing it says is the error, which it throws. */
export async function* streamed(
  dialect: Dialect<never>,
  answer: Answer,
  events: AsyncIterable<ChoiceEvent>,
): AsyncGenerator<ServerSentEvent> {
  yield* dialect.first(answer);
  try {
    for await (const item of events) {
      const { index, event } = item;
      answer.add(item);
      if (event.type === "end") yield* dialect.last(answer, index);
      // A last piece may bring no text, only the count of tokens.
      if (event.type !== "text" || (!event.text && event.tokens.length === 0)) continue;
      yield* dialect.delta(answer, index, event, answer.choices[index].text.length - event.text.length);
    }
  } catch (error) {
    yield { data: JSON.stringify(apiError(error).body) };
    throw error;
  }
  yield* dialect.done(answer);
}

/** An answer in one piece, once all events have come. */
export async function whole(
  dialect: Dialect<never>,
  answer: Answer,
  events: AsyncIterable<ChoiceEvent>,
): Promise<Record<string, unknown>> {
  for await (const item of events) answer.add(item);
  return dialect.whole(answer);
}
