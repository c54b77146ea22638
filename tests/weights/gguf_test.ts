import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { type GgufEntry, ggufHead, rewriteGguf, toF16, toQ8, writeGguf } from "../../scripts/frame/gguf.ts";
import { readModelConfig } from "../../lib/weights/config.ts";
import { modelFingerprint } from "../../lib/weights/fingerprint.ts";
import { Gguf } from "../../lib/weights/gguf.ts";
import { dequantizeBlocks } from "../../lib/weights/gguf_blocks.ts";
import { ggufRow } from "../../lib/weights/gguf_architectures.ts";
import { WeightsError } from "../../lib/weights/json.ts";
import { BLOCKS, type BlockType, blockWeights, half, randomBlocks } from "../support/blocks.ts";
import { llamaMetadata, llamaTensors, randomTensor } from "../support/gguf.ts";
import { Random } from "../support/random.ts";
import { withFolder } from "./fixture.ts";

const smol = fileURLToPath(new URL("../../../shared/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf", import.meta.url));
const noSmol = existsSync(smol) ? false : "the SmolLM2 model is not beside the repository";

/** Runs `work`, which must fail with a WeightsError that names `file` and holds `cause`. */
function refuses(work: () => unknown, file: string, cause: string): void {
  const error = assertThrows(work, WeightsError);
  assertStringIncludes(error.message, file);
  assertStringIncludes(error.message, cause);
}

test("gguf: what is written is read back, metadata and tensors of every type", () =>
  withFolder((folder) => {
    const random = new Random(811), path = join(folder, "all.gguf");
    const metadata: GgufEntry[] = [
      ["a.u32", "u32", 0xffffffff],
      ["a.i32", "i32", -5],
      ["a.f32", "f32", 0.25],
      ["a.bool", "bool", true],
      ["a.text", "string", "ünï\u0000\ufeff𝒳"],
      ["a.list", "string", ["", "x", "Ġ"]],
      ["a.numbers", "i32", [-1, 0, 7]],
      ["a.empty", "u32", []],
    ];
    const types = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"];
    const tensors = types.map((type, i) => randomTensor(random, `t.${type}`, type, [i + 1, 256]));
    tensors.push(randomTensor(random, "odd", "F32", [7]), randomTensor(random, "deep", "F16", [2, 3, 5]));
    writeGguf(path, metadata, tensors);
    using file = Gguf.open(path);
    assertEquals(file.names, tensors.map(({ name }) => name));
    for (const [key, , value] of metadata) {
      // An empty list has no kind to be written as, but is one.
      assertEquals(file.metadata.get(key), value, key);
    }
    for (const { name, dtype, shape, data, byteLength } of tensors) {
      assertEquals(file.info(name), { dtype, shape, byteLength });
      const bytes = new Uint8Array(byteLength);
      file.readInto(name, 0, bytes);
      assertEquals(bytes, data(), name);
      const piece = new Uint8Array(3);
      file.readInto(name, 5, piece);
      assertEquals(piece, data().slice(5, 8), name);
      assertThrows(() => file.readInto(name, byteLength - 2, piece), RangeError);
    }
    refuses(() => file.info("none"), path, "no tensor none");
    truncateSync(path, 3000);
    refuses(() => file.readInto("deep", 0, new Uint8Array(8)), path, "cut while it was open");
    file.close();
    file.close();
    refuses(() => file.info("odd"), path, "used after close");
  }));

test("gguf: blocks stand for the weights of their formulas, bit for bit of f32", () => {
  const random = new Random(812);
  for (const type of Object.keys(BLOCKS) as BlockType[]) {
    const blocks = randomBlocks(random, type, 256 * 20), found = new Float32Array(256 * 20);
    dequantizeBlocks(type, blocks, found);
    const wanted = blockWeights(type, blocks);
    wanted.forEach((w, i) =>
      assert(Math.abs(found[i] - w) <= 2 ** -22 * Math.abs(w) + 1e-9, `${type} ${i}: ${found[i]}, ${w}`)
    );
  }
  assertThrows(() => dequantizeBlocks("Q2_K", new Uint8Array(84), new Float32Array(256)), WeightsError, "Q2_K");
});

