/**
 * Measures what caches cost in quality against the bf16 cache, for presets and for the methods of other systems.
 *
 * @module
 */

import { existsSync } from "node:fs";
import { loadCalibration, openModel, openTokenizer } from "../mod.ts";
import {
  attentionErrors,
  codebookUse,
  type Contender,
  contender,
  DEPTHS,
  drifts,
  evaluate,
  keyOutliers,
  type Method,
  MethodCalibrator,
  methodOf,
  METHODS,
  plant,
  type Quality,
  readText,
  retrieves,
  textPassages,
} from "../lib/calibration/mod.ts";
import { Device, effectiveBits, KvCache, kvConfig, PRESETS } from "../lib/ops/mod.ts";
import { command, UsageError } from "./frame/command.ts";
import { CACHE_OPTIONS, checked, deviceOptions, MODEL_OPTIONS, table, whole } from "./frame/options.ts";

const MEASURES = ["quality", "attention", "retrieval", "drift", "codebooks"];

/** Tokens generated, prompts, and their share of a window, where drift is measured. */
const DRIFT_TOKENS = 256, DRIFT_PROMPTS = 4;

/** What is measured of one cache on one text. */
interface Row extends Partial<ReturnType<typeof qualityOf>> {
  text: string;
  name: string;
  method: string;
  title: string;
  paper: string;
  path: "fused" | "reference";
  kv: string;
  keys: string;
  values: string;
  calibration: string;
  effectiveBits: number;
  /** Of each layer. */
  attentionError?: number[];
  /** At each depth. */
  retrieved?: boolean[];
  /** Of each prompt. */
  drift?: { first: number; agreement: number }[];
}

/** Titles of columns, and what stands in them; nothing where it was not measured. */
const columns: [string, (row: Row) => string | undefined][] = [
  ["perplexity", ({ perplexity }) => perplexity?.toFixed(4)],
  [
    "change",
    ({ change }) => change === undefined ? undefined : `${change >= 0 ? "+" : ""}${(100 * change).toFixed(2)} %`,
  ],
  ["KL", ({ kl }) => kl?.toFixed(4)],
  ["top-1", ({ top1 }) => top1?.toFixed(4)],
  ["bits", ({ effectiveBits }) => effectiveBits.toFixed(2)],
  ["attention error", ({ attentionError }) => attentionError && mean(attentionError).toFixed(4)],
  ["retrieval", ({ retrieved }) => retrieved && `${retrieved.filter(Boolean).length}/${retrieved.length}`],
  ["first difference", ({ drift }) => drift && mean(drift.map(({ first }) => first)).toFixed(0)],
  ["agreement", ({ drift }) => drift && mean(drift.map(({ agreement }) => agreement)).toFixed(3)],
];

