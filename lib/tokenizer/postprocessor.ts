/**
 * The part of `tokenizer.json` that puts tokens around a text, checked before it is used.
 *
 * @module
 */

import { TokenizerError } from "./vocabulary.ts";

type Json = Record<string, unknown>;

const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Throws {@link TokenizerError} that names file and key where the post-processor is malformed or has unknown tokens. */
export function checkPostprocessor(path: string, value: unknown, known: (token: string) => boolean): void {
  if (value === null || value === undefined) return;
  check(value, "post_processor");

  function wrong(key: string, expected: string, found: unknown): never {
    const shown = found === undefined ? "nothing" : JSON.stringify(found).slice(0, 80);
    throw new TokenizerError(`${path}: ${key}: expected ${expected}, found ${shown}`);
  }

  function check(step: unknown, key: string): void {
    if (!isObject(step)) return wrong(key, "an object", step);
    switch (step.type) {
      case "ByteLevel":
        return;
      case "Sequence":
        if (!Array.isArray(step.processors)) return wrong(`${key}.processors`, "a list", step.processors);
        return step.processors.forEach((inner, i) => check(inner, `${key}.processors[${i}]`));
      case "TemplateProcessing":
        template(step.single, step.special_tokens, `${key}.single`, key);
        if (step.pair !== undefined) template(step.pair, step.special_tokens, `${key}.pair`, key);
        return;
      case "BertProcessing":
      case "RobertaProcessing":
        for (const name of ["cls", "sep"]) {
          const token = step[name];
          if (!Array.isArray(token) || typeof token[0] !== "string" || !known(token[0])) {
            wrong(`${key}.${name}`, "a token of the vocabulary and its id", token);
          }
        }
        return;
      default:
        wrong(
          `${key}.type`,
          "one of TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing, Sequence",
          step.type,
        );
    }
  }

  function template(items: unknown, specials: unknown, key: string, parent: string): void {
    if (!Array.isArray(items)) return wrong(key, "a list", items);
    for (const [i, item] of items.entries()) {
      const place = `${key}[${i}]`;
      const entry = isObject(item) ? item.SpecialToken ?? item.Sequence : undefined;
      if (!isObject(entry) || typeof entry.id !== "string") {
        return wrong(place, "a SpecialToken or a Sequence with an id", item);
      }
      if (!("SpecialToken" in (item as Json))) {
        if (entry.id !== "A" && entry.id !== "B") wrong(`${place}.Sequence.id`, '"A" or "B"', entry.id);
        continue;
      }
      if (!isObject(specials)) return wrong(`${parent}.special_tokens`, "an object", specials);
      const special = specials[entry.id];
      if (!isObject(special) || !Array.isArray(special.ids) || !special.ids.every(Number.isInteger)) {
        return wrong(`${parent}.special_tokens[${JSON.stringify(entry.id)}]`, "an object with a list of ids", special);
      }
      if (!known(entry.id)) wrong(`${place}.SpecialToken.id`, "a token of the vocabulary", entry.id);
    }
  }
}
