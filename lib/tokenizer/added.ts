/**
 * Added tokens that stand for whole words only (`single_word`), which `@huggingface/tokenizers` 0.2.0 finds inside words.
 *
 * @module
 */

import type { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import type { AddedToken } from "./vocabulary.ts";

/** What cuts a text at added tokens. */
interface Splitter {
  split(text: string): string[];
}

/** What the tokenizers library counts as part of a word: Rust's `\w`. */
const WORD_ENDS = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d]$/u;
const WORD_BEGINS = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d]/u;

/** Makes an encoder take single-word tokens only where no letter, digit or underscore touches them. */
export function keepWordsWhole(encoder: HuggingFaceTokenizer, added: readonly AddedToken[]): void {
  const whole = new Set(added.filter((token) => token.single_word).map(({ content }) => content));
  if (whole.size === 0) return;
  const contents = new Set(added.map(({ content }) => content));
  const splitters = encoder as unknown as Record<"splitter_unnormalized" | "splitter_normalized", Splitter>;
  for (const name of ["splitter_unnormalized", "splitter_normalized"] as const) {
    const inner = splitters[name];
    splitters[name] = { split: (text) => rejoined(inner.split(text), text, contents, whole) };
  }
}

/** Pieces with the single-word tokens that are part of a word put back into the text around them. */
function rejoined(
  pieces: readonly string[],
  text: string,
  contents: ReadonlySet<string>,
  whole: ReadonlySet<string>,
): string[] {
  const kept: { text: string; token: boolean }[] = [];
  let at = 0;
  for (const piece of pieces) {
    const end = at + piece.length;
    const inWord = whole.has(piece) && (WORD_ENDS.test(text.slice(0, at)) || WORD_BEGINS.test(text.slice(end)));
    const token = contents.has(piece) && !inWord, last = kept.at(-1);
    if (last && !last.token && !token) last.text += piece;
    else kept.push({ text: piece, token });
    at = end;
  }
  return kept.map(({ text }) => text);
}
