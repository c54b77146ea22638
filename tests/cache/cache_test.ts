import { assert, assertEquals, assertThrows } from "@std/assert";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import { EMBEDDED_MODEL, type Model, openModel, Tokenizer } from "../../mod.ts";
import { loadCalibration, readText } from "../../lib/calibration/mod.ts";
import {
  cacheBytes,
  CacheFullError,
  Device,
  KvCache,
  kvConfig,
  type KvSpec,
  Sequence,
  Tensor,
} from "../../lib/ops/mod.ts";

const folder = fileURLToPath(EMBEDDED_MODEL);
const ids = Tokenizer.open(folder).encode(readText(`${folder}/eval.txt`).slice(0, 8000)).slice(0, 900);

async function open(kv: KvSpec, options: { sequences?: number; context?: number; tokens?: number } = {}, exact = {}) {
  const device = Device.open({ device: "cpu" }), model = await openModel(device, folder), config = kvConfig(kv, exact);
  const calibration = loadCalibration(folder, model, config);
  const cache = new KvCache(device, model.cacheShape, config, calibration, { context: 1024, ...options });
  const stack = new DisposableStack();
  for (const part of [device, model, cache]) stack.use(part);
  return { device, model, cache, [Symbol.dispose]: () => stack.dispose() };
}

/** Teacher-forces tokens into sequences, `rows` at a time (all sequences' rows in one step), and returns the last logits. */
function feed(model: Model, cache: KvCache, sequences: Sequence[], tokens: number[][]): Float32Array[] {
  using step = model.step(sequences.length);
  const logits: Float32Array[] = sequences.map(() => new Float32Array());
  for (let i = 0; i < Math.max(...tokens.map((t) => t.length)); i++) {
    const live = sequences.map((_, s) => s).filter((s) => i < tokens[s].length);
    step.ids.write(Int32Array.from(live, (s) => tokens[s][i]));
    step.slots.write(Int32Array.from(live, (s) => sequences[s].slot));
    step.positions.write(Int32Array.from(live, (s) => sequences[s].length));
    for (const s of live) sequences[s].extend(1);
    model.forward(step, cache, live.length);
    live.forEach((s, row) => logits[s] = step.logits.rows(row, 1).read<Float32Array>());
  }
  return logits;
}

for (const kv of ["bf16", "vq2", "vq1.25"]) {
  test(`${kv}: sequences of mixed lengths in one batch give what each gives alone`, async () => {
    using together = await open(kv, { sequences: 3 });
    const parts = [ids.slice(0, 300), ids.slice(100, 165), ids.slice(500, 501)];
    const batch = feed(together.model, together.cache, parts.map(() => together.cache.sequence()), parts);
    for (const [i, part] of parts.entries()) {
      using alone = await open(kv);
      assertEquals(feed(alone.model, alone.cache, [alone.cache.sequence()], [part])[0], batch[i]);
    }
  });

  test(`${kv}: a fork goes on as its origin would, and neither disturbs the other`, async () => {
    using state = await open(kv, { sequences: 2 });
    const { model, cache } = state, origin = cache.sequence();
    feed(model, cache, [origin], [ids.slice(0, 290)]);
    const before = cache.freePages;
    using fork = origin.fork();
    assertEquals(cache.freePages, before);
    // Different tokens first, so that a shared last page that was not copied would show.
    feed(model, cache, [fork], [ids.slice(400, 440)]);
    assertEquals(cache.freePages, before - 2);
    const continued = feed(model, cache, [origin], [ids.slice(290, 320)])[0];
    using fresh = await open(kv);
    assertEquals(feed(fresh.model, fresh.cache, [fresh.cache.sequence()], [ids.slice(0, 320)])[0], continued);
    using second = await open(kv);
    const other =
      feed(second.model, second.cache, [second.cache.sequence()], [[...ids.slice(0, 290), ...ids.slice(400, 441)]])[0];
    assertEquals(feed(model, cache, [fork], [[ids[440]]])[0], other);
  });

  test(`${kv}: after truncate the sequence goes on as if the tokens had never been`, async () => {
    using state = await open(kv);
    const { model, cache } = state, sequence = cache.sequence();
    feed(model, cache, [sequence], [[...ids.slice(0, 280), ...ids.slice(600, 660)]]);
    sequence.truncate(280);
    const continued = feed(model, cache, [sequence], [ids.slice(280, 300)])[0];
    using fresh = await open(kv);
    assertEquals(feed(fresh.model, fresh.cache, [fresh.cache.sequence()], [ids.slice(0, 300)])[0], continued);
  });
}

test("a sequence that is truncated beyond the ring's surplus reads codes in place of the lost window", async () => {
  using state = await open("vq2");
  const { model, cache } = state, sequence = cache.sequence();
  feed(model, cache, [sequence], [ids.slice(0, 500)]);
  sequence.truncate(300);
  assertEquals(sequence.exactFrom, 300);
  const logits = feed(model, cache, [sequence], [ids.slice(300, 310)])[0];
  using exact = await open("vq2");
  const undisturbed = feed(exact.model, exact.cache, [exact.cache.sequence()], [ids.slice(0, 310)])[0];
  const error = Math.max(...logits.map((x, i) => Math.abs(x - undisturbed[i])));
  assert(error > 0 && error < 5, `largest difference of a logit ${error}`);
});

