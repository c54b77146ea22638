import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, LanguageModel, type ModelConfig, readModelConfig } from "../../mod.ts";
import {
  type Device,
  KvCache,
  kvConfig,
  layerFormat,
  parameterCount,
  SYNTHETIC,
  syntheticConfig,
  syntheticModel,
  syntheticPrompt,
  Tensor,
} from "../../lib/ops/mod.ts";
import { syntheticCalibration } from "../../lib/calibration/mod.ts";
import { bf16Calibration } from "../../lib/ops/mod.ts";
import { testOnDevices } from "../support/device.ts";

test("the shapes have as many parameters as the models they are named after", () => {
  assertEquals(parameterCount(syntheticConfig("llama-3.1-8b")), 8_030_261_248);
  assertEquals(parameterCount(syntheticConfig("llama-3.2-1b")), 1_235_814_400);
  assertEquals(parameterCount(syntheticConfig("qwen2.5-7b")), 7_615_616_512);
  assertEquals(parameterCount(syntheticConfig("llama-3.1-70b")), 70_553_706_496);
  assertEquals(parameterCount(syntheticConfig("mistral-7b")), 7_248_023_552);
  assertEquals(parameterCount(syntheticConfig("qwen3-8b")), 8_190_735_360);
  assertEquals(parameterCount(syntheticConfig("qwen3-30b-a3b")), 30_532_122_624);
  const { bosId: _, eosIds: __, ...embedded } = readModelConfig(fileURLToPath(EMBEDDED_MODEL));
  const { bosId: ___, eosIds: ____, ...tiny } = syntheticConfig("tiny-llama");
  assertEquals(tiny, embedded);
  assertThrows(() => syntheticConfig("llama-9"), RangeError, Object.keys(SYNTHETIC).join(", "));
});

/** The logits behind a prompt of 40 tokens. */
function logitsOf(device: Device, config: ModelConfig, seed: number): Float32Array {
  using model = syntheticModel(device, config, seed);
  const exact = bf16Calibration();
  using cache = new KvCache(device, model.cacheShape, kvConfig("bf16"), exact, { context: 64 });
  using logits = Tensor.empty(device, "f32", [1, config.vocabularySize]);
  model.prefill(logits, cache.sequence(), syntheticPrompt(config, 40));
  return logits.read<Float32Array>();
}

testOnDevices("a seed draws one model, with finite logits; biases and an untied head take part", (device) => {
  const untied = { ...syntheticConfig("tiny-llama"), layers: 2, attentionBias: true, tieWordEmbeddings: false };
  const qwen2 = { ...untied, architecture: "Qwen2ForCausalLM" };
  for (const config of [syntheticConfig("tiny-llama"), untied, qwen2]) {
    const [first, again, other] = [3, 3, 4].map((seed) => logitsOf(device, config, seed));
    assert(first.every(Number.isFinite) && first.some((x) => x !== 0));
    assertEquals(first, again);
    assert(first.some((x, i) => x !== other[i]));
  }
  const biased = logitsOf(device, untied, 3), plain = logitsOf(device, { ...untied, attentionBias: false }, 3);
  assert(biased.some((x, i) => x !== plain[i]));
  assert(logitsOf(device, qwen2, 3).some((x, i) => x !== biased[i]), "Qwen 2 has no bias on attention's output");
});

test("a synthetic model generates from token ids, says what it is, and has no tokenizer", async () => {
  for (const calibration of [undefined, syntheticCalibration]) {
    using model = await LanguageModel.synthetic("tiny-llama", { device: "cpu", kv: "vq2", context: 256, calibration });
    assertEquals(model.config.model, "synthetic tiny-llama, seed 0");
    assertEquals(model.config.calibration, calibration ? "synthetic activations" : "data-free (no calibration file)");
    const prompt = [...syntheticPrompt(model.model.config, 200)];
    const { tokens, text, finishReason } = await model.complete(prompt, { maxTokens: 8 });
    assertEquals([tokens.length, text, finishReason], [8, "", "length"]);
    await assertRejects(() => model.complete("text"), Error, "has no tokenizer");
  }
  await assertRejects(() => LanguageModel.synthetic("llama-9", { device: "cpu" }), RangeError, "llama-9");
});

test("a drawn calibration of vecinfer+ keeps to its bits, with matrices and formats a layer, and generates", async () => {
  const options = { device: "cpu", context: 256, calibration: syntheticCalibration } as const;
  for (const [kv, most] of [["vq2+", 1.95], ["vq1.5+", 1.45], ["vq1+", 1]] as const) {
    using model = await LanguageModel.synthetic("tiny-llama", { ...options, kv });
    const { calibration, shape, config } = model.cache, { layers, kvHeads, headDim } = shape;
    assertEquals(model.config.calibration, "synthetic, drawn");
    let bits = 0;
    for (const which of ["keys", "values"] as const) {
      const side = calibration[which];
      assert(
        side.transform === "fitted" &&
          side.layers.every(({ matrix }) => matrix?.length === kvHeads * headDim * headDim),
        which,
      );
      side.layers.forEach((_, layer) => {
        const format = layerFormat(side, config[which], layer);
        bits += format.bits / format.subDim / (2 * layers);
      });
    }
    assert(bits <= most && bits > most - 0.3, `${kv}: ${bits} bits`);
    const { tokens } = await model.complete([...syntheticPrompt(model.model.config, 200)], { maxTokens: 4 });
    assertEquals(tokens.length, 4);
  }
});
