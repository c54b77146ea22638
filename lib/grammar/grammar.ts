/**
 * Grammars over bytes, and which tokens may come next: what holds generated text to a form.
 *
 * A grammar is a pushdown automaton: a place in it is a rule, how far it is read, and what follows it. A rule that is called from
 * several places at once is entered once, and what follows it is the set of what follows each call: a graph-structured stack
 * (Tomita 1985), so that ways to read a text that have become equal are one, and their number does not grow with the
 * depth. Places reached by the same bytes are one state, made when first met, so that text that leads back to a
 * state (the inside of a string) asks for its tokens once only.
 *
 * @module
 */

import type { Vocabulary } from "../tokenizer/vocabulary.ts";
import type { Rule } from "./rule.ts";
import { type TokenTree, tokenTree } from "./tokens.ts";

/** A text could not be followed further within the limits of {@link Grammar}. It ends the one text, not the grammar. */
export class GrammarError extends RangeError {
  /** Always "GrammarError". */
  override readonly name: string = "GrammarError";
}

/** What is to come: `rule` from `at` on (a byte of a text, a part of a sequence, a count, a state), then `next`. */
interface Frame {
  readonly id: number;
  readonly rule: Rule;
  readonly at: number;
  readonly next: Place;
}

/** What follows a rule that was called from several places: any of these. */
interface Join {
  readonly id: number;
  readonly places: readonly Place[];
}

type Place = Frame | Join;

/** The end of the text. */
const END: Join = { id: 0, places: [] };

/** What may come at a set of places. */
interface State {
  /** By byte: what one certain byte leads to. */
  readonly certain: ReadonlyMap<number, Place[]>;
  /** What any byte of a set leads to. */
  readonly ranges: readonly { readonly allowed: Uint8Array; readonly then: Place }[];
  /** What a control token leads to. */
  readonly controls: ReadonlyMap<number, Place[]>;
  readonly ends: boolean;
  /** By byte: the next state, null where there is none, undefined where it is not known yet. */
  readonly next: (State | null | undefined)[];
  /** One bit a token: those that may come. */
  tokens: Uint32Array | undefined;
}

/** Bytes of states and tokens kept before the grammar forgets them and starts anew. */
const MOST_BYTES = 16 << 20;

/** Bytes that a state takes, about, without its tokens. */
const STATE_BYTES = 3000;

/** Places in a state at most. */
const MOST_PLACES = 1 << 15;

/** Places visited for one token at most: about 0.1 s. */
const MOST_VISITS = 150_000;

/** Milliseconds for one token at most, as a last resort. */
const MOST_MILLISECONDS = 3000;

/** A grammar over a vocabulary. */
export class Grammar {
  readonly #vocabulary: Vocabulary;
  readonly #tree: TokenTree;
  readonly #size: number;
  readonly #ends: readonly number[];
  readonly #root: Rule;
  readonly #rules = new Map<Rule, number>();
  readonly #heights = new Map<Rule, number>();
  readonly #frames = new Map<string, Frame>();
  readonly #joins = new Map<string, Join>();
  readonly #states = new Map<string, State>();
  #count = 1;
  #bytes = 0;
  #visits = 0;
  #until = 0;

  /** `size`: columns of the logits; `ends`: the tokens that end a text. */
  constructor(root: Rule, vocabulary: Vocabulary, options: { size: number; ends: readonly number[] }) {
    this.#root = root;
    this.#vocabulary = vocabulary;
    this.#tree = tokenTree(vocabulary);
    this.#size = options.size;
    this.#ends = options.ends;
  }