test("a prompt read in two parts, the first from its codes, predicts nearly as in one", async () => {
  using state = await open("vq4", { sequences: 2 });
  const { model, cache, device } = state, logits = () => Tensor.empty(device, "f32", [1, model.config.vocabularySize]);
  using whole = logits();
  using parts = logits();
  model.prefill(whole, cache.sequence(), ids);
  const sequence = cache.sequence();
  model.prefill(parts, sequence, ids.slice(0, 500));
  model.prefill(parts, sequence, ids.slice(500));
  const [a, b] = [whole.read<Float32Array>(), parts.read<Float32Array>()];
  const error = Math.sqrt(a.reduce((sum, x, i) => sum + (x - b[i]) ** 2, 0) / a.reduce((sum, x) => sum + x * x, 0));
  assert(error > 0 && error < 0.05, `relative difference ${error}`);
});

test("an aborted prompt leaves the sequence at its former length", async () => {
  using state = await open("vq2");
  const { model, cache, device } = state, sequence = cache.sequence(), abort = new AbortController();
  using logits = Tensor.empty(device, "f32", [1, model.config.vocabularySize]);
  model.prefill(logits, sequence, ids.slice(0, 200));
  const options = { signal: abort.signal, onProgress: () => abort.abort(new Error("enough")) };
  assertThrows(() => model.prefill(logits, sequence, ids.slice(200, 800), options), Error, "enough");
  assertEquals(sequence.length, 200);
  assertEquals(cache.freePages, cache.pageCount - 4);
});

test("bytes are counted exactly: they are what the device has allocated, and what a plan says", async () => {
  for (const kv of ["bf16", "vq2", { keys: "vq3", values: "vq1.5", sinks: 8, window: 32 }]) {
    using device = Device.open({ device: "cpu" });
    using model = await openModel(device, folder);
    const before = device.memory().allocated,
      config = kvConfig(kv),
      calibration = loadCalibration(folder, model, config);
    using cache = new KvCache(device, model.cacheShape, config, calibration, { context: 1000, sequences: 2 });
    const bytes = cache.bytes(), tables = 2 * 16 * 4 + 2 * 4;
    // Quantizers keep their codebooks outside of vi_allocate.
    assertEquals(device.memory().allocated - before, bytes.total - bytes.codebooks + tables);
    assertEquals(bytes, cacheBytes(model.cacheShape, config, calibration, 1000, 2));
    assertEquals(bytes.pages + bytes.scales, cache.bytesPerToken * cache.pageCount * 64);
  }
});

test("pages, sequences and context run out with an error, and nothing is lost", async () => {
  using state = await open("vq2", { sequences: 2, context: 256, tokens: 320 });
  const { cache } = state, first = cache.sequence(), second = cache.sequence();
  assertThrows(() => cache.sequence(), CacheFullError, "2 sequences");
  first.extend(250);
  assertThrows(() => first.extend(7), RangeError, "256");
  assertThrows(() => second.extend(65), CacheFullError, "1 are free");
  assertEquals([first.length, second.length, cache.freePages], [250, 0, 1]);
  first[Symbol.dispose]();
  assertThrows(() => first.extend(1), Error, "disposed");
  second.extend(256);
  second.truncate(0);
  assertEquals(cache.freePages, 5);
  assertThrows(() => second.truncate(1), RangeError);
});

test("unknown presets, formats and sizes are refused by name", () => {
  assertThrows(() => kvConfig("vq7"), RangeError, '"vq7" is unknown');
  assertThrows(() => kvConfig({ keys: "vq2", values: "d3b3" }), RangeError, 'values "d3b3"');
  assertThrows(() => kvConfig("vq2", { sinks: -1 }), RangeError, "sinks is -1");
  assertThrows(() => kvConfig("vq2", { window: 1.5 }), RangeError, "window is 1.5");
  assertEquals(kvConfig({ keys: "d8b12", values: "d8b8" }).name, "vq1.25");
  assertEquals(kvConfig({ keys: "d4b10", values: "d8b12" }).name, "d4b10+d8b12");
  // A cache's name gives the same cache; a plus at the end is the preset's.
  assertEquals(kvConfig("d4b10+d8b12"), kvConfig({ keys: "d4b10", values: "d8b12" }));
  assertEquals(kvConfig("vq3+vq1.5", { sinks: 0 }), kvConfig({ keys: "vq3", values: "vq1.5", sinks: 0 }));
  assertEquals(kvConfig("vq2+vq1+"), kvConfig({ keys: "vq2", values: "vq1+" }));
  assertEquals([kvConfig("vq2+").name, kvConfig("vq1+").name], ["vq2+", "vq1+"]);
  for (const name of ["d4b10+d3b3", "d4b10+", "+d8b8", "+", ""]) {
    assertThrows(() => kvConfig(name), RangeError, "is unknown");
  }
});