test("gguf: numbers are rounded to f16 and Q8_0 as near as they can be", () => {
  const random = new Random(813),
    values = [...random.normals(500), 0, -0, 1e-7, 6e-5, 65504, 65519.9, 1e6, 2049, 2051, -1];
  const bits = toF16(values);
  values.forEach((x, i) => {
    const near = half(bits[i]), unit = Math.max(2 ** -24, 2 ** (Math.floor(Math.log2(Math.abs(x) || 1e-9)) - 10));
    if (Math.abs(x) < 65520) assert(Math.abs(near - x) <= unit / 2, `${x}: ${near}`);
    else assertEquals(near, Infinity);
  });
  assertEquals([half(toF16([2049])[0]), half(toF16([2051])[0])], [2048, 2052]);
  const weights = random.normals(64), read = blockWeights("Q8_0", toQ8(weights));
  for (let b = 0; b < 64; b += 32) {
    const most = Math.max(...weights.slice(b, b + 32).map(Math.abs));
    for (let i = b; i < b + 32; i++) {
      assert(Math.abs(read[i] - weights[i]) <= most / 127 * 0.57, `${weights[i]}: ${read[i]}`);
    }
  }
});

const u32 = (...values: number[]): number[] => values.flatMap((v) => [v & 255, v >> 8 & 255, v >> 16 & 255, v >>> 24]);
const u64 = (value: number | bigint): number[] =>
  u32(Number(BigInt(value) & 0xffffffffn), Number(BigInt(value) >> 32n));
const text = (value: string): number[] => [...u64(value.length), ...new TextEncoder().encode(value)];
const head = (tensors: number | bigint, entries: number | bigint, ...rest: number[]): Uint8Array =>
  Uint8Array.from([...u32(0x46554747, 3), ...u64(tensors), ...u64(entries), ...rest]);
const tensor = (name: string, sizes: (number | bigint)[], type: number, offset: number | bigint): number[] => [
  ...text(name),
  ...u32(sizes.length),
  ...sizes.flatMap(u64),
  ...u32(type),
  ...u64(offset),
];
/** A file of descriptions, padded, and `dataBytes` bytes. */
const withTensors = (descriptions: number[][], dataBytes: number): Uint8Array => {
  const bytes = head(descriptions.length, 0, ...descriptions.flat());
  const file = new Uint8Array(Math.ceil(bytes.length / 32) * 32 + dataBytes);
  file.set(bytes);
  return file;
};

