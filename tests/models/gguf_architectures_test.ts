import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openModel } from "../../mod.ts";
import { weightBytesOf } from "../../lib/ops/mod.ts";
import { cpu } from "../support/device.ts";
import { besideRepository, cacheOf, difference, prompted, readGolden } from "./golden.ts";

// The same models as GGUF files; logits are of the weights as they are stored, in f32 arithmetic. See the folder's README.
const { folder, absent } = besideRepository("gguf/architectures");

/** Bounds of the relative error of logits: bf16 weights are computed with as they are, packed ones with inputs of 8 bits. */
const bounds: Readonly<Record<string, number>> = {
  "glm4-BF16": 1e-4,
  "granite-BF16": 1e-4,
  "llama-yarn-Q8_0": 5e-2,
  "llama3-rope-Q8_0": 5e-2,
  "mistral-Q4_0": 5e-2,
  "mixtral-Q4_0": 6e-2,
  "olmo2-Q8_0": 5e-2,
  "phi4-mini-Q8_0": 5e-2,
  "qwen2-BF16": 1e-4,
  "qwen3-Q8_0": 5e-2,
  "qwen3-moe-Q8_0": 6e-2,
  "smollm3-Q8_0": 5e-2,
};

const refused: Readonly<Record<string, string>> = {
  "gemma2-Q4_0": "gemma2 is not supported (sliding windows, soft caps and head_dim 256",
  "gemma3-Q4_0": "gemma3 is not supported (sliding windows and head_dim 256",
  "gpt-oss-MXFP4": "gpt-oss is not supported (sliding windows and attention sinks as logits",
  "phi3-BF16": "phi3.attention.sliding_window: expected 0 or at least 512",
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

for (const [name, reason] of Object.entries(refused)) {
  test(`gguf: ${name} is refused by name, with the reason`, { skip: absent }, async () => {
    const path = join(folder, `${name}.gguf`);
    const error = await openModel(cpu, path).then(() => undefined, (error: unknown) => error as Error);
    assertStringIncludes(String(error?.message), path);
    assertStringIncludes(String(error?.message), reason);
  });
}
