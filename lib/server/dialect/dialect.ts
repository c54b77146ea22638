/**
 * What a dialect of the API is: how a request's body becomes requests to the engine, and how the engine's events become
 * JSON or a stream of server-sent events. A dialect knows nothing of HTTP.
 *
 * @module
 */

import type { CallDelta } from "../../chat/tool.ts";
import type { GeneratedToken, GenerationEvent, GenerationRequest, PromptToken, Timings } from "../../engine/request.ts";
import { type ApiError, apiError } from "../error.ts";
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
  /** Texts that the choices of each prompt begin with; null where the engine tells them. Default none. */
  readonly echo?: readonly (string | null)[];
  /** Most probable tokens that come with each token of a prompt, in a list beside the text. Default: no such list. */
  readonly promptLogprobs?: number;
  /** Fields of the request that the answer repeats. Default none. */
  readonly echoed?: Readonly<Record<string, unknown>>;
}

/** A prompt as the engine tells it, as far as it has come. */
export interface ToldPrompt {
  /** Its text. */
  text: string;
  /** Its tokens, where their log-probabilities were asked for. */
  tokens: PromptToken[];
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

/** A call of a tool. */
export interface ToolCall {
  /** Its id. */
  readonly id: string;
  /** Which tool. */
  readonly name: string;
  /** Its arguments, as JSON. */
  arguments: string;
}

/** One choice of an answer, as far as it has come. */
export interface Choice {
  /** Its text. */
  text: string;
  /** What the model wrote to itself. */
  reasoning: string;
  /** The tools that it calls. */
  calls: ToolCall[];
  /** Its tokens, where log-probabilities were asked for. */
  tokens: GeneratedToken[];
  /** The stop string that ended it. */
  stop?: string;
  /** Why it ended; undefined until it has. */
  reason: Extract<GenerationEvent, { type: "end" }>["reason"] | undefined;
}

/** What a text event brings to a choice. */
export interface ChoicePiece {
  /** Text. */
  readonly text: string;
  /** Tokens, where log-probabilities were asked for. */
  readonly tokens: GeneratedToken[];
  /** What the model wrote to itself. */
  readonly reasoning?: string;
  /** Parts of calls. */
  readonly calls?: readonly CallDelta[];
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
  /** The prompts, where they were asked for. */
  readonly prompts: readonly ToldPrompt[];
  readonly #timings: Timings[] = [];
  /** Tokens of all prompts. */
  promptTokens = 0;
  /** Of them, those that were in the prefix cache. */
  cachedTokens = 0;
  /** Tokens generated. */
  completionTokens = 0;

  /** An empty answer. */
  constructor(readonly identity: Identity, readonly job: Job) {
    const length = job.requests.length * job.n;
    this.choices = Array.from(
      { length },
      () => ({ text: "", reasoning: "", calls: [], tokens: [], reason: undefined }),
    );
    this.prompts = job.requests.map(() => ({ text: "", tokens: [] }));
  }

  /** How long the prompts and the longest choice took, once all choices are at their ends and the engine told. */
  get timings(): Timings | undefined {
    if (this.#timings.length < this.choices.length) return undefined;
    return {
      promptMs: this.#timings.reduce((sum, { promptMs }) => sum + promptMs, 0) / this.job.n,
      generatedMs: Math.max(...this.#timings.map(({ generatedMs }) => generatedMs)),
    };
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
      case "prompt": {
        const prompt = this.prompts[Math.floor(index / this.job.n)];
        prompt.text += event.text;
        for (const token of event.tokens) prompt.tokens.push(token);
        break;
      }
      case "text":
        this.completionTokens += event.count;
        this.#text(this.choices[index], event);
        break;
      case "end":
        this.choices[index].reason = event.reason;
        if (event.timings) this.#timings.push(event.timings);
        if (event.stop !== undefined) this.choices[index].stop = event.stop;
    }
  }

  #text(choice: Choice, { text, reasoning = "", calls = [], tokens }: ChoicePiece): void {
    choice.text += text;
    choice.reasoning += reasoning;
    for (const token of tokens) choice.tokens.push(token);
    for (const { index, id, name = "", arguments: json } of calls) {
      if (id !== undefined) choice.calls[index] = { id, name, arguments: json };
      else choice.calls[index].arguments += json;
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
  /** A piece of a prompt, for all its choices, of which `index` is the first. Only where the job's requests ask for it. */
  prompt?(answer: Answer, index: number, piece: ToldPrompt): ServerSentEvent[];
  /** A piece of a choice's text; `offset` is where in that text it begins. */
  delta(answer: Answer, index: number, piece: ChoicePiece, offset: number): ServerSentEvent[];
  /** What ends a choice. */
  last(answer: Answer, index: number): ServerSentEvent[];
  /** What ends a stream that did not fail. */
  done(answer: Answer): ServerSentEvent[];
  /** What ends a stream that failed. Default: the error's body. */
  failed?(answer: Answer, error: ApiError): ServerSentEvent[];
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
      if (event.type === "prompt") yield* dialect.prompt?.(answer, index, event) ?? [];
      if (event.type === "end") yield* dialect.last(answer, index);
      // A last piece may bring no text, only the count of tokens.
      if (event.type !== "text") continue;
      if (!event.text && !event.reasoning && !event.calls?.length && event.tokens.length === 0) continue;
      yield* dialect.delta(answer, index, event, answer.choices[index].text.length - event.text.length);
    }
  } catch (error) {
    yield* dialect.failed?.(answer, apiError(error)) ?? [{ data: JSON.stringify(apiError(error).body) }];
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
