/**
 * The main job on the embedded model: text with a 16-bit and with a 2-bit cache, then what each cache costs and gives.
 *
 * @module
 */

import process from "node:process";
import { setImmediate } from "node:timers";
import { EMBEDDED_MODEL, LanguageModel, type Model, openModel, Tokenizer } from "../mod.ts";
import { evaluate, loadCalibration, readText, textPassages } from "../lib/calibration/mod.ts";
import { DEFAULT_KV, Device, effectiveBits, KvCache, kvConfig, PRESETS, Tensor } from "../lib/ops/mod.ts";
import { fileURLToPath } from "node:url";
import { command, type Invocation, type Option } from "./frame/command.ts";
import { configText, deviceOptions, MODEL_OPTIONS, table, whole } from "./frame/options.ts";

const { device: deviceOption, threads, library } = MODEL_OPTIONS;
const PROMPT = "See the documentation for";
/** Tokens of the speed measurement: a prompt, and tokens decoded after it. */
const PREFILL = 1024, DECODE = 64;

interface Speed {
  prefill: number;
  decode: number;
}

/** Prefill and decode speed in tokens/s: the median of three runs over held-out text. */
async function speed(model: Model, cache: KvCache, ids: Int32Array): Promise<Speed> {
  using step = model.step(1);
  using logits = Tensor.empty(model.device, "f32", [1, model.config.vocabularySize]);
  const prefill: number[] = [], decode: number[] = [];
  using graph = model.device.capture(() => model.forward(step, cache, 1));
  for (let run = 0; run < 3; run++) {
    using sequence = cache.sequence();
    let start = performance.now();
    model.prefill(logits, sequence, ids.subarray(0, PREFILL));
    prefill.push(PREFILL / (performance.now() - start) * 1000);
    step.slots.write(Int32Array.of(sequence.slot));
    start = performance.now();
    for (let i = 0; i < DECODE; i++) {
      step.ids.write(ids.subarray(PREFILL + i, PREFILL + i + 1));
      step.positions.write(Int32Array.of(sequence.length));
      sequence.extend(1);
      graph.launch();
      model.device.synchronize();
    }
    decode.push(DECODE / (performance.now() - start) * 1000);
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
  const median = (values: number[]) => values.sort((a, b) => a - b)[1];
  return { prefill: median(prefill), decode: median(decode) };
}

const OPTIONS = {
  device: deviceOption,
  threads,
  library,
  "max-tokens": { type: "number", short: "n", default: 64, help: "tokens of each continuation" },
  windows: { type: "number", default: 2, help: "held-out windows of 2048 tokens" },
  json: { type: "boolean", help: "print one JSON object" },
} as const satisfies Record<string, Option>;

type Run = Invocation<typeof OPTIONS>;

await command({
  name: "demo",
  summary: "generates with a 16-bit and a 2-bit cache, then compares all presets on held-out text",
  usage: "scripts/demo.ts [options]",
  options: OPTIONS,
}, async (run) => {
  const { options, signal } = run, count = whole("windows", options.windows);
  const maxTokens = whole("max-tokens", options["max-tokens"]);
  const continuations = await continueBoth(run, maxTokens);
  const folder = fileURLToPath(EMBEDDED_MODEL), length = 2048;
  const passages = textPassages(Tokenizer.open(folder), readText(`${folder}/eval.txt`), length + 1, count);
  using device = Device.open(deviceOptions(options));
  using model = await openModel(device, folder, { signal });
  using owned = new DisposableStack();
  const caches = Object.keys(PRESETS).map((name) => {
    const config = kvConfig(name);
    return owned.use(
      new KvCache(device, model.cacheShape, config, loadCalibration(folder, model, config), { context: length }),
    );
  });
  const rows = await compare(run, model, caches, passages), { sinks, window } = caches[1].config;
  if (options.json) {
    const { info } = device, prompt = PROMPT;
    console.log(JSON.stringify({ prompt, continuations, device: info, windows: count, length, sinks, window, rows }));
    return;
  }
  console.log(
    `Held-out text: ${count} x ${length} tokens, KL and top-1 against bf16; sinks ${sinks}, window ${window}. ` +
      `Bits count window, sinks and codebooks at ${length} tokens.\nSpeed: ${PREFILL} prompt tokens, ${DECODE} decoded.`,
  );
  console.log(table([
    ["cache", "perplexity", "KL", "top-1", "KV bytes/token", "bits", "compression", "prefill tok/s", "decode tok/s"],
    ...rows.map((row) => [
      row.kv,
      row.perplexity.toFixed(3),
      row.kl.toFixed(4),
      row.top1.toFixed(3),
      String(row.bytesPerToken),
      row.effectiveBits.toFixed(2),
      `${row.compression.toFixed(1)}x`,
      row.prefillTokensPerSecond.toFixed(0),
      row.decodeTokensPerSecond.toFixed(0),
    ]),
  ]));
});

/** Continues the prompt with a 16-bit and with a 2-bit cache. */
async function continueBoth({ options, signal }: Run, maxTokens: number): Promise<{ kv: string; text: string }[]> {
  const continuations: { kv: string; text: string }[] = [];
  for (const kv of ["bf16", DEFAULT_KV]) {
    using model = await LanguageModel.load(EMBEDDED_MODEL, { ...deviceOptions(options), kv, signal });
    if (!options.json) {
      if (kv === "bf16") console.log(`${configText(model.config)}\n`);
      process.stdout.write(`[${kv}] ${PROMPT}`);
    }
    let text = "";
    for await (const piece of model.generate(PROMPT, { maxTokens, signal })) {
      text += piece.text;
      if (!options.json) process.stdout.write(piece.text);
    }
    if (!options.json) console.log("\n");
    continuations.push({ kv, text });
  }
  return continuations;
}

/** What each cache costs and gives; the first is what the others are compared with. */
async function compare({ signal, progress }: Run, model: Model, caches: readonly KvCache[], passages: Int32Array[]) {
  const length = passages[0].length - 1, bar = progress("quality", length * passages.length * caches.length);
  const qualities = await evaluate(model, caches[0], caches.slice(1), passages, { signal, onProgress: bar.update })
    .finally(() => bar.stop());
  const speeds: Speed[] = [], timing = progress("speed", caches.length);
  for (const cache of caches) {
    speeds.push(await speed(model, cache, passages[0]));
    timing.update(speeds.length);
  }
  timing.stop();
  const base = caches[0].bytesPerToken;
  return caches.map((cache, i) => ({
    kv: cache.config.name,
    perplexity: qualities[i].perplexity,
    kl: qualities[i].kl,
    top1: qualities[i].top1,
    bytesPerToken: cache.bytesPerToken,
    effectiveBits: effectiveBits(model.cacheShape, cache.bytes().total, length),
    compression: base / cache.bytesPerToken,
    prefillTokensPerSecond: speeds[i].prefill,
    decodeTokensPerSecond: speeds[i].decode,
  }));
}
