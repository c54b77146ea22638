/**
 * The ablation behind the default recipe: a declared list of recipes, each trained from one capture of the model's
 * activations and measured on several kinds of text against the bf16 cache.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { Decoder, type Model, modelFingerprint, openModel, openTokenizer } from "../../mod.ts";
import {
  Activations,
  allocate,
  evaluate,
  needsWeights,
  type Quality,
  readText,
  type Recipe,
  ReferenceCache,
  type Sensitivity,
  sensitivity,
  textPassages,
  train,
} from "../../lib/calibration/mod.ts";
import {
  cacheBytes,
  type Calibration,
  dataFreeSide,
  Device,
  effectiveBits,
  exactSide,
  type Format,
  FORMATS,
  KvCache,
  kvConfig,
} from "../../lib/ops/mod.ts";
import { command, UsageError } from "../../scripts/frame/command.ts";
import { deviceOptions, MODEL_OPTIONS, table, whole } from "../../scripts/frame/options.ts";
import { coderMethod } from "./coders.ts";
import { ABLATION, type AblationRow } from "./recipes.ts";
import { fillCache } from "../shapes.ts";
import { commit, runtime } from "../frame.ts";

/** Tokens of context that effective bits are counted over. */
const COUNTED_CONTEXT = 32768;

/** Recipes that are evaluated side by side. */
const AT_ONCE = 6;

interface Result {
  name: string;
  /** What the name stood for. */
  row: AblationRow;
  /** Formats and how many layers have them, where layers differ. */
  layers?: { keys: Record<string, number>; values: Record<string, number> };
  bits: number;
  seconds: number;
  calibration: string;
  /** Milliseconds a decode step with this cache, and with a bf16 cache in turn with it. */
  decode?: { tokens: number; milliseconds: number; exact: number };
  texts: Record<string, Omit<Quality, "nll">>;
}

/** Steps that are timed. */
const STEPS = 50;

/** Milliseconds of a decode step after `tokens` random tokens, median, of a cache and of the bf16 cache in turn. */
function timeDecode(
  device: Device,
  model: Model,
  caches: readonly [KvCache, KvCache],
  tokens: number,
): { milliseconds: number; exact: number } {
  using owned = new DisposableStack();
  const runs = caches.map((cache) => {
    const decoder = owned.use(new Decoder(model, cache, 1)), [sequence] = fillCache(device, cache, 1, tokens);
    owned.use(sequence);
    decoder.resume(0, sequence, 1, {});
    return { decoder, sequence, times: [] as number[] };
  });
  for (let step = 0; step < STEPS; step++) {
    for (const { decoder, sequence, times } of runs) {
      sequence.extend(1);
      const time = device.time(() => decoder.advance());
      if (step >= 4) times.push(time); // the first runs unrecorded, the second records
    }
  }
  const [milliseconds, exact] = runs.map(({ times }) => times.sort((a, b) => a - b)[times.length >> 1]);
  return { milliseconds, exact };
}

