import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openTokenizer } from "../../lib/engine/tokenizer.ts";
import { corrected } from "../../lib/tokenizer/pretokenizer.ts";
import { Tokenizer } from "../../lib/tokenizer/tokenizer.ts";
import { Gguf } from "../../lib/weights/gguf.ts";
import { PRETOKENIZERS } from "../../lib/weights/gguf_pretokenizers.ts";
import { ggufTokenizer } from "../../lib/weights/gguf_tokenizer.ts";
import { WeightsError } from "../../lib/weights/json.ts";
import { type GgufEntry, writeGguf } from "../../scripts/frame/gguf.ts";
import { withFolder } from "../weights/fixture.ts";
import { byteAlphabet, MULTI_BYTE, tinyLlama } from "./fixture.ts";

/** The words of Rust's tokenizers library; the file says how they were made. */
interface Golden {
  strings: string[];
  groups: { names: string; lengths: string[] }[];
}
const golden: Golden = JSON.parse(readFileSync(new URL("golden/pretokenizers.json", import.meta.url), "utf8"));

const { model, added_tokens } = JSON.parse(readFileSync(join(tinyLlama, "tokenizer.json"), "utf8"));

/** Metadata of a byte-level tokenizer: the embedded model's, or bytes alone and `control` tokens. */
function metadata(pre: string | undefined, control?: readonly string[]): GgufEntry[] {
  const tokens: string[] = [];
  if (control) tokens.push(...byteAlphabet(), ...control);
  else for (const [token, id] of Object.entries<number>(model.vocab)) tokens[id] = token;
  const first = tokens.length - (control?.length ?? 0);
  if (!control) { for (const { id, content } of added_tokens) tokens[id] = content; }
  const isControl = (token: string, id: number): boolean =>
    control ? id >= first : added_tokens.some((added: { content: string }) => added.content === token);
  const merges = control ? ["a b"] : model.merges.map((m: unknown) => Array.isArray(m) ? m.join(" ") : m);
  return [
    ["general.architecture", "string", "llama"],
    ["tokenizer.ggml.model", "string", "gpt2"],
    ...(pre === undefined ? [] : [["tokenizer.ggml.pre", "string", pre] satisfies GgufEntry]),
    ["tokenizer.ggml.tokens", "string", tokens],
    ["tokenizer.ggml.token_type", "i32", tokens.map((token, id) => isControl(token, id) ? 3 : 1)],
    ["tokenizer.ggml.merges", "string", merges],
    ["tokenizer.ggml.eos_token_id", "u32", control ? first : 1],
  ];
}

test("gguf tokenizer: every name cuts texts as the tokenizers library does with its expressions", () =>
  withFolder((folder) => {
    const covered = new Set(golden.groups.flatMap(({ names }) => names.split(" ")));
    assertEquals([...PRETOKENIZERS.keys()].filter((name) => !covered.has(name)), []);
    assert(covered.size >= 85, `${covered.size} names`);
    for (const { names, lengths } of golden.groups) {
      for (const name of names.split(" ")) {
        const path = join(folder, `${name}.gguf`);
        writeGguf(path, metadata(name, ["<end>"]), []);
        using file = Gguf.open(path);
        const { description } = ggufTokenizer(file);
        // All names of a group have one expression: its texts are cut once.
        if (name !== names.split(" ")[0]) {
          assertEquals(PRETOKENIZERS.get(name)!.splits, PRETOKENIZERS.get(names.split(" ")[0])!.splits);
          continue;
        }
        const { pre_tokenizer: cut } = new HuggingFaceTokenizer(corrected(description), {}) as unknown as {
          pre_tokenizer: (text: string) => string[];
        };
        golden.strings.forEach((text, i) => {
          const words = text === "" ? [] : cut(text).map((word) => word.length);
          assertEquals(words.join(" "), lengths[i], `${name}: ${JSON.stringify(text)}`);
        });
      }
    }
  }));

test("gguf tokenizer: ids are those of the same expressions in a tokenizer.json", () =>
  withFolder((folder) => {
    for (const name of ["llama-bpe", "gpt-4o", "deepseek-v3", "tekken", "kimi-k2", "falcon", "bloom", "qwen35"]) {
      const path = join(folder, `${name}.gguf`);
      writeGguf(path, metadata(name), []);
      const { splits, whole } = PRETOKENIZERS.get(name)!;
      const pretokenizers = splits.map((Regex) => ({
        type: "Split",
        pattern: { Regex },
        behavior: "Isolated",
        invert: false,
      }));
      const description = JSON.parse(readFileSync(join(tinyLlama, "tokenizer.json"), "utf8"));
      description.pre_tokenizer = {
        type: "Sequence",
        pretokenizers: [...pretokenizers, { type: "ByteLevel", add_prefix_space: false, use_regex: false }],
      };
      description.model.ignore_merges = whole;
      const [own, other] = [
        openTokenizer(path),
        Tokenizer.from({ path: "json", description, config: {}, eosIds: [], templates: new Map() }),
      ];
      for (const text of [MULTI_BYTE, "Hello there, it'S 12345 getName()\n\n  x"]) {
        const ids = own.encode(text, { addSpecialTokens: false });
        assertEquals(ids, other.encode(text, { addSpecialTokens: false }), `${name}: ${text}`);
        assertEquals(own.decode(ids), text);
      }
    }
  }));