const malformed: [name: string, file: Uint8Array, cause: string][] = [
  ["empty file", new Uint8Array(0), "0 bytes"],
  ["twenty bytes", new Uint8Array(20), "20 bytes"],
  ["another format", new Uint8Array(64).fill(80), "is not a GGUF file: it begins with 0x50505050"],
  ["version 1", Uint8Array.from([...u32(0x46554747, 1), ...u64(0), ...u64(0)]), "version 1; versions 2 and 3"],
  ["big-endian", Uint8Array.from([...u32(0x46554747, 0x03000000), ...u64(0), ...u64(0)]), "big-endian"],
  ["2^64 - 1 tensors", head(2n ** 64n - 1n, 0), "the number of tensors is 18446744073709551615, over the limit"],
  ["2^40 entries", head(0, 2 ** 40), "the number of metadata entries is 1099511627776, over the limit"],
  ["entries past the end", head(0, 3, ...text("a"), ...u32(4, 1)), "truncated"],
  ["a name past the end", head(0, 1, ...u64(1000), 97), "over the limit"],
  ["a name of 2^63 bytes", head(0, 1, ...u64(2n ** 63n)), "over the limit"],
  ["a text past the end", head(0, 1, ...text("a"), ...u32(8), ...u64(20), 97), "truncated"],
  ["a text of 2^40 bytes", head(0, 1, ...text("a"), ...u32(8), ...u64(2 ** 40)), "over the limit"],
  ["a name that is no UTF-8", head(0, 1, ...u64(2), 0xc3, 0x28, ...u32(4, 1)), "entry 0 is not valid UTF-8"],
  ["an unknown kind", head(0, 1, ...text("a"), ...u32(13, 1)), "a has the unknown type 13"],
  ["a list of an unknown kind", head(0, 1, ...text("a"), ...u32(9, 77), ...u64(0)), "a list of the unknown type 77"],
  ["a list past the end", head(0, 1, ...text("a"), ...u32(9, 4), ...u64(1000)), "a has 1000 elements"],
  ["a list of 2^50", head(0, 1, ...text("a"), ...u32(9, 0), ...u64(2 ** 50)), "over the limit"],
  [
    "lists in lists",
    head(
      0,
      1,
      ...text("a"),
      ...u32(9),
      ...Array(9).fill([...u32(9), ...u64(1)]).flat(),
      ...u32(4),
      ...u64(1),
      ...u32(1),
    ),
    "a list in 4 lists",
  ],
  ["neither true nor false", head(0, 1, ...text("a"), ...u32(7), 2), "neither true nor false"],
  ["a key twice", head(0, 2, ...text("a"), ...u32(4, 1), ...text("a"), ...u32(4, 2)), "the metadata entry a twice"],
  ["an alignment of 24", head(0, 1, ...text("general.alignment"), ...u32(4, 24)), "general.alignment is 24"],
  ["an alignment of 0", head(0, 1, ...text("general.alignment"), ...u32(4, 0)), "general.alignment is 0"],
  [
    "an alignment in words",
    head(0, 1, ...text("general.alignment"), ...u32(8), ...text("x")),
    "general.alignment is x",
  ],
  ["no dimension", withTensors([tensor("a", [], 0, 0)], 32), "has 0 dimensions"],
  ["five dimensions", withTensors([tensor("a", [1, 1, 1, 1, 1], 0, 0)], 32), "has 5 dimensions"],
  ["2^32 - 1 dimensions", head(1, 0, ...text("a"), ...u32(0xffffffff)), "has 4294967295 dimensions"],
  ["a size of 0", withTensors([tensor("a", [4, 0], 0, 0)], 32), "not at least 1"],
  ["a size of 2^64 - 1", withTensors([tensor("a", [2n ** 64n - 1n], 0, 0)], 32), "over the limit"],
  ["sizes that overflow", withTensors([tensor("a", [2 ** 33, 2 ** 33, 2 ** 33, 4], 0, 0)], 32), "does not fit"],
  ["an unknown type", withTensors([tensor("a", [4], 99, 0)], 32), "the unknown type 99"],
  ["a type of old", withTensors([tensor("a", [4], 4, 0)], 32), "the unknown type 4"],
  ["rows that end inside a block", withTensors([tensor("a", [40], 8, 0)], 64), "blocks of Q8_0 32"],
  ["an offset between", withTensors([tensor("a", [4], 0, 16)], 64), "not a multiple of the alignment"],
  ["an offset of 2^63", withTensors([tensor("a", [4], 0, 2n ** 63n)], 64), "over the limit"],
  ["past the end", withTensors([tensor("a", [12], 0, 0)], 40), "truncated"],
  ["overlap", withTensors([tensor("a", [16], 0, 0), tensor("b", [16], 0, 32)], 96), "the tensors a and b overlap"],
  ["the same bytes twice", withTensors([tensor("a", [8], 0, 0), tensor("b", [8], 0, 0)], 32), "overlap"],
  ["a hole", withTensors([tensor("a", [8], 0, 0), tensor("b", [8], 0, 64)], 96), "belong to no tensor"],
  ["a tensor twice", withTensors([tensor("a", [8], 0, 0), tensor("a", [8], 0, 32)], 64), "the tensor a twice"],
];
for (const [name, bytes, cause] of malformed) {
  test(`gguf: refused: ${name}`, () =>
    withFolder((folder) => {
      const path = join(folder, "bad.gguf");
      writeFileSync(path, bytes);
      refuses(() => Gguf.open(path), path, cause);
    }));
}

