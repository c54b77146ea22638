import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { LanguageModel, openModel, openTokenizer, readModelConfig, Tokenizer, WeightsError } from "../../mod.ts";
import { evaluate, loadCalibration, readText } from "../../lib/calibration/mod.ts";
import { Device, KvCache, kvConfig, Tensor, weightBytesOf, writeSafetensors } from "../../lib/ops/mod.ts";
import { planOf } from "../../lib/models/model.ts";
import { loadWeights } from "../../lib/models/weights/decoder_weights.ts";
import { type GgufEntry, writeGguf } from "../../scripts/frame/gguf.ts";
import { llamaMetadata, llamaTensors, type RandomTensor } from "../support/gguf.ts";
import { Random } from "../support/random.ts";
import { withFolder } from "../weights/fixture.ts";

const shared = fileURLToPath(new URL("../../../shared/smollm2-135m", import.meta.url));
const smol = join(shared, "SmolLM2-135M-Instruct.Q4_1.gguf");
const noSmol = existsSync(smol) ? false : "the SmolLM2 model is not beside the repository";

const sizes = { hidden: 256, inner: 512, layers: 2, heads: 4, kvHeads: 2, vocabulary: 258 };

/** The same model as a folder with f32 weights in the order of Hugging Face. */
function writeFolder(folder: string, tensors: readonly RandomTensor[], tied: boolean): void {
  const { hidden, inner, layers, heads, kvHeads, vocabulary } = sizes;
  mkdirSync(folder, { recursive: true });
  writeFileSync(
    join(folder, "config.json"),
    JSON.stringify({
      architectures: ["LlamaForCausalLM"],
      hidden_size: hidden,
      intermediate_size: inner,
      num_hidden_layers: layers,
      num_attention_heads: heads,
      num_key_value_heads: kvHeads,
      head_dim: 64,
      vocab_size: vocabulary,
      max_position_embeddings: 512,
      rms_norm_eps: 1e-5,
      rope_theta: 50000,
      tie_word_embeddings: tied,
    }),
  );
  const names: Record<string, string> = {
    attn_norm: "input_layernorm",
    attn_q: "self_attn.q_proj",
    attn_k: "self_attn.k_proj",
    attn_v: "self_attn.v_proj",
    attn_output: "self_attn.o_proj",
    ffn_norm: "post_attention_layernorm",
    ffn_gate: "mlp.gate_proj",
    ffn_up: "mlp.up_proj",
    ffn_down: "mlp.down_proj",
    token_embd: "embed_tokens",
    output_norm: "norm",
  };
  const out = tensors.map(({ name, shape, weights }) => {
    const [, layer, part] = /^(?:blk\.(\d+)\.)?(.*)\.weight$/.exec(name)!;
    const values = Float32Array.from(weights);
    if (part === "attn_q" || part === "attn_k") {
      // [heads, 32, 2, in] in the file, [heads, 2, 32, in] here.
      for (let r = 0; r < shape[0]; r++) {
        const head = Math.floor(r / 64), i = Math.floor(r % 64 / 2), half = r % 2, to = head * 64 + half * 32 + i;
        for (let c = 0; c < hidden; c++) values[to * hidden + c] = weights[r * hidden + c];
      }
    }
    const where = layer === undefined ? "" : `layers.${layer}.`;
    const own = part === "output" ? "lm_head.weight" : `model.${where}${names[part]}.weight`;
    return [own, { dtype: "F32" as const, shape, data: new Uint8Array(values.buffer) }] as const;
  });
  writeSafetensors(join(folder, "model.safetensors"), Object.fromEntries(out));
}

const prompt = Array.from("A model reads the same whatever its file is, or nearly.", (c) => c.charCodeAt(0) % 256);

/** Logits after the prompt, and after one token more. */
async function logitsOf(path: string): Promise<Float32Array[]> {
  using device = Device.open({ device: "cpu" });
  using model = await openModel(device, path);
  const config = kvConfig("bf16");
  using cache = new KvCache(device, model.cacheShape, config, loadCalibration(path, model, config), { context: 128 });
  using sequence = cache.sequence();
  using logits = Tensor.empty(device, "f32", [1, model.config.vocabularySize]);
  model.prefill(logits, sequence, prompt);
  const first = logits.read<Float32Array>();
  model.prefill(logits, sequence, [7]);
  return [first, logits.read<Float32Array>()];
}

const norm = (x: ArrayLike<number>): number => Math.sqrt(Array.from(x).reduce((sum, v) => sum + v * v, 0));

