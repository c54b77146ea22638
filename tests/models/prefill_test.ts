import { assert, assertEquals, assertThrows } from "@std/assert";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, openModel, Tokenizer } from "../../mod.ts";
import { loadCalibration, readText } from "../../lib/calibration/mod.ts";
import { type Device, KvCache, kvConfig, type PrefillPlan, Tensor, VecInferError } from "../../lib/ops/mod.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";

const folder = fileURLToPath(EMBEDDED_MODEL), seed = Date.now() % 2 ** 31;

/** Relative difference in the 2-norm. */
function difference(a: Float32Array, b: Float32Array): number {
  let sum = 0, norm = 0;
  a.forEach((x, i) => (sum += (x - b[i]) ** 2, norm += b[i] ** 2));
  return Math.sqrt(sum / norm);
}

/**
 * A reader of six prompts of 700 tokens, each in two parts (500, 200), by a plan: the last logits of both parts, and what layer 3
 * keeps, each of all prompts. The logits of one prompt alone say little: how far rounding moves them differs twentyfold between
 * prompts.
 */
async function reader(device: Device): Promise<Disposable & { read(plan: Partial<PrefillPlan>): Float32Array[] }> {
  const owned = new DisposableStack(), model = owned.use(await openModel(device, folder)), random = new Random(seed);
  const text = Tokenizer.open(folder).encode(readText(`${folder}/eval.txt`).slice(0, 400_000));
  const prompts = Array.from({ length: 6 }, () => text.slice(random.integer(0, text.length - 700)).slice(0, 700));
  const config = kvConfig("vq4"), calibration = loadCalibration(folder, model, config);
  const { layers: _, kvHeads, headDim } = model.cacheShape, { vocabularySize } = model.config;
  return {
    read(plan) {
      using cache = new KvCache(device, model.cacheShape, config, calibration, { context: 700 });
      using first = Tensor.empty(device, "f32", [prompts.length, vocabularySize]);
      using second = Tensor.empty(device, "f32", [prompts.length, vocabularySize]);
      using keys = Tensor.empty(device, "f32", [prompts.length, 700, kvHeads * headDim]);
      using values = Tensor.empty(device, "f32", [prompts.length, 700, kvHeads * headDim]);
      prompts.forEach((ids, i) => {
        using sequence = cache.sequence();
        model.prefill(first.rows(i, 1), sequence, ids.slice(0, 500), { plan });
        model.prefill(second.rows(i, 1), sequence, ids.slice(500), { plan });
        const [ownKeys, ownValues] = [keys, values].map((all) => all.rows(i, 1).view([700, kvHeads * headDim]));
        cache.layers[3].dequantize(ownKeys, ownValues, sequence.slot, 0);
      });
      return [first, second, keys, values].map((tensor) => tensor.read<Float32Array>());
    },
    [Symbol.dispose]: () => owned.dispose(),
  };
}

testOnDevices(`chunks of a prompt don't change it, seed ${seed}`, async (device) => {
  using prompts = await reader(device);
  const plan = { kv: "f32", residual: "f32" } as const, whole = prompts.read({ ...plan, rows: 700 });
  // Chunks that end with a few rows would be read from the past by lookups, with other bits; see cuda/cpu/attention.cpp.
  for (const rows of [64, 150]) {
    prompts.read({ ...plan, rows }).forEach((part, i) => {
      const error = difference(part, whole[i]), name = `rows ${rows}, part ${i}: relative difference ${error}`;
      // On a GPU the matrix product, and with it the order of its sums, depends on the rows, and a code may go the other way.
      assert(error <= (device.name === "cpu" ? 0 : i < 2 ? 2e-2 : 5e-2), name);
    });
  }
});

testOnDevices(`keys, values and residual stream in bf16 stay close to f32, seed ${seed}`, async (device) => {
  using prompts = await reader(device);
  const exact = prompts.read({ kv: "f32", residual: "f32", rows: 128 });
  // Rounding to bf16 is 2^-9 at most, 1.1e-3 in the mean square, in each of eight layers. In the cache it also lets codes go the
  // other way where a vector is about as near to two codewords: by 5e-2 in all, where vq4 itself is off by 8e-2.
  for (const plan of [{ kv: "bf16" }, { residual: "bf16" }] as const) {
    prompts.read({ kv: "f32", residual: "f32", rows: 128, ...plan }).forEach((part, i) => {
      const error = difference(part, exact[i]),
        name = `${JSON.stringify(plan)}, part ${i}: relative difference ${error}`;
      assert(error <= (i < 2 ? 2e-2 : 5e-2), name);
      assert(error > 0 || device.name !== "cpu", `${name}: nothing was rounded`);
    });
  }
});