test("gguf: files that cannot be opened say why", () =>
  withFolder((folder) => {
    refuses(() => Gguf.open(join(folder, "none.gguf")), "none.gguf", "no such file");
    mkdirSync(join(folder, "model.gguf"));
    refuses(() => Gguf.open(join(folder, "model.gguf")), "model.gguf", "is a folder");
  }));

const sizes = { hidden: 256, inner: 256, layers: 1, heads: 2, kvHeads: 1, vocabulary: 258 };
const q8 = { embedding: "F16", q: "Q8_0", k: "Q8_0", v: "Q8_0", output: "F32", gate: "Q4_0", up: "Q4_0", down: "Q6_K" };

test("gguf: a truncated or corrupted file is refused or read, and nothing else", () =>
  withFolder((folder) => {
    const random = new Random(814), good = join(folder, "good.gguf"), bad = join(folder, "bad.gguf");
    const metadata = llamaMetadata(sizes), tensors = llamaTensors(random, sizes, q8);
    writeGguf(good, metadata, tensors);
    const bytes = readFileSync(good), headBytes = ggufHead(metadata, tensors).length;
    for (let i = 0; i < 50; i++) {
      writeFileSync(bad, bytes.subarray(0, Math.floor(bytes.length * i / 50)));
      refuses(() => Gguf.open(bad), bad, "");
    }
    let refused = 0;
    for (let round = 0; round < 400; round++) {
      const copy = Buffer.from(bytes);
      // The vocabulary takes most of the head: half of the flips go before it or behind it.
      for (let flips = random.integer(1, 3); flips > 0; flips--) {
        const at = random.integer(0, 1) ? random.integer(0, headBytes - 1) : headBytes - 1 - random.integer(0, 800);
        copy[at] ^= 1 << random.integer(0, 7);
      }
      writeFileSync(bad, copy);
      try {
        using file = Gguf.open(bad);
        for (const name of file.names) file.readInto(name, 0, new Uint8Array(file.info(name).byteLength));
        readModelConfig(bad);
      } catch (error) {
        assert(error instanceof WeightsError, `round ${round}: ${error}`);
        assertStringIncludes(error.message, bad);
        refused++;
      }
    }
    assert(refused > 100 && refused < 400, `${refused} of 400 refused`);
  }));

