/**
 * Corrections to how `@huggingface/tokenizers` cuts a text into words, where it differs from the tokenizers library that
 * models are trained with. Both are written as an equal `Split`, whose patterns the package does follow.
 *
 * @module
 */

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
    default:
      return step;
  }
}

function split(pattern: string): Json {
  return { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
}
