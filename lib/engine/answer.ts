/**
 * One answer as it grows: tokens in, text and its end out.
 *
 * @module
 */

import type { Detokenizer } from "../tokenizer/detokenizer.ts";
import { StopMatcher } from "../tokenizer/stop.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { ModelConfig } from "../weights/config.ts";
import { biasOf, type SamplingOptions } from "./generation.ts";
import type { FinishReason } from "./language_model.ts";
import type { Grammar, GrammarState } from "../grammar/grammar.ts";
import type { GeneratedToken, TokenLogprob } from "./request.ts";

/** What decides an answer's form and end. */
export interface AnswerOptions {
  /** Tokens at most. */
  maxTokens: number;
  /** It ends before the first of these. */
  stop: readonly string[];
  /** Most probable tokens that come with each token; undefined for no log-probabilities at all. */
  logprobs: number | undefined;
  /** What the text must follow. */
  grammar: Grammar | undefined;
  /** The user's logit biases are added to the grammar's. */
  sampling: SamplingOptions;
}

/** What an answer tells. */
export type AnswerEvent =
  | { type: "text"; text: string; tokens: GeneratedToken[]; count: number }
  | { type: "end"; reason: FinishReason; completionTokens: number };

/** An answer being generated. Text is let out once no stop string and no unfinished character can change it. */
export class Answer {
  /** As in {@linkcode AnswerOptions}. */
  readonly logprobs: number | undefined;
  readonly #tokenizer: Tokenizer;
  readonly #detokenizer: Detokenizer;
  readonly #matcher: StopMatcher;
  readonly #ends: ReadonlySet<number>;
  readonly #maxTokens: number;
  readonly #emit: (event: AnswerEvent) => void;
  readonly #grammar: GrammarState | undefined;
  readonly #base: Float32Array | null;
  /** Tokens whose text was not let out, and where in the text each begins. */
  #held: { token: GeneratedToken; start: number }[] = [];
  #unsent = 0;
  #tokens = 0;
  #produced = 0;
  #sent = 0;

  /** Starts an answer. */
  constructor(
    tokenizer: Tokenizer,
    options: AnswerOptions,
    model: Pick<ModelConfig, "eosIds" | "vocabularySize">,
    emit: (event: AnswerEvent) => void,
  ) {
    this.logprobs = options.logprobs;
    this.#tokenizer = tokenizer;
    this.#detokenizer = tokenizer.detokenizer({ continuation: true });
    this.#matcher = new StopMatcher(options.stop);
    this.#ends = new Set(tokenizer.eosIds.concat(model.eosIds));
    this.#maxTokens = options.maxTokens;
    this.#emit = emit;
    this.#grammar = options.grammar?.start();
    this.#base = biasOf(options.sampling, model.vocabularySize);
  }

  /** Takes a drawn token. True where the answer is at its end. */
  push(id: number, logprob: number, top: TokenLogprob[]): boolean {
    this.#tokens++;
    this.#unsent++;
    if (this.#ends.has(id)) {
      const rest = this.#matcher.push(this.#detokenizer.flush());
      return this.#end(rest.text + (rest.stopped ? "" : this.#matcher.flush()), "stop");
    }
    this.#grammar?.push(id);
    const piece = this.#detokenizer.push(id);
    if (this.logprobs !== undefined) {
      this.#held.push({ token: { ...this.describe(id, logprob), top }, start: this.#produced });
    }
    this.#produced += piece.length;
    const { text, stopped } = this.#matcher.push(piece);
    if (stopped) return this.#end(text, "stop");
    if (this.#tokens >= this.#maxTokens) {
      const rest = this.#matcher.push(this.#detokenizer.flush());
      return this.#end(
        text + rest.text + (rest.stopped ? "" : this.#matcher.flush()),
        rest.stopped ? "stop" : "length",
      );
    }
    if (text) this.#send(text);
    return false;
  }

  #send(text: string): void {
    this.#sent += text.length;
    // A token that the stop string swallowed whole is not part of the answer.
    const tokens = this.#held.filter(({ start }) => start < this.#sent).map(({ token }) => token);
    this.#held = this.#held.filter(({ start }) => start >= this.#sent);
    this.#emit({ type: "text", text, tokens, count: this.#unsent });
    this.#unsent = 0;
  }

  #end(text: string, reason: FinishReason): true {
    if (text || this.#unsent > 0) this.#send(text);
    this.#emit({ type: "end", reason, completionTokens: this.#tokens });
    return true;
  }

  /** A token's text, bytes and log-probability. */
  describe(id: number, logprob: number): TokenLogprob {
    const bytes = this.#tokenizer.tokenBytes(id);
    return { id, text: new TextDecoder().decode(bytes), bytes: [...bytes], logprob };
  }

  /** What to add to the next logits, or null where nothing changes from token to token. */
  bias(): Float32Array | null {
    return this.#grammar?.bias(this.#base) ?? null;
  }
}
