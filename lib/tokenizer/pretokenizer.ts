/**
 * Corrections to how `@huggingface/tokenizers` cuts a text into words, where it differs from the tokenizers library that
 * models are trained with. All are written as an equal `Split`, whose patterns the package does follow.
 *
 * @module
 */

import { TokenizerError } from "./vocabulary.ts";

/** GPT-2's pattern, which the ByteLevel pre-tokenizer has built in. */
const GPT2_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

type Json = Record<string, unknown>;

/** `tokenizer.json` with its pre-tokenizer rewritten. */
export function corrected(description: Record<string, unknown>): Record<string, unknown> {
  return { ...description, pre_tokenizer: rewritten(description.pre_tokenizer as Json | null | undefined) ?? null };
}

function rewritten(step: Json | null | undefined): Json | null | undefined {
  switch (step?.type) {
    case "Sequence":
      return {
        ...step,
        pretokenizers: Array.isArray(step.pretokenizers) ? step.pretokenizers.map(rewritten) : step.pretokenizers,
      };
    case "Digits":
      // The library means every number (Nd, Nl, No: also ² and ½); the package means 0 to 9.
      return split(step.individual_digits ? "\\p{N}" : "\\p{N}+");
    case "ByteLevel":
      // The library's \s is White_Space; JavaScript's has U+FEFF too and lacks U+0085.
      if (step.use_regex === false || step.add_prefix_space) return step;
      return { type: "Sequence", pretokenizers: [split(GPT2_PATTERN), { ...step, use_regex: false }] };
    case "Split": {
      const pattern = step.pattern as { Regex?: unknown; String?: unknown } | null | undefined;
      if (typeof pattern?.String === "string") return step;
      if (typeof pattern?.Regex !== "string") {
        throw new TokenizerError(`pre_tokenizer: a Split has no pattern: expected {"Regex"} or {"String"} with a text`);
      }
      return { ...step, pattern: { Regex: caseless(pattern.Regex) } };
    }
    default:
      return step;
  }
}

function split(pattern: string): Json {
  return { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
}

/** Letters that are equal to an ASCII letter where case does not count: the long s and the Kelvin sign. */
const FOLDED: Readonly<Record<string, string>> = { s: "\u017f", S: "\u017f", k: "\u212a", K: "\u212a" };

/**
 * A regular expression whose parts without case, `(?i:...)`, name every letter that Unicode folds: the package folds
 * ASCII only.
 */
function caseless(regex: string): string {
  if (regex.startsWith("(?i)")) regex = `(?i:${regex.slice(4)})`;
  if (!regex.includes("(?i:")) return regex;
  let result = "", depth = 0, inClass = 0;
  // The depths of the groups that are open and without case.
  const open: number[] = [];
  for (const [part] of regex.matchAll(/\\[pPxu]\{[^}]*\}|\\[^]|\(\?i:|[^]/gu)) {
    if (part === "(" && inClass === 0) depth++;
    if (part === "(?i:" && inClass === 0) open.push(++depth);
    if (part === ")" && inClass === 0 && open.at(-1) === depth--) open.pop();
    if (part === "[") inClass++;
    if (part === "]" && inClass > 0) inClass--;
    const folded = open.length > 0 ? FOLDED[part] : undefined;
    result += folded === undefined ? part : inClass > 0 ? part + folded : `[${part}${folded}]`;
  }
  return result;
}
