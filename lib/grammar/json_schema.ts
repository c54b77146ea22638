/**
 * JSON schemas as grammars. Every text that the grammar lets through is valid by the schema; of what the schema allows, texts
 * with other spacing, members in another order, or members that the schema does not name are left out.
 *
 * @module
 */

import type { Vocabulary } from "../tokenizer/vocabulary.ts";
import { SchemaError } from "./budget.ts";
import { Compiler, members, value } from "./compiler.ts";
import { Grammar } from "./grammar.ts";
import type { Rule } from "./rule.ts";

export { SchemaError } from "./budget.ts";

/** Characters of a schema at most: building its states takes time of everyone's. */
const MOST_CHARACTERS = 1 << 16;

/**
 * A part of a grammar: the JSON values that are valid by a schema; with `true` any value. Throws {@link SchemaError} that names the
 * place and what is not supported.
 */
export function json(schema: boolean | Record<string, unknown>): Rule {
  const { length } = JSON.stringify(schema);
  if (length > MOST_CHARACTERS) {
    throw new SchemaError(`the schema has ${length} characters; ${MOST_CHARACTERS} are possible`);
  }
  return schema === true ? value : new Compiler(schema).compile();
}

/** Grammars kept, so that requests with one schema share its states. */
const KEPT = 8;

const kept = new WeakMap<Vocabulary, Map<string, Grammar>>();

/**
 * The grammar that `rule` makes; of the last few, those with an equal `key` are made once and share their states.
 * `size`: columns of the logits; `ends`: tokens that end a text.
 */
export function grammarOf(
  key: string,
  rule: () => Rule,
  vocabulary: Vocabulary,
  options: { size: number; ends: readonly number[] },
): Grammar {
  const grammars = kept.get(vocabulary) ?? new Map<string, Grammar>();
  kept.set(vocabulary, grammars);
  const grammar = grammars.get(key) ?? new Grammar(rule(), vocabulary, options);
  grammars.delete(key);
  grammars.set(key, grammar);
  if (grammars.size > KEPT) grammars.delete(grammars.keys().next().value!);
  return grammar;
}

/**
 * The grammar of a JSON schema, or with `true` of any JSON object. Throws {@link SchemaError} that names the place and what is not
 * supported. `size`: columns of the logits; `ends`: tokens that end a text.
 */
export function jsonGrammar(
  schema: true | Record<string, unknown>,
  vocabulary: Vocabulary,
  options: { size: number; ends: readonly number[] },
): Grammar {
  const key = JSON.stringify(schema);
  return grammarOf(key, () => schema === true ? members(value) : json(schema), vocabulary, options);
}
