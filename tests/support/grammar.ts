/** Grammars over a vocabulary of one token a byte: what passes, and texts drawn at random. @module */

import { Grammar } from "../../lib/grammar/grammar.ts";
import { json } from "../../lib/grammar/json_schema.ts";
import type { Rule } from "../../lib/grammar/rule.ts";
import { Vocabulary } from "../../lib/tokenizer/vocabulary.ts";
import type { Random } from "./random.ts";

/** A schema as tests write it. */
export type Schema = boolean | Record<string, unknown>;

/** The token that ends a text. */
export const END = 256;

/** Token `b` is byte `b`. */
export const BYTES: Vocabulary = new Vocabulary(
  Object.fromEntries(Array.from({ length: 256 }, (_, byte) => [`<0x${byte.toString(16).padStart(2, "0")}>`, byte])),
  [{ id: END, content: "<end>", special: true }],
  {
    type: "Sequence",
    decoders: [{ type: "Replace", pattern: { String: "▁" }, content: " " }, { type: "ByteFallback" }],
  },
);

/** The grammar of a rule. */
export function byteGrammar(rule: Rule): Grammar {
  return new Grammar(rule, BYTES, { size: END + 1, ends: [END] });
}

/** Whether a text passes byte by byte and may end. */
export function passes(grammar: Grammar, text: string): boolean {
  const state = grammar.start();
  for (const byte of new TextEncoder().encode(text)) state.push(byte);
  return state.complete;
}

/** Whether a text passes by a schema. */
export function accepts(schema: Schema, text: string): boolean {
  return passes(byteGrammar(json(schema)), text);
}

/** A text drawn from what may come, or undefined where it does not end within `most` bytes. Never stands still. */
export function draw(grammar: Grammar, random: Random, most: number = 600): string | undefined {
  const state = grammar.start(), text: number[] = [];
  while (text.length < most) {
    const bias = state.bias(null), allowed = [...bias.keys()].filter((id) => bias[id] === 0 && id !== END);
    if (state.complete && (allowed.length === 0 || random.uniform() < 0.5)) {
      return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(text));
    }
    if (allowed.length === 0) throw new Error(`nothing may follow ${new TextDecoder().decode(Uint8Array.from(text))}`);
    // What closes strings, lists and objects is preferred, so that texts end.
    const closing = allowed.filter((id) => [0x22, 0x5d, 0x7d].includes(id));
    const from = closing.length > 0 && random.uniform() < 0.4 ? closing : allowed;
    const id = from[random.integer(0, from.length - 1)];
    text.push(id);
    state.push(id);
  }
  return undefined;
}
