/**
 * Measures what caches cost in quality against the bf16 cache, for presets and for the methods of other systems.
 *
 * @module
 */

import { existsSync } from "node:fs";
import { type Model, openModel, openTokenizer, type Tokenizer } from "../mod.ts";
import {
  attentionErrors,
  codebookUse,
  type Contender,
  contender,
  DEPTHS,
  type Drift,
  drifts,
  evaluate,
  keyOutliers,
  loadCalibration,
  type Method,
  MethodCalibrator,
  methodOf,
  METHODS,
  plant,
  type Quality,
  readText,
  retrieves,
  settle,
  textPassages,
} from "../lib/calibration/mod.ts";
import {
  cacheBytes,
  type Calibration,
  Device,
  effectiveBits,
  KvCache,
  type KvConfig,
  kvConfig,
  PRESETS,
} from "../lib/ops/mod.ts";
import { command, type Progress, UsageError } from "./frame/command.ts";
import { CACHE_OPTIONS, checked, deviceOptions, MODEL_OPTIONS, table, whole } from "./frame/options.ts";

const MEASURES = ["quality", "attention", "retrieval", "drift", "codebooks"];

/** Tokens generated after each prompt, and prompts, where drift is measured. */
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
  const configs = configsOf(options),
    wanted = measuresOf(options.measures),
    measured = (name: string) => wanted.includes(name);
  const count = whole("windows", options.windows), length = whole("length", options.length);
  const context = whole("context", options.context),
    calibrationCount = whole("calibration-windows", options["calibration-windows"]);
  const tokenizer = openTokenizer(options.model);
  const files = textFiles(options.text, () => positionals[0] ?? textOf(options.model, "eval.txt", "a text file"));
  const texts = files.map(([kind, file]): Text => ({
    kind,
    file,
    passages: textPassages(tokenizer, readText(file), length + 1, count),
  }));
  const calibrationText = methods.some(isTrained) || measured("codebooks")
    ? options["calibration-text"] ?? textOf(options.model, "calib.txt", "--calibration-text")
    : undefined;
  const calibrationPassages = calibrationText === undefined
    ? undefined
    : textPassages(tokenizer, readText(calibrationText), length, calibrationCount);
  using device = Device.open(deviceOptions(options));
  using model = await openModel(device, options.model, { signal });
  using owned = new DisposableStack();
  const bf16 = kvConfig("bf16"), capacity = Math.max(length, 512) + 64;
  const reference = owned.use(
    new KvCache(device, model.cacheShape, bf16, loadCalibration(options.model, model, bf16), { context: capacity }),
  );
  const calibrator = calibrationPassages && owned.use(new MethodCalibrator(model, calibrationPassages));
  const started = performance.now(), contenders: Contender[] = [];
  for (const method of methods) {
    const { sinks, window } = options;
    for (const config of method.path === "fused" ? configs : [{ ...bf16, sinks, window }]) {
      const from = { folder: options.model, file: options.calibration, model, calibrator, signal, progress };
      const calibration = await calibrationOf(method, config, from);
      contenders.push(owned.use(contender(model, method, config, calibration, capacity)));
    }
  }
  const run: Run = { model, tokenizer, reference, contenders, length, capacity, measured, signal, progress };
  const rows: Row[] = [];
  for (const text of texts) {
    const label = (what: string) => texts.length > 1 ? `${what}, ${text.kind}` : what;
    rows.push(...rowsOf(run, text.kind, context, await measure(run, text.passages, label)));
  }
  const codebooks = measured("codebooks")
    ? await codebookMeasures(contenders, calibrator!, options.sinks, signal)
    : undefined;
  const seconds = (performance.now() - started) / 1000;
  if (options.json) {
    const { model: folder, sinks, window } = options;
    const calibration = calibrator && { text: calibrationText, windows: calibrationCount };
    const named = texts.map(({ kind, file }) => ({ kind, file })),
      settings = { windows: count, length, sinks, window, context };
    const about = { model: folder, texts: named, ...settings, calibration, device: device.info, seconds };
    console.log(JSON.stringify({ ...about, rows, ...codebooks }));
    return;
  }
  for (const { kind, file } of texts) {
    console.log(
      `${file}: ${count} windows of ${length} predictions, sinks ${options.sinks}, window ${options.window}, ` +
        `bits at ${context} tokens, ${device.name}`,
    );
    printRows(rows.filter((row) => row.text === kind));
  }
});

/** A text and its passages. */
interface Text {
  kind: string;
  file: string;
  passages: Int32Array[];
}

/** What is measured, and with what. */
interface Run {
  model: Model;
  tokenizer: Tokenizer;
  reference: KvCache;
  contenders: readonly Contender[];
  length: number;
  /** Tokens that a cache has room for. */
  capacity: number;
  measured: (name: string) => boolean;
  signal: AbortSignal;
  progress: (label: string, total: number) => Progress;
}

/** The caches of product quantizers. */
function configsOf(options: { kv?: string; method: string; sinks: number; window: number }): KvConfig[] {
  const kv = options.kv ?? (options.method === "calibrated" ? "all" : "vq2");
  const names = kv === "all" ? Object.keys(PRESETS) : kv.split(",");
  return names.filter((name) => name !== "bf16").map((name) => checked(() => kvConfig(name, options)));
}

/** What is to be measured. */
function measuresOf(list: string): string[] {
  const wanted = list === "all" ? MEASURES : list.split(",");
  const unknown = wanted.find((name) => !MEASURES.includes(name));
  if (unknown === undefined) return wanted;
  throw new UsageError(`--measures: "${unknown}" is unknown; ${MEASURES.join(", ")} are known`);
}

