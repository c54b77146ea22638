/**
 * The ablation behind the default scheme: a declared list of schemes, each trained from one capture of the model's
 * activations and measured on several kinds of text against the bf16 cache.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { type Sensitivity } from "../../lib/calibration/sensitivity.ts";
import { type Model, openModel, openTokenizer } from "../../mod.ts";
import {
  evaluate,
  modelFingerprint,
  readText,
  ReferenceCache,
  settle,
  textPassages,
} from "../../lib/calibration/mod.ts";
import { bf16Calibration, Decoder, Device, KvCache, kvConfig } from "../../lib/ops/mod.ts";
import { command, UsageError } from "../../scripts/frame/command.ts";
import { deviceOptions, MODEL_OPTIONS, table, whole } from "../../scripts/frame/options.ts";
import { COUNTED_CONTEXT, type Kind, type Made, Maker, type Result, type Settings, type Source } from "./caches.ts";
import { ABLATION, type AblationRow } from "./schemes.ts";
import { fillCache } from "../shapes.ts";
import { commit, runtime } from "../frame.ts";

/** Schemes that are evaluated side by side. */
const AT_ONCE = 6;

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
      if (step >= 4) times.push(time); // the first ones warm caches and clocks up
    }
  }
  const [milliseconds, exact] = runs.map(({ times }) => times.sort((a, b) => a - b)[times.length >> 1]);
  return { milliseconds, exact };
}

/** The results of a run, in a file where one is named. */
class Results {
  readonly results: Result[] = [];
  readonly sensitivities: Record<string, Sensitivity>;
  readonly #path: string | undefined;
  readonly #about: { device: unknown; settings: unknown };

  /** Takes up what the file holds. Throws UsageError where that is of other settings, or of other rows. */
  constructor(
    path: string | undefined,
    about: { device: unknown; settings: unknown },
    rows: readonly AblationRow[],
    sensitivities: Record<string, Sensitivity>,
  ) {
    this.#path = path;
    this.#about = about;
    this.sensitivities = sensitivities;
    if (!path || !existsSync(path)) return;
    const before = JSON.parse(readFileSync(path, "utf8"));
    if (JSON.stringify(before.settings) !== JSON.stringify(about.settings)) {
      throw new UsageError(`--out ${path} holds results of other settings; name another file`);
    }
    const other = (before.results as Result[]).find(({ name, row }) =>
      rows.some((now) => now.name === name && JSON.stringify(now) !== JSON.stringify(row))
    );
    if (other) throw new UsageError(`--out ${path} holds another scheme as "${other.name}"; name another file`);
    this.results.push(...before.results);
    Object.assign(sensitivities, before.sensitivities);
  }

