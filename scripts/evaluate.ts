/**
 * Measures what caches cost in quality: perplexity, KL divergence and top-1 agreement against the bf16 cache.
 *
 * @module
 */

import {
  type Calibration,
  describeCalibration,
  Device,
  effectiveBits,
  evaluate,
  KvCache,
  kvConfig,
  Llama,
  loadCalibration,
  PRESETS,
  readText,
  textWindows,
  Tokenizer,
} from "../mod.ts";
import { command } from "./command.ts";
import { CACHE_OPTIONS, checked, deviceOptions, MODEL_OPTIONS, table, whole } from "./options.ts";

await command({
  name: "evaluate",
  summary: "perplexity, KL and top-1 agreement of caches against bf16, by teacher forcing",
  usage: "scripts/evaluate.ts [options] [text file]",
  positionals: [0, 1],
  options: {
    ...MODEL_OPTIONS,
    kv: {
      type: "string",
      short: "k",
      default: "all",
      help: "presets or formats, with commas; keys+values apart as d4b10+d8b12",
    },
    ...CACHE_OPTIONS,
    windows: { type: "number", default: 16, help: "windows of text" },
    length: { type: "number", default: 2048, help: "predictions a window" },
    json: { type: "boolean", help: "print one JSON object" },
  },
}, async ({ options, positionals, signal, progress }) => {
  const names = options.kv === "all" ? Object.keys(PRESETS) : options.kv.split(",");
  const configs = names.filter((name) => name !== "bf16").map((name) => {
    const [keys, values = keys] = name.split("+");
    return checked(() => kvConfig(keys === values ? keys : { keys, values }, options));
  });
  const count = whole("windows", options.windows), length = whole("length", options.length);
  const file = positionals[0] ?? `${options.model}/eval.txt`;
  const windows = textWindows(Tokenizer.open(options.model), readText(file), length + 1, count);
  using device = Device.open(deviceOptions(options));
  using model = await Llama.load(device, options.model, { signal });
  using owned = new DisposableStack();
  const make = (config: typeof configs[number], calibration: Calibration) =>
    owned.use(new KvCache(device, model.cacheShape, config, calibration, { context: length }));
  const exact = kvConfig("bf16"), reference = make(exact, loadCalibration(options.model, model, exact));
  const caches = configs.map((config) =>
    make(config, loadCalibration(options.model, model, config, options.calibration))
  );
  const bar = progress("evaluating", length * count * (caches.length + 1)), started = performance.now();
  const qualities = await evaluate(model, reference, caches, windows, { signal, onProgress: bar.update })
    .finally(() => bar.stop());
  const seconds = (performance.now() - started) / 1000, base = qualities[0].perplexity;
  const rows = qualities.map((quality, i) => {
    const cache = i === 0 ? reference : caches[i - 1];
    return {
      kv: cache.config.name,
      keys: cache.config.keys.name,
      values: cache.config.values.name,
      calibration: describeCalibration(cache.calibration),
      perplexity: quality.perplexity,
      change: quality.perplexity / base - 1,
      kl: quality.kl,
      top1: quality.top1,
      bytesPerToken: cache.bytesPerToken,
      effectiveBits: effectiveBits(model.cacheShape, cache.bytes().total, length),
      tokens: quality.tokens,
    };
  });
  if (options.json) {
    const { model: folder, sinks, window } = options;
    console.log(
      JSON.stringify({
        model: folder,
        text: file,
        windows: count,
        length,
        sinks,
        window,
        device: device.info,
        seconds,
        rows,
      }),
    );
    return;
  }
  console.log(
    `${file}: ${count} windows of ${length} predictions, sinks ${options.sinks}, window ${options.window}, ${device.name}`,
  );
  console.log(table([
    ["cache", "perplexity", "change", "KL", "top-1", "bytes/token", "bits", "calibration"],
    ...rows.map((row) => [
      row.kv,
      row.perplexity.toFixed(4),
      `${row.change >= 0 ? "+" : ""}${(100 * row.change).toFixed(2)} %`,
      row.kl.toFixed(4),
      row.top1.toFixed(4),
      String(row.bytesPerToken),
      row.effectiveBits.toFixed(2),
      row.calibration,
    ]),
  ]));
});
