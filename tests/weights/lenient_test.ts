/** Files with something wrong, or new, in what is not used; files that are not there yet; files in parts. */
import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { appendFileSync, copyFileSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, LanguageModel, openTokenizer } from "../../mod.ts";
import { type GgufEntry, writeGguf } from "../../scripts/frame/gguf.ts";
import { TokenizerError } from "../../lib/tokenizer/tokenizer.ts";
import { readModelConfig } from "../../lib/weights/config.ts";
import { Gguf } from "../../lib/weights/gguf.ts";
import { WeightsError } from "../../lib/weights/json.ts";
import { Safetensors, writeSafetensors } from "../../lib/weights/safetensors.ts";
import { llamaMetadata, llamaTensors, type RandomTensor } from "../support/gguf.ts";
import { Random } from "../support/random.ts";
import { safetensorsFile, withFolder } from "./fixture.ts";

const embedded = fileURLToPath(EMBEDDED_MODEL);
const sizes = { hidden: 256, inner: 256, layers: 2, heads: 2, kvHeads: 1, vocabulary: 258 };
const types = {
  embedding: "F16",
  q: "Q8_0",
  k: "Q8_0",
  v: "Q8_0",
  output: "Q8_0",
  gate: "Q8_0",
  up: "Q8_0",
  down: "Q8_0",
};
const tensors = llamaTensors(new Random(31), sizes, types);

/** Writes the model with changed metadata. */
function write(path: string, changes: Record<string, GgufEntry> = {}, kept: readonly RandomTensor[] = tensors): void {
  const rest = llamaMetadata(sizes).filter(([key]) => !(key in changes));
  writeGguf(path, [...rest, ...Object.values(changes)], kept);
}

/** Puts a byte in place of another in a text that stands once in a file. */
function spoil(path: string, text: string): void {
  const bytes = readFileSync(path), at = bytes.indexOf(text);
  assert(at > 0 && bytes.indexOf(text, at + 1) < 0);
  bytes[at + 1] = 0xff;
  writeFileSync(path, bytes);
}

async function continuation(path: string): Promise<number[]> {
  using model = await LanguageModel.load(path, { kv: "bf16", device: "cpu", context: 64 });
  const { tokens } = await model.complete([256, 72, 105], { maxTokens: 6 });
  return tokens.map(({ id }) => id);
}

test("gguf: what is wrong in what is not used does not matter: a name, bytes behind the end, ids of none, factors of 0", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "model.gguf"),
      changes: Record<string, GgufEntry> = {
        "general.name": ["general.name", "string", "Odd name"],
        "general.tags": ["general.tags", "string", ["odd tag", "b"]],
        "tokenizer.ggml.bos_token_id": ["tokenizer.ggml.bos_token_id", "u32", 0xffffffff],
        "tokenizer.ggml.eot_token_id": ["tokenizer.ggml.eot_token_id", "i32", -1],
        "tokenizer.ggml.unknown_token_id": ["tokenizer.ggml.unknown_token_id", "u32", 0xffffffff],
        "llama.rope.scaling.factor": ["llama.rope.scaling.factor", "f32", 0],
        "llama.rope.scaling.attn_factor": ["llama.rope.scaling.attn_factor", "f32", 0],
        "llama.rope.scale_linear": ["llama.rope.scale_linear", "f32", 0],
      };
    write(path);
    const expected = await continuation(path);
    write(path, changes);
    spoil(path, "Odd name");
    spoil(path, "odd tag");
    appendFileSync(path, new Uint8Array(64).fill(7));
    const { bosId, eosIds, ropeScaling } = readModelConfig(path);
    assertEquals({ bosId, eosIds, ropeScaling }, { bosId: null, eosIds: [257], ropeScaling: null });
    assertEquals(openTokenizer(path).bosId, null);
    assertEquals(await continuation(path), expected);
    using file = Gguf.open(path);
    assertEquals([...file.broken], ["general.name", "general.tags"]);
  });
});

test("gguf: what is used is refused by name where it is no UTF-8, and so is a factor below 0", () =>
  withFolder((folder) => {
    const path = join(folder, "model.gguf");
    const refuses = (work: () => unknown, cause: string) =>
      assertStringIncludes(assertThrows(work, WeightsError).message, `${path}: ${cause}`);
    for (
      const [text, key, work] of [
        ["llama", "general.architecture", readModelConfig],
        ["smollm", "tokenizer.ggml.pre", openTokenizer],
        ["he l", "tokenizer.ggml.merges", openTokenizer],
        ["for m in", "tokenizer.chat_template", openTokenizer],
      ] as const
    ) {
      write(path, { "general.architecture": ["general.architecture", "string", "llama"] });
      const bytes = readFileSync(path), at = bytes.indexOf(text, bytes.indexOf(key) + key.length);
      bytes[at] = 0xff;
      writeFileSync(path, bytes);
      refuses(() => work(path), `${key} is not valid UTF-8`);
    }
    write(path, { factor: ["llama.rope.scaling.factor", "f32", -2] });
    refuses(() => readModelConfig(path), "llama.rope.scaling.factor: expected a number > 0, found -2");
    write(path, { "tokenizer.ggml.bos_token_id": ["tokenizer.ggml.bos_token_id", "u32", 5000] });
    refuses(() => openTokenizer(path), "tokenizer.ggml.bos_token_id: expected a token id below 258");
  }));

