/**
 * The tokenizer in a GGUF file's metadata, as the `tokenizer.json` and `tokenizer_config.json` that it was made from.
 *
 * @module
 */

import type { Gguf } from "./gguf.ts";
import { GgufFields } from "./gguf_fields.ts";
import { PRETOKENIZERS, REFUSED_PRETOKENIZERS } from "./gguf_pretokenizers.ts";
import { type JsonObject, WeightsError } from "./json.ts";

/** What a tokenizer is made from. */
export interface GgufTokenizer {
  /** The content of a `tokenizer.json`. */
  readonly description: JsonObject;
  /** The content of a `tokenizer_config.json`. */
  readonly config: JsonObject;
  /** Chat templates by name; "default" is the model's own. */
  readonly templates: ReadonlyMap<string, string>;
  /** Ids that end an answer. */
  readonly eosIds: readonly number[];
}

// Values of tokenizer.ggml.token_type.
const UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4;

const split = (regex: string): JsonObject => ({
  type: "Split",
  pattern: { Regex: regex },
  behavior: "Isolated",
  invert: false,
});
const byteLevel: JsonObject = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };

/** Kinds of tokenizers that are known and not supported. */
const REFUSED: Readonly<Record<string, string>> = {
  bert: "WordPiece, of encoder models",
  t5: "Unigram, of encoder-decoder models",
  rwkv: "RWKV's own",
  plamo2: "PLaMo-2's own",
  gemma4: "of Gemma 4, which is not supported",
  hybriddna: "of DNA sequences",
  whitespace: "of encoder models",
};

/** Reads the tokenizer. Throws WeightsError for a kind that the runtime does not have, by its name. */
export function ggufTokenizer(file: Gguf): GgufTokenizer {
  const fields = new GgufFields(file), kind = fields.text("tokenizer.ggml.model");
  const tokens = fields.texts("tokenizer.ggml.tokens");
  if (tokens === undefined || tokens.length === 0) throw fields.wrong("tokenizer.ggml.tokens", "a list of texts");
  const kinds = fields.numbers("tokenizer.ggml.token_type") ?? tokens.map(() => 1);
  if (kinds.length !== tokens.length) {
    throw fields.wrong("tokenizer.ggml.token_type", `a list of ${tokens.length} numbers`);
  }
  const ids = (name: string): number | undefined => {
    const id = fields.id(`tokenizer.ggml.${name}_token_id`);
    if (id !== undefined && id >= tokens.length) {
      throw fields.wrong(`tokenizer.ggml.${name}_token_id`, `a token id below ${tokens.length}`);
    }
    return id;
  };
  const bos = ids("bos"), eos = ids("eos"), ends = [eos, ids("eot"), ids("eom")].filter((id) => id !== undefined);
  let description: JsonObject, begins: boolean, separates = false;
  if (kind === "gpt2") ({ description, begins, separates } = byteLevelModel(file.path, fields, tokens, kinds));
  else if (kind === "llama") ({ description, begins } = sentencePieceModel(fields, tokens, kinds));
  else {
    const why = kind !== undefined && Object.hasOwn(REFUSED, kind) ? ` (${REFUSED[kind]})` : "";
    throw new WeightsError(
      `${file.path}: tokenizer.ggml.model: the tokenizer ${JSON.stringify(kind ?? "(none)")}${why} is not supported; ` +
        "supported: gpt2 (byte-level BPE), llama (SentencePiece)",
    );
  }
  begins = fields.flag("tokenizer.ggml.add_bos_token") ?? begins;
  const first = begins && bos !== undefined ? [bos] : [];
  const last = [
    ...(fields.flag("tokenizer.ggml.add_eos_token") && eos !== undefined ? [eos] : []),
    ...((fields.flag("tokenizer.ggml.add_sep_token") ?? separates) ? [ids("separator") ?? ids("seperator")] : []),
  ].filter((id) => id !== undefined);
  description.post_processor = first.length + last.length > 0 ? around(tokens, first, last) : null;
  const config: JsonObject = {};
  for (const [name, id] of [["bos_token", bos], ["eos_token", eos], ["unk_token", ids("unknown")]] as const) {
    if (id !== undefined) config[name] = tokens[id];
  }
  return { description, config, templates: chatTemplates(file, fields), eosIds: [...new Set(ends)] };
}

/** Puts tokens before and after every text. */
function around(tokens: readonly string[], first: readonly number[], last: readonly number[]): JsonObject {
  const special = (id: number): JsonObject => ({ SpecialToken: { id: tokens[id], type_id: 0 } });
  const text = (id: string, type: number): JsonObject => ({ Sequence: { id, type_id: type } });
  const before = first.map(special), after = last.map(special);
  return {
    type: "TemplateProcessing",
    single: [...before, text("A", 0), ...after],
    pair: [...before, text("A", 0), text("B", 1), ...after],
    special_tokens: Object.fromEntries(
      [...first, ...last].map((id) => [tokens[id], { id: tokens[id], ids: [id], tokens: [tokens[id]] }]),
    ),
  };
}

