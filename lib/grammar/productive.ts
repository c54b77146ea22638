/**
 * Leaves out of rules what no text of an end leads through, e.g. a list that needs a list that needs a list.
 *
 * @module
 */

import type { Budget } from "./budget.ts";
import { type GraphState, type Rule } from "./rule.ts";

/** Rules that call each other by name, those that have a text, and without the parts that have none. */
export function productive(rules: ReadonlyMap<string, Rule>, budget: Budget): Map<string, Rule> {
  const known = new Set<string>();
  // Who has to be asked again when a rule turns out to have a text.
  const callers = new Map<string, Set<string>>();
  const open = [...rules.keys()];
  for (let name = open.pop(); name !== undefined; name = open.pop()) {
    if (known.has(name)) continue;
    const asked = name;
    const can = hasText(rules.get(asked)!, (called) => {
      if (known.has(called)) return true;
      if (!callers.has(called)) callers.set(called, new Set());
      callers.get(called)!.add(asked);
      return false;
    }, budget);
    if (!can) continue;
    known.add(asked);
    open.push(...callers.get(asked) ?? []);
  }
  if (known.size === rules.size) return new Map(rules);
  return new Map([...known].map((name) => [name, prune(rules.get(name)!, known, budget)]));
}

/** Whether a rule has a text, by the rules that are known to have one. */
function hasText(rule: Rule, known: (name: string) => boolean, budget: Budget): boolean {
  budget.spend(1);
  switch (rule.kind) {
    case "sequence":
      return rule.parts.every((part) => hasText(part, known, budget));
    case "choice":
      return rule.of.some((part) => hasText(part, known, budget));
    case "repeat":
      return rule.least === 0 || hasText(rule.part, known, budget);
    case "graph":
      return live(rule.states, (part) => hasText(part, known, budget)).has(0);
    case "call":
      return rule.name === undefined || known(rule.name);
    default:
      return true;
  }
}

/** The states of a graph from which an end can be reached. */
function live(states: readonly GraphState[], can: (rule: Rule) => boolean): Set<number> {
  const before = states.map((): number[] => []), found = new Set<number>(), open: number[] = [];
  states.forEach(({ ends, arcs }, from) => {
    for (const { rule, to } of arcs) if (can(rule)) before[to].push(from);
    if (ends) open.push(from);
  });
  for (let state = open.pop(); state !== undefined; state = open.pop()) {
    if (found.has(state)) continue;
    found.add(state);
    open.push(...before[state]);
  }
  return found;
}

function prune(rule: Rule, known: ReadonlySet<string>, budget: Budget): Rule {
  const can = (part: Rule) => hasText(part, (name) => known.has(name), budget);
  const inside = (part: Rule) => prune(part, known, budget);
  switch (rule.kind) {
    case "sequence":
      return { kind: "sequence", parts: rule.parts.map(inside) };
    case "choice":
      return { kind: "choice", of: rule.of.filter(can).map(inside) };
    case "repeat":
      return can(rule.part) ? { ...rule, part: inside(rule.part) } : { kind: "sequence", parts: [] };
    case "graph": {
      const found = live(rule.states, can);
      const states = rule.states.map(({ ends, arcs }) => ({
        ends,
        arcs: arcs.filter(({ rule: part, to }) => found.has(to) && can(part)).map(({ rule: part, to }) => ({
          rule: inside(part),
          to,
        })),
      }));
      return { kind: "graph", states };
    }
    default:
      return rule;
  }
}
