/**
 * An answer as blocks, one after the other: reasoning, text and calls, as the APIs have them that do not name a choice's parts.
 *
 * @module
 */

import type { Choice, ChoicePiece } from "./dialect.ts";

/** A part of an answer. */
export interface Block {
  /** What it is. */
  readonly type: "reasoning" | "text" | "call";
  /** Its place among the answer's blocks. */
  readonly index: number;
  /** What it holds so far: text, or a call's arguments as JSON. */
  text: string;
  /** Of a call. */
  readonly id: string;
  /** Of a call: the tool. */
  readonly name: string;
}

/** What a piece of an answer does to its blocks. */
export type BlockEvent =
  | { readonly type: "begin"; readonly block: Block }
  | { readonly type: "more"; readonly block: Block; readonly text: string }
  | { readonly type: "end"; readonly block: Block };

/** The blocks of an answer that comes in pieces. */
export class Blocks {
  /** Those that began; all but the last are at their ends. */
  readonly all: Block[] = [];
  #open: Block | undefined;

  /** Takes a piece. */
  *push({ reasoning = "", text, calls = [] }: Omit<ChoicePiece, "tokens">): Generator<BlockEvent> {
    if (reasoning) yield* this.#more("reasoning", reasoning);
    if (text) yield* this.#more("text", text);
    for (const { id, name, arguments: json } of calls) yield* this.#more("call", json, id, name);
  }

  /** No more comes. */
  *end(): Generator<BlockEvent> {
    if (this.#open) yield { type: "end", block: this.#open };
    this.#open = undefined;
  }

  *#more(type: Block["type"], text: string, id?: string, name = ""): Generator<BlockEvent> {
    if (this.#open?.type !== type || id !== undefined) {
      yield* this.end();
      this.#open = { type, index: this.all.length, text: "", id: id ?? "", name };
      this.all.push(this.#open);
      yield { type: "begin", block: this.#open };
    }
    const block = this.#open!;
    block.text += text;
    if (text) yield { type: "more", block, text };
  }
}

/** The blocks of a whole choice. */
export function blocksOf({ reasoning, text, calls }: Choice): Block[] {
  const blocks = new Blocks(), deltas = calls.map((call, index) => ({ index, ...call }));
  for (const _ of blocks.push({ reasoning, text, calls: deltas }));
  return blocks.all;
}