test("gguf: a model in parts is the model in one file, and a part that is missing, wrong or not the first is named", async () => {
  await withFolder(async (folder) => {
    const whole = join(folder, "whole.gguf"), part = (i: number) => join(folder, `m-0000${i}-of-00003.gguf`);
    const split = (i: number): Record<string, GgufEntry> => ({
      "split.no": ["split.no", "u32", i],
      "split.count": ["split.count", "u32", 3],
      "split.tensors.count": ["split.tensors.count", "i32", tensors.length],
    });
    const third = Math.ceil(tensors.length / 3), of = (i: number) => tensors.slice(i * third, (i + 1) * third);
    const writePart = (i: number, number = i, kept = of(i)) =>
      i === 0 ? write(part(1), split(number), kept) : writeGguf(part(i + 1), Object.values(split(number)), kept);
    write(whole);
    for (const i of [0, 1, 2]) writePart(i);
    assertEquals(readModelConfig(part(1)), readModelConfig(whole));
    assertEquals(await continuation(part(1)), await continuation(whole));
    {
      using file = Gguf.open(part(1));
      assertEquals(file.names, tensors.map(({ name }) => name));
    }
    const refuses = (path: string, ...causes: string[]) => {
      const { message } = assertThrows(() => Gguf.open(path), WeightsError);
      for (const cause of causes) assertStringIncludes(message, cause);
    };
    refuses(part(2), part(2), "is part 2 of 3; give the first, whose name ends in -00001-of-00003.gguf");
    const other = join(folder, "other.gguf");
    copyFileSync(part(1), other);
    refuses(other, other, "the first of 3 parts");
    writePart(1, 2);
    refuses(part(1), part(2), "says that it is part 2");
    writePart(1, 1, of(0));
    refuses(part(1), part(2), "which is in another part too");
    writePart(1, 1, of(1).slice(1));
    refuses(part(1), part(1), `its parts have ${tensors.length - 1} tensors, it says ${tensors.length}`);
    truncateSync(part(2), readFileSync(part(2)).length - 100);
    refuses(part(1), part(2), "truncated");
    rmSync(part(2));
    refuses(part(1), part(2), "no such file");
  });
});

test("safetensors: tensors of types that are not known are there, and refused only where they are used", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "a.safetensors"),
      unknown = ["F8_E8M0", "C64", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "X9"];
    const header = Object.fromEntries(
      unknown.map((dtype, i) => [dtype, { dtype, shape: [8], data_offsets: [6 * i, 6 * i + 6] }]),
    );
    writeFileSync(path, safetensorsFile(header, 6 * unknown.length));
    {
      using file = Safetensors.open(path);
      for (const dtype of unknown) {
        assertEquals(file.info(dtype), { dtype, shape: [8], byteLength: 6 });
        assertStringIncludes(
          assertThrows(() => file.expect(dtype, "F32"), WeightsError).message,
          `is ${dtype}, expected F32`,
        );
      }
    }
    for (const name of ["config.json", "tokenizer.json"]) {
      copyFileSync(join(embedded, name), join(folder, name));
    }
    using source = Safetensors.open(join(embedded, "model.safetensors"));
    const model = join(folder, "model.safetensors"),
      named = source.names.map((name) => {
        const { dtype, shape } = source.info(name);
        return [name, { dtype: dtype as "BF16", shape, data: source.read(name) }] as const;
      });
    writeSafetensors(model, {
      ...Object.fromEntries(named),
      "rotary.unused": { dtype: "F8_E5M2", shape: [16], data: new Uint8Array(16) },
    });
    const bytes = readFileSync(model), text = bytes.toString("latin1");
    const renamed = (name: string, from: string, to: string): void => {
      const at = text.indexOf(`"dtype":"${from}"`, text.indexOf(`"${name}"`));
      const copy = Buffer.from(bytes);
      copy.write(to.padEnd(from.length, "0"), at + 9, "latin1");
      writeFileSync(model, copy);
    };
    renamed("rotary.unused", "F8_E5M2", "F8_E8M0");
    (await LanguageModel.load(folder, { device: "cpu", context: 64 }))[Symbol.dispose]();
    renamed(
      "model.norm.weight",
      source.info("model.norm.weight").dtype,
      "QF16".slice(0, source.info("model.norm.weight").dtype.length),
    );
    let message = "";
    await LanguageModel.load(folder, { device: "cpu", context: 64 }).catch((error) => message = String(error));
    assertStringIncludes(message, "model.norm.weight is QF");
  });
});

const POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab".repeat(32) + "\nsize 538090408\n";

test("a Git LFS pointer in place of a file is named as that, whatever the file", () =>
  withFolder((folder) => {
    for (
      const [name, open] of [
        ["model.safetensors", (path: string) => Safetensors.open(path)],
        ["model.gguf", (path: string) => Gguf.open(path)],
        ["model.safetensors.index.json", (path: string) => Safetensors.openIndex(path)],
        ["config.json", () => readModelConfig(folder)],
        ["tokenizer.json", () => openTokenizer(folder)],
        ["chat_template.jinja", () => openTokenizer(folder)],
      ] as const
    ) {
      if (name === "chat_template.jinja") {
        copyFileSync(join(embedded, "tokenizer.json"), join(folder, "tokenizer.json"));
      }
      const path = join(folder, name);
      writeFileSync(path, POINTER);
      const error = assertThrows(() => open(path), Error);
      assert(error instanceof WeightsError || error instanceof TokenizerError);
      assertStringIncludes(error.message, `${path}: is a Git LFS pointer`);
    }
  }));
