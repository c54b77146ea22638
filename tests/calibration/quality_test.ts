import { assert, assertRejects, assertThrows } from "@std/assert";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import { EMBEDDED_MODEL, openModel, Tokenizer } from "../../mod.ts";
import { evaluate, loadCalibration, readText, textPassages } from "../../lib/calibration/mod.ts";
import { Device, KvCache, kvConfig } from "../../lib/ops/mod.ts";

const folder = fileURLToPath(EMBEDDED_MODEL);

// The same code runs under the sanitizers on shorter texts, in tests/scripts/scripts_test.ts and below.
const skip = process.env.VECINFER_SANITIZE ? "takes most of an hour under sanitizers" : false;

test(
  "presets cost what the reference simulation says: 16 windows of 2048, window 128, no sinks",
  { skip },
  async () => {
    using device = Device.open({ device: "cpu" });
    using model = await openModel(device, folder);
    const windows = textPassages(Tokenizer.open(folder), readText(`${folder}/eval.txt`), 2049, 16);
    using owned = new DisposableStack();
    const caches = ["bf16", "vq4", "vq2", "vq1"].map((name) => {
      const config = kvConfig(name, { sinks: 0, window: 128 });
      return owned.use(
        new KvCache(device, model.cacheShape, config, loadCalibration(folder, model, config), { context: 2048 }),
      );
    });
    const [bf16, vq4, vq2, vq1] = await evaluate(model, caches[0], caches.slice(1), windows);
    const rise = (quality: typeof bf16) => 100 * (quality.perplexity / bf16.perplexity - 1);
    const figures = JSON.stringify({ bf16, vq4, vq2, vq1 }, (key, value) => key === "nll" ? undefined : value);
    assert(Math.abs(bf16.perplexity / 7.436 - 1) <= 5e-3, figures);
    assert(rise(vq4) < 0.6, figures);
    assert(rise(vq2) >= 2.5 && rise(vq2) <= 4.7 && vq2.kl >= 0.030 && vq2.kl <= 0.052, figures);
    assert(rise(vq1) >= 9 && rise(vq1) <= 16, figures);
  },
);

test("an aborted evaluation stops and gives its sequences back", async () => {
  using device = Device.open({ device: "cpu" });
  using model = await openModel(device, folder);
  const config = kvConfig("bf16");
  using cache = new KvCache(device, model.cacheShape, config, loadCalibration(folder, model, config), { context: 512 });
  const windows = textPassages(Tokenizer.open(folder), readText(`${folder}/eval.txt`), 512, 1);
  const abort = new AbortController();
  await assertRejects(
    () =>
      evaluate(model, cache, [], windows, { signal: abort.signal, onProgress: () => abort.abort(new Error("enough")) }),
    Error,
    "enough",
  );
  using sequence = cache.sequence();
  assert(sequence.length === 0 && cache.freePages === cache.pageCount);
});

test("text that is too short for the windows is refused with both numbers", () => {
  const tokenizer = Tokenizer.open(folder);
  assertThrows(() => textPassages(tokenizer, "The kernel", 100, 2), RangeError, "200");
});