  /** A new text. Throws {@link GrammarError} where its beginning has too many places. */
  start(): GrammarState {
    this.#limit();
    let state: State | null = this.#state([this.#frame(this.#root, 0, END)]);
    return {
      push: (id) => {
        this.#limit();
        if (this.#vocabulary.isSpecial(id)) {
          const places: Place[] | undefined = state?.controls.get(id);
          state = places ? this.#state(places) : null;
        } else for (const byte of this.#vocabulary.bytes(id)) state = state && this.#step(state, byte);
      },
      bias: (base) => {
        this.#limit();
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

  #limit(): void {
    this.#visits = 0;
    this.#until = performance.now() + MOST_MILLISECONDS;
  }

  /** Counts work. What was found so far is kept, so that a text is ended in the midst of a token without harm to others. */
  #work(places: number): void {
    this.#visits += places;
    if (this.#visits > MOST_VISITS || ((this.#visits & 1023) < places && performance.now() > this.#until)) {
      throw new GrammarError("the text can be read in too many ways by its schema: give the schema fewer alternatives");
    }
  }

  #frame(rule: Rule, at: number, next: Place): Frame {
    let number = this.#rules.get(rule);
    if (number === undefined) this.#rules.set(rule, number = this.#rules.size);
    const key = `${number},${at},${next.id}`;
    let frame = this.#frames.get(key);
    if (!frame) this.#frames.set(key, frame = { id: this.#count++, rule, at, next });
    return frame;
  }

  #join(places: Set<Place>): Place {
    if (places.size === 1) return places.values().next().value!;
    const key = keyOf(places);
    let join = this.#joins.get(key);
    if (!join) this.#joins.set(key, join = { id: this.#count++, places: [...places] });
    return join;
  }