/** Whether a method's codebooks are trained on a text now. */
function isTrained(method: Method): boolean {
  return method.path === "fused" && method.scheme !== "file" && method.scheme !== "data-free";
}

/** The calibration of a product quantizer: from a file, data-free, or trained now. Other methods have none. */
async function calibrationOf(
  method: Method,
  config: KvConfig,
  { folder, model, file, calibrator, signal, progress }: {
    folder: string;
    model: Model;
    file: string | undefined;
    calibrator: MethodCalibrator | undefined;
    signal: AbortSignal;
    progress: (label: string, total: number) => Progress;
  },
): Promise<Calibration | undefined> {
  if (method.path === "reference") return undefined;
  if (method.scheme === "file") return loadCalibration(folder, model, config, file);
  if (method.scheme === "data-free") return loadCalibration(folder, model, config, "data-free");
  let bar: Progress | undefined;
  const onProgress = (done: number, total: number) =>
    (bar ??= progress(`${method.name} ${config.name}`, total)).update(done);
  return await calibrator!.calibrate(method, config, { signal, onProgress }).finally(() => bar?.stop());
}

/** What was measured on one text, of the reference and the contenders in their order; nothing that was not asked for. */
interface Measured {
  qualities?: Quality[];
  errors?: number[][];
  found?: boolean[][];
  drift?: Drift[][];
}

/** Takes the measures that are asked for on one text. */
async function measure(run: Run, passages: Int32Array[], label: (what: string) => string): Promise<Measured> {
  const { model, tokenizer, reference, contenders, length, capacity, measured, signal } = run;
  const caches = contenders.map(({ cache }) => cache), all = [reference, ...caches];
  const taken = async <T>(
    [name, title]: [string, string],
    total: number,
    work: (options: { signal: AbortSignal; onProgress: (done: number) => void }) => Promise<T>,
  ): Promise<T | undefined> => {
    if (!measured(name)) return undefined;
    const bar = run.progress(label(title), total);
    return await work({ signal, onProgress: bar.update }).finally(() => bar.stop());
  };
  const some = passages.slice(0, Math.min(DRIFT_PROMPTS, passages.length));
  // Fact, question and answer fit beside the text.
  const planted = plant(tokenizer, passages[0].subarray(0, Math.max(64, length - 64)));
  const prompts = some.map((tokens) => tokens.subarray(0, Math.max(1, Math.min(length, capacity - DRIFT_TOKENS - 64))));
  return {
    qualities: await taken(
      ["quality", "evaluating"],
      length * passages.length * all.length,
      (options) => evaluate(model, reference, caches, passages, { ...options, afterStep: settle }),
    ),
    errors: await taken(
      ["attention", "attention"],
      some.length * (length + 1),
      (options) =>
        attentionErrors(model, reference, caches, some.map((tokens) => tokens.subarray(0, length)), options)
          .then((found) => [new Array<number>(model.config.layers).fill(0), ...found]),
    ),
    found: await taken(
      ["retrieval", "retrieval"],
      DEPTHS * all.length,
      (options) => retrieves(model, all, planted, options),
    ),
    drift: await taken(
      ["drift", "drift"],
      prompts.length * all.length * DRIFT_TOKENS,
      (options) =>
        drifts(model, reference, caches, prompts, DRIFT_TOKENS, options)
          .then((found) => [prompts.map(() => ({ first: DRIFT_TOKENS, agreement: 1 })), ...found]),
    ),
  };
}

/** The rows of one text, the reference's first. */
function rowsOf(run: Run, text: string, context: number, { qualities, errors, found, drift }: Measured): Row[] {
  const { model, reference, contenders } = run;
  const { name: kv, keys, values } = reference.config;
  const measures = (i: number) => ({
    ...qualities && qualityOf(qualities[i], qualities[0]),
    ...errors && { attentionError: errors[i] },
    ...found && { retrieved: found[i] },
    ...drift && { drift: drift[i] },
  });
  const bits = (bytes: number) => effectiveBits(model.cacheShape, bytes, context);
  const { sliding } = cacheBytes(model.cacheShape, reference.config, reference.calibration, context);
  const own: Row = {
    text,
    name: "bf16",
    method: "bf16",
    title: "the 16-bit cache",
    paper: "",
    path: "fused",
    kv,
    keys: keys.name,
    values: values.name,
    calibration: "exact",
    effectiveBits: bits(reference.bytesPerToken * context + sliding),
    ...measures(0),
  };
  return [
    own,
    ...contenders.map(({ name, method, cache: { config }, calibration, bytes }, i): Row => ({
      text,
      name,
      method: method.name,
      title: method.title,
      paper: method.paper,
      path: method.path,
      kv: config.name,
      keys: method.path === "fused" ? config.keys.name : method.name,
      values: method.path === "fused" ? config.values.name : method.name,
      calibration,
      effectiveBits: bits(bytes(context)),
      ...measures(i + 1),
    })),
  ];
}

/** Prints the table of one text. */
function printRows(rows: readonly Row[]): void {
  console.log(table([["cache", "path", ...columns.map(([title]) => title), "calibration"], ...rows.map(cells)]
    .map((cells, _, rows) => cells.filter((_, i) => rows.slice(1).some((row) => row[i] !== "")))));
  const known = rows[0].retrieved?.filter(Boolean).length;
  if (known !== undefined && known < DEPTHS / 2) {
    console.log(
      `retrieval: bf16 finds ${known} of ${DEPTHS} facts: this model cannot do it, the column says nothing`,
    );
  }
}

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
