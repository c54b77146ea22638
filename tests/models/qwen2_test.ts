import { assert, assertEquals } from "@std/assert";
import { copyFileSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { type Model, openModel, readModelConfig } from "../../mod.ts";
import { evaluate, loadCalibration } from "../../lib/calibration/mod.ts";
import { type Device, KvCache, kvConfig, parameterCount, Tensor, weightBytesOf } from "../../lib/ops/mod.ts";
import { testOnDevices } from "../support/device.ts";
import { withFolder } from "../weights/fixture.ts";

// A random model in bf16 and what transformers computes with it in f32; see the folder's README.
const folder = fileURLToPath(new URL("../../../shared/architectures/qwen2", import.meta.url));
const absent = existsSync(folder) ? false : "the models of architectures are not beside the repository";

interface Golden {
  readonly ids: number[];
  readonly positions: number[];
  readonly logits: number[][];
  readonly mean_nll: number;
  readonly argmax: number[];
  readonly greedy: number[];
  readonly greedy_gaps: number[];
}

function readGolden(): Golden {
  return JSON.parse(readFileSync(join(folder, "golden.json"), "utf8"));
}

/** A test on each library, skipped where the models are absent. */
function testQwen2(name: string, run: (device: Device, golden: Golden) => Promise<void>): void {
  if (absent) test(`qwen2: ${name}`, { skip: absent }, () => {});
  else testOnDevices(`qwen2: ${name}`, (device) => run(device, readGolden()));
}

/** A cache for one sequence; codes need no calibration file. 4 sinks and a window of 16 tokens are exact. */
function cacheOf(model: Model, kv: string): KvCache {
  const config = kvConfig(kv, { sinks: 4, window: 16 });
  return new KvCache(model.device, model.cacheShape, config, loadCalibration(folder, model, config), { context: 256 });
}

/** Logits behind a prompt. */
function prompted(model: Model, cache: KvCache, ids: readonly number[]): Float32Array {
  using sequence = cache.sequence();
  using logits = Tensor.empty(model.device, "f32", [1, model.config.vocabularySize]);
  model.prefill(logits, sequence, ids);
  return logits.read<Float32Array>();
}

/** Logits behind each token, fed one by one. */
function stepped(model: Model, cache: KvCache, ids: readonly number[]): Float32Array[] {
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
function difference(found: Float32Array, expected: readonly number[]): number {
  const norm = (x: readonly number[]) => Math.hypot(...x);
  return norm(expected.map((x, i) => found[i] - x)) / norm(expected);
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

/** Compares the logits behind each of the golden ids, and behind each greedy token but the last. */
function check(golden: Golden, logits: readonly Float32Array[], most: number, nllMost: number, gap: number): void {
  const { ids, positions, greedy } = golden;
  positions.forEach((position, i) => {
    const error = difference(logits[position], golden.logits[i]);
    assert(error <= most, `position ${position}: relative error ${error}`);
  });
  const mean = ids.slice(1).reduce((sum, id, i) => sum + nll(logits[i], id), 0) / (ids.length - 1);
  assert(Math.abs(mean - golden.mean_nll) <= nllMost, `mean NLL ${mean}, expected ${golden.mean_nll}`);
  const sure = greedy.map((_, i) => golden.greedy_gaps[i] > gap);
  assert(sure.filter(Boolean).length >= 16, "too few greedy tokens are told apart");
  const found = greedy.map((_, i) => sure[i] ? best(logits[ids.length - 1 + i]) : null);
  assertEquals(found, greedy.map((id, i) => sure[i] ? id : null), "greedy tokens");
}

testQwen2("prompts give the reference's logits", async (device, golden) => {
  using model = await openModel(device, folder);
  using cache = cacheOf(model, "bf16");
  const all = [...golden.ids, ...golden.greedy.slice(0, -1)];
  const logits = all.map((_, i) => prompted(model, cache, all.slice(0, i + 1)));
  // The CPU computes in f32 as the reference does. A GPU rounds the rows of a product and the prompt's keys and values to bf16.
  if (device.name === "cpu") {
    check(golden, logits, 1e-4, 1e-4, 1e-2);
    golden.argmax.forEach((id, i) => assertEquals(best(logits[i]), id, `best token behind position ${i}`));
  } else check(golden, logits, 2e-2, 1e-2, 1e-1);
});

testQwen2("decode steps give the reference's logits", async (device, golden) => {
  using model = await openModel(device, folder);
  using cache = cacheOf(model, "bf16");
  const logits = stepped(model, cache, [...golden.ids, ...golden.greedy.slice(0, -1)]);
  // The cache rounds keys and values to bf16, each by up to 2^-9 of itself and by 2^-9 / sqrt(3) = 1.1e-3 in the mean square.
  // Three layers, keys and values in each, of which a residual stream takes over a part: some 2e-3 in all.
  if (device.name === "cpu") check(golden, logits, 1e-2, 2e-3, 1e-2);
  else check(golden, logits, 2e-2, 1e-2, 1e-1);
});

testQwen2("a prompt in parts and chunks is a prompt", async (device, golden) => {
  using model = await openModel(device, folder);
  using cache = cacheOf(model, "bf16");
  using sequence = cache.sequence();
  using logits = Tensor.empty(device, "f32", [1, model.config.vocabularySize]);
  const { ids, positions } = golden;
  model.prefill(logits, sequence, ids.slice(0, 128), { plan: { rows: 50 } });
  const first = logits.read<Float32Array>();
  model.prefill(logits, sequence, ids.slice(128), { plan: { rows: 50 } });
  const second = logits.read<Float32Array>(), bound = device.name === "cpu" ? [1e-4, 1e-2] : [2e-2, 2e-2];
  assertEquals(positions.slice(-2), [127, 199]);
  // The second part reads the first from the cache, which is bf16.
  [first, second].forEach((found, i) => {
    const error = difference(found, golden.logits.at(i - 2)!);
    assert(error <= bound[i], `part ${i}: relative error ${error}`);
  });
});

testQwen2("codes of 4 bits a channel change little", async (device, golden) => {
  using model = await openModel(device, folder);
  using exact = cacheOf(model, "bf16");
  using four = cacheOf(model, "vq4");
  using two = cacheOf(model, "vq2");
  const [, vq4, vq2] = await evaluate(model, exact, [four, two], [Int32Array.from(golden.ids)]);
  // Codes of 4 bits are off by 8e-2 of a vector, as a Gaussian's are. Logits of a random model are wide (they cost 8.1 nats of 5.8),
  // so that this moves them by about 0.25, of which the KL is half the square; at 2 bits the error is four times that.
  assertEquals(vq4.tokens, 199);
  assert(vq4.kl > 0 && vq4.kl < 0.1, `KL ${vq4.kl}`);
  assert(vq2.kl > 4 * vq4.kl, `KL ${vq2.kl} at 2 bits, ${vq4.kl} at 4`);
});

test("qwen2: config.json is read as transformers 4 and 5 write it, and counted", { skip: absent }, async () => {
  const config = readModelConfig(folder);
  assertEquals(
    [config.architecture, config.attentionBias, config.mlpBias, config.tieWordEmbeddings, config.ropeTheta],
    ["Qwen2ForCausalLM", true, false, true, 1e6],
  );
  const norms = (2 * config.layers + 1) * config.hiddenSize; // f32
  assertEquals(weightBytesOf(folder), 2 * (parameterCount(config) + norms));
  await withFolder((other) => {
    copyFileSync(join(folder, "config.transformers5.json"), join(other, "config.json"));
    assertEquals(readModelConfig(other), config);
  });
});
