import { assert, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import { EMBEDDED_MODEL, LanguageModel } from "../../mod.ts";
import { evaluate, readText, textPassages } from "../../lib/calibration/mod.ts";
import { Tensor } from "../../lib/ops/mod.ts";
import { slow } from "../support/slow.ts";

// Values of Hugging Face transformers in float32; see assets/tiny-llama/README.md.
const folder = fileURLToPath(EMBEDDED_MODEL);
const golden = JSON.parse(readFileSync(`${folder}/golden.json`, "utf8"));
const load = () => LanguageModel.load(EMBEDDED_MODEL, { kv: "bf16", device: "cpu" });

test("logits of the embedded model are within 2e-2 of the reference", async () => {
  using model = await load();
  using sequence = model.cache.sequence();
  using logits = Tensor.empty(model.device, "f32", [1, model.model.config.vocabularySize]);
  model.model.prefill(logits, sequence, golden.logits.prompt_ids);
  const values = logits.read() as Float32Array;
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a]).slice(0, golden.logits.top_ids.length);
  assertEquals(order, golden.logits.top_ids);
  golden.logits.top_ids.forEach((id: number, i: number) => {
    const difference = Math.abs(values[id] - golden.logits.top_logits[i]);
    assert(difference <= 2e-2, `logit ${id}: ${values[id]}, reference ${golden.logits.top_logits[i]}`);
  });
  const largest = values[order[0]];
  const logSumExp = largest + Math.log(values.reduce((sum, x) => sum + Math.exp(x - largest), 0));
  assert(Math.abs(logSumExp - golden.logits.logsumexp) <= 2e-2, `log-sum-exp ${logSumExp}`);
});

test(
  "perplexity of the embedded model is within 0.2 % of the reference, with a bf16 cache",
  { skip: slow },
  async () => {
    using model = await load();
    const windows = textPassages(model.tokenizer, readText(`${folder}/eval.txt`), 2049, 8);
    const [quality] = await evaluate(model.model, model.cache, [], windows);
    const { perplexity, nll_per_window } = golden.perplexity;
    assert(
      Math.abs(quality.perplexity / perplexity - 1) <= 2e-3,
      `perplexity ${quality.perplexity}, reference ${perplexity}`,
    );
    quality.nll.forEach((nll, i) =>
      assert(Math.abs(nll - nll_per_window[i]) <= 5e-3, `window ${i}: ${nll}, reference ${nll_per_window[i]}`)
    );
    assertEquals(quality.kl, 0);
    assertEquals(quality.top1, 1);
  },
);

for (const { prompt, ids } of golden.greedy as { prompt: string; ids: number[] }[]) {
  test(`greedy continuation of "${prompt}" is the reference's`, async () => {
    using model = await load();
    const encoded = model.encode(prompt);
    assertEquals(encoded, ids.slice(0, encoded.length));
    const { tokens } = await model.complete(prompt, { maxTokens: ids.length - encoded.length });
    assertEquals(tokens.slice(0, 32).map(({ id }) => id), ids.slice(encoded.length, encoded.length + 32));
  });
}
