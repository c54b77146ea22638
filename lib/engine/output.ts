/**
 * Tokens become text, and end.
 *
 * @module
 */

import type { Grammar, GrammarState } from "../grammar/grammar.ts";
import type { Detokenizer } from "../tokenizer/detokenizer.ts";
import { StopMatcher } from "../tokenizer/stop.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { ModelConfig } from "../weights/config.ts";
import type { FinishReason, GeneratedToken, TokenLogprob } from "./request.ts";
import type { DrawnToken } from "./runner.ts";
import { biasOf, type SamplingOptions } from "./sampler.ts";

/** What decides an output's form and end. */
export interface OutputOptions {
  /** Tokens at most. */
  maxTokens: number;
  /** It ends before the first of these. */
  stop: readonly string[];
  /** What the text must follow. */
  grammar?: Grammar;
  /** The user's logit biases are added to the grammar's. */
  sampling: SamplingOptions;
}

/** What became of a token: text that is certain by now, and why the output ended, if it did. */
export interface OutputPiece {
  /** Text; often empty. */
  text: string;
  /** Set at the end. */
  reason?: FinishReason;
}

/** The tokens that end a model's output. */
export function endsOf(tokenizer: Tokenizer | null, model: Pick<ModelConfig, "eosIds">): Set<number> {
  return new Set([...tokenizer?.eosIds ?? [], ...model.eosIds]);
}

/** Text from tokens as they are drawn. Text is let out once no stop string and no unfinished character can change it. */
export class Output {
  readonly #detokenizer: Detokenizer | undefined;
  readonly #matcher: StopMatcher;
  readonly #ends: ReadonlySet<number>;
  readonly #maxTokens: number;
  readonly #grammar: GrammarState | undefined;
  readonly #base: Float32Array | null;
  #tokens = 0;
  #produced = 0;

  /** Starts an output. Without a tokenizer there is no text, only an end. Throws SettingError and StopError. */
  constructor(
    tokenizer: Tokenizer | null,
    options: OutputOptions,
    model: Pick<ModelConfig, "eosIds" | "vocabularySize">,
  ) {
    // Control tokens leave no text: a stop string that names one is met as its id.
    const { ids, texts } = tokenizer?.stops(options.stop) ?? { ids: [], texts: options.stop };
    this.#detokenizer = tokenizer?.detokenizer({ continuation: true });
    this.#matcher = new StopMatcher(texts);
    this.#ends = new Set([...endsOf(tokenizer, model), ...ids]);
    this.#maxTokens = options.maxTokens;
    this.#grammar = options.grammar?.start();
    this.#base = biasOf(options.sampling, model.vocabularySize);
  }

  /** Tokens taken. */
  get tokens(): number {
    return this.#tokens;
  }

  /** Characters that the tokens came to, also those that were not let out. */
  get produced(): number {
    return this.#produced;
  }

  /** Whether a token ends the output. */
  isEnd(id: number): boolean {
    return this.#ends.has(id);
  }

  /** Takes a drawn token. */
  push(id: number): OutputPiece {
    this.#tokens++;
    if (this.#ends.has(id)) return { text: this.#rest().text, reason: "stop" };
    this.#grammar?.push(id);
    const piece = this.#detokenizer?.push(id) ?? "";
    this.#produced += piece.length;
    const { text, stopped } = this.#matcher.push(piece);
    if (stopped) return { text, reason: "stop" };
    if (this.#tokens < this.#maxTokens) return { text };
    const rest = this.#rest();
    return { text: text + rest.text, reason: rest.stopped ? "stop" : "length" };
  }

  /** What was held back, up to a stop string. */
  #rest(): { text: string; stopped: boolean } {
    const { text, stopped } = this.#matcher.push(this.#detokenizer?.flush() ?? "");
    return { text: text + this.#matcher.flush(), stopped };
  }

  /** What to add to the next logits, f32 [vocabulary], or null where nothing changes from token to token. */
  bias(): Float32Array | null {
    return this.#grammar?.bias(this.#base) ?? null;
  }
}

/** What an output tells of itself. */
export type OutputEvent =
  | { type: "text"; text: string; tokens: GeneratedToken[]; count: number }
  | { type: "end"; reason: FinishReason; completionTokens: number };

/** One choice of a request: its output as events, with the tokens' log-probabilities beside the text that they led to. */
export class ChoiceOutput {
  readonly #tokenizer: Tokenizer;
  readonly #output: Output;
  readonly #logprobs: number | undefined;
  readonly #emit: (event: OutputEvent) => void;
  /** Tokens whose text was not let out, and where in the text each begins. */
  #held: { token: GeneratedToken; start: number }[] = [];
  #unsent = 0;
  #sent = 0;

  /** Starts an output; `logprobs` most probable tokens come with each of its tokens, undefined for no tokens at all. */
  constructor(
    tokenizer: Tokenizer,
    options: OutputOptions & { logprobs?: number },
    model: Pick<ModelConfig, "eosIds" | "vocabularySize">,
    emit: (event: OutputEvent) => void,
  ) {
    this.#tokenizer = tokenizer;
    this.#output = new Output(tokenizer, options, model);
    this.#logprobs = options.logprobs;
    this.#emit = emit;
  }

  /** Takes a drawn token. True where it is at its end. */
  push(token: DrawnToken): boolean {
    const output = this.#output, start = output.produced;
    this.#unsent++;
    if (this.#logprobs !== undefined && !output.isEnd(token.id)) {
      const top = token.top.slice(0, this.#logprobs).map((other) => this.#describe(other));
      this.#held.push({ token: { ...this.#describe(token), top }, start });
    }
    const { text, reason } = output.push(token.id);
    if (text || reason) this.#send(text);
    if (reason) this.#emit({ type: "end", reason, completionTokens: output.tokens });
    return reason !== undefined;
  }

  #send(text: string): void {
    this.#sent += text.length;
    // A token that the stop string swallowed whole is not part of the output.
    const tokens = this.#held.filter(({ start }) => start < this.#sent).map(({ token }) => token);
    this.#held = this.#held.filter(({ start }) => start >= this.#sent);
    this.#emit({ type: "text", text, tokens, count: this.#unsent });
    this.#unsent = 0;
  }

  #describe({ id, logprob }: { id: number; logprob: number }): TokenLogprob {
    const bytes = this.#tokenizer.tokenBytes(id);
    return { id, text: new TextDecoder().decode(bytes), bytes: [...bytes], logprob };
  }

  /** See {@linkcode Output.bias}. */
  bias(): Float32Array | null {
    return this.#output.bias();
  }
}