await command({
  name: "bench/ablation",
  summary: "measures the declared recipes on kinds of text; resumes from --out",
  usage: "bench/research/ablation.ts [options] docs=FILE [prose=FILE ...]",
  positionals: [1, 16],
  options: {
    ...MODEL_OPTIONS,
    calibrate: { type: "string", help: "kind=FILE of calibration texts, with commas; the first is the default" },
    windows: { type: "number", default: 1, help: "windows of each text" },
    length: { type: "number", default: 1024, help: "predictions a window" },
    "calibration-windows": { type: "number", default: 4, help: "windows of calibration text" },
    "calibration-length": { type: "number", default: 1024, help: "tokens a calibration window" },
    "calibration-context": {
      type: "number",
      default: 0,
      help: "tokens of context that fitted transforms are to stand for; 0: those of a calibration window",
    },
    "sensitivity-windows": { type: "number", default: 1, help: "calibration windows that layers are compared on" },
    "sensitivity-length": { type: "number", default: 1024, help: "tokens of each of these windows" },
    samples: { type: "number", default: 50000, help: "sub-vectors a codebook is trained on, at most" },
    iterations: { type: "number", default: 12, help: "k-means iterations" },
    decode: { type: "number", default: 0, help: "time decode steps at this many tokens; 0 for none" },
    only: { type: "string", default: ".", help: "regular expression of names" },
    out: { type: "string", short: "o", help: "JSON file of results, extended where it exists" },
    json: { type: "boolean", help: "print one JSON object" },
  },
}, async ({ options, positionals, signal, progress }) => {
  const named = (values: readonly string[]) =>
    values.map((value) => {
      const at = value.indexOf("=");
      if (at < 1) throw new UsageError(`${value}: kind=FILE is needed`);
      return { kind: value.slice(0, at), path: value.slice(at + 1) };
    });
  if (!options.calibrate) throw new UsageError("--calibrate kind=FILE is needed");
  const texts = named(positionals), calibrationTexts = named(options.calibrate.split(","));
  const count = whole("windows", options.windows), length = whole("length", options.length);
  if (options.decode > 0 && options.decode + STEPS > length) {
    throw new UsageError(`--decode ${options.decode}: ${STEPS} steps after it do not fit into --length ${length}`);
  }
  const tokenizer = openTokenizer(options.model), rows = ABLATION.filter((row) => RegExp(options.only).test(row.name));
  const describe = (path: string) => {
    const text = readText(path);
    return { text, sha256: createHash("sha256").update(text).digest("hex") };
  };
  const evaluated = texts.map(({ kind, path }) => {
    const { text, sha256 } = describe(path);
    return { kind, sha256, windows: textPassages(tokenizer, text, length + 1, count) };
  });
  using device = Device.open(deviceOptions(options));
  using model = await openModel(device, options.model, { signal });
  const shape = model.cacheShape, started = performance.now();
  const say = (text: string) => {
    if (!options.json) console.error(`${((performance.now() - started) / 1000).toFixed(0).padStart(4)} s  ${text}`);
  };
  using owned = new DisposableStack();
  const sources = new Map<string, { activations: Activations; sha256: string; windows: Int32Array[] }>();
  const source = async (kind: string, { skip = 4, fitted }: Recipe = {}) => {
    // As `calibrate` does, for fitted transforms alone.
    const context = fitted && options["calibration-context"] || undefined;
    const key = `${kind} ${skip} ${context}`, known = sources.get(key);
    if (known) return known;
    const found = calibrationTexts.find((text) => text.kind === kind);
    if (!found) return undefined;
    const { text, sha256 } = describe(found.path);
    const { "calibration-windows": windowCount, "calibration-length": windowLength } = options;
    const windows = textPassages(tokenizer, text, windowLength, windowCount);
    const weights = rows.some(({ recipe = {} }) => needsWeights(recipe)), { window } = kvConfig("vq2");
    const activations = owned.use(
      await Activations.capture(model, windows, { skip, context, window, weights, signal }),
    );
    const made = { activations, sha256, windows };
    sources.set(key, made);
    say(`captured ${kind}${context ? ` for a context of ${context}` : ""}`);
    return made;
  };
  const settings = {
    model: modelFingerprint(options.model),
    length,
    windows: count,
    calibrationWindows: options["calibration-windows"],
    calibrationLength: options["calibration-length"],
    ...(options["calibration-context"] && { calibrationContext: options["calibration-context"] }),
    sensitivityLength: options["sensitivity-length"],
    samples: options.samples,
    iterations: options.iterations,
    texts: Object.fromEntries(evaluated.map(({ kind, sha256 }) => [kind, sha256])),
  };
  const results: Result[] = [], sensitivities: Record<string, Sensitivity> = {};
  if (options.out && existsSync(options.out)) {
    const before = JSON.parse(readFileSync(options.out, "utf8"));
    if (JSON.stringify(before.settings) !== JSON.stringify(settings)) {
      throw new UsageError(`--out ${options.out} holds results of other settings; name another file`);
    }
    const other = (before.results as Result[]).find(({ name, row }) =>
      rows.some((now) => now.name === name && JSON.stringify(now) !== JSON.stringify(row))
    );
    if (other) throw new UsageError(`--out ${options.out} holds another recipe as "${other.name}"; name another file`);
    results.push(...before.results);
    Object.assign(sensitivities, before.sensitivities);
  }
  const save = () => {
    const all = {
      name: "ablation",
      date: new Date().toISOString(),
      commit: commit(),
      runtime: runtime(),
      device: device.info,
      countedContext: COUNTED_CONTEXT,
      settings,
      sensitivities,
      results,
    };
    if (options.out) {
      mkdirSync(dirname(options.out), { recursive: true });
      writeFileSync(options.out, `${JSON.stringify(all, null, 1)}\n`);
    }
    return all;
  };

  /** The formats of the layers under a row's budget. */
  const formatsOf = async (row: AblationRow, kind: string) => {
    const { budget } = row, { activations, windows } = (await source(kind, row.recipe))!;
    if (!budget) return undefined;
    const at = FORMATS.d4b8, key = `${kind} ${at.name} ${JSON.stringify(row.recipe)}`;
    if (!sensitivities[key]) {
      const { layerFormats: _, ...recipe } = { ...row.recipe, ...trained };
      const config = kvConfig(at.name);
      const base = await train(device, activations, config, recipe, { signal });
      const bar = progress(`sensitivity on ${kind}`, 2 * shape.layers);
      const part = windows.slice(0, options["sensitivity-windows"])
        .map((window) => window.subarray(0, options["sensitivity-length"]));
      sensitivities[key] = await sensitivity(model, base, part, { signal, onProgress: bar.update })
        .finally(() => bar.stop());
      say(`sensitivity ${key}`);
      save();
    }
    const choices = budget.choices.map((name) => FORMATS[name]);
    return allocate(shape, sensitivities[key], at, budget.bits, choices);
  };
  const trained = { samples: whole("samples", options.samples), iterations: whole("iterations", options.iterations) };
  const calibrationOf = async (row: AblationRow, kind: string): Promise<Calibration | undefined> => {
    const config = kvConfig({ keys: row.keys, values: row.values });
    if (row.dataFree) {
      return { keys: dataFreeSide(config.keys, shape.layers), values: dataFreeSide(config.values, shape.layers) };
    }
    const from = await source(kind, row.recipe);
    if (!from) return undefined;
    const layerFormats = await formatsOf(row, kind);
    const { activations } = from;
    return await train(device, activations, config, { ...row.recipe, ...trained, layerFormats }, { signal });
  };

  const exact = kvConfig("bf16"), exactCalibration = { keys: exactSide(), values: exactSide() };
  using reference = new KvCache(device, shape, exact, exactCalibration, { context: length });
  const pending = rows.filter((row) => !results.some((result) => result.name === row.name));
  for (let begin = 0; begin < pending.length; begin += AT_ONCE) {
    using batch = new DisposableStack();
    const made: { result: Result; cache: KvCache; method: boolean }[] = [];
    for (const row of pending.slice(begin, begin + AT_ONCE)) {
      const kind = row.calibration ?? calibrationTexts[0].kind, from = performance.now();
      const config = kvConfig({ keys: row.keys, values: row.values, sinks: row.sinks, window: row.window });
      if (row.coder) {
        const { activations } = (await source(kind, row.recipe))!, bar = progress(row.name, 2 * shape.layers);
        const recipe = { ...row.recipe, ...trained, layerFormats: await formatsOf(row, kind) };
        const method = await coderMethod(device, activations, row.coder, config, recipe, {
          signal,
          onProgress: bar.update,
        })
          .finally(() => bar.stop());
        const cache = batch.use(new ReferenceCache(device, shape, method, config, { context: length }));
        const seconds = Number(((performance.now() - from) / 1000).toFixed(2));
        const bits = effectiveBits(shape, cache.methodBytes(COUNTED_CONTEXT), COUNTED_CONTEXT);
        const result = { name: row.name, row, bits, seconds, calibration: kind, texts: {} };
        made.push({ result, cache, method: true });
        continue;
      }
      const calibration = await calibrationOf(row, kind);
      if (!calibration) {
        say(`${row.name}: left out, no calibration text "${kind}"`);
        continue;
      }
      const tally = (formats: readonly Format[] = []) =>
        formats.reduce<Record<string, number>>((all, { name }) => ({ ...all, [name]: (all[name] ?? 0) + 1 }), {});
      const { keys, values } = calibration, seconds = (performance.now() - from) / 1000;
      made.push({
        result: {
          name: row.name,
          row,
          ...(keys.layerFormats &&
            { layers: { keys: tally(keys.layerFormats), values: tally(values.layerFormats) } }),
          bits: effectiveBits(shape, cacheBytes(shape, config, calibration, COUNTED_CONTEXT).total, COUNTED_CONTEXT),
          seconds: Number(seconds.toFixed(2)),
          calibration: row.dataFree ? "data-free" : kind,
          texts: {},
        },
        cache: batch.use(new KvCache(device, shape, config, calibration, { context: length })),
        method: false,
      });
    }
    if (options.decode > 0) {
      const tokens = whole("decode", options.decode);
      for (const { result, cache, method } of made) {
        if (!method) result.decode = { tokens, ...timeDecode(device, model, [cache, reference], tokens) };
      }
    }
    const bar = progress("evaluating", evaluated.length);
    for (const [index, { kind, windows }] of evaluated.entries()) {
      const qualities = await evaluate(model, reference, made.map(({ cache }) => cache), windows, { signal });
      qualities.slice(1).forEach(({ perplexity, kl, top1, tokens }, i) =>
        made[i].result.texts[kind] = { perplexity, kl, top1, tokens }
      );
      bar.update(index + 1);
    }
    bar.stop();
    for (const { result } of made) {
      results.push(result);
      const figures = Object.entries(result.texts).map(([kind, { kl }]) => `${kind} ${kl.toFixed(4)}`).join("  ");
      say(`${result.name.padEnd(60)} ${result.bits.toFixed(3)} bits  ${figures}  (${result.seconds} s)`);
    }
    save();
  }
  const all = save();
  if (options.json) {
    console.log(JSON.stringify(all));
    return;
  }
  console.log(table([
    ["recipe", "bits", ...texts.map(({ kind }) => `KL ${kind}`)],
    ...rows.map((row) => results.find((result) => result.name === row.name)).filter((row) => row !== undefined).map((
      result,
    ) => [result.name, result.bits.toFixed(3), ...texts.map(({ kind }) => result.texts[kind]?.kl.toFixed(4) ?? "-")]),
  ]));
});