testOnDevices(
  `activations in bf16 stay close to f32 on CUDA and are refused on the CPU, seed ${seed}`,
  async (device) => {
    using prompts = await reader(device);
    const plan = { kv: "bf16", residual: "f32", rows: 128, activations: "bf16" } as const;
    if (device.name === "cpu") {
      assertThrows(() => prompts.read(plan), VecInferError, "f32 alone");
      return;
    }
    const exact = prompts.read({ ...plan, activations: "f32" }), again = prompts.read(plan);
    prompts.read(plan).forEach((part, i) => {
      const error = difference(part, exact[i]), name = `part ${i}: relative difference ${error}`;
      assert(error > 0 && error <= (i < 2 ? 2e-2 : 5e-2), name);
      assertEquals(part, again[i], `part ${i} the second time`);
    });
  },
);

testOnDevices(`prompts that are read together are what they are alone, seed ${seed}`, async (device) => {
  using model = await openModel(device, folder);
  const least = device.name === "cpu" ? 9 : 256, context = 2 * least + 400; // fewer tokens are read alone
  const random = new Random(seed + 1), { vocabularySize } = model.config, { kvHeads, headDim } = model.cacheShape;
  const config = kvConfig("vq2"), calibration = loadCalibration(folder, model, config);
  const read = (together: boolean, prompts: { past: number[]; ids: number[] }[], rows: number) => {
    using cache = new KvCache(device, model.cacheShape, config, calibration, {
      context,
      sequences: prompts.length,
    });
    using logits = Tensor.empty(device, "f32", [prompts.length, vocabularySize]);
    using kept = Tensor.zeros(device, "f32", [2 * prompts.length, context, kvHeads * headDim]);
    const reads = prompts.map(({ past, ids }, i) => {
      const sequence = cache.sequence();
      if (past.length > 0) model.prefill(logits.rows(i, 1), sequence, past);
      return { sequence, ids, logits: logits.rows(i, 1) };
    });
    const plan = { rows };
    for (const some of together ? [reads] : reads.map((one) => [one])) {
      for (const _ of model.prefillTogether(some, { plan }));
    }
    reads.forEach(({ sequence: { slot, length } }, i) => {
      const [keys, values] = [0, 1].map((side) =>
        kept.rows(2 * i + side, 1).view([context, kvHeads * headDim]).rows(0, length)
      );
      cache.layers[3].dequantize(keys, values, slot, 0);
    });
    return [logits.read<Float32Array>(), kept.read<Float32Array>()];
  };
  const some = (count: number) => Array.from(random.integers(count, 0, vocabularySize));
  const prompts = [0, 80, 0, 0].map((past) => ({ past: some(past), ids: some(random.integer(least, least + 140)) }));
  assertEquals(read(true, prompts, 512), read(false, prompts, 512));
  // Chunks that end in the middle of a prompt. On a GPU products of other numbers of rows may have other bits.
  const fresh = prompts.filter(({ past }) => past.length === 0);
  if (device.name === "cpu") assertEquals(read(true, fresh, 64), read(false, fresh, 512));
  using cache = new KvCache(device, model.cacheShape, config, calibration, { context: least + 64, sequences: 2 });
  using logits = Tensor.empty(device, "f32", [1, vocabularySize]);
  const sequences = [cache.sequence(), cache.sequence()],
    reads = sequences.map((sequence) => ({ sequence, ids: some(least), logits }));
  assertThrows(() => model.prefillTogether([{ ...reads[0], ids: [] }, reads[1]]).next(), RangeError, "no tokens");
  // Left early, or without room for one of them, none has anything.
  const parts = model.prefillTogether(reads);
  parts.next();
  parts.return();
  assertEquals(sequences.map(({ length }) => length), [0, 0]);
  assertThrows(
    () => model.prefillTogether([reads[0], { ...reads[1], ids: some(least + 200) }]).next(),
    RangeError,
  );
  assertEquals(sequences.map(({ length }) => length), [0, 0]);
});

testOnDevices("a prompt's memory is freed, and a plan of no rows refused", async (device) => {
  using model = await openModel(device, folder);
  const config = kvConfig("vq2");
  using cache = new KvCache(device, model.cacheShape, config, loadCalibration(folder, model, config), { context: 64 });
  using logits = Tensor.empty(device, "f32", [1, model.config.vocabularySize]);
  const sequence = cache.sequence(), before = device.memory().allocated, ids = [1, 2, 3];
  assertThrows(() => model.prefill(logits, sequence, ids, { plan: { rows: 0 } }), RangeError, "rows is 0");
  assertEquals(sequence.length, 0);
  model.prefill(logits, sequence, ids, { plan: { kv: "bf16", residual: "bf16" } });
  assertEquals(device.memory().allocated, before);
});