for (
  const [name, types, bound] of [
    // Weights in bf16 either way: the same numbers.
    ["F32, F16, BF16, K types", {
      embedding: "F16",
      q: "F32",
      k: "BF16",
      v: "F16",
      output: "Q4_K",
      gate: "Q6_K",
      up: "Q4_K",
      down: "Q6_K",
      head: "BF16",
    }, 1e-6],
    // Packed: weights exact where bf16 rounds them (2^-9), inputs of 8 bits.
    ["Q8_0, tied head", {
      embedding: "Q8_0",
      q: "Q8_0",
      k: "Q8_0",
      v: "Q8_0",
      output: "Q8_0",
      gate: "Q8_0",
      up: "Q8_0",
      down: "Q8_0",
    }, 2e-2],
    ["Q4_0, Q4_1 and a head of Q6_K", {
      embedding: "Q4_0",
      q: "Q4_1",
      k: "Q4_1",
      v: "Q4_1",
      output: "Q4_0",
      gate: "Q4_0",
      up: "Q4_0",
      down: "Q4_1",
      head: "Q6_K",
    }, 2e-2],
    // Joined parts of different types become bf16.
    ["mixed types in one product", {
      embedding: "F32",
      q: "Q4_0",
      k: "Q4_1",
      v: "Q8_0",
      output: "F32",
      gate: "Q8_0",
      up: "Q4_0",
      down: "F32",
      head: "F32",
    }, 1e-6],
  ] as const
) {
  test(`gguf: a model computes what its weights say: ${name}`, () =>
    withFolder(async (folder) => {
      const random = new Random(821), tensors = llamaTensors(random, sizes, types), path = join(folder, "model.gguf");
      writeGguf(path, llamaMetadata(sizes), tensors);
      writeFolder(join(folder, "hf"), tensors, !("head" in types));
      const found = await logitsOf(path), wanted = await logitsOf(join(folder, "hf"));
      for (const i of [0, 1]) {
        const error = norm(found[i].map((x, j) => x - wanted[i][j])) / norm(wanted[i]);
        assert(error <= bound, `logits ${i} differ by ${error}`);
      }
      // What a plan counts from the heads of the files is what loading allocates.
      using device = Device.open({ device: "cpu" });
      for (const model of [path, join(folder, "hf")]) {
        using loaded = await openModel(device, model);
        assertEquals(weightBytesOf(model), loaded.weightBytes);
      }
    }));
}

test("gguf: packed products stay packed on the device", () =>
  withFolder(async (folder) => {
    const path = join(folder, "model.gguf"), q = "Q4_0";
    const types = { embedding: "Q8_0", q, k: q, v: q, output: "Q4_1", gate: "Q8_0", up: "Q8_0", down: "Q4_K" };
    writeGguf(path, llamaMetadata(sizes), llamaTensors(new Random(822), sizes, types));
    using device = Device.open({ device: "cpu" });
    using weights = await loadWeights(device, path, planOf(readModelConfig(path)));
    const { embedding, head, layers: [{ qkv, output, gateUp, down, attentionNorm }] } = weights;
    const products = [qkv, output, gateUp, down].map(({ weight }) => weight);
    const dtypes = [embedding, head, ...products, attentionNorm!].map(({ dtype }) => dtype);
    assertEquals(dtypes, ["bf16", "q8_0", "q4_0", "q4_1", "q8_0", "bf16", "f32"]);
    assertEquals(qkv.weight.byteLength, (256 + 2 * 128) * 256 / 32 * 18);
  }));

test("gguf: a tensor of another shape or name is refused by name", () =>
  withFolder(async (folder) => {
    const path = join(folder, "model.gguf"), f16 = "F16";
    const types = { embedding: f16, q: f16, k: f16, v: f16, output: f16, gate: f16, up: f16, down: f16 };
    const tensors = llamaTensors(new Random(823), sizes, types);
    using device = Device.open({ device: "cpu" });
    const refused = async (changed: readonly RandomTensor[], cause: string): Promise<void> => {
      writeGguf(path, llamaMetadata(sizes), changed);
      const error = await openModel(device, path).then(() => undefined, (error: unknown) => error);
      assert(error instanceof WeightsError, String(error));
      assertStringIncludes(error.message, path);
      assertStringIncludes(error.message, cause);
    };
    const without = (name: string): RandomTensor[] => tensors.filter((tensor) => tensor.name !== name);
    const up = tensors.find(({ name }) => name === "blk.1.ffn_up.weight")!;
    await refused(without("blk.1.ffn_up.weight"), "no tensor blk.1.ffn_up.weight");
    await refused(without("token_embd.weight"), "no tensor token_embd.weight");
    await refused(
      [...without(up.name), { ...up, shape: [256, 512] }],
      "blk.1.ffn_up.weight has shape [256,512], the configuration needs [512,256]",
    );
  }));

