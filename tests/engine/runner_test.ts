import { assert, assertEquals, assertThrows } from "@std/assert";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, LanguageModel, Tokenizer } from "../../mod.ts";
import { readText } from "../../lib/calibration/mod.ts";
import { type DrawnToken, Runner, type RunnerRow, stepSizes } from "../../lib/engine/runner.ts";
import { SettingError } from "../../lib/engine/sampler.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";

const folder = fileURLToPath(EMBEDDED_MODEL), seed = Date.now() % 2 ** 31;
const text = Tokenizer.open(folder).encode(readText(`${folder}/eval.txt`).slice(0, 40_000));

const load = (device: string, sequences: number) =>
  LanguageModel.load(EMBEDDED_MODEL, { device: device as "cpu", kv: "vq2+", context: 512, sequences });

/** Tokens of prompts that run together: read one after the other, then a step at a time. */
function together({ model, cache }: LanguageModel, runner: Runner, prompts: readonly number[][], count = 12) {
  using owned = new DisposableStack();
  const rows: RunnerRow[] = [], out: DrawnToken[][] = [];
  for (const [i, prompt] of prompts.entries()) {
    rows.push({ sequence: owned.use(cache.sequence()), logprobs: 2, next: -1 });
    runner.start(i, prompt, i % 2 ? { temperature: 1, seed: i } : {});
    model.prefill(runner.logits, rows[i].sequence, prompt);
    out.push(runner.begin(rows, i));
  }
  while (out[0].length < count) runner.step(rows).forEach((token, i) => out[i].push(token));
  return out;
}

const prompts = (count: number): number[][] => {
  const random = new Random(seed);
  return Array.from({ length: count }, () => {
    const length = random.integer(1, 200), begin = random.integer(0, text.length - length);
    return text.slice(begin, begin + length);
  });
};

test("the sizes of step go up to the rows: all on a CPU, few above 8 on a GPU", () => {
  assertEquals(stepSizes(10, "cpu"), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assertEquals(stepSizes(3, "cuda"), [1, 2, 3]);
  assertEquals(stepSizes(9, "cuda"), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assertEquals(stepSizes(16, "cuda"), [1, 2, 3, 4, 5, 6, 7, 8, 12, 16]);
  assertEquals(stepSizes(64, "cuda"), [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64]);
  assertEquals(stepSizes(40, "cuda").slice(-3), [24, 32, 40]);
});

testOnDevices(`rows beside padding draw what they draw without it, seed ${seed}`, async ({ name }) => {
  using model = await load(name, 4);
  using exact = new Runner(model.model, model.cache, 8, [1, 2, 3, 4, 5, 6, 7, 8]);
  using padded = new Runner(model.model, model.cache, 8, [8]);
  for (const count of [1, 3, 4]) {
    const [found, expected] = [padded, exact].map((runner) => together(model, runner, prompts(count)));
    const bits = (rows: DrawnToken[][]) => name === "cpu" ? rows : rows.map((row) => row.map(({ id }) => id));
    assertEquals(bits(found), bits(expected), `${count} rows`);
    assert(expected.every((row) => row.every(({ top }) => top.length === 20)));
  }
});

testOnDevices("making a runner leaves no trace in a cache that holds tokens", async ({ name }) => {
  using model = await load(name, 4);
  const [prompt] = prompts(1), { cache } = model;
  using runner = new Runner(model.model, cache, 1);
  const [expected] = together(model, runner, [prompt]);
  using sequence = cache.sequence();
  const row: RunnerRow = { sequence, logprobs: 2, next: -1 }, free = cache.freePages;
  runner.start(0, prompt, {});
  model.model.prefill(runner.logits, sequence, prompt);
  const found = [...runner.begin([row], 0)], held = cache.freePages, allocated = model.device.memory().allocated;
  {
    using other = new Runner(model.model, cache, 12);
    assert(other.ids.length === 12);
    assertEquals(cache.freePages, held);
  }
  assertEquals(model.device.memory().allocated, allocated);
  while (found.length < expected.length) found.push(...runner.step([row]));
  assertEquals(found, expected);
  assert(held < free);
});

testOnDevices("a row that is gone leaves its settings to nobody", async ({ name }) => {
  using model = await load(name, 3);
  const [first, second] = prompts(2), width = model.model.config.vocabularySize;
  using runner = new Runner(model.model, model.cache, 3, [3]);
  const [expected] = together(model, runner, [first]);
  using a = model.cache.sequence();
  using b = model.cache.sequence();
  const rows: RunnerRow[] = [{ sequence: a, next: -1 }, { sequence: b, next: -1 }];
  const settings = [{}, { temperature: 1, repetitionPenalty: 3, logitBias: { 7: 50 } }];
  rows.forEach(({ sequence }, i) => {
    runner.start(i, [first, second][i], settings[i]);
    model.model.prefill(runner.logits, sequence, [first, second][i]);
    runner.begin(rows.slice(0, i + 1), i);
  });
  // Nothing is allowed to the row that goes: as padding it must not fail the others.
  runner.setBias(1, new Float32Array(width).fill(-Infinity));
  runner.remove(1, 1);
  const found = [rows[0].next];
  while (found.length < expected.length) found.push(runner.step([rows[0]])[0].id);
  assertEquals(found, expected.map(({ id }) => id));
});

test("bad settings and too many rows are refused by name", async () => {
  using model = await load("cpu", 2);
  using runner = new Runner(model.model, model.cache, 2);
  assertThrows(() => runner.start(0, [1], { topK: -1 }), SettingError, "topK is -1");
  assertThrows(() => runner.start(0, [1], { logitBias: { 9999: 1 } }), RangeError, "token 9999");
  assertThrows(() => runner.launch(3), RangeError, "3 rows are more than the 2");
});
