/**
 * Requests that are not at their end, as the thread of their clients sees them: places that they take, events that wait to
 * be read.
 *
 * @module
 */

import { EngineError, type EngineErrorData, type GenerationEvent, type TokenLogprob } from "./request.ts";

/** Bytes of events that a reader may leave unread, where nothing else is said. */
export const UNREAD_BYTES: number = 8 << 20;

/** A request's events, from the thread that runs it to the client that reads them. */
export class Stream {
  /** Cache that it runs over. */
  readonly cache: string;
  /** Who asks. */
  readonly client: string;
  /** Choices. */
  readonly places: number;
  readonly #most: number;
  readonly #events: { event: GenerationEvent; bytes: number }[] = [];
  #unread = 0;
  #failed = false;
  #wake: (() => void) | undefined;

  /** Without events, of which `most` bytes may wait. */
  constructor(cache: string, client: string, places: number, most: number = UNREAD_BYTES) {
    this.#most = most;
    this.cache = cache;
    this.client = client;
    this.places = places;
  }

  /** Adds an event. False where too many wait: the reader does not read, and gets an error in place of them. */
  push(event: GenerationEvent): boolean {
    if (this.#failed) return true;
    const bytes = bytesOf(event), full = this.#unread + bytes > this.#most && this.#events.length > 0;
    if (full) {
      const message = `the client left ${this.#most} bytes of the answer unread; read it as it comes, or ask for less`;
      this.fail({ code: "cancelled", message });
    } else {
      this.#unread += bytes;
      this.#events.push({ event, bytes });
    }
    this.#wake?.();
    return !full;
  }

  /** An error in place of all that waits and comes. */
  fail(error: EngineErrorData): void {
    this.#failed = true;
    this.#events.length = 0;
    this.#events.push({ event: { type: "error", error }, bytes: 0 });
    this.#wake?.();
  }

  /** Looks again whether there is something to read. */
  wake(): void {
    this.#wake?.();
  }

  /** The next event; waits for it, or for `signal`. Throws what is in an error event, or the signal's reason. */
  async next(signal?: AbortSignal): Promise<GenerationEvent> {
    for (;;) {
      if (signal?.aborted) throw cancelled(signal);
      const first = this.#events.shift();
      if (first) {
        this.#unread -= first.bytes;
        const { event } = first;
        if (event.type !== "error") return event;
        throw new EngineError(event.error.code, event.error.message, event.error.param);
      }
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }
}

/** About how much memory an event takes. */
function bytesOf(event: GenerationEvent): number {
  if (event.type !== "text" && event.type !== "prompt") return 64;
  const token = ({ text, bytes }: Pick<TokenLogprob, "text" | "bytes">) => 120 + 2 * text.length + 8 * bytes.length;
  return 64 + 2 * event.text.length +
    [...event.tokens].reduce(
      (sum, { top, ...own }) => sum + token(own) + top.reduce((all, other) => all + token(other), 0),
      0,
    );
}

/** What a signal ends a request with. */
export function cancelled(signal: AbortSignal): EngineError {
  return signal.reason instanceof EngineError
    ? signal.reason
    : new EngineError("cancelled", "the request was cancelled");
}

/** All requests of an engine. Each choice takes a place; a cache has a number of places, and clients have equal shares. */
export class Streams {
  readonly #streams = new Map<number, Stream>();
  readonly #unread: number;
  #next = 1;

  /** `unread`: bytes of events that the reader of each may leave unread. */
  constructor(unread: number = UNREAD_BYTES) {
    this.#unread = unread;
  }

  /** Requests. */
  get size(): number {
    return this.#streams.size;
  }

  /**
   * Takes places for a request, of `all` that its cache has. Where they are taken, a client that has less than an equal share
   * is let in all the same: so none keeps another one out. Throws EngineError (queue_full).
   */
  open(cache: string, client: string, places: number, all: number): { id: number; stream: Stream } {
    let taken = 0, own = 0;
    const clients = new Set([client]);
    for (const stream of this.#streams.values()) {
      if (stream.cache !== cache) continue;
      taken += stream.places;
      clients.add(stream.client);
      if (stream.client === client) own += stream.places;
    }
    if (taken + places > all && own + places > Math.floor(all / clients.size)) {
      const message = `${taken} answers are running or waiting, ${own} of them yours; try again later`;
      throw new EngineError("queue_full", message);
    }
    const id = this.#next++, stream = new Stream(cache, client, places, this.#unread);
    this.#streams.set(id, stream);
    return { id, stream };
  }

  /** Gives a request's places back. */
  close(id: number): void {
    this.#streams.delete(id);
  }

  /** Adds an event to a request's; one that is at its end gets none. False where its reader does not read, which ends it. */
  push(id: number, event: GenerationEvent): boolean {
    return this.#streams.get(id)?.push(event) ?? true;
  }

  /** Ends all with an error. */
  fail(error: EngineErrorData): void {
    for (const stream of this.#streams.values()) stream.fail(error);
  }
}
