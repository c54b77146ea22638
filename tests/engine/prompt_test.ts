import { assert, assertEquals, assertRejects } from "@std/assert";
import { test } from "node:test";
import { EMBEDDED_MODEL, LanguageModel } from "../../mod.ts";
import type { Sequence } from "../../lib/cache/sequence.ts";

const ids = Array.from({ length: 700 }, (_, i) => 7 + i * 31 % 900);

async function tokensOf(
  model: LanguageModel,
  prompt: number[],
  maxTokens: number,
  sequence?: Sequence,
): Promise<number[]> {
  const tokens: number[] = [];
  for await (const piece of model.generate(prompt, { maxTokens, sequence })) {
    tokens.push(...piece.tokens.map(({ id }) => id));
  }
  return tokens;
}

test("a prompt tells of its layers, and leaves the caller turns", async () => {
  using model = await LanguageModel.load(EMBEDDED_MODEL, { device: "cpu", context: 1024 });
  const seen: string[] = [], { layers } = model.model.config;
  let turns = 0, text = "";
  const timer = setInterval(() => turns++, 1);
  try {
    const onPrefill = (done: number, total: number) => void seen.push(`${done}/${total}`);
    for await (const piece of model.generate(ids, { maxTokens: 4, onPrefill })) {
      if (text === "") assert(turns > 1, `${turns} turns`);
      text += piece.text + " ";
    }
  } finally {
    clearInterval(timer);
  }
  assertEquals(seen, Array.from({ length: layers }, (_, i) => `${i + 1}/${layers}`));
});

test("a prompt that is stopped leaves the sequence as it was, and the model as good", async () => {
  using model = await LanguageModel.load(EMBEDDED_MODEL, { device: "cpu", context: 1024, sequences: 3 });
  const wanted = await tokensOf(model, ids, 4);
  using sequence = model.cache.sequence();
  const known = [1, 2, 3],
    first = await tokensOf(model, known, 1, sequence),
    free = model.cache.freePages;
  assertEquals(sequence.length, known.length);
  const abort = new AbortController(), reason = new Error("stop"), seen: number[] = [];
  setTimeout(() => abort.abort(reason), 1);
  const stopped = async () => {
    const options = { maxTokens: 4, sequence, signal: abort.signal, onPrefill: (done: number) => void seen.push(done) };
    for await (const piece of model.generate(ids, options)) throw new Error(`a token came: ${piece.text}`);
  };
  const error = await assertRejects(stopped);
  assertEquals(error, reason);
  assert(seen.length < model.model.config.layers, `${seen.length} layers were read`);
  assertEquals([sequence.length, model.cache.freePages], [known.length, free]);
  // What the sequence holds still is what it was, and the next prompt is read as if nothing had been.
  const next = await tokensOf(model, [9, 8], 6, sequence);
  using other = model.cache.sequence();
  assertEquals(await tokensOf(model, known, 1, other), first);
  assertEquals(await tokensOf(model, [9, 8], 6, other), next);
  assertEquals(await tokensOf(model, ids, 4), wanted);
});
