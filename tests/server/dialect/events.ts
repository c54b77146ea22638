/** Answers of a dialect to events that no engine made, so that every byte of them is known. */
import type { GeneratedToken, GenerationEvent } from "../../../lib/engine/request.ts";
import { Answer, type ChoiceEvent, type Dialect, streamed, whole } from "../../../lib/server/dialect/dialect.ts";
import { frame } from "../../../lib/server/sse.ts";

const identity = { id: "id-1", created: 7, model: "m", fingerprint: "fp_0" };

/** Events of a choice, at its index in the whole answer. */
export function at(index: number, ...events: GenerationEvent[]): ChoiceEvent[] {
  return events.map((event) => ({ index, event }));
}

/** A piece of text of so many tokens. */
export function piece(text: string, count = 1, tokens: GeneratedToken[] = []): GenerationEvent {
  return { type: "text", choice: 0, text, tokens, count };
}

/** A token with its log-probability, and the most probable ones. */
export function token(text: string, logprob: number, ...top: [string, number][]): GeneratedToken {
  const of = (text: string, logprob: number) => ({ id: 1, text, bytes: [...new TextEncoder().encode(text)], logprob });
  return { ...of(text, logprob), top: top.map(([text, logprob]) => of(text, logprob)) };
}

/** Ends a choice. */
export function end(reason: "stop" | "length"): GenerationEvent {
  return { type: "end", choice: 0, reason, completionTokens: 0 };
}

async function* source(events: ChoiceEvent[], error?: Error): AsyncGenerator<ChoiceEvent> {
  for (const event of events) yield await Promise.resolve(event);
  if (error) throw error;
}

/** The bytes of a stream, and what it threw. */
export async function stream<Body>(
  dialect: Dialect<Body>,
  body: Body,
  events: ChoiceEvent[],
  error?: Error,
): Promise<{ text: string; thrown: unknown }> {
  const answer = new Answer(identity, dialect.parse(body));
  let text = "";
  try {
    for await (const event of streamed(dialect, answer, source(events, error))) text += frame(event);
  } catch (thrown) {
    return { text, thrown };
  }
  return { text, thrown: undefined };
}

/** The JSON of a whole answer. */
export async function body<Body>(dialect: Dialect<Body>, body: Body, events: ChoiceEvent[]): Promise<string> {
  return JSON.stringify(await whole(dialect, new Answer(identity, dialect.parse(body)), source(events)));
}

/** What all chunks and answers begin with. */
export function head(object: string): string {
  return `{"id":"id-1","object":"${object}","created":7,"model":"m","system_fingerprint":"fp_0","choices":`;
}
