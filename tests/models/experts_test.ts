import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openModel } from "../../mod.ts";
import { planOf } from "../../lib/models/model.ts";
import { syntheticConfig, syntheticModel } from "../../lib/ops/mod.ts";
import { type GgufEntry, writeGguf } from "../../scripts/frame/gguf.ts";
import { cpu } from "../support/device.ts";
import { llamaMetadata, llamaTensors, type RandomTensor, randomTensor } from "../support/gguf.ts";
import { Random } from "../support/random.ts";
import { withFolder } from "../weights/fixture.ts";
import { besideRepository, cacheOf, prompted } from "./golden.ts";

const { folder, absent } = besideRepository("architectures");

test("experts: other tensors than the configuration says are refused by name", { skip: absent }, async () => {
  for (
    const [model, key, count] of [["mixtral", "num_local_experts", 3], ["qwen3-moe", "num_local_experts", 9]] as const
  ) {
    await withFolder(async (other) => {
      copyFileSync(join(folder, model, "model.safetensors"), join(other, "model.safetensors"));
      const config = JSON.parse(readFileSync(join(folder, model, "config.json"), "utf8"));
      writeFileSync(join(other, "config.json"), JSON.stringify({ ...config, [key]: count }));
      const error = await openModel(cpu, other).then(() => undefined, (error: unknown) => error as Error);
      for (const part of [other, `${config[key]} experts`, `says ${count}`, key]) {
        assertStringIncludes(String(error?.message), part);
      }
    });
  }
});

test("experts: a GGUF file has those of a layer in one tensor, or each in its own as older ones do", () =>
  withFolder(async (folder) => {
    const sizes = { hidden: 64, inner: 32, layers: 2, heads: 2, kvHeads: 1, vocabulary: 258 }, count = 3;
    const random = new Random(931), f32 = "F32";
    const types = { embedding: f32, q: f32, k: f32, v: f32, output: f32, gate: f32, up: f32, down: f32 };
    const rest = llamaTensors(random, sizes, types).filter(({ name }) => !/ffn_(gate|up|down)/.test(name));
    const alone: RandomTensor[] = [], joined: RandomTensor[] = [];
    for (let layer = 0; layer < sizes.layers; layer++) {
      const router = randomTensor(random, `blk.${layer}.ffn_gate_inp.weight`, f32, [count, sizes.hidden]);
      rest.push(router);
      for (const [name, rows, width] of [["gate", 32, 64], ["up", 32, 64], ["down", 64, 32]] as const) {
        const each = Array.from(
          { length: count },
          (_, i) => randomTensor(random, `blk.${layer}.ffn_${name}.${i}.weight`, f32, [rows, width]),
        );
        alone.push(...each);
        const bytes = new Uint8Array(each.flatMap((tensor) => [...tensor.data()])), byteLength = bytes.length;
        const all = { dtype: f32, shape: [count, rows, width], data: () => bytes, byteLength, weights: [] };
        joined.push({ name: `blk.${layer}.ffn_${name}_exps.weight`, ...all });
      }
    }
    const metadata: GgufEntry[] = [
      ...llamaMetadata(sizes),
      ["llama.expert_count", "u32", count],
      ["llama.expert_used_count", "u32", 2],
    ];
    const logits: Float32Array[] = [];
    for (const [name, tensors] of [["alone", alone], ["joined", joined]] as const) {
      const path = join(folder, `${name}.gguf`);
      writeGguf(path, metadata, [...rest, ...tensors]);
      using model = await openModel(cpu, path);
      assertEquals(model.config.architecture, "MixtralForCausalLM");
      using cache = cacheOf(path, model, "bf16");
      logits.push(prompted(model, cache, [...random.integers(20, 0, 0), 5, 9]));
    }
    assert(logits[0].every(Number.isFinite));
    assertEquals(logits[0], logits[1]);
  }));

test("experts: a step reads the chosen ones", () => {
  const experts = { count: 8, top: 2, intermediateSize: 64, normalized: true, denseLayers: [] };
  const config = { ...syntheticConfig("tiny-llama"), architecture: "Qwen3MoeForCausalLM", layers: 2, experts };
  using model = syntheticModel(cpu, config);
  assert(planOf(config).layers.every(({ feedForward }) => feedForward.router?.top === 2));
  // Tied to the head, the embedding is read whole; of 2 layers with 3 matrices an expert, 6 of 8 experts are not.
  assertEquals(model.weightBytes - model.stepBytes, 2 * 6 * 3 * 64 * 256 * 2);
});