await command({
  name: "evaluate",
  summary: "perplexity, KL, top-1 agreement and more of caches against bf16, by teacher forcing",
  usage: "scripts/evaluate.ts [options] [text file]",
  positionals: [0, 1],
  options: {
    ...MODEL_OPTIONS,
    method: {
      type: "string",
      default: "calibrated",
      help: `methods with commas, settings after a colon (kivi:g128): ${METHODS.join(", ")}`,
    },
    kv: {
      type: "string",
      short: "k",
      help: "presets or formats, with commas, of the product quantizers among the methods; keys+values apart as " +
        "d4b10+d8b12; all is every preset (default: vq2, or all without --method)",
    },
    ...CACHE_OPTIONS,
    text: { type: "string", help: "texts of several kinds, as docs=FILE,code=FILE" },
    windows: { type: "number", default: 16, help: "windows of each text" },
    length: { type: "number", default: 2048, help: "predictions a window" },
    context: { type: "number", default: 32768, help: "tokens of the sequence that effective bits are counted for" },
    measures: {
      type: "string",
      default: "quality",
      help: `what to measure, with commas: ${MEASURES.join(", ")}; or all`,
    },
    "calibration-text": { type: "string", help: "text that methods are trained on (default: calib.txt of the model)" },
    "calibration-windows": { type: "number", default: 16, help: "windows of it, of --length tokens" },
    json: { type: "boolean", help: "print one JSON object" },
  },
}, async ({ options, positionals, signal, progress }) => {
  const methods = [...new Set(options.method.split(","))].map((name) => checked(() => methodOf(name)));
  const kv = options.kv ?? (options.method === "calibrated" ? "all" : "vq2");
  const configs = (kv === "all" ? Object.keys(PRESETS) : kv.split(",")).filter((name) => name !== "bf16").map(
    (name) => checked(() => kvConfig(name, options)),
  );
  const wanted = options.measures === "all" ? MEASURES : options.measures.split(",");
  const unknown = wanted.find((name) => !MEASURES.includes(name));
  if (unknown !== undefined) {
    throw new UsageError(`--measures: "${unknown}" is unknown; ${MEASURES.join(", ")} are known`);
  }
  const measured = (name: string) => wanted.includes(name);
  const count = whole("windows", options.windows), length = whole("length", options.length);
  const context = whole("context", options.context),
    calibrationCount = whole("calibration-windows", options["calibration-windows"]);
  const tokenizer = openTokenizer(options.model);
  const files = textFiles(options.text, () => positionals[0] ?? textOf(options.model, "eval.txt", "a text file"));
  const texts = files.map(([kind, file]) => ({
    kind,
    file,
    windows: textPassages(tokenizer, readText(file), length + 1, count),
  }));
  const trained = methods.some((method) => method.path === "fused" && typeof method.scheme !== "string");
  const calibrationText = trained || measured("codebooks")
    ? options["calibration-text"] ?? textOf(options.model, "calib.txt", "--calibration-text")
    : undefined;
  const calibrationWindows = calibrationText === undefined
    ? undefined
    : textPassages(tokenizer, readText(calibrationText), length, calibrationCount);
  using device = Device.open(deviceOptions(options));
  using model = await openModel(device, options.model, { signal });
  using owned = new DisposableStack();
  const exact = kvConfig("bf16"), capacity = Math.max(length, 512) + 64;
  const reference = owned.use(
    new KvCache(device, model.cacheShape, exact, loadCalibration(options.model, model, exact), { context: capacity }),
  );
  const calibrator = calibrationWindows && owned.use(new MethodCalibrator(model, calibrationWindows));
  const started = performance.now(), contenders: Contender[] = [];
  const calibrate = async (method: Method, config: typeof exact) => {
    if (method.path === "reference") return undefined;
    if (typeof method.scheme === "string") {
      const path = method.scheme === "file" ? options.calibration : method.scheme;
      return loadCalibration(options.model, model, config, path);
    }
    let bar: ReturnType<typeof progress> | undefined;
    const onProgress = (done: number, total: number) =>
      (bar ??= progress(`${method.name} ${config.name}`, total)).update(done);
    return await calibrator!.calibrate(method, config, { signal, onProgress }).finally(() => bar?.stop());
  };
  for (const method of methods) {
    const { sinks, window } = options;
    for (const config of method.path === "fused" ? configs : [{ ...exact, sinks, window }]) {
      contenders.push(owned.use(contender(model, method, config, await calibrate(method, config), capacity)));
    }
  }
  const caches = contenders.map(({ cache }) => cache), all = [reference, ...caches];

  const run = async <T>(
    label: string,
    total: number,
    work: (update: (done: number) => void) => Promise<T>,
  ): Promise<T> => {
    const bar = progress(label, total);
    return await work(bar.update).finally(() => bar.stop());
  };
  const rows: Row[] = [];
  for (const { kind, windows } of texts) {
    const label = (what: string) => texts.length > 1 ? `${what}, ${kind}` : what;
    const qualities = measured("quality")
      ? await run(
        label("evaluating"),
        length * count * all.length,
        (onProgress) => evaluate(model, reference, caches, windows, { signal, onProgress }),
      )
      : undefined;
    const some = windows.slice(0, Math.min(DRIFT_PROMPTS, count));
    const errors = measured("attention")
      ? await run(
        label("attention"),
        some.length * (length + 1),
        (onProgress) =>
          attentionErrors(model, reference, caches, some.map((w) => w.subarray(0, length)), { signal, onProgress }),
      )
      : undefined;
    // Fact, question and answer fit beside the text.
    const planted = plant(tokenizer, windows[0].subarray(0, Math.max(64, length - 64)));
    const found = measured("retrieval")
      ? await run(
        label("retrieval"),
        DEPTHS * all.length,
        (onProgress) => retrieves(model, all, planted, { signal, onProgress }),
      )
      : undefined;
    const prompts = some.map((window) =>
      window.subarray(0, Math.max(1, Math.min(length, capacity - DRIFT_TOKENS - 64)))
    );
    const drift = measured("drift")
      ? await run(
        label("drift"),
        prompts.length * all.length * DRIFT_TOKENS,
        (onProgress) => drifts(model, reference, caches, prompts, DRIFT_TOKENS, { signal, onProgress }),
      )
      : undefined;
    all.forEach((cache, i) => {
      const own = contenders[i - 1], { config } = cache, fused = own?.method.path !== "reference";
      const bytes = own ? own.bytes : () => cache.bytesPerToken * context;
      rows.push({
        text: kind,
        name: own?.name ?? "bf16",
        method: own?.method.name ?? "bf16",
        title: own?.method.title ?? "the 16-bit cache",
        paper: own?.method.paper ?? "",
        path: own?.method.path ?? "fused",
        kv: config.name,
        keys: fused ? config.keys.name : own.method.name,
        values: fused ? config.values.name : own.method.name,
        calibration: own?.calibration ?? "exact",
        effectiveBits: effectiveBits(model.cacheShape, bytes(context), context),
        ...qualities && qualityOf(qualities[i], qualities[0]),
        ...errors && { attentionError: i === 0 ? errors[0].map(() => 0) : errors[i - 1] },
        ...found && { retrieved: found[i] },
        ...drift && {
          drift: i === 0 ? prompts.map(() => ({ first: DRIFT_TOKENS, agreement: 1 })) : drift[i - 1],
        },
      });
    });
  }
  const codebooks = measured("codebooks")
    ? await codebookMeasures(contenders, calibrator!, options.sinks, signal)
    : undefined;
  const seconds = (performance.now() - started) / 1000;
  if (options.json) {
    const { model: folder, sinks, window } = options;
    console.log(
      JSON.stringify({
        model: folder,
        texts: texts.map(({ kind, file }) => ({ kind, file })),
        windows: count,
        length,
        sinks,
        window,
        context,
        calibration: calibrator && { text: calibrationText, windows: calibrationCount },
        device: device.info,
        seconds,
        rows,
        ...codebooks,
      }),
    );
    return;
  }
  for (const { kind, file } of texts) {
    const shown = rows.filter((row) => row.text === kind);
    console.log(
      `${file}: ${count} windows of ${length} predictions, sinks ${options.sinks}, window ${options.window}, ` +
        `bits at ${context} tokens, ${device.name}`,
    );
    console.log(table([["cache", "path", ...columns.map(([title]) => title), "calibration"], ...shown.map(cells)]
      .map((cells, _, rows) => cells.filter((_, i) => rows.slice(1).some((row) => row[i] !== "")))));
    const known = shown[0].retrieved?.filter(Boolean).length;
    if (known !== undefined && known < DEPTHS / 2) {
      console.log(
        `retrieval: bf16 finds ${known} of ${DEPTHS} facts: this model cannot do it, the column says nothing`,
      );
    }
  }
});

