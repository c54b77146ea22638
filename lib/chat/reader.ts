/**
 * An answer as a model writes it, read piece by piece: reasoning, text and calls apart. What comes out does not depend on how
 * the text is cut into pieces.
 *
 * A form is read by a generator that yields where it needs more text, so that it reads like a grammar.
 *
 * @module
 */

import type { CallDelta, ChatPiece, Tool } from "./tool.ts";

/** Reads on; yields where it needs more text. */
export type Reading<T = void> = Generator<void, T, void>;

/** Stands before the name of a control token: what is spelled like one is text. No standard gives it a meaning. */
export const CONTROL = "\u{10fffe}";

/** The text that came and was not read yet. */
export class Source {
  readonly #controls: ReadonlySet<string>;

  /** `controls`: the marks that are control tokens, which come with {@link CONTROL} before them. */
  constructor(controls: ReadonlySet<string> = new Set()) {
    this.#controls = controls;
  }

  #marked(mark: string): string {
    return this.#controls.has(mark) ? CONTROL + mark : mark;
  }

  /** Puts a mark back. */
  putBack(mark: string): void {
    this.text = this.#marked(mark) + this.text;
  }

  /** What is to be read. */
  text = "";
  /** Whether no more will come. */
  ended = false;

  /** Text up to one of these markers goes to `take`; the marker is passed over and returned, undefined at the end. */
  *until(marks: readonly string[], take: (text: string) => void): Reading<string | undefined> {
    const markers = marks.map((mark) => this.#marked(mark));
    for (;;) {
      let at = -1, found = "";
      for (const marker of markers) {
        const start = this.text.indexOf(marker);
        if (start >= 0 && (at < 0 || start < at || (start === at && marker.length > found.length))) {
          at = start;
          found = marker;
        }
      }
      const kept = this.ended ? 0 : heldLength(this.text, markers);
      // A longer marker may begin earlier than the one that is there.
      if (at >= 0 && (this.ended || at < this.text.length - kept)) {
        take(this.text.slice(0, at));
        this.text = this.text.slice(at + found.length);
        return marks[markers.indexOf(found)];
      }
      if (this.text.length > kept) take(this.text.slice(0, this.text.length - kept));
      this.text = this.text.slice(this.text.length - kept);
      if (this.ended) return undefined;
      yield;
    }
  }

  /** Passes over one of these where the text begins with it, and returns it. */
  *starts(...options: readonly string[]): Reading<string | undefined> {
    const marked = options.map((option) => this.#marked(option));
    for (;;) {
      const found = marked.findIndex((option) => this.text.startsWith(option));
      if (found >= 0) {
        this.text = this.text.slice(marked[found].length);
        return options[found];
      }
      if (this.ended || !marked.some((option) => option.startsWith(this.text))) return undefined;
      yield;
    }
  }

  /** The next character, which stays; "" at the end. */
  *peek(): Reading<string> {
    while (this.text === "" && !this.ended) yield;
    return this.text.slice(0, 1);
  }

  /** Passes over spaces and line breaks, and returns them. */
  *spaces(): Reading<string> {
    let spaces = "";
    for (;;) {
      const { length } = /^\s*/.exec(this.text)![0];
      spaces += this.text.slice(0, length);
      this.text = this.text.slice(length);
      if (this.text !== "" || this.ended) return spaces;
      yield;
    }
  }
}

/** Length of the longest end of a text that begins a marker without being all of it. */
function heldLength(text: string, markers: readonly string[]): number {
  let longest = 0;
  for (const marker of markers) {
    for (let length = Math.min(marker.length - 1, text.length); length > longest; length--) {
      if (text.endsWith(marker.slice(0, length))) longest = length;
    }
  }
  return longest;
}

/** Where a reading puts what it found. Spaces at the end of a text wait for more of it: before a call they are layout. */
export class Sink {
  #piece: ChatPiece = { text: "", reasoning: "", calls: [] };
  #spaces = "";
  #reasoningSpaces = "";
  #calls = 0;
  #open = false;
  readonly #id: () => string;

  readonly #callsOnly: boolean;

  /** `id` makes the ids of calls; with `callsOnly` there is no text. */
  constructor(id: () => string, callsOnly: boolean) {
    this.#id = id;
    this.#callsOnly = callsOnly;
  }

  /** Calls that began. */
  get calls(): number {
    return this.#calls;
  }

  /** Text for the user. */
  content(text: string): void {
    if (this.#callsOnly) return;
    const all = this.#spaces + text.replaceAll(CONTROL, ""), end = all.trimEnd().length;
    // Spaces before all text, and between calls and text, are layout too.
    this.#piece.text += this.#calls > 0 && this.#open ? all.slice(0, end).trimStart() : all.slice(0, end);
    this.#spaces = all.slice(end);
    if (end > 0) this.#open = false;
  }

  /** What the model writes to itself. */
  reasoning(text: string): void {
    const all = this.#reasoningSpaces + text.replaceAll(CONTROL, ""), end = all.trimEnd().length;
    this.#piece.reasoning += all.slice(0, end);
    this.#reasoningSpaces = all.slice(end);
  }

  /** A call begins. */
  begin(name: string): void {
    this.#spaces = "";
    this.#open = true;
    this.#piece.calls.push({ index: this.#calls++, id: this.#id(), name, arguments: "" });
  }

  /** The arguments of the call that began last go on. */
  arguments(json: string): void {
    const { calls } = this.#piece, last = calls.at(-1), text = json.replaceAll(CONTROL, "");
    if (text === "") return;
    if (last) calls[calls.length - 1] = { ...last, arguments: last.arguments + text };
    else calls.push({ index: this.#calls - 1, arguments: text } satisfies CallDelta);
  }

  /** The end: spaces that waited are text where no call came. */
  end(): void {
    if (this.#calls === 0) this.#piece.text += this.#spaces;
    this.#spaces = "";
  }

  /** What was found since the last time. */
  take(): ChatPiece {
    const piece = this.#piece;
    this.#piece = { text: "", reasoning: "", calls: [] };
    return piece;
  }
}

/** What a form may read of a request. */
export interface ReadContext {
  /** The tools that may be called. */
  readonly tools: readonly Tool[];
  /** Whether the answer ends with its first call. */
  readonly single: boolean;
  /** Whether the answer is calls alone; text is a call that was cut off. Default false. */
  readonly forced?: boolean;
}

/** Marks around what a model writes to itself. */
export interface ThinkingMarks {
  /** Before it. */
  readonly open: string;
  /** After it. */
  readonly close: string;
}

/** How an answer is read. */
export interface ReaderOptions extends ReadContext {
  /** Reads text and calls. Default: all is text. */
  readonly read?: (source: Source, sink: Sink, context: ReadContext) => Reading;
  /** Marks of reasoning before it. Default none. */
  readonly thinking?: ThinkingMarks;
  /** Whether the prompt ends inside of these marks. */
  readonly thinks?: boolean;
  /** The marks that are control tokens of the model. Default none: all are text. */
  readonly controls?: ReadonlySet<string>;
  /** Makes the ids of calls. */
  readonly id: () => string;
}

/** Reads one answer. */
export class ChatReader {
  readonly #source: Source;
  readonly #sink: Sink;
  readonly #reading: Reading;
  #done = false;

  /** Begins an answer. */
  constructor(options: ReaderOptions) {
    this.#source = new Source(options.controls);
    this.#sink = new Sink(options.id, options.forced ?? false);
    this.#reading = answer(this.#source, this.#sink, options);
    this.#reading.next();
  }

  /** Whether no more text is wanted: the one call that was asked for is complete. */
  get done(): boolean {
    return this.#done;
  }

  /** Takes text; `last` where no more will come. */
  push(text: string, last: boolean = false): ChatPiece {
    this.#source.text += text;
    this.#source.ended = last;
    if (!this.#done && (text !== "" || last)) this.#done = this.#reading.next().done ?? false;
    if (last || this.#done) this.#sink.end();
    return this.#sink.take();
  }
}

function* answer(source: Source, sink: Sink, options: ReaderOptions): Reading {
  const { thinking, thinks, read } = options;
  if (thinking) {
    const spaces = yield* source.spaces();
    if (thinks || (yield* source.starts(thinking.open)) !== undefined) {
      yield* source.spaces();
      yield* source.until([thinking.close], (text) => sink.reasoning(text));
      yield* source.spaces();
    } else sink.content(spaces);
  }
  if (read) yield* read(source, sink, options);
  else yield* source.until([], (text) => sink.content(text));
}
