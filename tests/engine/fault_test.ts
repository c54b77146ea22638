import { assert, assertEquals } from "@std/assert";
import { test } from "node:test";
import { EMBEDDED_MODEL, LanguageModel } from "../../mod.ts";
import { Batch, type BatchRequest } from "../../lib/engine/batch.ts";
import type { GenerationEvent } from "../../lib/engine/request.ts";
import { SettingError, settingsOf } from "../../lib/engine/sampler.ts";
import type { Grammar } from "../../lib/grammar/grammar.ts";
import { Random } from "../support/random.ts";

const model = await LanguageModel.load(EMBEDDED_MODEL, { device: "cpu", kv: "vq2", sequences: 12, cacheTokens: 8192 });
const neighbour = model.tokenizer.encode("The kernel of the operating system is");

/** A grammar that fails at a moment of a choice's life. */
function failing(at: "start" | "bias" | "push", after = 0): Grammar {
  let left = after;
  const fail = (): never => {
    throw at === "push" ? new RangeError("Maximum call stack size exceeded") : new Error(`thrown in ${at}`);
  };
  const may = (moment: string) => moment === at && left-- <= 0 ? fail() : undefined;
  const state = { push: () => may("push"), bias: () => (may("bias"), null) };
  return { start: () => (may("start"), state) } as unknown as Grammar;
}

const forbidden = Object.fromEntries(
  Array.from({ length: model.model.config.vocabularySize }, (_, id) => [id, -Infinity]),
);

/** What goes wrong in a row. */
const FAULTS: Record<string, Partial<BatchRequest>> = {
  "nothing that may be drawn": { sampling: { logitBias: forbidden } },
  "a grammar that cannot begin": { grammar: failing("start") },
  "a grammar that cannot begin for the third choice": { grammar: failing("start", 2) },
  "a grammar without a bias": { grammar: failing("bias") },
  "a grammar without a bias at the sixth token": { grammar: failing("bias", 14) },
  "a grammar that runs out of stack": { grammar: failing("push", 9) },
  "a token that is no number": { logprobs: NaN, grammar: failing("push", 3) },
};

test("what goes wrong in a row ends its request alone, and all is given back", () => {
  const seed = Math.floor(Math.random() * 2 ** 31), random = new Random(seed);
  const events: { id: number; event: GenerationEvent }[] = [];
  using batch = new Batch(
    model.model,
    model.cache,
    model.tokenizer,
    { rows: 8, block: 128, prefixes: 4 },
    (id, event) => {
      events.push({ id, event });
    },
  );
  const common = { maxTokens: 20, sampling: {}, n: 1, stop: [], logprobs: 0 };
  const text = (id: number) =>
    events.flatMap((item) => item.id === id && item.event.type === "text" ? item.event.text : []).join("");
  const last = (id: number) => events.filter((item) => item.id === id).at(-1)!.event;
  batch.submit(1, { ...common, ids: neighbour });
  while (batch.step());
  const alone = text(1);
  for (const [i, [name, fault]] of Object.entries(FAULTS).entries()) {
    const id = 10 * (i + 1);
    batch.submit(id, { ...common, ids: neighbour });
    for (let steps = random.integer(0, 8); steps > 0; steps--) batch.step();
    for (let other = 1; other <= 2; other++) {
      batch.submit(id + other, { ...common, ids: neighbour.slice(0, 2 + other), n: 3, ...fault });
    }
    while (batch.step());
    assertEquals([text(id), last(id).type], [alone, "end"], `${name}, seed ${seed}`);
    for (let other = 1; other <= 2; other++) {
      const told = last(id + other),
        errors = events.filter((item) => item.id === id + other && item.event.type === "error");
      assertEquals([told.type, errors.length], [
        name.includes("third choice") && other > 1 ? told.type : "error",
        told.type === "error" ? 1 : 0,
      ], name);
    }
    const stats = batch.stats();
    assertEquals([stats.running, stats.waiting, stats.sequences], [0, 0, 0], name);
    batch.clearPrefixes();
    assertEquals(batch.stats().pages.free, batch.stats().pages.total, name);
  }
  // No slot is missing either: all sequences of the cache can be had.
  const all = Array.from({ length: model.cache.slots }, () => model.cache.sequence());
  for (const sequence of all) sequence[Symbol.dispose]();
});

test("a cache without a free slot or page ends the request that wants it, and nothing else", () => {
  const events: { id: number; event: GenerationEvent }[] = [];
  using batch = new Batch(
    model.model,
    model.cache,
    model.tokenizer,
    { rows: 8, block: 128, prefixes: 0 },
    (id, event) => {
      events.push({ id, event });
    },
  );
  const request = { maxTokens: 200, sampling: {}, n: 1, stop: [], ids: neighbour };
  const last = (id: number) => events.filter((item) => item.id === id).at(-1)!.event;
  batch.submit(1, request);
  for (let i = 0; i < 3; i++) batch.step();
  // Somebody else takes what the scheduler counts on.
  const taken = Array.from({ length: model.cache.slots - 1 }, () => model.cache.sequence());
  batch.submit(2, { ...request, n: 2 });
  for (let i = 0; i < 3; i++) batch.step();
  assertEquals(last(2).type, "error");
  taken.pop()![Symbol.dispose]();
  batch.submit(3, { ...request, n: 3 });
  for (let i = 0; i < 3; i++) batch.step();
  assertEquals(last(3).type, "error");
  for (const sequence of taken) sequence.extend(Math.min(model.cache.context, 64 * model.cache.freePages));
  while (batch.step());
  const told = last(1);
  assert(told.type === "error" && told.error.message.includes("pages"), JSON.stringify(told));
  for (const sequence of taken) sequence[Symbol.dispose]();
  batch.submit(4, { ...request, maxTokens: 4 });
  while (batch.step());
  assertEquals([last(4).type, batch.stats().pages.free], ["end", batch.stats().pages.total]);
});

test("settings are what they are as float32", () => {
  for (
    const wrong of [
      { repetitionPenalty: 1e-46 },
      { repetitionPenalty: 1e-39 },
      { repetitionPenalty: 1e-7 },
      { repetitionPenalty: 1e39 },
      { topP: 1e-46 },
      { topP: 1.1 },
      { temperature: NaN },
      { temperature: -1e-30 },
      { presencePenalty: 1e300 },
      { frequencyPenalty: -Infinity },
      { minP: 1.0001 },
    ]
  ) {
    try {
      settingsOf(wrong);
      assert(false, JSON.stringify(wrong));
    } catch (error) {
      assert(error instanceof SettingError, `${JSON.stringify(wrong)}: ${error}`);
      assert(error.message.includes(Object.keys(wrong)[0]), error.message);
    }
  }
  // Too small to divide by is 0: the most probable token.
  for (const temperature of [0, 1e-46, 1e-40]) assertEquals(settingsOf({ temperature })[0], 0);
  assertEquals(
    [...settingsOf({ repetitionPenalty: 1e-6, topP: 1e-45 })].map((value) => value >= 0),
    Array(8).fill(true),
  );
});
