import { assert, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, LanguageModel, openModel, Tokenizer } from "../../mod.ts";
import { evaluate, loadCalibration, readText, textPassages } from "../../lib/calibration/mod.ts";
import { Device, KvCache, kvConfig, PRESETS } from "../../lib/ops/mod.ts";
import { skipCuda as skip } from "../support/device.ts";

const folder = fileURLToPath(EMBEDDED_MODEL), golden = JSON.parse(readFileSync(`${folder}/golden.json`, "utf8"));
const windows = (count: number) => textPassages(Tokenizer.open(folder), readText(`${folder}/eval.txt`), 2049, count);

async function qualities(name: "cpu" | "cuda", count: number, presets: string[]) {
  using device = Device.open({ device: name });
  using model = await openModel(device, folder);
  using owned = new DisposableStack();
  const [reference, ...caches] = ["bf16", ...presets].map((preset) => {
    const config = kvConfig(preset);
    return owned.use(
      new KvCache(device, model.cacheShape, config, loadCalibration(folder, model, config), { context: 2048 }),
    );
  });
  return await evaluate(model, reference, caches, windows(count));
}

test("cuda: perplexity of the embedded model is within 0.5 % of the reference", { skip }, async () => {
  const [{ perplexity }] = await qualities("cuda", 8, []);
  assert(Math.abs(perplexity / golden.perplexity.perplexity - 1) <= 5e-3, `perplexity ${perplexity}`);
});

for (const { prompt, ids } of golden.greedy as { prompt: string; ids: number[] }[]) {
  test(`cuda: greedy continuation of "${prompt}" is the reference's`, { skip }, async () => {
    using model = await LanguageModel.load(EMBEDDED_MODEL, { kv: "bf16", device: "cuda" });
    const begin = model.encode(prompt).length;
    const { tokens } = await model.complete(prompt, { maxTokens: 32 });
    assertEquals(tokens.map(({ id }) => id), ids.slice(begin, begin + 32));
  });
}

// All windows of the table: over one, a change of the norms' epsilon by 1 % moves vq4's KL by 1 %.
test("cuda: every preset costs what it costs on the CPU, within 1 %", { skip }, async () => {
  const presets = Object.keys(PRESETS).slice(1);
  const [cpu, cuda] = [await qualities("cpu", 16, presets), await qualities("cuda", 16, presets)];
  const off = cpu.flatMap((expected, i) => {
    const found = cuda[i], name = ["bf16", ...presets][i];
    return (["perplexity", "kl", "top1"] as const).filter((figure) =>
      (i > 0 || figure !== "kl") && !(Math.abs(found[figure] - expected[figure]) <= 0.01 * expected[figure])
    ).map((figure) => `${name}: ${figure} ${found[figure]}, on the CPU ${expected[figure]}`);
  });
  assertEquals(off, []);
});

test("cuda: text over a coded cache is what the CPU writes", { skip }, async () => {
  const texts: string[] = [];
  for (const device of ["cpu", "cuda"] as const) {
    using model = await LanguageModel.load(EMBEDDED_MODEL, { kv: "vq2", device });
    texts.push((await model.complete("See the documentation for", { maxTokens: 32 })).text);
  }
  assertEquals(texts[1], texts[0]);
});
