/**
 * Trains the codebooks of a cache for one model, and writes them to one file a preset.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { calibrationFolder, modelFingerprint, openModel, openTokenizer } from "../mod.ts";
import { calibrate, readText, type Recipe, recipeOf, RECIPES, textWindows } from "../lib/calibration/mod.ts";
import { Device, kvConfig, PRESETS, writeCalibration } from "../lib/ops/mod.ts";
import { command, UsageError } from "./frame/command.ts";
import { bytesText, checked, deviceOptions, MODEL_OPTIONS, whole } from "./frame/options.ts";

/** Tokens of a calibration, and of a window of it. For fitted transforms they stand for the whole context; see `calibrate`. */
const CALIBRATION_TOKENS = 32768, CALIBRATION_LENGTH = 4096;

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
  const names = options.kv === "all" ? Object.keys(PRESETS).filter((name) => name !== "bf16") : options.kv.split(",");
  const configs = names.map((name) => checked(() => kvConfig(name)));
  const exact = configs.find((config) => config.keys.bits === 16 || config.values.bits === 16);
  if (exact) throw new UsageError(`--kv: ${exact.name} has nothing to calibrate`);
  if (options.recipe !== "auto" && !RECIPES.includes(options.recipe)) {
    throw new UsageError(`--recipe is "${options.recipe}"; auto, ${RECIPES.join(" or ")} is needed`);
  }
  const ofSmooth = (["no-smooth", "no-hadamard", "value-hadamard"] as const).filter((name) => options[name]);
  const fitted = (name: string) =>
    options.fitted || (options.recipe === "auto" ? PRESETS[name]?.plus : options.recipe === "vecinfer+");
  if (ofSmooth.length > 0 && configs.some(({ name }) => fitted(name))) {
    throw new UsageError(
      `--${ofSmooth[0]}: fitted transforms stand in place of smooth factors and Hadamard; --recipe vecinfer has these`,
    );
  }
  const folder = options.out ?? calibrationFolder(options.model);
  const text = readText(positionals[0]), tokenizer = openTokenizer(options.model);
  const fingerprint = modelFingerprint(options.model);
  using device = Device.open(deviceOptions(options));
  using model = await openModel(device, options.model, { signal });
  const usual = Math.min(model.config.contextLength, CALIBRATION_LENGTH);
  const length = whole("length", options.length ?? usual, options.skip + 1);
  const windowCount = whole("windows", options.windows ?? Math.ceil(CALIBRATION_TOKENS / length));
  const windows = textWindows(tokenizer, text, length, windowCount);
  mkdirSync(folder, { recursive: true });
  const given = {
    ...(options["no-smooth"] && { smooth: false }),
    ...(options["no-hadamard"] && { keyHadamard: false }),
    ...(options["value-hadamard"] && { valueHadamard: true }),
    ...(options["token-scale"] && { tokenScale: true }),
    ...(options.fitted && { fitted: true }),
    ...(options.importance && { importance: true }),
    ...(options["per-head"] && { perHead: true }),
    skip: whole("skip", options.skip, 0),
    samples: whole("samples", options.samples),
    iterations: whole("iterations", options.iterations),
    seed: options.seed,
  };
  const files: { preset: string; path: string; bytes: number; seconds: number }[] = [];
  for (const config of configs) {
    const { plus, layerBits } = PRESETS[config.name] ?? {};
    const base = options.recipe !== "auto" ? options.recipe : plus ? "vecinfer+" : "vecinfer";
    const recipe: Recipe = { ...recipeOf(base, layerBits), ...given };
    const steps = (recipe.layerBits === undefined ? 2 : 4) * model.config.layers;
    const started = performance.now(), bar = progress(config.name, steps);
    const calibration = await calibrate(model, config, windows, recipe, { signal, onProgress: bar.update })
      .finally(() => bar.stop());
    const path = join(folder, `${config.name}.vecinfer.safetensors`);
    writeCalibration(path, calibration, model.cacheShape, fingerprint, {
      preset: config.name,
      recipe: base,
      text_sha256: createHash("sha256").update(text).digest("hex"),
      windows: String(windowCount),
      window_length: String(length),
      ...Object.fromEntries(Object.entries(recipe).map(([name, value]) => [`recipe.${name}`, String(value)])),
    });
    const seconds = (performance.now() - started) / 1000, bytes = statSync(path).size;
    files.push({ preset: config.name, path, bytes, seconds });
    if (!options.json) console.log(`${config.name}: ${path} (${bytesText(bytes)}, ${seconds.toFixed(1)} s)`);
  }
  if (options.json) console.log(JSON.stringify({ model: options.model, fingerprint, recipe: options.recipe, files }));
});
