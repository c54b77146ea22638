/** Models of many architectures with the values of a reference, and how a model is held against them. @module */
import { assert, assertEquals } from "@std/assert";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Model } from "../../mod.ts";
import type { PrefillOptions } from "../../lib/models/model.ts";
import { loadCalibration } from "../../lib/calibration/mod.ts";
import { KvCache, kvConfig, Tensor } from "../../lib/ops/mod.ts";

/** What `golden.json` holds; see the README beside the models. */
export interface Golden {
  readonly ids: number[];
  readonly positions: number[];
  readonly logits: number[][];
  readonly mean_nll: number;
  readonly argmax?: number[];
  readonly greedy: number[];
  readonly greedy_gaps: number[];
}

/** How far values may be off. */
export interface Bounds {
  /** Of logits, relative in the 2-norm. */
  readonly logits: number;
  /** Of the mean NLL, nats. */
  readonly nll: number;
  /** Greedy tokens count where the second best is further behind. */
  readonly gap: number;
}

/** A folder that may be beside the repository, and why tests that need it are skipped, or false. */
export function besideRepository(name: string): { folder: string; absent: string | false } {
  const folder = fileURLToPath(new URL(`../../../shared/${name}`, import.meta.url));
  return { folder, absent: existsSync(folder) ? false : `${name} is not beside the repository` };
}

/** Reads a golden file. */
export function readGolden(path: string): Golden {
  return JSON.parse(readFileSync(path, "utf8"));
}

/** A cache for `sequences` sequences; codes need no calibration file. 4 sinks and a window of 16 tokens are exact. */
export function cacheOf(path: string, model: Model, kv: string, sequences = 1): KvCache {
  const config = kvConfig(kv, { sinks: 4, window: 16 }), calibration = loadCalibration(path, model, config);
  return new KvCache(model.device, model.cacheShape, config, calibration, { context: 256, sequences });
}

/** Logits behind a prompt, read as `plan` says. */
export function prompted(
  model: Model,
  cache: KvCache,
  ids: readonly number[],
  plan: PrefillOptions["plan"] = {},
): Float32Array {
  using sequence = cache.sequence();
  using logits = Tensor.empty(model.device, "f32", [1, model.config.vocabularySize]);
  model.prefill(logits, sequence, ids, { plan });
  return logits.read<Float32Array>();
}

/** Logits behind each token, fed one by one. */
export function stepped(model: Model, cache: KvCache, ids: readonly number[]): Float32Array[] {
  using sequence = cache.sequence();
  using step = model.step(1);
  step.slots.write([sequence.slot]);
  return ids.map((id, position) => {
    sequence.extend(1);
    step.ids.write([id]);
    step.positions.write([position]);
    model.forward(step, cache, 1);
    return step.logits.read<Float32Array>();
  });
}

/** Relative difference in the 2-norm. */
export function difference(found: Float32Array, expected: ArrayLike<number>): number {
  const norm = (x: readonly number[]) => Math.hypot(...x), wanted = Array.from(expected);
  return norm(wanted.map((x, i) => found[i] - x)) / norm(wanted);
}

/** -log of the probability of a token, nats. */
function nll(logits: Float32Array, id: number): number {
  const most = Math.max(...logits);
  return most + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - most), 0)) - logits[id];
}

/** The best token. */
function best(logits: Float32Array): number {
  return logits.indexOf(Math.max(...logits));
}

/** The ids whose logits are compared: the golden ones, and the greedy ones but the last. */
export function idsOf({ ids, greedy }: Golden): number[] {
  return [...ids, ...greedy.slice(0, -1)];
}

/** Compares the logits behind each of {@linkcode idsOf}. */
export function checkGolden(
  golden: Golden,
  logits: readonly Float32Array[],
  { logits: most, nll: nllMost, gap }: Bounds,
): void {
  const { ids, positions, greedy } = golden;
  positions.forEach((position, i) => {
    const error = difference(logits[position], golden.logits[i]);
    assert(error <= most, `position ${position}: relative error ${error}`);
  });
  const mean = ids.slice(1).reduce((sum, id, i) => sum + nll(logits[i], id), 0) / (ids.length - 1);
  assert(Math.abs(mean - golden.mean_nll) <= nllMost, `mean NLL ${mean}, expected ${golden.mean_nll}`);
  const sure = greedy.map((_, i) => golden.greedy_gaps[i] > gap);
  assert(sure.filter(Boolean).length >= greedy.length / 2, "too few greedy tokens are told apart");
  const found = greedy.map((_, i) => sure[i] ? best(logits[ids.length - 1 + i]) : null);
  assertEquals(found, greedy.map((id, i) => sure[i] ? id : null), "greedy tokens");
}
