/**
 * Regular expressions of ECMAScript as automata. They are parsed by `@eslint-community/regexpp`.
 *
 * The expression becomes a nondeterministic automaton. Its states, together with what lookaheads still ask of the rest of the text,
 * are then made deterministic set by set.
 *
 * @module
 */

import { type AST, RegExpParser } from "@eslint-community/regexpp";
import { type Automaton, type AutomatonState, complement, intersection, trim } from "./automaton.ts";
import { type Budget, SchemaError } from "./budget.ts";
import { ALL, both, type Characters, except, ranges, union, where } from "./characters.ts";

/** What an edge without a character asks for. */
type Condition = "start" | "end" | "boundary" | "inside" | { readonly look: number };

interface Edge {
  readonly set: Characters;
  readonly to: number;
}

interface Skip {
  readonly to: number;
  readonly when?: Condition;
}

/** A state of the nondeterministic automaton, and by lookahead the states that those are in. */
interface Place {
  readonly key: string;
  readonly at: number;
  readonly looks: readonly (readonly [look: number, state: number])[];
}

/** Where in the text a set of places is. */
interface Context {
  readonly start: boolean;
  readonly end: boolean;
  readonly wordBefore: boolean;
  readonly wordAfter: boolean;
}

const WORD: Characters = ranges([[0x30, 0x39], [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]]);
const DIGIT: Characters = [0x30, 0x39];
const LINE_END: Characters = ranges([[0x0a, 0x0a], [0x0d, 0x0d], [0x2028, 0x2029]]);
const SPACE: Characters = ranges(
  [[9, 13], [32, 32], [160, 160], [0x1680, 0x1680], [0x2000, 0x200a], [0x2028, 0x2029], [0x202f, 0x202f], [
    0x205f,
    0x205f,
  ], [
    0x3000,
    0x3000,
  ], [0xfeff, 0xfeff]],
);
const BASIC: Characters = [0, 0xffff];

const properties = new Map<string, Characters>();

/** The characters of a set, by the expression's own text where only the runtime knows them. */
function characters(element: AST.CharacterSet | AST.CharacterClassElement, budget: Budget): Characters {
  switch (element.type) {
    case "Character":
      return [element.value, element.value];
    case "CharacterClassRange":
      return [element.min.value, element.max.value];
    case "CharacterSet": {
      if (element.kind === "any") return except(LINE_END);
      if (element.kind !== "property") {
        const set = { digit: DIGIT, space: SPACE, word: WORD }[element.kind];
        return element.negate ? except(set) : set;
      }
      let set = properties.get(element.raw);
      if (!set) {
        budget.spend(50_000);
        properties.set(element.raw, set = where(element.raw));
      }
      return set;
    }
    default:
      throw new SchemaError(`the pattern has ${element.raw}, which is not supported`);
  }
}

/** The nondeterministic automaton of one expression, or of what a lookahead asks for. */
class Nondeterministic {
  readonly edges: Edge[][] = [];
  readonly skips: Skip[][] = [];
  readonly looks: Automaton[] = [];
  words = false;
  readonly #budget: Budget;
  readonly #inside: boolean;

  /** `inside`: it is a lookahead's, which begins somewhere in a text. */
  constructor(alternatives: readonly AST.Alternative[], inside: boolean, budget: Budget) {
    this.#budget = budget;
    this.#inside = inside;
    const first = this.#state();
    if (!inside) this.edges[first].push({ set: ALL, to: first });
    this.last = this.#alternatives(alternatives, first);
    this.edges[this.last].push({ set: ALL, to: this.last });
  }

  /** The state after the expression: whatever follows. */
  readonly last: number;

