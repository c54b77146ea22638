/**
 * Text from token ids, one at a time.
 *
 * @module
 */

import type { Vocabulary } from "./vocabulary.ts";

/** What a {@link Detokenizer} does with control tokens and with the start of the text. */
export interface DetokenizerOptions {
  /** Whether control tokens (begin of text, end of turn, ...) leave no text. Default true. */
  readonly skipSpecialTokens?: boolean;
  /** Control tokens that leave this text all the same: marks of tool calls and of reasoning. Default none. */
  readonly visible?: ReadonlyMap<number, string>;
  /**
   * Whether the ids go on from earlier ones (a prompt): then the space that some decoders take away at the start of a
   * text is kept. Default false.
   */
  readonly continuation?: boolean;
}

/**
 * A streaming detokenizer. A token may end inside a UTF-8 character, so it works on bytes and holds back the bytes of a
 * character that is not complete; what can no longer become a character turns into U+FFFD, as in the WHATWG decoder. (The
 * tokenizers library's ByteFallback turns each byte of a run that is not valid as a whole into one; a stream cannot.) All
 * pushes and the flush, put together, are what {@link Tokenizer.decode} gives for all ids at once.
 */
export class Detokenizer {
  readonly #vocabulary: Vocabulary;
  readonly #skipSpecialTokens: boolean;
  readonly #visible: ReadonlyMap<number, string>;
  readonly #spaces: number;
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #spacesLeft: number;

  /** Makes a detokenizer for the ids of a vocabulary (`tokenizer.vocabulary`). */
  constructor(vocabulary: Vocabulary, options: DetokenizerOptions = {}) {
    this.#vocabulary = vocabulary;
    this.#skipSpecialTokens = options.skipSpecialTokens ?? true;
    this.#visible = options.visible ?? new Map();
    this.#spaces = vocabulary.leadingSpaces;
    this.#spacesLeft = options.continuation ? 0 : this.#spaces;
  }

  /** The text that became certain with this id; often empty inside a character of several tokens. */
  push(id: number): string {
    const visible = this.#visible.get(id);
    if (visible !== undefined) return this.#strip(this.#decoder.decode() + visible);
    if (this.#skipSpecialTokens && this.#vocabulary.isSpecial(id)) return "";
    return this.#strip(this.#decoder.decode(this.#vocabulary.bytes(id), { stream: true }));
  }

  /** The text of the bytes still held back: U+FFFD or nothing. Afterwards a new text begins. */
  flush(): string {
    const text = this.#strip(this.#decoder.decode());
    this.#spacesLeft = this.#spaces;
    return text;
  }

  #strip(text: string): string {
    if (this.#spacesLeft === 0 || text === "") return text;
    let start = 0;
    while (start < this.#spacesLeft && text[start] === " ") start++;
    this.#spacesLeft = start === text.length ? this.#spacesLeft - start : 0;
    return text.slice(start);
  }
}
