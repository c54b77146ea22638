/**
 * What the small models of all architectures say of coded caches, as the table of docs/models.md: layers, heads, what is coded, and
 * the KL of `vq2+`, fitted to random tokens, and of `vq4`.
 *
 * @module
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { openModel } from "../../mod.ts";
import { calibrate, evaluate } from "../../lib/calibration/mod.ts";
import {
  bf16Calibration,
  Device,
  fitsHeadDim,
  growingLayers,
  KvCache,
  kvConfig,
  presetScheme,
  syntheticPrompt,
} from "../../lib/ops/mod.ts";
import { command, UsageError } from "../frame/command.ts";
import { table } from "../frame/options.ts";

/** Tokens that stay exact: fewer than by default, as the texts are short. */
const EXACT = { sinks: 4, window: 16 };

/** Random tokens that calibrations are fitted to, by passage. */
const PASSAGES = 2, LENGTH = 500;

/** Layers, heads, coded layers and KLs of one model on the ids of its `golden.json`. */
async function row(device: Device, path: string, signal: AbortSignal): Promise<string[]> {
  using model = await openModel(device, path, { signal });
  const { config, cacheShape: shape } = model, { heads, kvHeads, headDim, layers } = config;
  const coded = growingLayers(shape).length, text = [Int32Array.from(idsOf(path))];
  const passages = Array.from({ length: PASSAGES }, (_, i) => syntheticPrompt(config, LENGTH, i + 1));
  using owned = new DisposableStack();
  const cacheOf = async (kv: string) => {
    const own = kvConfig(kv, EXACT);
    const calibration = kv === "bf16" ? bf16Calibration() : await calibrate(model, own, passages, presetScheme(kv), {
      samples: 20000,
      iterations: 8,
      signal,
    });
    return owned.use(new KvCache(device, shape, own, calibration, { context: 256 }));
  };
  const kls: string[] = [];
  for (const kv of ["vq4", "vq2+"]) {
    if (coded === 0 || !fitsHeadDim(kvConfig(kv), headDim)) {
      kls.push("-");
      continue;
    }
    const [, { kl }] = await evaluate(model, await cacheOf("bf16"), [await cacheOf(kv)], text, { signal });
    kls.push(kl.toPrecision(2));
  }
  return [config.architecture, String(layers), `${heads} / ${kvHeads}`, String(headDim), String(coded), ...kls];
}

function idsOf(path: string): number[] {
  return JSON.parse(readFileSync(join(path, "golden.json"), "utf8")).ids;
}

if (import.meta.main) {
  await command({
    name: "architectures",
    summary: "what is coded of the small models of all architectures, and the KL of vq4 and vq2+ to bf16",
    usage: "scripts/chores/architectures.ts <folder of models, each with a golden.json>",
    positionals: [1, 1],
    options: {},
  }, async ({ positionals: [folder], signal }) => {
    if (!existsSync(folder)) throw new UsageError(`${folder}: no such folder`);
    using device = Device.open({ device: "cpu" });
    const names = readdirSync(folder).filter((name) => existsSync(join(folder, name, "golden.json"))).sort();
    const rows = [["model", "architecture", "layers", "heads", "head dim", "coded", "vq4", "vq2+"]];
    for (const name of names) rows.push([name, ...await row(device, join(folder, name), signal)]);
    console.log(table(rows));
  });
}
