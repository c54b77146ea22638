/**
 * A whole decode step of the embedded model, recorded and replayed, over the presets and context lengths.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import {
  EMBEDDED_MODEL,
  KvCache,
  kvConfig,
  linear,
  Llama,
  LlamaStep,
  loadCalibration,
  PRESETS,
  Tensor,
} from "../mod.ts";
import { benchmark } from "./frame.ts";

await benchmark("decode", "a decode step of the embedded model; its floor is one read of weights and cache", {
  contexts: { type: "string", default: "512,2048", help: "context lengths, with commas" },
}, async ({ device, time, bandwidth }, options) => {
  const folder = fileURLToPath(EMBEDDED_MODEL);
  using model = await Llama.load(device, folder);
  const rows = Math.floor(model.weightBytes / 2 / 4096);
  using weight = Tensor.zeros(device, "bf16", [rows, 4096]);
  using x = Tensor.zeros(device, "f32", [1, 4096]);
  using out = Tensor.empty(device, "f32", [1, rows]);
  await time("a product that reads as many bytes", () => linear(out, x, weight), { bytes: model.weightBytes });
  for (const context of String(options.contexts).split(",").map(Number)) {
    for (const name of Object.keys(PRESETS)) {
      const config = kvConfig(name), calibration = loadCalibration(folder, model, config);
      using cache = new KvCache(device, model.cacheShape, config, calibration, { context });
      using sequence = cache.sequence();
      using step = new LlamaStep(model, 1);
      const ids = Array.from({ length: context }, (_, i) => (i * 7919) % model.config.vocabularySize);
      model.prefill(step.logits, sequence, ids);
      step.slots.write(Int32Array.of(sequence.slot));
      step.ids.write(Int32Array.of(7));
      step.positions.write(Int32Array.of(context - 1));
      using graph = device.capture(() => model.forward(step, cache, 1));
      await time(`${context} tokens, ${name}`, () => graph.launch(), {
        milliseconds: (model.weightBytes + context * cache.bytesPerToken) / bandwidth * 1000,
        of: `${model.weightBytes} bytes of weights and ${context * cache.bytesPerToken} of cache read once`,
      });
    }
  }
});
