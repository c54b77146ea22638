/**
 * How a byte-level model cuts a text into words, by the name in `tokenizer.ggml.pre`. Names with equal expressions stand
 * together. The expressions are those of the models' own tokenizer.json where llama.cpp notes them, else llama.cpp's.
 * Source: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
 *
 * @module
 */

/** How a name cuts texts. */
export interface Pretokenizer {
  /** Expressions: each cuts every piece that the one before left, and what it does not match is a piece too. */
  readonly splits: readonly string[];
  /** Whether a word that is a token is taken without merging. */
  readonly whole: boolean;
  /** Whether a text begins with the begin token where the file does not tell. */
  readonly begins: boolean;
  /** Whether a text ends with the separator where the file does not tell. */
  readonly separates: boolean;
  /** Whether a text is composed (Unicode's NFC) first, as the model's own tokenizer.json does. A GGUF file does not tell. */
  readonly composes: boolean;
}

const ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d", ANY_ENDING = `(?i:${ENDINGS})`;
const MARKS_AND_SPACE = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const WORD = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+";

const GPT2 = `${ENDINGS}| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+`;
const LLAMA3 = `${ANY_ENDING}|${WORD}|\\p{N}{1,3}|${MARKS_AND_SPACE}`;
const QWEN2 = `${ANY_ENDING}|${WORD}|\\p{N}|${MARKS_AND_SPACE}`;

/** Words whose capitals come first: "getName" is "get" and "Name". */
function casedWords(ending: string, but: string = ""): string {
  const upper = `[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}${but}]`, lower = `[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}${but}]`;
  const before = "[^\\r\\n\\p{L}\\p{N}]?";
  return `${before}${upper}*${lower}+${ending}|${before}${upper}+${lower}*${ending}`;
}
const SLASH_AND_SPACE = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const GPT4O = `${casedWords(`${ANY_ENDING}?`)}|\\p{N}{1,3}|${SLASH_AND_SPACE}`;