test("gguf: a tokenizer of bytes is that of the same tokenizer.json", () =>
  withFolder((folder) => {
    const path = join(folder, "model.gguf");
    const write = (...changes: GgufEntry[]): void => {
      const keys = changes.map(([key]) => key);
      writeGguf(path, [...llamaMetadata(sizes).filter(([key]) => !keys.includes(key)), ...changes], []);
    };
    const plain = { addSpecialTokens: false };
    write();
    const tokenizer = openTokenizer(path);
    assertEquals([tokenizer.bosId, tokenizer.eosIds, tokenizer.vocabularySize], [256, [257], 258]);
    assertEquals(tokenizer.encode("hi</s>"), [104, 105, 257]);
    assertEquals(tokenizer.encode("hi</s>", { parseSpecialTokens: false }).length, 6);
    assertEquals(tokenizer.decode(tokenizer.encode("naïve 東京 \n")), "naïve 東京 \n");
    assertEquals(tokenizer.applyChatTemplate([{ role: "user", content: "Hi" }]), "[user] Hi\n");
    write(["tokenizer.ggml.add_bos_token", "bool", true], ["tokenizer.ggml.eot_token_id", "u32", 3]);
    assertEquals(openTokenizer(path).encode("hi"), [256, 104, 105]);
    assertEquals(openTokenizer(path).eosIds, [257, 3]);

    // Words of the four ways to cut a text: merges of two digits, of a space and a digit, and of two marks must cross no cut.
    const tokens = [...llamaMetadata(sizes).find(([key]) => key === "tokenizer.ggml.tokens")![2] as string[]];
    const merged = ["12", "123", "1234", "Ġ1", "Ġ!", "!!", "a\u010a"]; // "\u010a" is the line's end
    const vocabulary: GgufEntry[] = [
      ["tokenizer.ggml.tokens", "string", [...tokens, ...merged]],
      ["tokenizer.ggml.token_type", "i32", [...Array(256).fill(1), 3, 3, ...merged.map(() => 1)]],
      ["tokenizer.ggml.merges", "string", ["1 2", "12 3", "123 4", "Ġ 1", "Ġ !", "! !", "a \u010a"]],
    ];
    const cut = (pre: string, text: string): string[] => {
      write(...vocabulary, ["tokenizer.ggml.pre", "string", pre]);
      const words = openTokenizer(path);
      return words.encode(text, plain).map((id) => words.vocabulary.token(id)!);
    };
    assertEquals(cut("gpt-2", "1234 1 !!"), ["1234", "Ġ1", "Ġ!", "!"]);
    assertEquals(cut("smollm", "1234 1 !!"), ["1", "2", "3", "4", "Ġ", "1", "Ġ!", "!"]);
    assertEquals(cut("default", "1234 1 !!"), ["123", "4", "Ġ", "1", "Ġ", "!!"]);
    for (const pre of ["llama-bpe", "llama3", "llama-v3"]) {
      assertEquals(cut(pre, "1234 1 !!").filter((token) => token !== "<s>"), ["123", "4", "Ġ", "1", "Ġ!", "!"]);
    }
    write(...vocabulary, ["tokenizer.ggml.pre", "string", "llama-bpe"]);
    assertEquals(openTokenizer(path).encode("a")[0], 256, "llama-bpe begins with its begin token");
    const refusals: [GgufEntry, string][] = [
      [["tokenizer.ggml.pre", "string", "sorted"], 'found "sorted"'],
      [
        ["tokenizer.ggml.model", "string", "bert"],
        'the tokenizer "bert" (WordPiece, of encoder models) is not supported',
      ],
      [["tokenizer.ggml.tokens", "string", []], "tokenizer.ggml.tokens: expected a list of texts"],
      [["tokenizer.ggml.tokens", "u32", [1]], "tokenizer.ggml.tokens: expected a list of texts"],
      [["tokenizer.ggml.token_type", "i32", [1]], "a list of 258 numbers"],
      [["tokenizer.ggml.merges", "string", ["ab"]], "two tokens and a space"],
      [["tokenizer.ggml.bos_token_id", "u32", 258], "a token id below 258"],
      [["tokenizer.chat_template", "u32", 1], "tokenizer.chat_template: expected a text"],
    ];
    for (const [entry, cause] of refusals) {
      write(entry);
      const error = assertThrows(() => openTokenizer(path), WeightsError);
      assertStringIncludes(error.message, path);
      assertStringIncludes(error.message, cause);
    }
  }));