test("gguf tokenizer: Qwen2's texts are composed first, as its own tokenizer.json does", () =>
  withFolder((folder) => {
    const path = join(folder, "qwen.gguf");
    writeGguf(path, metadata("qwen2", ["<|im_end|>"]), []);
    const tokenizer = openTokenizer(path);
    assertEquals(tokenizer.encode("e\u0301"), tokenizer.encode("é"));
  }));

test("gguf tokenizer: names that are not byte-level, and other kinds, are refused with the reason", () =>
  withFolder((folder) => {
    const path = join(folder, "x.gguf");
    const refused = (entries: GgufEntry[], ...parts: string[]) => {
      writeGguf(path, entries, []);
      const { message } = assertThrows(() => openTokenizer(path), WeightsError);
      for (const part of [path, ...parts]) assertStringIncludes(message, part);
    };
    refused(metadata("sarvam-moe", ["<end>"]), "tokenizer.ggml.pre", "sarvam-moe", "not bytes");
    refused(metadata("gemma4", ["<end>"]), "Gemma 4");
    refused(metadata("no-such", ["<end>"]), "tokenizer.ggml.pre", "no-such", "deepseek-llm");
    const kinds = { bert: "WordPiece", t5: "Unigram", rwkv: "RWKV", other: "other" };
    for (const [kind, reason] of Object.entries(kinds)) {
      const entries = metadata("gpt-2", ["<end>"]).filter(([key]) => key !== "tokenizer.ggml.model");
      refused([...entries, ["tokenizer.ggml.model", "string", kind]], "tokenizer.ggml.model", kind, reason);
    }
  }));

test("gguf tokenizer: ends of turns are known by name, whatever the file calls its end", () =>
  withFolder((folder) => {
    const ends = (...control: string[]): string[] => {
      const path = join(folder, "ends.gguf");
      writeGguf(path, metadata("qwen2", control), []);
      const { eosIds, vocabulary } = openTokenizer(path);
      return eosIds.map((id) => vocabulary.token(id)!);
    };
    assertEquals(ends("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ["<|endoftext|>", "<|im_end|>"]);
    for (const name of ["<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "</s>", "[EOT]"]) {
      assertEquals(ends("<first>", "<other>", name), ["<first>", name]);
    }
    assertEquals(ends("<first>", "<|return|>", "<|call|>", "<|end|>"), ["<first>", "<|return|>", "<|call|>"]);
    assertEquals(ends("<first>", "<|user|>"), ["<first>"]);
    assertEquals(ends("<|endoftext|>", "[gMASK]", "<|user|>", "<|observation|>"), [
      "<|endoftext|>",
      "<|user|>",
      "<|observation|>",
    ]);
  }));

test("gguf tokenizer: a stop string that is a control token is met as an id", () =>
  withFolder((folder) => {
    const path = join(folder, "stops.gguf");
    writeGguf(path, metadata("qwen2", ["<|endoftext|>", "<|im_start|>"]), []);
    const tokenizer = openTokenizer(path);
    assertEquals(tokenizer.stops(["\n\n", "<|im_start|>", "a", "<|none|>"]), {
      ids: [257],
      texts: ["\n\n", "a", "<|none|>"],
    });
  }));

test("gguf tokenizer: tokens before and after a text, and an id that says there is none", () =>
  withFolder((folder) => {
    const path = join(folder, "around.gguf");
    const ids = (pre: string, ...more: GgufEntry[]): number[] => {
      writeGguf(path, [...metadata(pre, ["<e>", "<b>", "<s>"]), ...more], []);
      return openTokenizer(path).encode("!");
    };
    const bos: GgufEntry = ["tokenizer.ggml.bos_token_id", "u32", 257];
    assertEquals(ids("gpt-2", bos), [33]);
    assertEquals(ids("tekken", bos), [257, 33]);
    assertEquals(ids("tekken", ["tokenizer.ggml.bos_token_id", "u32", 0xffffffff]), [33]);
    assertEquals(ids("gpt-2", bos, ["tokenizer.ggml.add_bos_token", "bool", true]), [257, 33]);
    assertEquals(ids("gpt-2", ["tokenizer.ggml.add_eos_token", "bool", true]), [33, 256]);
    assertEquals(ids("roberta-bpe", ["tokenizer.ggml.seperator_token_id", "u32", 258]), [33, 258]);
  }));