  /** Writes the file. Returns what is in it. */
  save() {
    const { device, settings } = this.#about, { sensitivities, results } = this;
    const origin = { date: new Date().toISOString(), commit: commit(), runtime: runtime(), device };
    const all = { name: "ablation", ...origin, countedContext: COUNTED_CONTEXT, settings, sensitivities, results };
    if (this.#path) {
      mkdirSync(dirname(this.#path), { recursive: true });
      writeFileSync(this.#path, `${JSON.stringify(all, null, 1)}\n`);
    }
    return all;
  }
}

/** Measures caches on all texts, and decode steps where asked for. */
async function measure(
  made: readonly Made[],
  reference: KvCache,
  texts: readonly { kind: string; passages: Int32Array[] }[],
  { model, settings: { decode: tokens }, signal, progress }: Source,
): Promise<void> {
  for (const { result, cache } of tokens > 0 ? made : []) {
    if (cache instanceof ReferenceCache) continue;
    result.decode = { tokens, ...timeDecode(model.device, model, [cache, reference], tokens) };
  }
  const bar = progress("evaluating", texts.length), caches = made.map(({ cache }) => cache);
  for (const [index, { kind, passages }] of texts.entries()) {
    const qualities = await evaluate(model, reference, caches, passages, { signal, afterStep: settle });
    qualities.slice(1).forEach(({ perplexity, kl, top1, tokens }, i) =>
      made[i].result.texts[kind] = { perplexity, kl, top1, tokens }
    );
    bar.update(index + 1);
  }
  bar.stop();
}

function kindsOf(values: readonly string[]): Kind[] {
  return values.map((value) => {
    const at = value.indexOf("=");
    if (at < 1) throw new UsageError(`${value}: kind=FILE is needed`);
    return { kind: value.slice(0, at), path: value.slice(at + 1) };
  });
}

/** The numbers of the command line. Throws UsageError where decode steps do not fit. */
function settingsOf(options: Record<string, unknown>): Settings {
  const number = (name: string) => Number(options[name]), count = (name: string) => whole(name, number(name));
  const settings = {
    length: count("length"),
    windows: count("windows"),
    calibrationWindows: number("calibration-windows"),
    calibrationLength: number("calibration-length"),
    calibrationContext: number("calibration-context"),
    sensitivityWindows: number("sensitivity-windows"),
    sensitivityLength: number("sensitivity-length"),
    samples: count("samples"),
    iterations: count("iterations"),
    decode: whole("decode", number("decode"), 0),
  };
  const { decode, length } = settings;
  if (decode === 0 || decode + STEPS <= length) return settings;
  throw new UsageError(`--decode ${decode}: ${STEPS} steps after it do not fit into --length ${length}`);
}

/** What a file of results says of its run: results of other settings do not go into it. */
function recorded(settings: Settings, model: string, texts: readonly { kind: string; sha256: string }[]) {
  const { length, windows, calibrationWindows, calibrationLength, calibrationContext } = settings;
  const { sensitivityLength, samples, iterations } = settings;
  return {
    model: modelFingerprint(model),
    length,
    windows,
    calibrationWindows,
    calibrationLength,
    ...(calibrationContext && { calibrationContext }),
    sensitivityLength,
    samples,
    iterations,
    texts: Object.fromEntries(texts.map(({ kind, sha256 }) => [kind, sha256])),
  };
}

await command({
  name: "bench/ablation",
  summary: "measures the declared schemes on kinds of text; resumes from --out",
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
  if (!options.calibrate) throw new UsageError("--calibrate kind=FILE is needed");
  const kinds = kindsOf(options.calibrate.split(",")), settings = settingsOf(options), started = performance.now();
  const tokenizer = openTokenizer(options.model), rows = ABLATION.filter((row) => RegExp(options.only).test(row.name));
  const texts = kindsOf(positionals).map(({ kind, path }) => {
    const text = readText(path), sha256 = createHash("sha256").update(text).digest("hex");
    return { kind, sha256, passages: textPassages(tokenizer, text, settings.length + 1, settings.windows) };
  });
  using device = Device.open(deviceOptions(options));
  using model = await openModel(device, options.model, { signal });
  const say = (text: string) => {
    if (!options.json) console.error(`${((performance.now() - started) / 1000).toFixed(0).padStart(4)} s  ${text}`);
  };
  const source: Source = { model, tokenizer, settings, kinds, rows, signal, progress, say };
  using maker = new Maker(source);
  const about = { device: device.info, settings: recorded(settings, options.model, texts) };
  const file = new Results(options.out, about, rows, maker.sensitivities), { results } = file;
  const { length: context } = settings;
  using reference = new KvCache(device, model.cacheShape, kvConfig("bf16"), bf16Calibration(), { context });
  const pending = rows.filter((row) => !results.some((result) => result.name === row.name));
  for (let begin = 0; begin < pending.length; begin += AT_ONCE) {
    using batch = new DisposableStack();
    const made: Made[] = [];
    for (const row of pending.slice(begin, begin + AT_ONCE)) {
      const one = await maker.make(row);
      if (one) made.push(one), batch.use(one.cache);
      file.save();
    }
    await measure(made, reference, texts, source);
    for (const { result } of made) {
      results.push(result);
      const figures = Object.entries(result.texts).map(([kind, { kl }]) => `${kind} ${kl.toFixed(4)}`).join("  ");
      say(`${result.name.padEnd(60)} ${result.bits.toFixed(3)} bits  ${figures}  (${result.seconds} s)`);
    }
    file.save();
  }
  const all = file.save();
  if (options.json) {
    console.log(JSON.stringify(all));
    return;
  }
  const shown = rows.map(({ name }) => results.find((result) => result.name === name)).filter((row) =>
    row !== undefined
  );
  console.log(table([
    ["scheme", "bits", ...texts.map(({ kind }) => `KL ${kind}`)],
    ...shown.map((result) => [
      result.name,
      result.bits.toFixed(3),
      ...texts.map(({ kind }) => result.texts[kind]?.kl.toFixed(4) ?? "-"),
    ]),
  ]));
});
