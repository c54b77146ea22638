/**
 * Tokens become text, and end.
 *
 * @module
 */

import type { ChatReader } from "../chat/reader.ts";
import type { Grammar, GrammarState } from "../grammar/grammar.ts";
import type { Detokenizer } from "../tokenizer/detokenizer.ts";
import { StopMatcher } from "../tokenizer/stop.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { ModelConfig } from "../weights/config.ts";
import type { FinishReason, GeneratedToken, GenerationEvent, TokenLogprob } from "./request.ts";
import type { DrawnToken } from "./runner.ts";
import { biasOf, type SamplingOptions } from "./sampler.ts";

/** What decides an output's form and end. */
export interface OutputOptions {
  /** Tokens at most. */
  maxTokens: number;
  /** It ends before the first of these. */
  stop: readonly string[];
  /** Ids that end it besides the model's own ends. */
  stopIds?: readonly number[];
  /** Whether the model's own ends do not end it. */
  ignoreEnds?: boolean;
  /** Tokens before which it does not end. */
  minTokens?: number;
  /** What the text must follow. */
  grammar?: Grammar;
  /** Makes what reads reasoning and tool calls out of the text. Default: all is text. */
  reader?: () => ChatReader | undefined;
  /** Control tokens that it reads, with the text that each leaves for it. */
  visible?: ReadonlyMap<number, string>;
  /** The user's logit biases are added to the grammar's. */
  sampling: SamplingOptions;
}

/** What became of a token: text that is certain by now, and why the output ended, if it did. */
export interface OutputPiece {
  /** Text; often empty. */
  text: string;
  /** Set at the end. */
  reason?: FinishReason;
  /** The stop string that ended it: what came from there on is not part of the output. */
  stop?: string;
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
  readonly #minTokens: number;
  readonly #vocabulary: number;
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
    this.#detokenizer = tokenizer?.detokenizer({ continuation: true, visible: options.visible });
    this.#matcher = new StopMatcher(texts);
    const own = options.ignoreEnds ? [] : endsOf(tokenizer, model);
    this.#ends = new Set([...own, ...ids, ...options.stopIds ?? []]);
    this.#maxTokens = options.maxTokens;
    this.#minTokens = options.minTokens ?? 0;
    this.#vocabulary = model.vocabularySize;
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
    const early = this.#tokens <= this.#minTokens,
      { text, stopped, stop } = early ? { text: piece, stopped: false, stop: undefined } : this.#matcher.push(piece);
    if (stopped) return { text, reason: "stop", stop };
    if (this.#tokens < this.#maxTokens) return { text };
    const rest = this.#rest();
    return { text: text + rest.text, reason: rest.stopped ? "stop" : "length", stop: rest.stop };
  }

  /** What was held back, up to a stop string. */
  #rest(): { text: string; stopped: boolean; stop?: string } {
    const { text, stopped, stop } = this.#matcher.push(this.#detokenizer?.flush() ?? "");
    return { text: text + this.#matcher.flush(), stopped, stop };
  }

  /** What to add to the next logits, f32 [vocabulary], or null where nothing changes from token to token. */
  bias(): Float32Array | null {
    if (this.#grammar) return this.#grammar.bias(this.#base);
    const began = this.#tokens === 0;
    if (this.#minTokens === 0 || !began && this.#tokens !== this.#minTokens) return null;
    const bias = this.#base ? this.#base.slice() : new Float32Array(this.#vocabulary);
    if (began) { for (const id of this.#ends) if (id < bias.length) bias[id] = -Infinity; }
    return bias;
  }
}

/** A token in words. */
export function describeToken(
  tokenizer: Tokenizer,
  { id, logprob }: { id: number; logprob: number },
): TokenLogprob {
  const bytes = tokenizer.tokenBytes(id);
  return { id, text: new TextDecoder().decode(bytes), bytes: [...bytes], logprob };
}

/** What an output tells of itself. */
export type OutputEvent =
  | Omit<Extract<GenerationEvent, { type: "text" }>, "choice">
  | Omit<Extract<GenerationEvent, { type: "end" }>, "choice">;

/** One choice of a request: its output as events, with the tokens' log-probabilities beside the text that they led to. */
export class ChoiceOutput {
  readonly #tokenizer: Tokenizer;
  readonly #output: Output;
  readonly #logprobs: number | undefined;
  /** Whether an end token is told too: who counts tokens from the end of a scored prompt needs all of them. */
  readonly #ends: boolean;
  readonly #emit: (event: OutputEvent) => void;
  readonly #reader: ChatReader | undefined;
  /** Tokens whose text was not let out, and where in the text each begins. */
  #held: { token: GeneratedToken; start: number }[] = [];
  #unsent = 0;
  #sent = 0;

  /** Starts an output; `logprobs` most probable tokens come with each of its tokens, undefined for no tokens at all. */
  constructor(
    tokenizer: Tokenizer,
    options: OutputOptions & { logprobs?: number; promptLogprobs?: number },
    model: Pick<ModelConfig, "eosIds" | "vocabularySize">,
    emit: (event: OutputEvent) => void,
  ) {
    this.#tokenizer = tokenizer;
    this.#output = new Output(tokenizer, options, model);
    this.#logprobs = options.logprobs;
    this.#ends = options.promptLogprobs !== undefined;
    this.#emit = emit;
    this.#reader = options.reader?.();
  }

  /** Takes a drawn token. True where it is at its end. */
  push(token: DrawnToken): boolean {
    const output = this.#output, start = output.produced;
    this.#unsent++;
    if (this.#logprobs !== undefined && (this.#ends || !output.isEnd(token.id))) {
      const top = token.top.slice(0, this.#logprobs).map((other) => describeToken(this.#tokenizer, other));
      this.#held.push({ token: { ...describeToken(this.#tokenizer, token), top }, start });
    }
    const { text, reason: end, stop } = output.push(token.id);
    if (text || end) this.#send(text, end !== undefined, stop !== undefined);
    const reason = end ?? (this.#reader?.done ? "stop" : undefined);
    if (reason) {
      this.#emit({ type: "end", reason, ...(stop === undefined ? {} : { stop }), completionTokens: output.tokens });
    }
    return reason !== undefined;
  }

  #send(text: string, last: boolean, cut: boolean): void {
    this.#sent += text.length;
    // A token that the stop string swallowed whole is not part of the output; one that leaves no text is.
    const tokens = this.#held.filter(({ start }) => last && !cut || start < this.#sent).map(({ token }) => token);
    this.#held = this.#held.filter(({ start }) => start >= this.#sent);
    const piece = this.#reader?.push(text, last), { reasoning, calls } = piece ?? {};
    this.#emit({
      type: "text",
      text: piece ? piece.text : text,
      ...(reasoning ? { reasoning } : {}),
      ...(calls?.length ? { calls } : {}),
      tokens,
      count: this.#unsent,
    });
    this.#unsent = 0;
  }

  /** See {@linkcode Output.bias}. */
  bias(): Float32Array | null {
    return this.#output.bias();
  }
}