  /** Follows what takes no byte from places on: `take` gets what takes one, `call` the rules called and what follows. */
  #follow(
    places: Place[],
    seen: Set<Place>,
    take: (frame: Frame) => void,
    call: (rule: Rule, next: Place) => void,
  ): void {
    while (places.length > 0) {
      const place = places.pop()!;
      if (seen.has(place)) continue;
      seen.add(place);
      this.#work(1);
      if (seen.size > MOST_PLACES) this.#work(MOST_VISITS);
      if (!("rule" in place)) {
        places.push(...place.places);
        continue;
      }
      const { rule, at, next } = place;
      switch (rule.kind) {
        case "text":
          if (rule.bytes.length === 0) places.push(next);
          else take(place);
          break;
        case "byte":
          take(place);
          break;
        case "control":
          if (this.#tree.controls.has(rule.name)) take(place);
          else places.push(this.#frame(rule.text, 0, next));
          break;
        case "sequence":
          if (at === rule.parts.length) places.push(next);
          else {
            const after = at + 1 < rule.parts.length ? this.#frame(rule, at + 1, next) : next;
            places.push(this.#frame(rule.parts[at], 0, after));
          }
          break;
        case "choice":
          for (const part of rule.of) places.push(this.#frame(part, 0, next));
          break;
        case "graph":
          if (rule.states[at].ends) places.push(next);
          for (const { rule: part, to } of rule.states[at].arcs) {
            const { ends, arcs } = rule.states[to];
            places.push(this.#frame(part, 0, ends && arcs.length === 0 ? next : this.#frame(rule, to, next)));
          }
          break;
        case "counted": {
          // A place is a state and how many arcs were taken; where there is no limit, more than enough are enough.
          const size = rule.states.length, count = Math.floor(at / size), { ends, arcs } = rule.states[at % size];
          if (ends && count >= rule.least) places.push(next);
          const after = rule.most === Infinity ? Math.min(count + 1, rule.least) : count + 1;
          for (const { rule: part, to } of after <= rule.most ? arcs : []) {
            if (rule.live(to, after)) places.push(this.#frame(part, 0, this.#frame(rule, after * size + to, next)));
          }
          break;
        }
        case "repeat": {
          if (at >= rule.least) places.push(next);
          // Counts beyond what matters are one place.
          const after = rule.most === Infinity ? Math.min(at + 1, rule.least) : at + 1;
          if (at < rule.most) {
            places.push(this.#frame(rule.part, 0, after === rule.most ? next : this.#frame(rule, after, next)));
          }
          break;
        }
        case "call":
          call(rule.rule(), next);
      }
    }
  }

  /** A rule is higher than those that it may begin with. */
  #height(rule: Rule): number {
    const known = this.#heights.get(rule);
    if (known !== undefined) return known;
    this.#heights.set(rule, 0);
    const called = new Set<Rule>();
    this.#follow([this.#frame(rule, 0, END)], new Set(), () => {}, (other) => called.add(other));
    let height = 0;
    for (const other of called) height = Math.max(height, this.#height(other) + 1);
    this.#heights.set(rule, height);
    return height;
  }

  #state(places: Place[]): State {
    const key = keyOf(new Set(places));
    const known = this.#states.get(key);
    if (known) return known;
    const certain = new Map<number, Place[]>(), ranges: { allowed: Uint8Array; then: Place }[] = [];
    const controls = new Map<number, Place[]>(), seen = new Set<Place>(), calls = new Map<Rule, Set<Place>>();
    const take = ({ rule, at, next }: Frame): void => {
      if (rule.kind === "byte") ranges.push({ allowed: rule.allowed, then: next });
      else if (rule.kind === "control") add(controls, this.#tree.controls.get(rule.name)!, next);
      else if (rule.kind === "text") {
        add(certain, rule.bytes[at], at + 1 < rule.bytes.length ? this.#frame(rule, at + 1, next) : next);
      }
    };
    // A call at the end of a rule leaves nothing to come back to: what follows is what follows the rule.
    const call = (rule: Rule, next: Place): void => {
      const after = calls.get(rule) ?? new Set<Place>();
      calls.set(rule, after);
      if ("rule" in next || next === END) after.add(next);
      else for (const place of next.places) after.add(place);
    };
    this.#follow([...places], seen, take, call);
    // The highest first: by the time that a rule is entered, all that calls it here is known.
    while (calls.size > 0) {
      const rule = [...calls.keys()].reduce((a, b) => this.#height(b) > this.#height(a) ? b : a),
        after = calls.get(rule)!;
      calls.delete(rule);
      this.#follow([this.#frame(rule, 0, this.#join(after))], seen, take, call);
    }
    const state = { certain, ranges, controls, ends: seen.has(END), next: new Array(256), tokens: undefined };
    this.#keep(STATE_BYTES + 100 * seen.size);
    this.#states.set(key, state);
    return state;
  }

  /** Forgets all but what texts stand on, where too much is kept. */
  #keep(bytes: number): void {
    this.#bytes += bytes;
    if (this.#bytes < MOST_BYTES) return;
    this.#bytes = 0;
    this.#states.clear();
    this.#frames.clear();
    this.#joins.clear();
  }

  #step(state: State, byte: number): State | null {
    const known = state.next[byte];
    if (known !== undefined) return known;
    const places = [...state.certain.get(byte) ?? []];
    for (const { allowed, then } of state.ranges) if (allowed[byte]) places.push(then);
    this.#work(1 + state.ranges.length);
    return state.next[byte] = places.length === 0 ? null : this.#state(places);
  }

  #tokens(state: State): Uint32Array {
    if (state.tokens) return state.tokens;
    const { bytes, depths, skips, tokens: ids, twins } = this.#tree;
    const tokens = new Uint32Array((this.#size + 31) >>> 5);
    const allow = (id: number): void => {
      if (id < this.#size) tokens[id >>> 5] |= 1 << (id & 31);
    };
    // path[i]: the state after i bytes.
    const path: State[] = [state];
    for (let node = 0; node < bytes.length;) {
      const from = path[depths[node]], known = from.next[bytes[node]];
      const to = known === undefined ? this.#step(from, bytes[node]) : known;
      if (!to) {
        node = skips[node];
        continue;
      }
      path[depths[node] + 1] = to;
      for (let id = ids[node]; id >= 0; id = twins[id]) allow(id);
      node++;
    }
    for (const id of state.controls.keys()) allow(id);
    if (state.ends) this.#ends.forEach(allow);
    this.#keep(tokens.byteLength);
    return state.tokens = tokens;
  }
}

function add(map: Map<number, Place[]>, key: number, place: Place): void {
  const places = map.get(key);
  if (places) places.push(place);
  else map.set(key, [place]);
}

function keyOf(places: Set<Place>): string {
  return Array.from(places, ({ id }) => id).sort((a, b) => a - b).join();
}

/** A text that grows by a grammar. Both functions throw {@link GrammarError} where it cannot be followed further. */
export interface GrammarState {
  /** Takes a token. */
  push(id: number): void;
  /** What to add to the next logits: 0, or `base` where given, for tokens that may come, else -Infinity. */
  bias(base: Float32Array | null): Float32Array;
  /** Whether the text may end here. */
  readonly complete: boolean;
}