const PUNCTUATION = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+";
const MARKED_WORD = "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+";
const DEEPSEEK3 = `${PUNCTUATION}|${MARKED_WORD}| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
/** Han as in the BMP's first block, Hiragana, Katakana. */
const HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+";
const HAN_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+";

/** Letters with case, of an older Unicode. */
const CASED = "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af" +
  "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481" +
  "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b" +
  "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d" +
  "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec" +
  "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d" +
  "\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee" +
  "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06" +
  "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}" +
  "\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}";
/** Asian scripts without spaces, as afmoe takes them. */
const ASIAN = "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf" +
  "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+";
const BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+";
/** Runs of spaces by powers of two. */
const JAIS2_SPACE = [512, 256, 128, 64, 32, 16, 8, 4].map((n) => `\\s{${n}}(?!\\S)|`).join("") +
  "\\s{1,2}(?!\\S)|\\s{1}";

type Flag = "whole" | "begins" | "separates" | "composes";

/** Groups: names, expressions, and what else the names mean. */
const GROUPS: readonly (readonly [names: string, splits: readonly string[], ...flags: Flag[]])[] = [
  [
    "gpt-2 gpt2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4 mpt olmo jais " +
    "trillion granite-docling",
    [GPT2],
  ],
  ["jina-v1-en jina-v2-code roberta-bpe", [GPT2], "separates"],
  ["starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", ["\\p{N}", GPT2]],
  [
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    [LLAMA3],
    "whole",
    "begins",
  ],
  ["dbrx smaug-bpe glm4 chatglm-bpe", [LLAMA3]],
  ["qwen2", [QWEN2], "composes"],
  ["deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", [QWEN2]],
  [
    "qwen35",
    [
      `${ANY_ENDING}|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|` +
      "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    ],
  ],
  ["ufakzeka", [`${WORD}|\\p{N}|${MARKS_AND_SPACE}`]],
  ["laguna", ["[^\\n]+|[\\n]+", QWEN2]],
  ["minicpm5", ["\\p{N}{1,3}", `${ANY_ENDING}|${WORD}|\\p{N}+|${MARKS_AND_SPACE}`], "whole"],
  [
    "jais-2",
    [`${ANY_ENDING}|${WORD}|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|${JAIS2_SPACE}`],
  ],
  [
    "bailingmoe bailingmoe2 llada-moe",
    [
      `'(?i:[sdmt]|ll|ve|re)|${WORD}|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+`,
    ],
  ],
  [
    "seed-coder",
    [`${ANY_ENDING}|${WORD}|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`],
  ],
  [
    "exaone-moe",
    [
      `${ANY_ENDING}|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}| ` +
      "?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
    ],
  ],
  ["gpt-4o llama4 kanana2 talkie minimax-m2", [GPT4O]],
  ["granite-embed-multi-97m", [GPT4O], "whole"],
  ["tiny_aya cohere2moe", ["\\d{1,3}(?=(?:\\d{3})*\\b)", GPT4O]],
  ["tekken", [`${casedWords("")}|\\p{N}|${SLASH_AND_SPACE}`], "whole", "begins"],
  [
    "youtu",
    [
      "[\uac00-\ud7a3\u3131-\u318e]+|" +
      "[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|" +
      `[\u3105-\u312f]+|${HAN_KANA}`,
      `${casedWords(`${ANY_ENDING}?`)}|\\p{N}|${SLASH_AND_SPACE}`,
    ],
    "whole",
  ],
  [
    "kimi-k2",
    [`[\\p{Han}]+|${casedWords(`${ANY_ENDING}?`, "&&[^\\p{Han}]")}|\\p{N}{1,3}|${MARKS_AND_SPACE}`],
  ],
  ["deepseek-v3 hunyuan-dense joyai-llm hy_v4", ["\\p{N}{1,3}", HAN_KANA, DEEPSEEK3]],
  [
    "spark2_5",
    [
      "\\p{N}{1,3}",
      HAN_KANA,
      `${PUNCTUATION}|${MARKED_WORD}| ?[\\p{P}\\p{S}]+|[\\r\\n]|\\s+(?!\\S)|\\s+`,
      "\\p{N}",
    ],
  ],
  // Numbers in threes, counted from their end.
  ["afmoe", ["\\p{N}{1,3}(?=(?:\\p{N}{3})*(?!\\p{N}))", ASIAN, DEEPSEEK3]],
  ["superbpe", ["\\p{N}+", "(?=(\\d{3})+(?!\\d))"]],
  [
    "deepseek-llm",
    [
      "[\\r\\n]",
      `\\s?[${CASED}]+`,
      "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
      "\\s+$",
      HAN_HANGUL,
      "\\p{N}+",
    ],
  ],
  ["deepseek-coder", ["[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", HAN_HANGUL, "\\p{N}"]],
  ["falcon", ["[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"]],
  ["bloom poro-chat gpt3-finnish", [BLOOM]],
  ["viking", [BLOOM, "\\p{N}"]],
  [
    "chameleon",
    [
      "<sentinel:[0-9]+>",
      "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
      "([\\t\\n]|    |  )",
      "\\p{N}",
      "[\\p{P}!-/:-@\\[-`{-~]",
      GPT2,
    ],
    "begins",
  ],
  // What llama.cpp does where a file does not tell: punctuation apart, then GPT-2's words, then numbers by three.
  ["default", ["[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"]],
];

/** Pre-tokenizers by name. */
export const PRETOKENIZERS: ReadonlyMap<string, Pretokenizer> = new Map(
  GROUPS.flatMap(([names, splits, ...flags]) =>
    names.split(" ").map((name): [string, Pretokenizer] => [name, {
      splits,
      whole: flags.includes("whole"),
      begins: flags.includes("begins"),
      separates: flags.includes("separates"),
      composes: flags.includes("composes"),
    }])
  ),
);

/** Names of llama.cpp whose models are not byte-level, and why they are refused. */
export const REFUSED_PRETOKENIZERS: ReadonlyMap<string, string> = new Map([
  ["gemma4", "it joins characters, not bytes, and Gemma 4 is not supported"],
  ["granite-embed-multi-311m", "it joins characters, not bytes, and encoder models are not supported"],
  ["sarvam-moe", "it joins characters, not bytes"],
  ["whitespace", "it joins characters, not bytes, and drops white space; its models are encoders"],
]);
