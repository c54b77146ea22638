/**
 * Chat and text completions: requests of OpenAI's API to the engine's, and its events back to JSON or to a stream.
 *
 * @module
 */

import type { Engine } from "../engine/engine.ts";
import { EngineError, type GeneratedToken, type GenerationEvent, type GenerationRequest } from "../engine/request.ts";
import type { SamplingOptions } from "../engine/generation.ts";
import type { ChatMessage } from "../tokenizer/tokenizer.ts";
import { apiError, invalid } from "./error.ts";
import type { ChatRequest, CompletionRequest } from "./schema.ts";

/** Milliseconds of silence after which a stream says that it is alive; Bun and proxies close idle connections. */
const PING_INTERVAL = 5000;

/** A request for the engine, and how its answer is to look. */
export interface Job {
  /** Chat or text completion. */
  chat: boolean;
  /** One for each prompt. */
  requests: GenerationRequest[];
  /** Choices for each prompt. */
  n: number;
  /** Whether the answer is a stream. */
  stream: boolean;
  /** Whether the stream ends with its usage. */
  includeUsage: boolean;
  /** Texts that the choices of each prompt begin with. */
  echo: string[] | undefined;
}

/** What a job did, for log and metrics; grows as it runs. */
export interface Outcome {
  /** Tokens of all prompts. */
  promptTokens: number;
  /** Of them, those that were in the prefix cache. */
  cachedTokens: number;
  /** Tokens generated. */
  completionTokens: number;
  /** Why each choice ended. */
  reasons: string[];
  /** When the first text came, in milliseconds of performance.now(). */
  firstText: number | undefined;
  /** When the last text came. */
  lastText: number | undefined;
  /** Called with the seconds between two texts of a choice, for each token. */
  onToken?: (seconds: number, count: number) => void;
}

/** What all chunks of an answer share. */
export interface Identity {
  /** "chatcmpl-..." or "cmpl-...". */
  id: string;
  /** Seconds since 1970. */
  created: number;
  /** Model and cache. */
  model: string;
  /** Hash of the model and its cache. */
  fingerprint: string;
}

