/**
 * A prompt as it is told back: its text, and its tokens with what the model makes of them.
 *
 * @module
 */

import type { Detokenizer } from "../tokenizer/detokenizer.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { describeToken } from "./output.ts";
import type { GenerationEvent, PromptToken } from "./request.ts";
import type { ScoredToken } from "./scorer.ts";

/**
 * The text of a prompt's tokens, control tokens by their names, but for the one that begins the text: the tokenizer put it there, or a
 * client that did as the tokenizer does.
 */
export class PromptOutput {
  readonly #tokenizer: Tokenizer;
  readonly #detokenizer: Detokenizer;
  readonly #emit: (event: GenerationEvent & { type: "prompt" }) => void;
  #tokens = 0;
  #length = 0;

  /** Starts with nothing told. */
  constructor(tokenizer: Tokenizer, emit: (event: GenerationEvent & { type: "prompt" }) => void) {
    this.#tokenizer = tokenizer;
    this.#detokenizer = tokenizer.detokenizer({ skipSpecialTokens: false });
    this.#emit = emit;
  }

  /** Tells a whole prompt's text alone. */
  tell(ids: readonly number[]): void {
    const text = ids.map((id) => this.#piece(id)).join("") + this.#detokenizer.flush();
    this.#emit({ type: "prompt", text, tokens: [] });
  }

  /** Tells some of the tokens, in order. Bytes that end inside a character at the prompt's end leave no text. */
  push(scored: readonly ScoredToken[]): void {
    const tokens = scored.map(({ id, logprob, top }): PromptToken & { piece: string } => {
      const offset = this.#length, piece = this.#piece(id);
      this.#length += piece.length;
      return {
        ...describeToken(this.#tokenizer, { id, logprob: 0 }),
        logprob,
        top: top.map((other) => describeToken(this.#tokenizer, other)),
        offset,
        piece,
      };
    });
    if (tokens.length === 0) return;
    const text = tokens.map(({ piece }) => piece).join("");
    this.#emit({ type: "prompt", text, tokens: tokens.map(({ piece: _, ...token }) => token) });
  }

  #piece(id: number): string {
    const first = this.#tokens++ === 0;
    return first && id === this.#tokenizer.bosId ? "" : this.#detokenizer.push(id);
  }
}
