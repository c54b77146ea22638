/**
 * The parts that grammars are made of: literal text, bytes, sequences, choices, repetitions, free text up to a trigger.
 *
 * @module
 */

/** A part of a grammar; the functions below, and `json` of `json_schema.ts`, make them. */
export type Rule =
  | { readonly kind: "text"; readonly bytes: Uint8Array }
  | { readonly kind: "byte"; readonly allowed: Uint8Array }
  | { readonly kind: "control"; readonly name: string; readonly text: Rule }
  | { readonly kind: "sequence"; readonly parts: readonly Rule[] }
  | { readonly kind: "choice"; readonly of: readonly Rule[] }
  | { readonly kind: "repeat"; readonly part: Rule; readonly least: number; readonly most: number }
  | { readonly kind: "graph"; readonly states: readonly GraphState[] }
  | CountedGraph
  | { readonly kind: "call"; readonly name?: string; readonly rule: () => Rule };

/** A state of a graph: whether the graph may end here, and what leads on. State 0 is the start. */
export interface GraphState {
  readonly ends: boolean;
  readonly arcs: readonly { readonly rule: Rule; readonly to: number }[];
}

/** A graph of which `least` to `most` arcs are taken, each for one character. */
export interface CountedGraph {
  readonly kind: "counted";
  readonly states: readonly GraphState[];
  readonly least: number;
  readonly most: number;
  /** Whether an end can be reached from a state when so many arcs were taken. */
  readonly live: (state: number, count: number) => boolean;
}

/** These very characters. */
export function literal(characters: string): Rule {
  return { kind: "text", bytes: new TextEncoder().encode(characters) };
}

/** Nothing. */
export const empty: Rule = { kind: "sequence", parts: [] };

/** The control token of this name; where the vocabulary has none, the name as text. */
export function control(name: string): Rule {
  return { kind: "control", name, text: literal(name) };
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
  return parts.length === 1 ? parts[0] : { kind: "sequence", parts };
}

/** One of the parts. */
export function choice(...of: Rule[]): Rule {
  return of.length === 1 ? of[0] : { kind: "choice", of };
}

/** A part again and again: `least` to `most` times. */
export function repeat(part: Rule, least: number = 0, most: number = Infinity): Rule {
  return { kind: "repeat", part, least, most };
}

/** Free text up to and with the first of these strings, none of which is empty. Control tokens are no text. */
export function until(...triggers: string[]): Rule {
  return search(triggers, true);
}

/** Free text, also none, in which none of these strings occurs; without any, all text. Control tokens are no text. */
export function without(...triggers: string[]): Rule {
  return search(triggers, false);
}

/** Aho and Corasick's automaton over bytes: a state is the longest beginning of a trigger that the text ends in. */
function search(triggers: readonly string[], through: boolean): Rule {
  const words = triggers.map((trigger) =>
    [...new TextEncoder().encode(trigger)].map((byte) => String.fromCharCode(byte)).join("")
  );
  if (words.includes("")) throw new RangeError("a trigger is an empty string");
  if (words.length === 0 && through) throw new RangeError("text until something needs something to end it");
  const beginnings = [...new Set(["", ...words.flatMap((word) => Array.from(word, (_, i) => word.slice(0, i)))])];
  const states: GraphState[] = beginnings.map((before) => {
    const targets = new Map<number, Uint8Array>();
    for (let byte = 0; byte < 256; byte++) {
      let rest = before + String.fromCharCode(byte);
      const done = words.some((word) => rest.endsWith(word));
      while (!done && !beginnings.includes(rest)) rest = rest.slice(1);
      if (done && !through) continue;
      const to = done ? beginnings.length : beginnings.indexOf(rest);
      if (!targets.has(to)) targets.set(to, new Uint8Array(256));
      targets.get(to)![byte] = 1;
    }
    const arcs = [...targets].map(([to, allowed]) => ({ rule: { kind: "byte" as const, allowed }, to }));
    return { ends: !through, arcs };
  });
  return { kind: "graph", states: [...states, { ends: true, arcs: [] }] };
}
