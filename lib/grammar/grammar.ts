/**
 * Grammars over bytes, and which tokens may come next: what holds generated text to a form.
 *
 * A grammar is a pushdown automaton: a place in it is a list of frames (what is still to come). Places reached by the same
 * bytes are one state, made when first met, so that runs of text that lead back to a state (the inside of a string)
 * ask for its tokens once only.
 *
 * @module
 */

import type { Vocabulary } from "../tokenizer/vocabulary.ts";

/** A part of a grammar. A repeated part must not be able to be empty. */
export type Rule =
  | { readonly kind: "text"; readonly bytes: Uint8Array }
  | { readonly kind: "byte"; readonly allowed: Uint8Array }
  | { readonly kind: "sequence"; readonly parts: readonly Rule[] }
  | { readonly kind: "choice"; readonly of: readonly Rule[] }
  | { readonly kind: "repeat"; readonly part: Rule; readonly least: number; readonly most: number }
  | { readonly kind: "call"; readonly rule: () => Rule };

/** These very characters. */
export function text(characters: string): Rule {
  return { kind: "text", bytes: new TextEncoder().encode(characters) };
}

/** One byte of these ranges, e.g. `byte("09", "af")` or pairs of numbers. */
export function byte(...ranges: (string | readonly [number, number])[]): Rule {
  const allowed = new Uint8Array(256);
  for (const range of ranges) {
    const [low, high] = typeof range === "string" ? [range.charCodeAt(0), range.charCodeAt(range.length - 1)] : range;
    allowed.fill(1, low, high + 1);
  }
  return { kind: "byte", allowed };
}

/** One part after the other. */
export function sequence(...parts: Rule[]): Rule {
  return { kind: "sequence", parts };
}

/** One of the parts. */
export function choice(...of: Rule[]): Rule {
  return { kind: "choice", of };
}

/** A part again and again. */
export function repeat(part: Rule, least: number = 0, most: number = Infinity): Rule {
  return { kind: "repeat", part, least, most };
}

/** What is to come: `rule` from `at` on (a byte of a text, a part of a sequence, a count of a repeat), then `next`. */
interface Frame {
  readonly id: number;
  readonly rule: Rule;
  readonly at: number;
  readonly next: Frame | null;
  arcs: Arc[] | undefined;
}

/** A byte that may come, and what is to come after it; no bytes stand for the end. */
interface Arc {
  readonly bytes: Uint8Array | number | undefined;
  readonly then: Frame | null;
}

/** A set of places. */
interface State {
  readonly arcs: readonly Arc[];
  readonly ends: boolean;
  readonly next: (State | null | undefined)[];
  /** One bit a token: those that may come. */
  tokens: Uint32Array | undefined;
}

/** A vocabulary sorted by bytes, so that tokens that begin alike are tried together. */
interface SortedTokens {
  readonly ids: Int32Array;
  readonly bytes: readonly Uint8Array[];
  /** Leading bytes that a token has in common with the one before it. */
  readonly common: Int32Array;
}

const sortedTokens = new WeakMap<Vocabulary, SortedTokens>();

function sorted(vocabulary: Vocabulary): SortedTokens {
  const known = sortedTokens.get(vocabulary);
  if (known) return known;
  const tokens = Array.from({ length: vocabulary.size }, (_, id) => ({ id, bytes: vocabulary.bytes(id) }))
    .filter(({ id, bytes }) => bytes.length > 0 && !vocabulary.isSpecial(id))
    .sort((a, b) => compare(a.bytes, b.bytes));
  const common = Int32Array.from(tokens, ({ bytes }, i) => {
    if (i === 0) return 0;
    const before = tokens[i - 1].bytes;
    let count = 0;
    while (count < before.length && before[count] === bytes[count]) count++;
    return count;
  });
  const result = { ids: Int32Array.from(tokens, ({ id }) => id), bytes: tokens.map(({ bytes }) => bytes), common };
  sortedTokens.set(vocabulary, result);
  return result;
}

function compare(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < a.length && i < b.length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return a.length - b.length;
}

/** States kept before the grammar forgets them and starts anew. */
const MOST_STATES = 4000;

/** A grammar over a vocabulary. */
export class Grammar {
  readonly #vocabulary: Vocabulary;
  readonly #size: number;
  readonly #ends: readonly number[];
  readonly #root: Rule;
  readonly #rules = new Map<Rule, number>();
  readonly #frames = new Map<string, Frame>();
  readonly #states = new Map<string, State>();
  #count = 0;

  /** `size`: columns of the logits; `ends`: the tokens that end a text. */
  constructor(root: Rule, vocabulary: Vocabulary, options: { size: number; ends: readonly number[] }) {
    this.#root = root;
    this.#vocabulary = vocabulary;
    this.#size = options.size;
    this.#ends = options.ends;
  }

