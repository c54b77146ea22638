import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openModel } from "../../mod.ts";
import { type GgufEntry, type GgufTensorData, writeGguf } from "../../scripts/frame/gguf.ts";
import { dequantizeBlocks, Gguf, type GgufValue, weightBytesOf } from "../../lib/ops/mod.ts";
import { cpu } from "../support/device.ts";
import { withFolder } from "../weights/fixture.ts";
import { besideRepository, cacheOf, difference, prompted, readGolden } from "./golden.ts";

// The same models as GGUF files; logits are of the weights as they are stored, in f32 arithmetic. See the folder's README.
const { folder, absent } = besideRepository("gguf/architectures");

/** Bounds of the relative error of logits: bf16 weights are computed with as they are, packed ones with inputs of 8 bits. */
const bounds: Readonly<Record<string, number>> = {
  "gemma2-Q4_0": 6e-2,
  "gemma3-Q4_0": 6e-2,
  "glm4-BF16": 1e-4,
  "granite-BF16": 1e-4,
  "llama-yarn-Q8_0": 5e-2,
  "llama3-rope-Q8_0": 5e-2,
  "mistral-Q4_0": 5e-2,
  "mixtral-Q4_0": 6e-2,
  "olmo2-Q8_0": 5e-2,
  "phi3-BF16": 1e-4,
  "phi4-mini-Q8_0": 5e-2,
  "qwen2-BF16": 1e-4,
  "qwen3-Q8_0": 5e-2,
  "qwen3-moe-Q8_0": 6e-2,
  "smollm3-Q8_0": 5e-2,
};

const refused: Readonly<Record<string, string>> = {
  "gpt-oss-MXFP4": "blk.0.ffn_gate_exps.weight is MXFP4, which is not supported",
};

test("gguf: every architecture at hand is run or refused", { skip: absent }, () => {
  const all = readdirSync(folder).filter((name) => name.endsWith(".gguf")).map((name) => name.slice(0, -5));
  assertEquals(all.sort(), [...Object.keys(bounds), ...Object.keys(refused)].sort());
});

for (const [name, bound] of Object.entries(bounds)) {
  test(`gguf: ${name} gives the reference's logits`, { skip: absent }, async () => {
    const path = join(folder, `${name}.gguf`),
      { ids, positions, logits } = readGolden(join(folder, `${name}.golden.json`));
    using model = await openModel(cpu, path);
    assertEquals(weightBytesOf(path), model.weightBytes);
    using cache = cacheOf(path, model, "bf16");
    const found = positions.map((position) => prompted(model, cache, ids.slice(0, position + 1)));
    const all = new Float32Array(found.flatMap((each) => [...each]));
    const error = difference(all, logits.flat());
    assert(error <= bound, `relative error ${error}`);
  });
}

/** Numbers of four bits: a sign, two bits of exponent, one of mantissa. */
const FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6].flatMap((x, i, all) => i < 7 ? [x] : [x, ...all.map((y) => -y)]);

/**
 * A file of gpt-oss with its matrices as bf16: that holds all numbers of MXFP4, and rounds those of Q8_0. As products with Q8_0 round
 * their inputs to 8 bits, routers of these random weights choose other experts there.
 */
function asBf16(from: string, to: string): void {
  using file = Gguf.open(from);
  const kindOf = (value: GgufValue): GgufEntry[1] => {
    const one = Array.isArray(value) ? value[0] : value;
    return typeof one === "string"
      ? "string"
      : typeof one === "boolean"
      ? "bool"
      : Number.isInteger(one)
      ? "u32"
      : "f32";
  };
  const entries = [...file.metadata].filter(([key]) => key !== "general.alignment");
  const metadata = entries.map((
    [key, value],
  ): GgufEntry => [key, /(epsilon|freq_base|beta|scaling.factor)/.test(key) ? "f32" : kindOf(value), value]);
  writeGguf(
    to,
    metadata,
    file.names.map((name): GgufTensorData => {
      const { dtype, shape, byteLength } = file.info(name), bytes = new Uint8Array(byteLength);
      file.readInto(name, 0, bytes);
      if (dtype !== "MXFP4" && dtype !== "Q8_0") return { name, dtype, shape, byteLength, data: () => bytes };
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
      if (dtype === "Q8_0") dequantizeBlocks(dtype, bytes, values);
      for (let block = 0; dtype === "MXFP4" && block < byteLength / 17; block++) {
        const scale = 2 ** (bytes[17 * block] - 127);
        for (let i = 0; i < 16; i++) {
          const pair = bytes[17 * block + 1 + i];
          values[32 * block + i] = scale * FP4[pair & 15];
          values[32 * block + 16 + i] = scale * FP4[pair >> 4];
        }
      }
      const bf16 = Uint16Array.from(
        new Uint32Array(values.buffer),
        (word) => (word + 0x7fff + ((word >>> 16) & 1)) >>> 16,
      );
      return { name, dtype: "BF16", shape, byteLength: bf16.byteLength, data: () => new Uint8Array(bf16.buffer) };
    }),
  );
}

test(
  "gguf: gpt-oss in bf16 gives the reference's logits",
  { skip: absent },
  () =>
    withFolder(async (other) => {
      const path = join(other, "gpt-oss.gguf"), name = join(folder, "gpt-oss-MXFP4");
      asBf16(`${name}.gguf`, path);
      const { ids, positions, logits } = readGolden(`${name}.golden.json`);
      using model = await openModel(cpu, path);
      assertEquals(model.config.windows, [64, 0, 64, 0]);
      using cache = cacheOf(path, model, "bf16");
      const found = positions.map((position) => prompted(model, cache, ids.slice(0, position + 1)));
      const error = difference(new Float32Array(found.flatMap((each) => [...each])), logits.flat());
      assert(error <= 6e-2, `relative error ${error}`);
    }),
);

for (const [name, reason] of Object.entries(refused)) {
  test(`gguf: ${name} is refused by name, with the reason`, { skip: absent }, async () => {
    const path = join(folder, `${name}.gguf`);
    const error = await openModel(cpu, path).then(() => undefined, (error: unknown) => error as Error);
    assertStringIncludes(String(error?.message), path);
    assertStringIncludes(String(error?.message), reason);
  });
}
