import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { EMBEDDED_MODEL, LanguageModel, openTokenizer } from "../../mod.ts";
import { Output } from "../../lib/engine/output.ts";
import { seedBits } from "../../lib/engine/sampler.ts";
import { writeSentencePiece } from "../tokenizer/fixture.ts";
import { configText } from "../../scripts/frame/options.ts";
import { withFolder } from "../weights/fixture.ts";

test("a SentencePiece text goes on with the space that its first token has, in every way to generate", () =>
  withFolder((folder) => {
    writeSentencePiece(folder);
    writeFileSync(join(folder, "config.json"), "{}");
    const tokenizer = openTokenizer(folder), prompt = tokenizer.encode("the", { addSpecialTokens: false });
    const more = tokenizer.encode("the the", { addSpecialTokens: false }).slice(prompt.length);
    const model = { eosIds: [], vocabularySize: tokenizer.vocabularySize };
    const output = new Output(tokenizer, { maxTokens: more.length, stop: [], sampling: {} }, model);
    const text = more.map((id) => output.push(id).text).join("");
    assertEquals(text, tokenizer.decode([...prompt, ...more]).slice(tokenizer.decode(prompt).length));
    assert(text.startsWith(" "), JSON.stringify(text));
  }));

test("seeds: those of 32 bits are themselves, no two of the first thousand behind are the same", () => {
  for (const seed of [0, 1, -1, 7, 2 ** 31 - 1, -(2 ** 31)]) assertEquals(seedBits(seed), seed);
  const wide = Array.from({ length: 1000 }, (_, i) => seedBits(2 ** 32 + i));
  assertEquals(new Set(wide).size, 1000);
  assert(wide.every((bits) => bits === (bits | 0)));
  assertEquals(seedBits(2 ** 31) === -(2 ** 31), false);
});

test("a context beyond what the model was trained for is said", async () => {
  const { contextLength } = await trained();
  using longer = await LanguageModel.load(EMBEDDED_MODEL, { device: "cpu", context: contextLength + 1 });
  assertStringIncludes(longer.config.beyondTraining!, `trained for ${contextLength} tokens`);
  assertStringIncludes(configText(longer.config), "warning      the model was trained for");
});

async function trained(): Promise<{ contextLength: number }> {
  using model = await LanguageModel.load(EMBEDDED_MODEL, { device: "cpu", context: 64 });
  assertEquals("beyondTraining" in model.config, false);
  return { contextLength: model.model.config.contextLength };
}