test("gguf: the configuration, and what it refuses by name", () =>
  withFolder((folder) => {
    const path = join(folder, "model.gguf"), random = new Random(815), tensors = llamaTensors(random, sizes, q8);
    const write = (changes: Record<string, GgufEntry | null> = {}, more: typeof tensors = []): void => {
      const kept = llamaMetadata(sizes).filter(([key]) => !(key in changes));
      writeGguf(path, [...kept, ...Object.values(changes).filter((entry) => entry !== null)], [...tensors, ...more]);
    };
    write();
    assertEquals(readModelConfig(path), {
      architecture: "LlamaForCausalLM",
      vocabularySize: 258,
      hiddenSize: 256,
      intermediateSize: 256,
      layers: 1,
      heads: 2,
      kvHeads: 1,
      headDim: 64,
      contextLength: 512,
      rmsNormEps: Math.fround(1e-5),
      ropeTheta: 50000,
      ropeScaling: null,
      tieWordEmbeddings: true,
      attentionBias: false,
      mlpBias: false,
      bosId: 256,
      eosIds: [257],
    });
    assertEquals(modelFingerprint(path), modelFingerprint(path));
    const factors = randomTensor(random, "rope_freqs.weight", "F32", [32]);
    new Float32Array(factors.data().buffer).fill(1).fill(8, 16);
    write({ eot: ["tokenizer.ggml.eot_token_id", "u32", 5] }, [factors]);
    const { ropeScaling, eosIds } = readModelConfig(path);
    assertEquals(ropeScaling, { type: "factors", factors: [...Array(16).fill(1), ...Array(16).fill(8)] });
    assertEquals(eosIds, [257, 5]);
    const refusals: [Record<string, GgufEntry | null>, string][] = [
      [
        { "general.architecture": ["general.architecture", "string", "qwen2vl"] },
        "general.architecture: the architecture qwen2vl is not supported; supported: llama, qwen2",
      ],
      [
        { "general.architecture": ["general.architecture", "string", "deepseek2"] },
        "the architecture deepseek2 is not supported (multi-head latent attention",
      ],
      [{ "general.architecture": null }, "the architecture (none)"],
      [{ "llama.block_count": null }, "llama.block_count: expected a whole number >= 1, found nothing"],
      [{ "llama.block_count": ["llama.block_count", "string", "2"] }, 'found "2"'],
      [{ "llama.block_count": ["llama.block_count", "f32", 1.5] }, "found 1.5"],
      [
        { experts: ["llama.expert_count", "u32", 8] },
        "llama.expert_used_count: expected a whole number >= 1, found nothing",
      ],
      [
        { experts: ["llama.expert_count", "u32", 8], top: ["llama.expert_used_count", "u32", 9] },
        "llama.expert_used_count: expected at most 8 (llama.expert_count), found 9",
      ],
      [{ window: ["llama.attention.sliding_window", "u32", 64] }, "llama.attention.sliding_window: expected 0 or"],
      [{ split: ["split.count", "u32", 3] }, "the first of 3 parts, whose names must end in -00001-of-00003.gguf"],
      [
        { split: ["split.count", "u32", 3], number: ["split.no", "u32", 2] },
        "is part 3 of 3; give the first, whose name ends in -00001-of-00003.gguf",
      ],
      [{ scaling: ["llama.rope.scaling.type", "string", "other"] }, 'rope scaling "other"'],
      [{ "llama.attention.key_length": ["llama.attention.key_length", "u32", 80] }, "value_length: expected 80"],
      [{ "llama.rope.dimension_count": ["llama.rope.dimension_count", "u32", 32] }, "expected 64, a whole head"],
      [{ "llama.attention.head_count": ["llama.attention.head_count", "u32", 40] }, "40 query heads over 1"],
      [{ "llama.attention.layer_norm_rms_epsilon": null }, "layer_norm_rms_epsilon: expected a number > 0"],
    ];
    for (const [changes, cause] of refusals) {
      write(changes);
      refuses(() => readModelConfig(path), path, cause);
    }
  }));

test("gguf: windows, a layer at a time, by pattern, by flags and by what the architecture implies", () =>
  withFolder((folder) => {
    const path = join(folder, "model.gguf"),
      embedding = randomTensor(new Random(5), "token_embd.weight", "F32", [258, 128]);
    const windowsOf = (at: string, own: readonly GgufEntry[], layers = 7): readonly number[] | undefined => {
      const common = llamaMetadata({ ...sizes, layers }).map((
        [key, kind, value],
      ): GgufEntry => [key.replace("llama.", `${at}.`), kind, value === "llama" ? at : value]);
      writeGguf(path, [...common, ...own.map(([key, ...rest]): GgufEntry => [`${at}.attention.${key}`, ...rest])], [
        embedding,
      ]);
      return readModelConfig(path).windows;
    };
    const window: GgufEntry = ["sliding_window", "u32", 9];
    assertEquals(windowsOf("gemma3", [window]), [9, 9, 9, 9, 9, 0, 9]);
    assertEquals(windowsOf("gemma2", [window], 3), [9, 0, 9]);
    assertEquals(windowsOf("gemma2", []), undefined); // 4096, longer than the context
    assertEquals(windowsOf("phi3", [window], 2), [9, 9]);
    assertEquals(windowsOf("phi3", [["sliding_window", "u32", 0]]), undefined);
    assertEquals(windowsOf("gemma3", [window, ["sliding_window_pattern", "u32", 2]], 4), [9, 0, 9, 0]);
    assertEquals(windowsOf("gemma3", [window, ["sliding_window_pattern", "u32", 1]], 4), undefined);
    const flags: GgufEntry = ["sliding_window_pattern", "bool", [false, true, true]];
    assertEquals(windowsOf("gemma3", [window, flags], 3), [0, 9, 9]);
    const refused = (at: string, own: readonly GgufEntry[], cause: string) =>
      refuses(() => windowsOf(at, own), path, cause);
    refused(
      "gemma3",
      [window, flags],
      "gemma3.attention.sliding_window_pattern: expected true or false for each of 7 layers",
    );
    refused(
      "gemma3",
      [window, ["sliding_window_pattern", "string", "all"]],
      "sliding_window_pattern: expected a whole number",
    );
    refused(
      "gemma2",
      [["sliding_window", "f32", 0.5]],
      "gemma2.attention.sliding_window: expected a whole number >= 0, found 0.5",
    );
    refused("qwen3", [window], "qwen3.attention.sliding_window: expected 0 or at least 512");
  }));