/** Sampling settings; OpenAI's default temperature is 1. */
function samplingOf(body: ChatRequest | CompletionRequest): SamplingOptions {
  const options: SamplingOptions = { temperature: body.temperature ?? 1 };
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

function common(body: ChatRequest | CompletionRequest): Pick<GenerationRequest, "stop" | "sampling" | "n"> {
  const stop = body.stop == null ? [] : typeof body.stop === "string" ? [body.stop] : body.stop;
  return { stop, sampling: samplingOf(body), n: body.n ?? 1 };
}

/** Fields of OpenAI's API that would change the answer and are not there yet. */
function refuse(body: Record<string, unknown>, fields: readonly string[]): void {
  for (const field of fields) {
    const value = body[field];
    if (value === undefined || value === null || value === false || value === "none") continue;
    if (Array.isArray(value) && value.length === 0) continue;
    throw invalid(`${field} is not supported by this server; leave it out`, field, "unsupported_parameter");
  }
}

/** The job of a chat completion. */
export function chatJob(body: ChatRequest): Job {
  refuse(body, ["tools", "functions", "audio", "prediction", "web_search_options"]);
  if (body.top_logprobs != null && !body.logprobs) {
    throw invalid("top_logprobs needs logprobs: true", "top_logprobs");
  }
  if (body.stream_options && !body.stream) {
    throw invalid("stream_options is for streams: set stream to true", "stream_options");
  }
  const messages = body.messages.map((message): ChatMessage => ({
    ...message,
    role: message.role === "developer" ? "system" : message.role,
    content: Array.isArray(message.content) ? message.content.map(({ text }) => text).join("") : message.content ?? "",
  }));
  const format = body.response_format, request: GenerationRequest = { prompt: messages, ...common(body) };
  const most = body.max_completion_tokens ?? body.max_tokens;
  if (most != null) request.maxTokens = most;
  if (body.logprobs) request.logprobs = body.top_logprobs ?? 0;
  if (format?.type === "json_object") request.json = true;
  if (format?.type === "json_schema") request.json = format.json_schema.schema;
  return {
    chat: true,
    requests: [request],
    n: body.n ?? 1,
    stream: body.stream ?? false,
    includeUsage: body.stream_options?.include_usage ?? false,
    echo: undefined,
  };
}

/** The job of a text completion. */
export function completionJob(body: CompletionRequest): Job {
  refuse(body, ["suffix"]);
  if (body.best_of != null && body.best_of !== (body.n ?? 1)) {
    throw invalid("best_of is not supported by this server; ask for n choices", "best_of", "unsupported_parameter");
  }
  if (body.stream_options && !body.stream) {
    throw invalid("stream_options is for streams: set stream to true", "stream_options");
  }
  const { prompt } = body;
  const prompts = (Array.isArray(prompt) && typeof prompt[0] !== "number" ? prompt : [prompt]) as (string | number[])[];
  if (body.echo && (body.logprobs != null || prompts.some((prompt) => typeof prompt !== "string"))) {
    throw invalid("echo is for text prompts, without logprobs", "echo", "unsupported_parameter");
  }
  const requests = prompts.map((prompt): GenerationRequest => ({
    prompt,
    maxTokens: body.max_tokens ?? 16,
    ...common(body),
    ...(body.logprobs == null ? {} : { logprobs: body.logprobs }),
  }));
  return {
    chat: false,
    requests,
    n: body.n ?? 1,
    stream: body.stream ?? false,
    includeUsage: body.stream_options?.include_usage ?? false,
    echo: body.echo ? prompts as string[] : undefined,
  };
}

/** An engine's event, with the index of the choice in the whole answer. */
type Indexed = { index: number; event: GenerationEvent };

/** The events of all prompts' generators in the order they come. */
async function* merged(sources: AsyncGenerator<GenerationEvent>[], n: number): AsyncGenerator<Indexed> {
  const next = async (source: number) => ({ source, result: await sources[source].next() });
  const waiting = new Map(sources.map((_, source) => [source, next(source)]));
  while (waiting.size > 0) {
    const { source, result } = await (waiting.size === 1 ? [...waiting.values()][0] : Promise.race(waiting.values()));
    if (result.done) waiting.delete(source);
    else {
      const event = result.value;
      yield { index: source * n + ("choice" in event ? event.choice : 0), event };
      waiting.set(source, next(source));
    }
  }
}

/**
 * Runs a job. Throws where it is refused before it began; the promise resolves once all prompts are accepted, to what
 * the client gets: a JSON object, or a stream of server-sent events.
 */
export async function run(
  engine: Engine,
  cache: string,
  job: Job,
  identity: Identity,
  abort: AbortController,
  outcome: Outcome,
): Promise<{ body: Record<string, unknown> } | { events: AsyncGenerator<string> }> {
  const sources = job.requests.map((request) => engine.generate(request, { cache, signal: abort.signal }));
  const accepted = await Promise.allSettled(sources.map((source) => source.next()));
  for (const result of accepted) {
    if (result.status === "rejected") {
      abort.abort(new EngineError("cancelled", "another prompt of the request was refused"));
      // Let the others see it, so that they give back what they hold.
      await Promise.allSettled(sources.map((source) => source.next()));
      throw result.reason;
    }
    const event = result.value.value;
    if (event?.type === "accepted") outcome.promptTokens += event.promptTokens;
  }
  const events = observed(merged(sources, job.n), outcome);
  if (job.stream) return { events: streamed(events, job, identity, outcome) };
  return { body: await whole(events, job, identity, outcome) };
}

/** Notes what happens on the way. */
async function* observed(events: AsyncGenerator<Indexed>, outcome: Outcome): AsyncGenerator<Indexed> {
  const last = new Map<number, number>();
  for await (const { index, event } of events) {
    if (event.type === "start") outcome.cachedTokens += event.cachedTokens;
    if (event.type === "end") outcome.reasons[index] = event.reason;
    if (event.type === "text") {
      outcome.completionTokens += event.count;
      const now = performance.now(), before = last.get(index);
      if (event.text) {
        outcome.firstText ??= now;
        outcome.lastText = now;
        if (before !== undefined) outcome.onToken?.((now - before) / 1000 / event.count, event.count);
        last.set(index, now);
      }
    }
    yield { index, event };
  }
}

function usageOf(outcome: Outcome): Record<string, unknown> {
  const { promptTokens, completionTokens, cachedTokens } = outcome;
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}

/** JSON has no infinity: OpenAI's value for "impossible". */
const finite = (logprob: number): number => Math.max(logprob, -9999);

/** Log-probabilities as chat completions have them. */
function chatLogprobs(tokens: readonly GeneratedToken[]): Record<string, unknown> {
  const entry = ({ text, logprob, bytes }: { text: string; logprob: number; bytes: number[] }) => ({
    token: text,
    logprob: finite(logprob),
    bytes,
  });
  return { content: tokens.map((token) => ({ ...entry(token), top_logprobs: token.top.map(entry) })), refusal: null };
}

/** Log-probabilities as text completions have them; `offset` is where in the text the first token begins. */
function textLogprobs(tokens: readonly GeneratedToken[], top: number, offset: number): Record<string, unknown> {
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

function logprobsOf(job: Job, tokens: readonly GeneratedToken[], offset: number): Record<string, unknown> | null {
  const top = job.requests[0].logprobs;
  if (top === undefined) return null;
  return job.chat ? chatLogprobs(tokens) : textLogprobs(tokens, top, offset);
}

async function whole(
  events: AsyncGenerator<Indexed>,
  job: Job,
  identity: Identity,
  outcome: Outcome,
): Promise<Record<string, unknown>> {
  const total = job.requests.length * job.n;
  const choices = Array.from({ length: total }, (_, index) => ({
    text: job.echo?.[Math.floor(index / job.n)] ?? "",
    tokens: [] as GeneratedToken[],
    reason: "length",
  }));
  for await (const { index, event } of events) {
    if (event.type === "text") {
      choices[index].text += event.text;
      choices[index].tokens.push(...event.tokens);
    } else if (event.type === "end") choices[index].reason = event.reason;
  }
  return {
    id: identity.id,
    object: job.chat ? "chat.completion" : "text_completion",
    created: identity.created,
    model: identity.model,
    system_fingerprint: identity.fingerprint,
    choices: choices.map(({ text, tokens, reason }, index) => ({
      index,
      ...(job.chat ? { message: { role: "assistant", content: text, refusal: null } } : { text }),
      logprobs: logprobsOf(job, tokens, 0),
      finish_reason: reason,
    })),
    usage: usageOf(outcome),
  };
}

/** The chunks of a stream as server-sent events. */
async function* streamed(
  events: AsyncGenerator<Indexed>,
  job: Job,
  identity: Identity,
  outcome: Outcome,
): AsyncGenerator<string> {
  const frame = (choices: unknown[], usage: unknown = null) =>
    `data: ${
      JSON.stringify({
        id: identity.id,
        object: job.chat ? "chat.completion.chunk" : "text_completion",
        created: identity.created,
        model: identity.model,
        system_fingerprint: identity.fingerprint,
        choices,
        ...(job.includeUsage ? { usage } : {}),
      })
    }\n\n`;
  const chunk = (index: number, part: Record<string, unknown>, logprobs: unknown, reason: string | null) =>
    frame([{ index, ...(job.chat ? { delta: part } : part), logprobs, finish_reason: reason }]);
  const offsets = new Map<number, number>();
  for (let index = 0; index < job.requests.length * job.n; index++) {
    if (job.chat) yield chunk(index, { role: "assistant", content: "" }, null, null);
    else if (job.echo) yield chunk(index, { text: job.echo[Math.floor(index / job.n)] }, null, null);
  }
  try {
    for await (const { index, event } of events) {
      if (event.type === "text") {
        const offset = offsets.get(index) ?? 0;
        offsets.set(index, offset + event.text.length);
        // A last piece may bring no text, only the count of tokens.
        if (event.text || event.tokens.length > 0) {
          yield chunk(
            index,
            job.chat ? { content: event.text } : { text: event.text },
            logprobsOf(job, event.tokens, offset),
            null,
          );
        }
      } else if (event.type === "end") yield chunk(index, job.chat ? {} : { text: "" }, null, event.reason);
    }
  } catch (error) {
    yield `data: ${JSON.stringify(apiError(error).body)}\n\n`;
    throw error;
  }
  if (job.includeUsage) yield frame([], usageOf(outcome));
  yield "data: [DONE]\n\n";
}

/** Server-sent events as a body. `done` is called once, with the error where there was one; `abort` when the client leaves. */
export function eventStream(
  events: AsyncGenerator<string>,
  abort: () => void,
  done: (error?: unknown) => void,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let ping: ReturnType<typeof setInterval> | undefined, quiet = true, left = false;
  return new ReadableStream<Uint8Array>({
    start(controller): void {
      ping = setInterval(() => {
        if (quiet && !left) controller.enqueue(encoder.encode(": ping\n\n"));
        quiet = true;
      }, PING_INTERVAL);
      void (async () => {
        try {
          for await (const text of events) {
            if (left) continue;
            quiet = false;
            controller.enqueue(encoder.encode(text));
          }
          done();
        } catch (error) {
          done(error);
        } finally {
          clearInterval(ping);
          if (!left) controller.close();
        }
      })();
    },
    cancel(): void {
      left = true;
      abort();
    },
  });
}