  #state(): number {
    this.#budget.spend(1);
    this.edges.push([]);
    this.skips.push([]);
    return this.edges.length - 1;
  }

  #skip(from: number, to: number, when?: Condition): number {
    this.skips[from].push({ to, when });
    return to;
  }

  #alternatives(alternatives: readonly AST.Alternative[], from: number): number {
    const end = this.#state();
    for (const { elements } of alternatives) {
      let at = this.#skip(from, this.#state());
      for (const element of elements) at = this.#element(element, at);
      this.#skip(at, end);
    }
    return end;
  }

  #element(element: AST.Element, from: number): number {
    switch (element.type) {
      case "Group":
        if (element.modifiers) break;
        return this.#alternatives(element.alternatives, from);
      case "CapturingGroup":
        return this.#alternatives(element.alternatives, from);
      case "Character":
      case "CharacterSet":
        return this.#edge(from, characters(element, this.#budget));
      case "CharacterClass": {
        const set = union(...element.elements.map((part) => characters(part, this.#budget)));
        return this.#edge(from, element.negate ? except(set) : set);
      }
      case "Quantifier":
        return this.#quantifier(element, from);
      case "Assertion":
        return this.#assertion(element, from);
    }
    throw new SchemaError(`the pattern has ${element.raw}, which is not supported`);
  }

  #edge(from: number, set: Characters): number {
    const to = this.#state();
    if (set.length > 0) this.edges[from].push({ set, to });
    return to;
  }

  #quantifier({ element, min, max }: AST.Quantifier, from: number): number {
    let at = from;
    for (let count = 0; count < min; count++) at = this.#element(element, at);
    if (max === Infinity) {
      const loop = this.#skip(at, this.#state());
      this.#skip(this.#element(element, loop), loop);
      return this.#skip(loop, this.#state());
    }
    const end = this.#state();
    this.#skip(at, end);
    for (let count = min; count < max; count++) {
      at = this.#element(element, at);
      this.#skip(at, end);
    }
    return end;
  }

  #assertion(assertion: AST.Assertion, from: number): number {
    const to = this.#state();
    if (
      assertion.kind === "lookbehind" || (this.#inside && (assertion.kind === "start" || assertion.kind === "word"))
    ) {
      throw new SchemaError(`the pattern has ${assertion.raw}, which is not supported`);
    }
    if (assertion.kind === "start" || assertion.kind === "end") return this.#skip(from, to, assertion.kind);
    if (assertion.kind === "word") {
      this.words = true;
      return this.#skip(from, to, assertion.negate ? "inside" : "boundary");
    }
    const ahead = new Nondeterministic((assertion as AST.LookaheadAssertion).alternatives, true, this.#budget);
    const automaton = deterministic(ahead, this.#budget);
    this.looks.push((assertion as AST.LookaheadAssertion).negate ? complement(automaton) : automaton);
    return this.#skip(from, to, { look: this.looks.length - 1 });
  }
}

/** Whether all texts are in the set from a state on. */
function isAny({ ends, arcs }: AutomatonState, state: number): boolean {
  return ends && arcs.length === 1 && arcs[0].to === state && arcs[0].set.length === 2 && arcs[0].set[1] === ALL[1] &&
    arcs[0].set[0] === 0;
}

function place(at: number, looks: Place["looks"]): Place {
  return { key: `${at}|${looks.map((look) => look.join(":")).join()}`, at, looks };
}

function deterministic(of: Nondeterministic, budget: Budget): Automaton {
  const numbers = new Map<string, number>(), states: AutomatonState[] = [];
  const open: { places: Place[]; start: boolean; word: boolean }[] = [];
  const enter = (places: Place[], start: boolean, word: boolean): number => {
    // Once the expression has matched, whatever follows: one state.
    const done = places.some(({ at, looks }) => at === of.last && looks.length === 0);
    const from = done ? [place(of.last, [])] : [...places].sort((a, b) => a.key < b.key ? -1 : 1);
    const key = `${done ? "" : `${start},${word}`};${from.map(({ key }) => key).join(";")}`;
    let number = numbers.get(key);
    if (number === undefined) {
      numbers.set(key, number = numbers.size);
      open.push({ places: from, start, word });
    }
    return number;
  };
  enter([place(0, [])], true, false);
  for (const { places, start, word } of open) {
    const context = { start, end: false, wordBefore: word, wordAfter: false };
    const arcs: AutomatonState["arcs"][number][] = [];
    for (
      const [wordAfter, among] of of.words ? [[false, except(WORD)], [true, WORD]] as const : [[false, ALL]] as const
    ) {
      const from = closure(of, places, { ...context, wordAfter }, budget);
      if (from.some(({ at, looks }) => at === of.last && looks.length === 0)) {
        arcs.push({ set: among, to: enter([place(of.last, [])], false, false) });
        continue;
      }
      for (const { set, to } of split(from.flatMap((each) => leads(of, each, among)), budget)) {
        arcs.push({ set, to: enter(to, false, of.words && wordAfter) });
      }
    }
    const ended = closure(of, places, { ...context, end: true }, budget);
    states.push({
      ends: ended.some(({ at, looks }) => at === of.last && looks.every(([look, state]) => of.looks[look][state].ends)),
      arcs,
    });
  }
  return trim(states);
}

/** All places that are reached without a character. */
function closure(of: Nondeterministic, places: readonly Place[], context: Context, budget: Budget): Place[] {
  const found = new Map<string, Place>(), open = [...places];
  while (open.length > 0) {
    const from = open.pop()!;
    if (found.has(from.key)) continue;
    budget.spend(1);
    found.set(from.key, from);
    for (const { to, when } of of.skips[from.at]) {
      if (typeof when === "object") {
        const looks = add(of, from.looks, when.look, 0);
        if (looks) open.push(place(to, looks));
      } else if (holds(when, context)) open.push(from.looks.length === 0 ? place(to, []) : place(to, from.looks));
    }
  }
  return [...found.values()];
}

function holds(when: Exclude<Condition, object> | undefined, { start, end, wordBefore, wordAfter }: Context): boolean {
  switch (when) {
    case "start":
      return start;
    case "end":
      return end;
    case "boundary":
      return wordBefore !== wordAfter;
    case "inside":
      return wordBefore === wordAfter;
    default:
      return true;
  }
}

/** Looks with one more; undefined where no text satisfies it. */
function add(of: Nondeterministic, looks: Place["looks"], look: number, state: number): Place["looks"] | undefined {
  const automaton = of.looks[look];
  if (!automaton[state].ends && automaton[state].arcs.length === 0) return undefined;
  if (isAny(automaton[state], state) || looks.some(([l, s]) => l === look && s === state)) return looks;
  return [...looks, [look, state] as const].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
}

/** Where characters of `among` lead from a place. */
function leads(of: Nondeterministic, { at, looks }: Place, among: Characters): { set: Characters; to: Place }[] {
  const result: { set: Characters; to: Place }[] = [];
  for (const { set, to } of of.edges[at]) {
    let parts: { set: Characters; looks: Place["looks"] }[] = [{ set: both(set, among), looks: [] }];
    for (const [look, state] of looks) {
      parts = parts.flatMap((part) =>
        of.looks[look][state].arcs.flatMap((arc) => {
          const common = both(part.set, arc.set),
            after = common.length > 0 ? add(of, part.looks, look, arc.to) : undefined;
          return after ? [{ set: common, looks: after }] : [];
        })
      );
    }
    for (const part of parts) if (part.set.length > 0) result.push({ set: part.set, to: place(to, part.looks) });
  }
  return result;
}

/** Cuts sets that overlap into sets that do not: by character all the places that it leads to. */
function split(leads: readonly { set: Characters; to: Place }[], budget: Budget): { set: Characters; to: Place[] }[] {
  const events: { at: number; lead: number; opens: boolean }[] = [];
  leads.forEach(({ set }, lead) => {
    for (let i = 0; i < set.length; i += 2) {
      events.push({ at: set[i], lead, opens: true }, { at: set[i + 1] + 1, lead, opens: false });
    }
  });
  events.sort((a, b) => a.at - b.at);
  budget.spend(events.length / 4);
  const active = new Set<number>(), pieces = new Map<string, { pairs: [number, number][]; to: Place[] }>();
  for (let i = 0; i < events.length;) {
    const { at } = events[i];
    for (; i < events.length && events[i].at === at; i++) {
      if (events[i].opens) active.add(events[i].lead);
      else active.delete(events[i].lead);
    }
    if (active.size === 0) continue;
    const to = new Map(Array.from(active, (lead) => [leads[lead].to.key, leads[lead].to]));
    const key = [...to.keys()].sort().join(";");
    const piece = pieces.get(key) ?? { pairs: [], to: [...to.values()] };
    pieces.set(key, piece);
    piece.pairs.push([at, events[i].at - 1]);
    budget.spend(active.size / 8);
  }
  return Array.from(pieces.values(), ({ pairs, to }) => ({ set: ranges(pairs), to }));
}

/** An expression that was met before. */
interface Known {
  readonly automaton: Automaton;
  /** It is one with the flag `u`. */
  readonly unicode: boolean;
}

/** Small automata are kept. */
const known = new Map<string, Known>();

/**
 * The texts in which an expression matches somewhere, or with `negate` nowhere. Throws {@link SchemaError} where it is no regular
 * expression, or has a part that is not supported: references to groups, lookbehinds, flags inside.
 */
export function pattern(source: string, budget: Budget, negate: boolean = false): Automaton {
  let made = known.get(source);
  if (!made) {
    const { parsed, unicode } = parse(source);
    const automaton = deterministic(new Nondeterministic(parsed.alternatives, false, budget), budget);
    made = { automaton, unicode };
    if (automaton.length <= 500) {
      if (known.size >= 200) known.clear();
      known.set(source, made);
    }
  }
  const result = negate ? complement(made.automaton) : made.automaton;
  // Without the flag `u` a character beyond U+FFFF counts as two: such texts are left out.
  return made.unicode ? result : intersection(result, [{ ends: true, arcs: [{ set: BASIC, to: 0 }] }], budget);
}

/** As JSON Schema says with the flag `u`; where that is not possible, without. */
function parse(source: string): { parsed: AST.Pattern; unicode: boolean } {
  const parser = new RegExpParser({ ecmaVersion: 2025 });
  try {
    return { parsed: parser.parsePattern(source, 0, source.length, { unicode: true }), unicode: true };
  } catch {
    // Tried again below, whose error is told.
  }
  try {
    return { parsed: parser.parsePattern(source, 0, source.length, { unicode: false }), unicode: false };
  } catch (error) {
    const [shown, why] = [JSON.stringify(source).slice(0, 100), (error as Error).message.slice(-100)];
    throw new SchemaError(`the pattern ${shown} is no regular expression: ${why}`);
  }
}