function addedTokens(tokens: readonly string[], kinds: readonly number[], special: readonly number[]): JsonObject[] {
  return tokens.flatMap((content, id) =>
    special.includes(kinds[id]) || kinds[id] === USER_DEFINED
      ? [{
        id,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: kinds[id] !== USER_DEFINED,
      }]
      : []
  );
}

/** Ids by token. A token that stands twice, as unused ones do, keeps its first id. */
function vocabulary(tokens: readonly string[]): Record<string, number> {
  const vocab: Record<string, number> = Object.create(null);
  tokens.forEach((token, id) => vocab[token] ??= id);
  return vocab;
}

function byteLevelModel(
  path: string,
  fields: GgufFields,
  tokens: readonly string[],
  kinds: readonly number[],
): { description: JsonObject; begins: boolean; separates: boolean } {
  const key = "tokenizer.ggml.pre", name = fields.text(key) ?? "default", pretokenizer = PRETOKENIZERS.get(name);
  if (!pretokenizer) {
    const why = REFUSED_PRETOKENIZERS.get(name);
    if (why !== undefined) {
      throw new WeightsError(`${path}: ${key}: the pre-tokenizer "${name}" is not supported: ${why}`);
    }
    throw fields.wrong(key, `one of ${[...PRETOKENIZERS.keys()].join(", ")}`);
  }
  const merges = fields.texts("tokenizer.ggml.merges");
  if (merges === undefined) throw fields.wrong("tokenizer.ggml.merges", "a list of texts");
  const pairs = merges.map((merge) => {
    const at = merge.indexOf(" ", 1);
    if (at < 0) throw fields.wrong("tokenizer.ggml.merges", "two tokens and a space in each");
    return [merge.slice(0, at), merge.slice(at + 1)];
  });
  return {
    begins: pretokenizer.begins,
    separates: pretokenizer.separates,
    description: {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: addedTokens(tokens, kinds, [CONTROL]),
      normalizer: pretokenizer.composes ? { type: "NFC" } : null,
      pre_tokenizer: { type: "Sequence", pretokenizers: [...pretokenizer.splits.map(split), byteLevel] },
      decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        type: "BPE",
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: pretokenizer.whole,
        vocab: vocabulary(tokens),
        merges: pairs,
      },
    },
  };
}

/**
 * A SentencePiece vocabulary has scores in place of merges: of all neighbours whose join is a token, the one with the best
 * score is joined first. So every way to cut a token in two tokens is a merge, ordered by the token's score.
 */
function sentencePieceModel(
  fields: GgufFields,
  tokens: readonly string[],
  kinds: readonly number[],
): { description: JsonObject; begins: boolean } {
  const scores = fields.numbers("tokenizer.ggml.scores");
  if (scores?.length !== tokens.length) {
    throw fields.wrong("tokenizer.ggml.scores", `a list of ${tokens.length} numbers`);
  }
  const vocab = vocabulary(tokens), merges: { pair: [string, string]; score: number; order: number }[] = [];
  tokens.forEach((token, id) => {
    if (kinds[id] !== 1 && kinds[id] !== USER_DEFINED) return;
    for (let at = 1; at < token.length; at++) {
      const pair: [string, string] = [token.slice(0, at), token.slice(at)];
      if (pair[0] in vocab && pair[1] in vocab) {
        merges.push({ pair, score: scores[id], order: vocab[pair[0]] + vocab[pair[1]] });
      }
    }
  });
  merges.sort((a, b) => b.score - a.score || a.order - b.order);
  const unknown = kinds.indexOf(UNKNOWN), prefix = fields.flag("tokenizer.ggml.add_space_prefix") ?? true;
  const spaces = { type: "Replace", pattern: { String: " " }, content: "▁" };
  return {
    begins: true,
    description: {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: addedTokens(tokens, kinds, [UNKNOWN, CONTROL]),
      normalizer: { type: "Sequence", normalizers: [...(prefix ? [{ type: "Prepend", prepend: "▁" }] : []), spaces] },
      pre_tokenizer: null,
      decoder: {
        type: "Sequence",
        decoders: [
          { type: "Replace", pattern: { String: "▁" }, content: " " },
          { type: "ByteFallback" },
          { type: "Fuse" },
          ...(prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
        ],
      },
      model: {
        type: "BPE",
        dropout: null,
        unk_token: unknown < 0 ? null : tokens[unknown],
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: true,
        byte_fallback: true,
        ignore_merges: false,
        vocab,
        merges: merges.map(({ pair }) => pair),
      },
    },
  };
}

function chatTemplates(file: Gguf, fields: GgufFields): Map<string, string> {
  const templates = new Map<string, string>(), key = "tokenizer.chat_template";
  const main = fields.text(key);
  if (main !== undefined) templates.set("default", main);
  for (const name of file.metadata.keys()) {
    const text = name.startsWith(`${key}.`) ? fields.text(name) : undefined;
    if (text !== undefined) templates.set(name.slice(key.length + 1), text);
  }
  return templates;
}
