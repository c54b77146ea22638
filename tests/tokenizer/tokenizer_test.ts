import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Tokenizer, TokenizerError } from "../../lib/tokenizer/tokenizer.ts";
import { Random } from "../support/random.ts";
import { withFolder } from "../weights/fixture.ts";
import { MULTI_BYTE, smolLm, tinyLlama, writeByteLevel, writeSentencePiece } from "./fixture.ts";

// deno-lint-ignore no-explicit-any
const json = (...path: string[]): any => JSON.parse(readFileSync(join(...path), "utf8"));
const noSmolLm = existsSync(join(smolLm, "token_ids.json"))
  ? false
  : "the SmolLM2 tokenizer is not beside the repository";

test("tokenizer: the golden ids and texts of the embedded model", () => {
  const tokenizer = Tokenizer.open(tinyLlama);
  const golden = json(tinyLlama, "golden.json");
  assert(golden.tokenizer.length >= 10);
  for (const { text, ids } of golden.tokenizer) {
    assertEquals(tokenizer.encode(text), ids, JSON.stringify(text));
    if (!text.includes("<|")) assertEquals(tokenizer.decode(ids), text);
  }
  for (const { prompt, ids, text } of golden.greedy) {
    assertEquals(tokenizer.decode(ids), text);
    assertEquals(ids.slice(0, tokenizer.encode(prompt).length), tokenizer.encode(prompt));
  }
  assertEquals([tokenizer.bosId, tokenizer.eosIds, tokenizer.vocabularySize], [0, [1], 6144]);
});

test("tokenizer: llama.cpp's ids of tricky strings, SmolLM2", { skip: noSmolLm }, () => {
  const tokenizer = Tokenizer.open(smolLm);
  const { strings } = json(smolLm, "token_ids.json");
  assert(strings.length >= 30);
  for (const { text, ids } of strings) {
    const encoded = tokenizer.encode(text, { addSpecialTokens: false, parseSpecialTokens: false });
    assertEquals(encoded, ids, JSON.stringify(text));
    assertEquals(tokenizer.decode(ids), text);
  }
});

test("tokenizer: SmolLM2's chat template", { skip: noSmolLm }, () => {
  const tokenizer = Tokenizer.open(smolLm);
  const text = tokenizer.applyChatTemplate([{ role: "system", content: "Be brief." }, { role: "user", content: "Hi" }]);
  assertEquals(
    text,
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
  );
  const ids = tokenizer.encode(text, { addSpecialTokens: false });
  assertEquals([ids[0], ids.filter((id) => id === 2).length], [1, 2]);
});

// Ids from the tokenizers library 0.23.2, where @huggingface/tokenizers 0.2.0 alone gives others.
test("tokenizer: words are cut as in the tokenizers library", () => {
  const tokenizer = Tokenizer.open(tinyLlama);
  for (
    const [text, ids] of [
      ["  \ufeff\x1c", [222, 222, 173, 121, 125, 218]],
      ["x'sƒ", [89, 743, 132, 242]],
      ["a\u0085 b\ufeff c", [66, 128, 229, 283, 173, 121, 125, 271]],
    ] as const
  ) {
    assertEquals(tokenizer.encode(text, { addSpecialTokens: false }), [...ids], JSON.stringify(text));
  }
});

test("tokenizer: a Digits step takes every number apart", () =>
  withFolder((folder) => {
    // Two merges across numbers, which must not be applied: "½½" and " 1".
    const digits = (individual: boolean) => ({
      type: "Sequence",
      pretokenizers: [
        { type: "Digits", individual_digits: individual },
        { type: "ByteLevel", add_prefix_space: false, use_regex: true },
      ],
    });
    const model = json(tinyLlama, "tokenizer.json").model;
    writeByteLevel(folder, { model, pre_tokenizer: digits(true), added_tokens: [], post_processor: null });
    const one = Tokenizer.open(folder);
    const space = one.encode(" ");
    assertEquals(one.encode(" ²"), [...space, ...one.encode("²")]);
    assertEquals(one.encode("12"), [...one.encode("1"), ...one.encode("2")]);
    writeByteLevel(folder, { model, pre_tokenizer: digits(false), added_tokens: [], post_processor: null });
    const runs = Tokenizer.open(folder);
    assertEquals(runs.encode(" 12"), [...runs.encode(" "), ...runs.encode("12")]);
    assertEquals(runs.encode("12").length, 1);
  }));