test("gguf: a SentencePiece vocabulary joins by score", () =>
  withFolder((folder) => {
    const path = join(folder, "model.gguf");
    const tokens = ["<unk>", "<s>", "</s>"], scores = [0, 0, 0], kinds = [2, 3, 3];
    for (let byte = 0; byte < 256; byte++) {
      tokens.push(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`), scores.push(0), kinds.push(6);
    }
    const pieces: [string, number][] = [["▁the", -1], ["he", -2], ["▁t", -3], ["▁th", -4], ["th", -5], ["the", -6]];
    for (const character of "▁abcdefghijklmnopqrstuvwxyz") pieces.push([character, -100]);
    for (const [piece, score] of pieces) tokens.push(piece), scores.push(score), kinds.push(1);
    const write = (...changes: GgufEntry[]): void => {
      const entries: GgufEntry[] = [
        ["tokenizer.ggml.model", "string", "llama"],
        ["tokenizer.ggml.tokens", "string", tokens],
        ["tokenizer.ggml.scores", "f32", scores],
        ["tokenizer.ggml.token_type", "i32", kinds],
        ["tokenizer.ggml.bos_token_id", "u32", 1],
        ["tokenizer.ggml.eos_token_id", "u32", 2],
        ["tokenizer.ggml.unknown_token_id", "u32", 0],
      ];
      const keys = changes.map(([key]) => key);
      writeGguf(path, [...entries.filter(([key]) => !keys.includes(key)), ...changes], []);
    };
    const words = (text: string): string[] => {
      const tokenizer = openTokenizer(path);
      const ids = tokenizer.encode(text);
      assertEquals(tokenizer.decode(ids), text);
      return ids.map((id) => tokenizer.vocabulary.token(id)!);
    };
    write();
    // "he" scores better than "▁t", after which "▁t he" is "▁the".
    assertEquals(words("the they"), ["<s>", "▁the", "▁the", "y"]);
    assertEquals(words("é"), ["<s>", "▁", "<0xC3>", "<0xA9>"]);
    write(["tokenizer.ggml.add_space_prefix", "bool", false], ["tokenizer.ggml.add_bos_token", "bool", false]);
    assertEquals(words("the x"), ["the", "▁", "x"]);
    write(["tokenizer.ggml.scores", "f32", [1, 2]]);
    assertThrows(() => openTokenizer(path), WeightsError, "tokenizer.ggml.scores");
  }));

test("gguf: the real model's tokenizer is its tokenizer.json, and llama.cpp's", { skip: noSmol }, () => {
  const found = openTokenizer(smol), wanted = Tokenizer.open(shared);
  const { strings } = JSON.parse(readFileSync(join(shared, "token_ids.json"), "utf8"));
  assert(strings.length >= 30);
  for (const { text, ids } of strings) {
    assertEquals(found.encode(text, { addSpecialTokens: false, parseSpecialTokens: false }), ids, JSON.stringify(text));
    assertEquals(found.encode(text), wanted.encode(text), JSON.stringify(text));
    assertEquals(found.decode(ids), text);
  }
  assertEquals(found.vocabularySize, wanted.vocabularySize);
  for (let id = 0; id < found.vocabularySize; id++) {
    assertEquals([found.vocabulary.token(id), found.vocabulary.isSpecial(id)], [
      wanted.vocabulary.token(id),
      wanted.vocabulary.isSpecial(id),
    ]);
  }
  // Ends of text and of parts of it beside the end of a turn, by name.
  assertEquals([found.bosId, found.eosIds], [1, [2, 0, 4]]);
  const messages = [{ role: "user", content: "Hi" }];
  assertEquals(found.applyChatTemplate(messages), wanted.applyChatTemplate(messages));
});

// llama.cpp has 14.029 with the same packed weights and an F16 cache; see the model's README for the protocol.
test("gguf: perplexity of the real model is within 0.5 % of llama.cpp's", { skip: noSmol }, async () => {
  const tokenizer = openTokenizer(smol), ids: number[] = [];
  const file = fileURLToPath(new URL("../../assets/tiny-llama/eval.txt", import.meta.url));
  for (const document of readText(file).split("\u001e")) {
    if (ids.length > 4096) break;
    ids.push(...tokenizer.encode(document, { addSpecialTokens: false, parseSpecialTokens: false }));
  }
  const windows = [0, 1, 2, 3].map((i) => Int32Array.from(ids.slice(i * 1024, (i + 1) * 1024)));
  using model = await LanguageModel.load(smol, { kv: "bf16", device: "cpu", context: 1024 });
  const [{ perplexity }] = await evaluate(model.model, model.cache, [], windows);
  assert(Math.abs(perplexity / 14.029 - 1) <= 5e-3, `perplexity ${perplexity}`);
});
