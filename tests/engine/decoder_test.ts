import { assert, assertEquals } from "@std/assert";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, LanguageModel, Tokenizer } from "../../mod.ts";
import { Runner, type RunnerRow } from "../../lib/engine/runner.ts";
import { readText } from "../../lib/calibration/mod.ts";
import { Decoder, Tensor } from "../../lib/ops/mod.ts";
import { skipCuda } from "../support/device.ts";
import { Random } from "../support/random.ts";

const folder = fileURLToPath(EMBEDDED_MODEL), seed = Date.now() % 2 ** 31, COUNT = 32;
const golden = JSON.parse(readFileSync(`${folder}/golden.json`, "utf8"));

const load = (device: "cpu" | "cuda", kv: string, sequences: number) =>
  LanguageModel.load(EMBEDDED_MODEL, { device, kv, context: 1024, sequences });

/** The greedy continuations of prompts, all in one batch: prompts are read first, then every step has a row for each. */
function together({ model, cache, device }: LanguageModel, prompts: readonly number[][]): number[][] {
  using decoder = new Decoder(model, cache, prompts.length);
  using logits = Tensor.empty(device, "f32", [1, model.config.vocabularySize]);
  using owned = new DisposableStack();
  const sequences = prompts.map(() => owned.use(cache.sequence()));
  const out = prompts.map((prompt, row) => {
    model.prefill(logits, sequences[row], prompt);
    const values = logits.read<Float32Array>(), first = values.indexOf(Math.max(...values));
    decoder.resume(row, sequences[row], first, {});
    return [first];
  });
  for (let i = 1; i < COUNT; i++) {
    for (const sequence of sequences) sequence.extend(1);
    decoder.advance();
    decoder.ids.read<Int32Array>().forEach((id, row) => out[row].push(id));
  }
  return out;
}

/** The same, each prompt by itself. */
function alone({ model, cache }: LanguageModel, prompts: readonly number[][]): number[][] {
  using runner = new Runner(model, cache, 1);
  return prompts.map((prompt) => {
    using sequence = cache.sequence();
    const row: RunnerRow = { sequence, next: -1 };
    runner.start(0, prompt, {});
    model.prefill(runner.logits, sequence, prompt);
    const ids = [runner.begin([row], 0)[0].id];
    while (ids.length < COUNT) ids.push(runner.step([row])[0].id);
    return ids;
  });
}

for (const device of ["cpu", "cuda"] as const) {
  const skip = device === "cuda" && skipCuda;
  for (const kv of ["bf16", "vq2"]) {
    test(
      `${kv}: rows of a step, long and short, draw what each draws alone, seed ${seed}: ${device}`,
      { skip },
      async () => {
        const text = Tokenizer.open(folder).encode(readText(`${folder}/eval.txt`).slice(0, 400_000));
        const random = new Random(seed);
        const prompts = [700, 3, 129, 64, 333].map((length) => {
          const begin = random.integer(0, text.length - length);
          return text.slice(begin, begin + length);
        });
        using model = await load(device, kv, prompts.length);
        const rows = together(model, prompts);
        assertEquals(rows, alone(model, prompts));
        assert(new Set(rows.map((ids) => ids.join())).size === prompts.length);
      },
    );
  }
}

test(
  "cuda: prompts in a batch over a coded cache go on as each does alone on the CPU",
  { skip: skipCuda },
  async () => {
    const prompts = (golden.greedy as { prompt: string }[]).map(({ prompt }) => Tokenizer.open(folder).encode(prompt));
    using cpu = await load("cpu", "vq2", 1);
    using cuda = await load("cuda", "vq2", prompts.length);
    const expected = alone(cpu, prompts);
    assertEquals(alone(cuda, prompts.slice(0, 1)), expected.slice(0, 1));
    assertEquals(together(cuda, prompts), expected);
  },
);