test("tokenizer: control tokens in a text are parsed or taken as plain text", () => {
  const tokenizer = Tokenizer.open(tinyLlama);
  const text = "a<|end_of_text|>b";
  assertEquals(tokenizer.encode(text).includes(1), true);
  const plain = tokenizer.encode(text, { parseSpecialTokens: false });
  assertEquals([plain[0], plain.slice(1).includes(0), plain.includes(1)], [0, false, false]);
  assertEquals(tokenizer.decode(plain), text);
  assertEquals(tokenizer.encode(text, { addSpecialTokens: false })[0], tokenizer.encode("a")[1]);
  assertEquals(tokenizer.decode([0, ...tokenizer.encode("a"), 1]), "a");
  assertEquals(tokenizer.decode([0, 1], { skipSpecialTokens: false }), "<|begin_of_text|><|end_of_text|>");
});

test("tokenizer: random ids decode as in the package", () => {
  const tokenizer = Tokenizer.open(tinyLlama);
  const reference = new HuggingFaceTokenizer(json(tinyLlama, "tokenizer.json"), {});
  const random = new Random(411);
  for (let round = 0; round < 300; round++) {
    const ids = Array.from({ length: random.integer(1, 40) }, () => random.integer(0, 6143));
    for (const skip of [true, false]) {
      assertEquals(
        tokenizer.decode(ids, { skipSpecialTokens: skip }),
        reference.decode(ids, { skip_special_tokens: skip, clean_up_tokenization_spaces: false }),
      );
    }
  }
});

test("tokenizer: every text comes back, whatever its bytes", () =>
  withFolder((folder) => {
    const random = new Random(412);
    writeByteLevel(folder);
    for (const tokenizer of [Tokenizer.open(tinyLlama), Tokenizer.open(folder)]) {
      assertEquals(tokenizer.decode(tokenizer.encode(MULTI_BYTE)), MULTI_BYTE);
      for (let round = 0; round < 200; round++) {
        const points = Array.from({ length: random.integer(0, 30) }, () => random.integer(0, 0x10ffff));
        const text = String.fromCodePoint(...points.filter((point) => point < 0xd800 || point > 0xdfff));
        assertEquals(tokenizer.decode(tokenizer.encode(text)), text);
      }
    }
  }));

test("tokenizer: the bytes of a token", () =>
  withFolder((folder) => {
    writeByteLevel(folder);
    const bytes = Tokenizer.open(folder);
    for (let byte = 0; byte < 256; byte++) assertEquals([...bytes.tokenBytes(byte)], [byte]);
    assertEquals(bytes.tokenBytes(259), new TextEncoder().encode("东▁"));
    assertEquals([bytes.tokenBytes(260).byteLength, bytes.vocabularySize], [0, 260]);
    for (const id of [-1, 1.5, NaN]) assertThrows(() => bytes.tokenBytes(id), TokenizerError);

    writeSentencePiece(folder);
    const pieces = Tokenizer.open(folder);
    assertEquals([...pieces.tokenBytes(3 + 0x0a)], [0x0a]);
    assertEquals([...pieces.tokenBytes(3 + 0xff)], [0xff]);
    const the = pieces.tokenId("▁the")!;
    assertEquals(pieces.tokenBytes(the), new TextEncoder().encode(" the"));
    assertEquals(pieces.tokenId("no such token"), undefined);
  }));

test("tokenizer: a SentencePiece model with byte fallback", () =>
  withFolder((folder) => {
    writeSentencePiece(folder);
    const tokenizer = Tokenizer.open(folder);
    for (const text of ["the hen", " the", "  two", "東京 é", "a\nb", "\ufeffx", ""]) {
      assertEquals(tokenizer.decode(tokenizer.encode(text)), text);
    }
    const [bos, ...ids] = tokenizer.encode("the");
    assertEquals([bos, ids], [1, [tokenizer.tokenId("▁the")]]);
  }));

test("tokenizer: ends of text come from tokenizer_config.json and generation_config.json", () =>
  withFolder((folder) => {
    writeByteLevel(folder);
    // Known by its name.
    assertEquals([Tokenizer.open(folder).bosId, Tokenizer.open(folder).eosIds], [null, [257]]);
    const config = { bos_token: { content: "<s>" }, eos_token: "</s>" };
    writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify(config));
    writeFileSync(join(folder, "generation_config.json"), JSON.stringify({ eos_token_id: [258, 257] }));
    assertEquals([Tokenizer.open(folder).bosId, Tokenizer.open(folder).eosIds], [256, [257, 258]]);
    writeFileSync(join(folder, "generation_config.json"), JSON.stringify({ eos_token_id: "</s>" }));
    const error = assertThrows(() => Tokenizer.open(folder), TokenizerError);
    assertStringIncludes(error.message, "generation_config.json: eos_token_id");
  }));

