/**
 * Deterministic automata over characters: what is common to several, what is not in one, and as a rule of a grammar.
 *
 * @module
 */

import { type Budget, SchemaError } from "./budget.ts";
import { ALL, both, type Characters, except, has, ranges, union, writtenCharacter } from "./characters.ts";
import type { GraphState, Rule } from "./rule.ts";

/** A state: whether a text may end here, and where characters of a set lead. The sets have no character in common. */
export interface AutomatonState {
  readonly ends: boolean;
  readonly arcs: readonly { readonly set: Characters; readonly to: number }[];
}

/** A set of texts. State 0 is the start; from every other state an end can be reached. */
export type Automaton = readonly AutomatonState[];

/** Any text. */
export const ANY: Automaton = [{ ends: true, arcs: [{ set: ALL, to: 0 }] }];

/** Whether no text is in the set. */
export function isEmpty(automaton: Automaton): boolean {
  return !automaton[0].ends && automaton[0].arcs.length === 0;
}

/** Leaves out what leads to no end, and what no text reaches. */
export function trim(states: Automaton): Automaton {
  const before = states.map((): number[] => []), live = new Set<number>(), open: number[] = [];
  states.forEach(({ ends, arcs }, from) => {
    for (const { to } of arcs) before[to].push(from);
    if (ends) open.push(from);
  });
  while (open.length > 0) {
    const state = open.pop()!;
    if (live.has(state)) continue;
    live.add(state);
    open.push(...before[state]);
  }
  const numbers = new Map([[0, 0]]), kept: AutomatonState[] = [];
  for (const from of numbers.keys()) {
    const arcs = states[from].arcs.filter(({ to }) => live.has(to)).map(({ set, to }) => {
      if (!numbers.has(to)) numbers.set(to, numbers.size);
      return { set, to: numbers.get(to)! };
    });
    kept.push({ ends: states[from].ends, arcs });
  }
  return kept;
}

/** Texts of both sets. */
export function intersection(a: Automaton, b: Automaton, budget: Budget): Automaton {
  if (a === ANY) return b;
  if (b === ANY) return a;
  const pairs = new Map<number, number>([[0, 0]]), states: AutomatonState[] = [];
  for (const pair of pairs.keys()) {
    const left = a[Math.floor(pair / b.length)], right = b[pair % b.length], targets = new Map<number, Characters[]>();
    for (const one of left.arcs) {
      for (const other of right.arcs) {
        budget.spend(1 + Math.min(one.set.length, other.set.length) / 8);
        const set = both(one.set, other.set);
        if (set.length === 0) continue;
        const target = one.to * b.length + other.to;
        if (!pairs.has(target)) pairs.set(target, pairs.size);
        const to = pairs.get(target)!, sets = targets.get(to);
        if (sets) sets.push(set);
        else targets.set(to, [set]);
      }
    }
    const arcs = Array.from(targets, ([to, sets]) => ({ set: sets.length === 1 ? sets[0] : union(...sets), to }));
    states.push({ ends: left.ends && right.ends, arcs });
  }
  return trim(states);
}

/** Texts that are not in the set. */
export function complement(automaton: Automaton): Automaton {
  const sink = automaton.length;
  const states = automaton.map(({ ends, arcs }) => {
    const rest = except(union(...arcs.map(({ set }) => set)));
    return { ends: !ends, arcs: rest.length > 0 ? [...arcs, { set: rest, to: sink }] : arcs };
  });
  return trim([...states, { ends: true, arcs: [{ set: ALL, to: sink }] }]);
}

/** These very texts. */
export function texts(values: readonly string[], budget: Budget): Automaton {
  const states: { ends: boolean; next: Map<number, number> }[] = [{ ends: false, next: new Map() }];
  for (const value of values) {
    let at = 0;
    for (const character of value) {
      budget.spend(1);
      const code = character.codePointAt(0)!;
      let to = states[at].next.get(code);
      if (to === undefined) {
        states[at].next.set(code, to = states.length);
        states.push({ ends: false, next: new Map() });
      }
      at = to;
    }
    states[at].ends = true;
  }
  return states.map(({ ends, next }) => ({
    ends,
    arcs: Array.from(next, ([code, to]) => ({ set: [code, code], to })),
  }));
}

/** Whether a text is in the set. */
export function matches(automaton: Automaton, text: string): boolean {
  let at = 0;
  for (const character of text) {
    const code = character.codePointAt(0)!, arc = automaton[at].arcs.find(({ set }) => has(set, code));
    if (!arc) return false;
    at = arc.to;
  }
  return automaton[at].ends;
}

/** The same without what a JSON string cannot hold: halves of surrogate pairs. */
function writable(automaton: Automaton): Automaton {
  const characters = ranges([[0, 0xd7ff], [0xe000, 0x10ffff]]);
  return trim(automaton.map(({ ends, arcs }) => ({
    ends,
    arcs: arcs.filter(({ set }) => both(set, characters).length > 0),
  })));
}

/** Most states times lengths of a text that are looked through. */
const MOST_LENGTHS = 1 << 22;

/**
 * By state and number of characters so far: whether a text of the set of `least` to `most` characters can still be reached. With no limit
 * above, a text that is long enough is at most as many characters longer than needed as there are states.
 */
function reach(
  automaton: Automaton,
  least: number,
  most: number,
  budget: Budget,
): (state: number, count: number) => boolean {
  const size = automaton.length, top = most === Infinity ? least + size : most;
  if (size * (top + 2) > MOST_LENGTHS) {
    throw new SchemaError(`texts of ${top} characters are too long for this pattern`);
  }
  // sums[left * size + state]: of how many lengths below `left` there is a text from the state on.
  const sums = new Uint32Array(size * (top + 2));
  let now = Uint8Array.from(automaton, ({ ends }) => Number(ends));
  for (let left = 0; left <= top; left++) {
    budget.spend(1 + size / 8);
    for (let state = 0; state < size; state++) sums[(left + 1) * size + state] = sums[left * size + state] + now[state];
    now = Uint8Array.from(automaton, ({ arcs }) => Number(arcs.some(({ to }) => now[to])));
  }
  return (state, count) => {
    if (most === Infinity && count >= least) return true;
    const from = Math.max(0, least - count), to = top - count;
    return to >= from && sums[(to + 1) * size + state] > sums[from * size + state];
  };
}

/**
 * Texts of the set, of `least` to `most` characters, as they stand inside a JSON string; undefined where there is none.
 */
export function written(
  automaton: Automaton,
  budget: Budget,
  least: number = 0,
  most: number = Infinity,
): Rule | undefined {
  const kept = writable(automaton);
  if (isEmpty(kept)) return undefined;
  const states: GraphState[] = kept.map(({ ends, arcs }) => ({
    ends,
    arcs: arcs.map(({ set, to }) => {
      budget.spend(2);
      return { rule: writtenCharacter(set)!, to };
    }),
  }));
  if (least === 0 && most === Infinity) return { kind: "graph", states };
  const live = reach(kept, least, most, budget);
  return live(0, 0) ? { kind: "counted", states, least, most, live } : undefined;
}