function cells(row: Row): string[] {
  const { name, method, kv, path, calibration } = row;
  return [method === "calibrated" ? kv : name, path, ...columns.map(([, show]) => show(row) ?? ""), calibration];
}

function mean(x: readonly number[]): number {
  return x.reduce((sum, value) => sum + value, 0) / x.length;
}

function qualityOf({ perplexity, kl, top1, tokens }: Quality, base: Quality) {
  return { perplexity, change: perplexity / base.perplexity - 1, kl, top1, tokens };
}

/** A text that comes with a model folder, as those of the embedded model do; other models need one to be given. */
function textOf(model: string, name: string, needed: string): string {
  const path = `${model}/${name}`;
  if (existsSync(path)) return path;
  throw new UsageError(`${model} comes with no ${name}; give ${needed}`);
}

/** kind and file of each text. */
function textFiles(list: string | undefined, single: () => string): [string, string][] {
  if (list === undefined) return [["text", single()]];
  return list.split(",").map((entry) => {
    const at = entry.indexOf("=");
    if (at < 1 || at === entry.length - 1) throw new UsageError(`--text: "${entry}" is not kind=FILE`);
    return [entry.slice(0, at), entry.slice(at + 1)];
  });
}

/** Channels of the keys before and after each transform, and the use of codewords. */
async function codebookMeasures(
  contenders: readonly Contender[],
  calibrator: MethodCalibrator,
  sinks: number,
  signal: AbortSignal,
) {
  const activations = await calibrator.activations({ skip: sinks, signal }),
    fused = contenders.filter(({ method }) => method.path === "fused");
  return {
    codebooks: fused.flatMap(({ name, cache }) => codebookUse(cache, activations).map((use) => ({ name, ...use }))),
    outliers: fused.flatMap(({ name, cache }) => keyOutliers(cache, activations).map((layer) => ({ name, ...layer }))),
  };
}