test("tokenizer: chat templates: text, list, file, and their errors", () =>
  withFolder((folder) => {
    writeByteLevel(folder);
    const configure = (chat_template: unknown) =>
      writeFileSync(
        join(folder, "tokenizer_config.json"),
        JSON.stringify({ bos_token: { content: "<s>" }, eos_token: "</s>", chat_template }),
      );
    const messages = [{ role: "user", content: "hi {{ 1 }}" }];
    const render = (options = {}): string => Tokenizer.open(folder).applyChatTemplate(messages, options);

    configure(
      "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}" +
        "{% if add_generation_prompt %}[assistant]{% endif %}{{ mood }}",
    );
    assertEquals(render(), "<s>[user]hi {{ 1 }}</s>[assistant]");
    assertEquals(render({ addGenerationPrompt: false, variables: { mood: "!" } }), "<s>[user]hi {{ 1 }}</s>!");

    configure([{ name: "default", template: "plain" }, { name: "tool_use", template: "{{ tools[0].name }}" }]);
    assertEquals([render(), render({ tools: [{ name: "search" }] })], ["plain", "search"]);

    writeFileSync(join(folder, "chat_template.jinja"), "file");
    assertEquals(render(), "file");
    rmSync(join(folder, "chat_template.jinja"));

    const fails = (part: string) => assertStringIncludes(assertThrows(render, TokenizerError).message, part);
    configure("{{ raise_exception('roles must alternate') }}");
    fails("roles must alternate");
    configure("{% if %}");
    fails("chat template failed");
    configure(7);
    fails("chat_template is neither text nor a list");
    configure(undefined);
    assertEquals(Tokenizer.open(folder).hasChatTemplate, false);
    fails("has no chat template");
  }));

test("tokenizer: files that are missing, broken or of another kind are named with their cause", () =>
  withFolder((folder) => {
    const refused = (part: string): void => {
      const { message } = assertThrows(() => Tokenizer.open(folder), TokenizerError);
      assertStringIncludes(message, join(folder, "tokenizer.json"));
      assertStringIncludes(message, part);
    };
    const path = join(folder, "tokenizer.json");
    refused("no such file");
    writeFileSync(path, "");
    refused("not valid JSON");
    writeFileSync(path, readFileSync(join(tinyLlama, "tokenizer.json")).subarray(0, 200000));
    refused("not valid JSON");
    writeFileSync(path, Uint8Array.of(0x7b, 0xff, 0x7d));
    refused("not valid UTF-8");
    writeFileSync(path, "[]");
    refused("not a JSON object");
    const changed: [changes: Record<string, unknown>, part: string][] = [
      [{ model: undefined }, "model is missing"],
      [{ model: { type: "Unigram", vocab: [] } }, '"Unigram" is not supported'],
      [{ model: { type: "BPE", vocab: [], merges: [] } }, "model.vocab"],
      [{ model: { type: "BPE", vocab: { a: -1 }, merges: [] } }, "model.vocab"],
      [{ model: { type: "BPE", vocab: { a: 1e300 }, merges: [] } }, "model.vocab"],
      [{ model: { type: "BPE", vocab: {} } }, "model.merges"],
      [{ added_tokens: [{ id: "x" }] }, "added_tokens"],
      [{ decoder: null }, "decoder"],
      [{ decoder: { type: "WordPiece" } }, "WordPiece"],
      [{ pre_tokenizer: { type: "Nonsense" } }, "Nonsense"],
      [{ normalizer: undefined }, "normalizer"],
    ];
    for (const [changes, part] of changed) {
      writeByteLevel(folder, changes);
      refused(part);
    }
    writeByteLevel(folder);
    writeFileSync(join(folder, "tokenizer_config.json"), "{");
    assertStringIncludes(assertThrows(() => Tokenizer.open(folder), TokenizerError).message, "tokenizer_config.json");
    rmSync(path);
    mkdirSync(path);
    rmSync(join(folder, "tokenizer_config.json"));
    refused("");
  }));

