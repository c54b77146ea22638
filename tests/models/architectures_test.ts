import { assert, assertEquals } from "@std/assert";
import { copyFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openModel, readModelConfig } from "../../mod.ts";
import { evaluate } from "../../lib/calibration/mod.ts";
import { type Device, parameterCount, PRESETS, Tensor, weightBytesOf } from "../../lib/ops/mod.ts";
import { cpu, testOnDevices } from "../support/device.ts";
import { withFolder } from "../weights/fixture.ts";
import {
  besideRepository,
  type Bounds,
  cacheOf,
  checkGolden,
  difference,
  type Golden,
  idsOf,
  prompted,
  readGolden,
  stepped,
} from "./golden.ts";

// Random models in bf16 and what transformers computes with them in f32; see the folder's README.
const { folder, absent } = besideRepository("architectures");

const supported = [
  "gemma2",
  "gemma3",
  "glm4",
  "gpt-oss",
  "granite",
  "llama-bias",
  "llama-yarn",
  "llama3-rope",
  "mistral",
  "mistral-window",
  "mixtral",
  "olmo2",
  "phi3",
  "phi4-mini",
  "qwen2",
  "qwen3",
  "qwen3-moe",
  "smollm3",
];

/** A test on each library, skipped where the models are absent. */
function testModel(
  model: string,
  name: string,
  run: (device: Device, path: string, golden: Golden) => Promise<void>,
): void {
  if (absent) return test(`${model}: ${name}`, { skip: absent }, () => {}) as unknown as void;
  const path = join(folder, model);
  testOnDevices(`${model}: ${name}`, (device) => run(device, path, readGolden(join(path, "golden.json"))));
}

// The CPU computes in f32 as the reference does. A GPU rounds the rows of a product and the prompt's keys and values to bf16.
const ofPrompts = (device: Device): Bounds =>
  device.name === "cpu" ? { logits: 1e-4, nll: 1e-4, gap: 1e-2 } : { logits: 2e-2, nll: 1e-2, gap: 1e-1 };

// The cache rounds keys and values to bf16, each by up to 2^-9 of itself and by 2^-9 / sqrt(3) = 1.1e-3 in the mean square.
// Three or four layers, keys and values in each, of which a residual stream takes over a part: some 2e-3 in all. Routers of experts
// magnify it where two are close, in gpt-oss to 4.2e-2 at one position. That it is this rounding and nothing else a prompt tells whose keys
// and values are rounded likewise.
const ofSteps = (device: Device, name: string): Bounds => ({
  logits: name === "gpt-oss" ? 5e-2 : 2e-2,
  ...(device.name === "cpu" ? { nll: 2e-3, gap: 3e-2 } : { nll: 1e-2, gap: 1e-1 }),
});
const STEPS_TO_ROUNDED = 1e-3;

test("every model at hand is run", { skip: absent }, () => {
  const all = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isDirectory()).map(({ name }) =>
    name
  );
  assertEquals(all.sort(), supported);
});

for (const name of supported) {
  testModel(name, "prompts give the reference's logits", async (device, path, golden) => {
    using model = await openModel(device, path);
    using cache = cacheOf(path, model, "bf16");
    const all = idsOf(golden);
    checkGolden(golden, all.map((_, i) => prompted(model, cache, all.slice(0, i + 1))), ofPrompts(device));
  });

  testModel(name, "decode steps give the reference's logits", async (device, path, golden) => {
    using model = await openModel(device, path);
    using cache = cacheOf(path, model, "bf16");
    const all = idsOf(golden), steps = stepped(model, cache, all);
    checkGolden(golden, steps, ofSteps(device, name));
    for (const position of device.name === "cpu" ? golden.positions : []) {
      const rounded = prompted(model, cache, all.slice(0, position + 1), { kv: "bf16" });
      const error = difference(steps[position], rounded);
      assert(error <= STEPS_TO_ROUNDED, `position ${position}: ${error} off a prompt of rounded keys and values`);
    }
  });

  testModel(name, "a prompt in parts and chunks is a prompt", async (device, path, golden) => {
    using model = await openModel(device, path);
    using cache = cacheOf(path, model, "bf16");
    using sequence = cache.sequence();
    using logits = Tensor.empty(device, "f32", [1, model.config.vocabularySize]);
    const { ids, positions } = golden, bound = device.name === "cpu" ? [1e-4, 1e-2] : [2e-2, 2e-2];
    assertEquals(positions.slice(-2), [127, 199]);
    // The second part reads the first from the cache, which is bf16.
    [ids.slice(0, 128), ids.slice(128)].forEach((part, i) => {
      model.prefill(logits, sequence, part, { plan: { rows: 50 } });
      const error = difference(logits.read<Float32Array>(), golden.logits.at(i - 2)!);
      assert(error <= bound[i], `part ${i}: relative error ${error}`);
    });
  });

  testModel(
    name,
    "codes of 4 bits a channel change little, and every preset something",
    async (device, path, golden) => {
      using model = await openModel(device, path);
      using exact = cacheOf(path, model, "bf16");
      using owned = new DisposableStack();
      const presets = Object.keys(PRESETS).filter((preset) => preset !== "bf16");
      const caches = presets.map((preset) => owned.use(cacheOf(path, model, preset)));
      const [, ...qualities] = await evaluate(model, exact, caches, [Int32Array.from(golden.ids)]);
      const { windows = [0] } = model.cacheShape, codes = windows.includes(0);
      qualities.forEach(({ kl, perplexity, tokens }, i) => {
        assertEquals(tokens, 199);
        assert(
          (codes ? kl > 0 : kl === 0) && Number.isFinite(kl) && Number.isFinite(perplexity),
          `${presets[i]}: KL ${kl}`,
        );
      });
      // Codes of 4 bits are off by 8e-2 of a vector, as a Gaussian's are; logits of a random model are wide (they cost 8 nats of 5.8).
      const of = (preset: string) => qualities[presets.indexOf(preset)].kl;
      assert(!codes || (of("vq4") < 0.2 && of("vq2") > 2 * of("vq4")), `KL ${of("vq2")} at 2 bits, ${of("vq4")} at 4`);
    },
  );

  test(`${name}: config.json is read as transformers 4 and 5 write it, and counted`, { skip: absent }, async () => {
    const path = join(folder, name), config = readModelConfig(path);
    using model = await openModel(cpu, path);
    assertEquals(weightBytesOf(path), model.weightBytes);
    // Norms are f32, all else bf16.
    const bytes = model.weightBytes / parameterCount(config);
    assert(bytes >= 2 && bytes < 2.05, `${bytes} bytes a parameter`);
    await withFolder((other) => {
      copyFileSync(join(path, "config.transformers5.json"), join(other, "config.json"));
      assertEquals(readModelConfig(other), config);
    });
  });
}