  /** A new text. */
  start(): GrammarState {
    const root = this.#frame(this.#root, 0, null);
    let state: State | null = this.#state([root]);
    return {
      push: (id) => {
        for (const byte of this.#vocabulary.bytes(id)) state = state && this.#step(state, byte);
      },
      bias: (base) => {
        const bias = new Float32Array(this.#size).fill(-Infinity), tokens = state && this.#tokens(state);
        let any = false;
        for (let id = 0; tokens && id < this.#size; id++) {
          if ((tokens[id >>> 5] >>> (id & 31) & 1) === 0) continue;
          bias[id] = base?.[id] ?? 0;
          any = true;
        }
        // A vocabulary without a token for a byte that must come: the text cannot go on.
        if (!any) { for (const id of this.#ends) bias[id] = 0; }
        return bias;
      },
      get complete() {
        return state?.ends ?? false;
      },
    };
  }

  #frame(rule: Rule, at: number, next: Frame | null): Frame {
    let number = this.#rules.get(rule);
    if (number === undefined) this.#rules.set(rule, number = this.#rules.size);
    const key = `${number},${at},${next?.id ?? -1}`;
    let frame = this.#frames.get(key);
    if (!frame) this.#frames.set(key, frame = { id: this.#count++, rule, at, next, arcs: undefined });
    return frame;
  }

  /** The bytes that may come at a frame. */
  #arcs(frame: Frame): Arc[] {
    if (frame.arcs) return frame.arcs;
    const arcs: Arc[] = [], seen = new Set<Frame>();
    const visit = (frame: Frame | null): void => {
      if (!frame) return void arcs.push({ bytes: undefined, then: null });
      if (seen.has(frame)) return;
      seen.add(frame);
      const { rule, at, next } = frame;
      switch (rule.kind) {
        case "text":
          if (rule.bytes.length === 0) visit(next);
          else {arcs.push({
              bytes: rule.bytes[at],
              then: at + 1 < rule.bytes.length ? this.#frame(rule, at + 1, next) : next,
            });}
          break;
        case "byte":
          arcs.push({ bytes: rule.allowed, then: next });
          break;
        case "sequence":
          if (at === rule.parts.length) visit(next);
          else {visit(
              this.#frame(rule.parts[at], 0, at + 1 < rule.parts.length ? this.#frame(rule, at + 1, next) : next),
            );}
          break;
        case "choice":
          for (const part of rule.of) visit(this.#frame(part, 0, next));
          break;
        case "repeat": {
          if (at >= rule.least) visit(next);
          // Counts beyond what matters are one place.
          const after = rule.most === Infinity ? Math.min(at + 1, rule.least) : at + 1;
          if (at < rule.most) visit(this.#frame(rule.part, 0, this.#frame(rule, after, next)));
          break;
        }
        case "call":
          visit(this.#frame(rule.rule(), 0, next));
      }
    };
    visit(frame);
    return frame.arcs = arcs;
  }

  #state(frames: Iterable<Frame | null>): State {
    const all = new Set(frames), key = [...all].map((frame) => frame?.id ?? -1).sort((a, b) => a - b).join();
    let state = this.#states.get(key);
    if (!state) {
      const arcs = [...all].flatMap((frame) => frame ? this.#arcs(frame) : [{ bytes: undefined, then: null }]);
      state = { arcs, ends: arcs.some(({ bytes }) => bytes === undefined), next: new Array(256), tokens: undefined };
      if (this.#states.size >= MOST_STATES) {
        this.#states.clear();
        this.#frames.clear();
      }
      this.#states.set(key, state);
    }
    return state;
  }

  #step(state: State, byte: number): State | null {
    const known = state.next[byte];
    if (known !== undefined) return known;
    const frames = new Set<Frame | null>();
    for (const { bytes, then } of state.arcs) {
      if (typeof bytes === "number" ? bytes === byte : bytes?.[byte]) frames.add(then);
    }
    return state.next[byte] = frames.size === 0 ? null : this.#state(frames);
  }

  #tokens(state: State): Uint32Array {
    if (state.tokens) return state.tokens;
    const { ids, bytes, common } = sorted(this.#vocabulary), tokens = new Uint32Array((this.#size + 31) >>> 5);
    const allow = (id: number): void => {
      if (id < this.#size) tokens[id >>> 5] |= 1 << (id & 31);
    };
    // path[i]: the state after i bytes of the token; dead: the number of bytes after which there is none.
    const path: State[] = [state];
    let dead = Infinity;
    for (let i = 0; i < ids.length; i++) {
      if (common[i] >= dead) continue;
      dead = Infinity;
      for (let at = common[i]; at < bytes[i].length; at++) {
        const next = this.#step(path[at], bytes[i][at]);
        if (!next) {
          dead = at + 1;
          break;
        }
        path[at + 1] = next;
      }
      if (dead === Infinity) allow(ids[i]);
    }
    if (state.ends) this.#ends.forEach(allow);
    return state.tokens = tokens;
  }
}

/** A text that grows by a grammar. */
export interface GrammarState {
  /** Takes a token. */
  push(id: number): void;
  /** What to add to the next logits: 0, or `base` where given, for tokens that may come, else -Infinity. */
  bias(base: Float32Array | null): Float32Array;
  /** Whether the text may end here. */
  readonly complete: boolean;
}