// Ids from the tokenizers library 0.23.2.
test("tokenizer: a single-word token is not found inside a word", () => {
  const description = json(tinyLlama, "tokenizer.json");
  const single = (id: number, content: string) => ({
    id,
    content,
    single_word: true,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: false,
  });
  description.added_tokens.push(single(6144, "zqf"), single(6145, "<x>"), single(6146, "zq"));
  const tokenizer = Tokenizer.from({ path: "file", description, config: {}, eosIds: [], templates: new Map() });
  const cases: [text: string, ids: number[]][] = [
    ["zqf", [6144]],
    ["a zqf b", [66, 222, 6144, 283]],
    ["zqfbar", [91, 82, 71, 2752]],
    ["xzqf", [89, 91, 82, 71]],
    ["zqf.", [6144, 15]],
    ["(zqf)", [9, 6144, 10]],
    ["zqf_", [91, 82, 71, 64]],
    ["_zqf", [64, 91, 82, 71]],
    ["zqf1", [91, 82, 71, 18]],
    ["ézqf", [129, 104, 91, 82, 71]],
    ["zqf é", [6144, 222, 129, 104]],
    ["zqfzqf", [91, 82, 71, 91, 82, 71]],
    ["zqf zqf", [6144, 222, 6144]],
    ["<x>", [6145]],
    ["a<x>b", [66, 29, 89, 31, 67]],
    ["a <x> b", [66, 222, 6145, 283]],
    ["<x><x>", [6145, 6145]],
    ["zq's zq, bzq zqfzq", [6146, 743, 222, 6146, 13, 283, 91, 82, 1046, 82, 71, 91, 82]],
    ["zqf\u0301", [91, 82, 71, 138, 225]],
    ["zqf-zq", [6144, 14, 6146]],
    ["<|end_of_text|>zqf<|end_of_text|>", [1, 6144, 1]],
    ["zqf\u200d", [91, 82, 71, 442, 237]],
    ["zqf日", [91, 82, 71, 164, 247, 100]],
  ];
  for (const [text, ids] of cases) {
    assertEquals(tokenizer.encode(text, { addSpecialTokens: false }), ids, JSON.stringify(text));
    if (text.includes("<|")) continue;
    assertEquals(tokenizer.encode(text, { addSpecialTokens: false, parseSpecialTokens: false }), ids, text);
  }
});

test("tokenizer: a letter without case in an expression is every letter that folds to it", () =>
  withFolder((folder) => {
    const model = json(tinyLlama, "tokenizer.json").model;
    const cut = (Regex: string): Tokenizer => {
      const split = { type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false };
      const bytes = { type: "ByteLevel", add_prefix_space: false, use_regex: false };
      const pre_tokenizer = { type: "Sequence", pretokenizers: [split, bytes] };
      writeByteLevel(folder, { model, pre_tokenizer, added_tokens: [], post_processor: null });
      return Tokenizer.open(folder);
    };
    // "'\u017f" apart from what follows: the merges of "ing" alone are applied.
    const one = cut("(?i:'s|x)");
    assertEquals(one.encode("'\u017fing"), [...one.encode("'\u017f"), ...one.encode("ing")]);
    assertEquals(cut("(?i)'[st]").encode("'\u017fing"), one.encode("'\u017fing"));
  }));

test("tokenizer: a malformed post_processor is named when the tokenizer is opened", () =>
  withFolder((folder) => {
    const sequence = [{ Sequence: { id: "A", type_id: 0 } }], begin = { SpecialToken: { id: "<s>", type_id: 0 } };
    const special_tokens = { "<s>": { id: "<s>", ids: [256], tokens: ["<s>"] } };
    const malformed: [post_processor: unknown, part: string][] = [
      [7, "post_processor: expected an object"],
      [{ type: "Nonsense" }, "post_processor.type"],
      [{}, "post_processor.type"],
      [{ type: "TemplateProcessing" }, "post_processor.single"],
      [{ type: "TemplateProcessing", single: ["$A"], special_tokens }, "post_processor.single[0]"],
      [{ type: "TemplateProcessing", single: [begin, ...sequence] }, "post_processor.special_tokens"],
      [{ type: "TemplateProcessing", single: [begin, ...sequence], special_tokens: {} }, 'special_tokens["<s>"]'],
      [{ type: "TemplateProcessing", single: sequence, pair: [{}] }, "post_processor.pair[0]"],
      [
        {
          type: "TemplateProcessing",
          single: [{ SpecialToken: { id: "<none>" } }],
          special_tokens: { "<none>": { ids: [9] } },
        },
        "single[0].SpecialToken.id",
      ],
      [{ type: "Sequence" }, "post_processor.processors"],
      [{ type: "Sequence", processors: [{ type: "ByteLevel" }, null] }, "post_processor.processors[1]"],
      [{ type: "RobertaProcessing", sep: ["</s>", 257] }, "post_processor.cls"],
    ];
    for (const [post_processor, part] of malformed) {
      writeByteLevel(folder, { post_processor });
      const { message } = assertThrows(() => Tokenizer.open(folder), TokenizerError);
      assertStringIncludes(message, join(folder, "tokenizer.json"));
      assertStringIncludes(message, part);
    }
    const processors = [{ type: "ByteLevel" }, {
      type: "TemplateProcessing",
      single: [begin, ...sequence],
      special_tokens,
    }];
    writeByteLevel(folder, { post_processor: { type: "Sequence", processors } });
    assertEquals(Tokenizer.open(folder).encode("!"), [256, 33]);
  }));

test("tokenizer: other kinds of models are refused by name", () =>
  withFolder((folder) => {
    for (const type of ["WordPiece", "Unigram", "WordLevel"]) {
      writeByteLevel(folder, { model: { type, vocab: {}, merges: [] } });
      assertStringIncludes(assertThrows(() => Tokenizer.open(folder), TokenizerError).message, `"${type}"`);
    }
  }));
