import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const tinyLlama = fileURLToPath(new URL("../../assets/tiny-llama", import.meta.url));

/** A real model's tokenizer that may stand beside the repository. */
export const smolLm = fileURLToPath(new URL("../../../shared/smollm2-135m", import.meta.url));

/** Text with characters of 1 to 4 bytes, combining marks, joined emoji, flags, right-to-left, CJK and controls. */
export const MULTI_BYTE =
  "naïve café e\u0301 — 東京都, 한국어, العربية ½ Ⅷ 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 \u200d\ufe0f ﬁ ß İ \ufeff\u0085 𝒳 🚀\r\n\t\x00 end";

/** A byte-level tokenizer without merges: one token a byte, then the added tokens. */
export function writeByteLevel(folder: string, changes: Record<string, unknown> = {}): void {
  const alphabet = byteAlphabet();
  const vocab = Object.fromEntries(alphabet.map((character, byte) => [character, byte]));
  const added = (id: number, content: string, special: boolean) => ({
    id,
    content,
    special,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
  });
  writeFileSync(
    join(folder, "tokenizer.json"),
    JSON.stringify({
      added_tokens: [
        added(256, "<s>", true),
        added(257, "</s>", true),
        added(258, "<tool>", false),
        added(259, "东▁", true),
      ],
      normalizer: null,
      pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
      post_processor: {
        type: "TemplateProcessing",
        single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
        pair: [],
        special_tokens: { "<s>": { id: "<s>", ids: [256], tokens: ["<s>"] } },
      },
      decoder: { type: "ByteLevel" },
      model: { type: "BPE", vocab, merges: [] },
      ...changes,
    }),
  );
}

/** GPT-2's alphabet, from its rule: visible Latin-1 stands for itself, the rest follows from U+0100. */
export function byteAlphabet(): string[] {
  const visible = (byte: number): boolean => /[!-~¡-¬®-ÿ]/.test(String.fromCharCode(byte));
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(visible(byte) ? byte : next++));
}

/** A tokenizer like Llama 2's: "▁" for the space, one put before the text, bytes for unknown characters. */
export function writeSentencePiece(folder: string): void {
  const tokens = ["<unk>", "<s>", "</s>"];
  for (let byte = 0; byte < 256; byte++) tokens.push(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
  tokens.push("▁", ..."abcdefghijklmnopqrstuvwxyz", "▁t", "he", "▁the", "▁▁", "en", "é");
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
  writeFileSync(
    join(folder, "tokenizer.json"),
    JSON.stringify({
      added_tokens: ["<unk>", "<s>", "</s>"].map((content, id) => ({ id, content, special: true, normalized: false })),
      normalizer: {
        type: "Sequence",
        normalizers: [
          { type: "Prepend", prepend: "▁" },
          { type: "Replace", pattern: { String: " " }, content: "▁" },
        ],
      },
      pre_tokenizer: null,
      post_processor: {
        type: "TemplateProcessing",
        single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
        pair: [],
        special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
      },
      decoder: {
        type: "Sequence",
        decoders: [
          { type: "Replace", pattern: { String: "▁" }, content: " " },
          { type: "ByteFallback" },
          { type: "Fuse" },
          { type: "Strip", content: " ", start: 1, stop: 0 },
        ],
      },
      model: {
        type: "BPE",
        byte_fallback: true,
        unk_token: "<unk>",
        vocab,
        merges: ["▁ t", "h e", "▁t he", "▁ ▁", "e n"],
      },
    }),
  );
}
