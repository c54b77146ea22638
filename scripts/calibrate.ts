/**
 * Trains the codebooks of a cache for one model, and writes them to one file a preset.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { openModel, openTokenizer, readModelConfig } from "../mod.ts";
import {
  calibrate,
  calibrationFolder,
  isFitted,
  modelFingerprint,
  readText,
  textPassages,
} from "../lib/calibration/mod.ts";
import {
  cacheShapeOf,
  checkHeadDim,
  Device,
  growingLayers,
  type KvConfig,
  kvConfig,
  PRESETS,
  presetScheme,
  type Scheme,
  SCHEMES,
  type SideScheme,
  transformOf,
  writeCalibration,
} from "../lib/ops/mod.ts";
import { command, UsageError } from "./frame/command.ts";
import { bytesText, checked, deviceOptions, MODEL_OPTIONS, whole } from "./frame/options.ts";

/** Tokens of a calibration, and of a passage of it. For fitted transforms they stand for the whole context; see `calibrate`. */
const CALIBRATION_TOKENS = 32768, CALIBRATION_LENGTH = 4096;

/** The schemes that `--recipe` takes. */
const RECIPES = ["vecinfer", "vecinfer+"] as const;

/** What files say of a scheme: its differences from the paper's. */
type Notes = Record<string, boolean | number>;

/** A flag that changes a scheme, and what files say of it. */
interface Change {
  flag: string;
  notes: Notes;
  apply: (scheme: Scheme) => Scheme;
}

const both = ({ keys, values, ...rest }: Scheme, change: Partial<SideScheme>): Scheme => ({
  ...rest,
  keys: { ...keys, ...change },
  values: { ...values, ...change },
});

const keysOnly = (scheme: Scheme, smooth: boolean, hadamard: boolean): Scheme => ({
  ...scheme,
  keys: { ...scheme.keys, transform: transformOf(smooth, hadamard) },
});

/** In the order of the notes. */
const CHANGES: readonly Change[] = [
  {
    flag: "no-smooth",
    notes: { smooth: false },
    apply: (scheme) => keysOnly(scheme, false, scheme.keys.transform.endsWith("hadamard")),
  },
  {
    flag: "no-hadamard",
    notes: { keyHadamard: false },
    apply: (scheme) => keysOnly(scheme, scheme.keys.transform.startsWith("smooth"), false),
  },
  {
    flag: "value-hadamard",
    notes: { valueHadamard: true },
    apply: (scheme) => ({ ...scheme, values: { ...scheme.values, transform: "hadamard" } }),
  },
  { flag: "token-scale", notes: { tokenScale: true }, apply: (scheme) => both(scheme, { tokenScale: true }) },
  { flag: "fitted", notes: { fitted: true }, apply: (scheme) => both(scheme, { transform: "fitted" }) },
  { flag: "importance", notes: { importance: true }, apply: (scheme) => ({ ...scheme, importance: true }) },
  { flag: "per-head", notes: { perHead: true }, apply: (scheme) => both(scheme, { codebooks: "head" }) },
];

/** What files say of a scheme of the table. */
function notesOf({ keys, importance, bits }: Scheme): Notes {
  return {
    ...(keys.transform === "fitted" && { fitted: true }),
    ...(importance && { importance }),
    ...(keys.codebooks === "head" && { perHead: true }),
    ...(bits !== undefined && { layerBits: bits }),
  };
}

/** The scheme that a preset is trained for, the name it has in the table, and what files say of it. */
function schemeFor(
  preset: string,
  recipe: string,
  flags: Record<string, unknown>,
): { name: string; scheme: Scheme; notes: Notes } {
  const own = Object.hasOwn(PRESETS, preset) ? PRESETS[preset].scheme : "vecinfer";
  const name = RECIPES.find((name) => name === recipe) ?? own;
  // How bits are spread over layers is the preset's, whose scheme it needs.
  const { bits } = presetScheme(preset), table = SCHEMES[name];
  let scheme: Scheme = { ...table, ...(name === "vecinfer+" && bits !== undefined && { bits }) },
    notes = notesOf(scheme);
  for (const change of CHANGES.filter(({ flag }) => flags[flag])) {
    scheme = change.apply(scheme);
    notes = { ...notes, ...change.notes };
  }
  return { name, scheme, notes };
}

/** The caches to calibrate. Throws UsageError for those that have nothing to, and for flags that do not go together. */
function configsOf(options: { kv: string; recipe: string } & Record<string, unknown>): KvConfig[] {
  const { kv, recipe } = options;
  const names = kv === "all" ? Object.keys(PRESETS).filter((name) => name !== "bf16") : kv.split(",");
  const configs = names.map((name) => checked(() => kvConfig(name)));
  const exact = configs.find((config) => config.keys.bits === 16 || config.values.bits === 16);
  if (exact) throw new UsageError(`--kv: ${exact.name} has nothing to calibrate`);
  if (recipe !== "auto" && !RECIPES.some((name) => name === recipe)) {
    throw new UsageError(`--recipe is "${recipe}"; auto, ${RECIPES.join(" or ")} is needed`);
  }
  const ofSmooth = ["no-smooth", "no-hadamard", "value-hadamard"].filter((name) => options[name]);
  const fitted = configs.some(({ name }) => options.fitted || isFitted(schemeFor(name, recipe, {}).scheme));
  if (ofSmooth.length > 0 && fitted) {
    throw new UsageError(
      `--${ofSmooth[0]}: fitted transforms stand in place of smooth factors and Hadamard; --recipe vecinfer has these`,
    );
  }
  return configs;
}