test("gguf: rows of a head come back from rope's order", () => {
  // Interleaved as the converter does it: [heads, 2, half, in] -> [heads, half, 2, in].
  const heads = 3, dim = 8, file: number[] = [];
  for (let h = 0; h < heads; h++) {
    for (let i = 0; i < dim / 2; i++) for (const half of [0, 1]) file.push(h * dim + half * dim / 2 + i);
  }
  for (let row = 0; row < heads * dim; row++) assertEquals(file[ggufRow(row, dim)], row);
});

test("gguf: a file rewritten as F16 and Q8_0 keeps its metadata and, within rounding, its weights", () =>
  withFolder((folder) => {
    const random = new Random(816), from = join(folder, "from.gguf"), to = join(folder, "to.gguf");
    const all = { ...q8, embedding: "Q8_0", k: "F32", v: "F16", gate: "BF16", output: "Q4_K" };
    const wide = { ...sizes, heads: 4 }, tensors = llamaTensors(random, wide, all);
    writeGguf(from, llamaMetadata(wide), tensors);
    for (const type of ["F16", "Q8_0"] as const) {
      rewriteGguf(from, to, type);
      using file = Gguf.open(to);
      for (const [key, , value] of llamaMetadata(wide)) {
        const found = file.metadata.get(key);
        if (typeof value === "number" && !Number.isInteger(value)) assertEquals(found, Math.fround(value), key);
        else assertEquals(found, value, key);
      }
      for (const { name, weights, shape } of tensors) {
        const info = file.info(name), bytes = new Uint8Array(info.byteLength);
        file.readInto(name, 0, bytes);
        if (shape.length === 1) continue;
        assertEquals(info.dtype, type);
        const read = type === "Q8_0" ? blockWeights("Q8_0", bytes) : Array.from(new Uint16Array(bytes.buffer), half);
        let most = 0;
        for (let i = 0; i < weights.length; i++) most = Math.max(most, Math.abs(weights[i]));
        const bound = type === "F16" ? 2 ** -11 : 0.6 / 127;
        read.forEach((w, i) =>
          assert(Math.abs(w - weights[i]) <= bound * most + 1e-7, `${name} ${i}: ${w}, ${weights[i]}`)
        );
      }
    }
  }));

test("gguf: the real model's tensors and configuration", { skip: noSmol }, () => {
  using file = Gguf.open(smol);
  assertEquals([file.names.length, file.metadata.size], [272, 33]);
  assertEquals(file.info("blk.3.attn_k.weight"), { dtype: "Q4_1", shape: [192, 576], byteLength: 192 * 18 * 20 });
  const { layers, heads, kvHeads, headDim, ropeTheta, contextLength, tieWordEmbeddings, eosIds } = readModelConfig(
    smol,
  );
  assertEquals([layers, heads, kvHeads, headDim, ropeTheta, contextLength], [30, 9, 3, 64, 100000, 8192]);
  assertEquals([tieWordEmbeddings, eosIds], [true, [2]]);
});