await command({
  name: "calibrate",
  summary: "trains transforms and codebooks on a text, one .vecinfer.safetensors a preset",
  usage: "scripts/calibrate.ts [options] <text file>",
  positionals: [1, 1],
  options: {
    ...MODEL_OPTIONS,
    kv: { type: "string", short: "k", default: "all", help: "presets, with commas; all = every quantized one" },
    out: { type: "string", short: "o", help: "folder for the files (default: beside the model)" },
    recipe: {
      type: "string",
      default: "auto",
      help: "vecinfer (the paper's), vecinfer+, or auto: what the preset's name says",
    },
    windows: { type: "number", help: `windows of text (default: ${CALIBRATION_TOKENS} tokens of them)` },
    length: { type: "number", help: `tokens a window (default: the model's context, at most ${CALIBRATION_LENGTH})` },
    skip: { type: "number", default: 4, help: "first positions of each window left out" },
    samples: { type: "number", default: 200000, help: "sub-vectors a codebook is trained on, at most" },
    iterations: { type: "number", default: 20, help: "k-means iterations" },
    seed: { type: "number", default: 0, help: "of sampling and k-means" },
    "no-smooth": { type: "boolean", help: "keys: Hadamard without smooth factors" },
    "no-hadamard": { type: "boolean", help: "keys: no Hadamard transform" },
    "value-hadamard": { type: "boolean", help: "values: Hadamard transform (the paper has none)" },
    "token-scale": { type: "boolean", help: "an 8-bit scale a token and KV head" },
    fitted: { type: "boolean", help: "transforms fitted to each KV head, in place of smooth factors and Hadamard" },
    importance: { type: "boolean", help: "tokens count by what their error does to the attention's output" },
    "per-head": { type: "boolean", help: "a codebook a KV head rather than a layer" },
    json: { type: "boolean", help: "print one JSON object" },
  },
}, async ({ options, positionals, signal, progress }) => {
  const configs = configsOf(options), folder = options.out ?? calibrationFolder(options.model);
  const shape = cacheShapeOf(readModelConfig(options.model)), coded = growingLayers(shape);
  for (const config of configs) checked(() => checkHeadDim(config, shape.headDim));
  if (coded.length === 0) throw new UsageError(`${options.model}: all layers have a sliding window: nothing is coded`);
  const text = readText(positionals[0]), tokenizer = openTokenizer(options.model);
  const fingerprint = modelFingerprint(options.model);
  using device = Device.open(deviceOptions(options));
  using model = await openModel(device, options.model, { signal });
  const usual = Math.min(model.config.contextLength, CALIBRATION_LENGTH);
  const length = whole("length", options.length ?? usual, options.skip + 1);
  const count = whole("windows", options.windows ?? Math.ceil(CALIBRATION_TOKENS / length));
  const passages = textPassages(tokenizer, text, length, count);
  mkdirSync(folder, { recursive: true });
  const training = {
    skip: whole("skip", options.skip, 0),
    samples: whole("samples", options.samples),
    iterations: whole("iterations", options.iterations),
    seed: options.seed,
  };
  const files: { preset: string; path: string; bytes: number; seconds: number }[] = [];
  for (const config of configs) {
    const { name, scheme, notes } = schemeFor(config.name, options.recipe, options);
    const steps = (scheme.bits === undefined ? 2 : 4) * coded.length;
    const started = performance.now(), bar = progress(config.name, steps);
    const calibration = await calibrate(model, config, passages, scheme, {
      ...training,
      signal,
      onProgress: bar.update,
    })
      .finally(() => bar.stop());
    const path = join(folder, `${config.name}.vecinfer.safetensors`), said = Object.entries({ ...notes, ...training });
    writeCalibration(path, calibration, model.cacheShape, fingerprint, {
      preset: config.name,
      recipe: name,
      text_sha256: createHash("sha256").update(text).digest("hex"),
      windows: String(count),
      window_length: String(length),
      ...Object.fromEntries(said.map(([name, value]) => [`recipe.${name}`, String(value)])),
    });
    const seconds = (performance.now() - started) / 1000, bytes = statSync(path).size;
    files.push({ preset: config.name, path, bytes, seconds });
    if (!options.json) console.log(`${config.name}: ${path} (${bytesText(bytes)}, ${seconds.toFixed(1)} s)`);
  }
  if (options.json) console.log(JSON.stringify({ model: options.model, fingerprint, recipe: options.recipe, files }));
});
