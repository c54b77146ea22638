import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, LanguageModel } from "../../mod.ts";
import { evaluate, readText } from "../../lib/calibration/mod.ts";
import { Batch, type BatchRequest } from "../../lib/engine/batch.ts";
import type { GenerationEvent, PromptToken } from "../../lib/engine/request.ts";
import { embedPrompt, type ScoredToken, scorePrompt } from "../../lib/engine/scorer.ts";
import { logProbabilities, Tensor } from "../../lib/ops/mod.ts";
import { testOnDevices } from "../support/device.ts";

const source = readText(`${fileURLToPath(EMBEDDED_MODEL)}/eval.txt`);

async function load(kv: string, device: string, sequences = 2): Promise<LanguageModel> {
  return await LanguageModel.load(EMBEDDED_MODEL, { kv, device: device as "cpu", sequences, context: 1024 });
}

function score(model: LanguageModel, ids: number[], top = 0): ScoredToken[] {
  const scored: ScoredToken[] = [];
  using sequence = model.cache.sequence();
  using logits = Tensor.zeros(model.device, "f32", [1, model.model.config.vocabularySize]);
  for (
    const _ of scorePrompt(model.model, model.cache, sequence, ids, {
      top,
      logits,
      emit: (t) => scored.push(...t),
    })
  );
  return scored;
}

/** What steps of one token each give: the log-probability of every token but the first. */
function stepped({ model, cache, device }: LanguageModel, ids: number[]): number[] {
  using sequence = cache.sequence();
  using step = model.step(1);
  using targets = Tensor.zeros(device, "i32", [1]);
  using logprobs = Tensor.zeros(device, "f32", [1]);
  step.slots.write(Int32Array.of(sequence.slot));
  return ids.slice(1).map((id, i) => {
    step.ids.write(Int32Array.of(ids[i]));
    step.positions.write(Int32Array.of(i));
    targets.write(Int32Array.of(id));
    sequence.extend(1);
    model.forward(step, cache, 1);
    logProbabilities(step.logits, { targets, outTargets: logprobs });
    return logprobs.read<Float32Array>()[0];
  });
}

for (const kv of ["vq2", "bf16"]) {
  testOnDevices(
    `${kv}: each token of a prompt has the log-probability of a decode step, and all of them evaluate's`,
    async ({ name: device }) => {
      using model = await load(kv, device);
      const ids = model.tokenizer.encode(source.slice(3000, 4500)).slice(0, 221);
      const scored = score(model, ids, 3), logprobs = scored.map(({ logprob }) => logprob);
      assertEquals(scored.map(({ id }) => id), ids);
      assertEquals([logprobs[0], scored[0].top], [null, []]);
      // Attention of 8 rows and more of one sequence sums the codes' products in another order, on a CPU.
      const steps = stepped(model, ids), off = steps.map((value, i) => Math.abs(value - logprobs[i + 1]!));
      assert(
        Math.max(...off) < 0.02 && off.reduce((sum, value) => sum + value) / off.length < 1e-3,
        `${Math.max(...off)}`,
      );
      for (const { id, logprob, top } of scored.slice(1)) {
        assertEquals(top.length, 3);
        const own = top.find((other) => other.id === id);
        assertEquals(own?.logprob ?? logprob, logprob);
        assert(logprob! <= top[0].logprob);
      }
      // Its reference is a bf16 cache, which here has no part in what is compared.
      const [, quality] = await evaluate(model.model, model.cache, [model.cache], [Int32Array.from(ids)]);
      const mean = -logprobs.slice(1).reduce<number>((sum, value) => sum + value!, 0) / (ids.length - 1);
      assertAlmostEquals(mean, quality.nll[0], 1e-5);
    },
  );
}

testOnDevices(
  "bf16: a prompt's scores are those of the prompt read at once, but for the rounding of its keys and values",
  async ({ name: device }) => {
    using model = await load("bf16", device);
    const ids = model.tokenizer.encode(source.slice(0, 1500)).slice(0, 260), scored = score(model, ids);
    const { vocabularySize } = model.model.config;
    using logits = Tensor.zeros(model.device, "f32", [1, vocabularySize]);
    using target = Tensor.zeros(model.device, "i32", [1]);
    using logprob = Tensor.zeros(model.device, "f32", [1]);
    for (const end of [1, 2, 64, 65, 128, 200, 259]) {
      using sequence = model.cache.sequence();
      model.model.prefill(logits, sequence, ids.slice(0, end));
      target.write(Int32Array.of(ids[end]));
      logProbabilities(logits, { targets: target, outTargets: logprob });
      assertAlmostEquals(
        scored[end].logprob!,
        logprob.read<Float32Array>()[0],
        device === "cpu" ? 0.02 : 0.1,
        `after ${end} tokens`,
      );
    }
  },
);

/** Runs requests over one batch. */
function run(model: LanguageModel, requests: Partial<BatchRequest>[], prefixes = 0): GenerationEvent[][] {
  const events: GenerationEvent[][] = requests.map(() => []);
  using batch = new Batch(model.model, model.cache, model.tokenizer, { rows: 3, block: 128, prefixes }, (id, event) => {
    events[id].push(event);
  });
  requests.forEach((request, id) => {
    batch.submit(id, { ids: [], maxTokens: 4, sampling: {}, n: 1, stop: [], ...request });
    while (batch.step());
  });
  assertEquals(batch.stats().sequences, 0);
  assertEquals(batch.stats().pages.free + batch.stats().pages.prefix, batch.stats().pages.total);
  return events;
}

const told = (events: GenerationEvent[]): PromptToken[] =>
  events.flatMap((event) => event.type === "prompt" ? event.tokens : []);

testOnDevices(
  "a scored prompt in a batch: tokens in order, the first token drawn, nothing left for other prompts to share",
  async ({ name: device }) => {
    using model = await load("vq2", device, 10);
    const ids = model.tokenizer.encode(source).slice(0, 300), plain: Partial<BatchRequest> = { ids, logprobs: 0 };
    const scored: Partial<BatchRequest> = { ids, alone: true, promptLogprobs: 2, logprobs: 2 };
    const [first, second, third, empty] = run(model, [plain, scored, plain, { ...scored, maxTokens: 0, n: 3 }], 4);
    const tokens = told(second), drawn = second.flatMap((event) => event.type === "text" ? event.tokens : []);
    assertEquals(tokens.map(({ id }) => id), ids);
    assertEquals(tokens.map(({ logprob }) => logprob), score(model, ids).map(({ logprob }) => logprob));
    assertEquals(drawn.length, 4);
    // The prompt that was read before in blocks is found again, as it was.
    const start = (events: GenerationEvent[]) => events.find((event) => event.type === "start");
    assertEquals([start(second), start(third)], [{ type: "start", cachedTokens: 0 }, {
      type: "start",
      cachedTokens: 256,
    }]);
    const texts = (events: GenerationEvent[]) => events.filter((event) => event.type === "text");
    assertEquals(texts(third), texts(first));
    // Nothing is generated, for each choice.
    assertEquals(told(empty).length, 300);
    assertEquals(
      empty.filter((event) => event.type === "end").map((
        event,
      ) => [event.choice, event.reason, event.completionTokens]),
      [[0, "length", 0], [1, "length", 0], [2, "length", 0]],
    );
    assertEquals(texts(empty), []);
  },
);

testOnDevices(
  "an embedding: the mean or the last of the hidden states, exactly read, of length 1",
  async ({ name: device }) => {
    const vectors: Record<string, Float32Array[]> = {};
    for (const kv of ["vq1", "bf16"]) {
      using model = await load(kv, device);
      const ids = model.tokenizer.encode(source).slice(0, 530), hidden: Float32Array[] = [];
      {
        using sequence = model.cache.sequence();
        const observeHidden = (tensor: Tensor) => hidden.push(tensor.read<Float32Array>());
        for (const _ of model.model.prefillParts(null, sequence, ids, { observeHidden }));
      }
      const width = model.model.config.hiddenSize, all = Float32Array.from(hidden.flatMap((part) => [...part]));
      assertEquals(all.length, 530 * width);
      vectors[kv] = (["mean", "last"] as const).map((embedding) => {
        const [events] = run(model, [{ ids, alone: true, embedding, maxTokens: 0 }]);
        const found = events.find((event) => event.type === "embedding")!.values;
        const mean = Float64Array.from({ length: width }, (_, c) => {
          if (embedding === "last") return all[529 * width + c];
          let sum = 0;
          for (let t = 0; t < 530; t++) sum += all[t * width + c];
          return sum / 530;
        });
        const length = Math.hypot(...mean);
        found.forEach((value, c) => assertAlmostEquals(value, mean[c] / length, 1e-5));
        return found;
      });
    }
    // The cache has no part in it.
    assertEquals(vectors.vq1, vectors.bf16);
  },
);

testOnDevices("a prompt that is left midway gives everything back", async ({ name: device }) => {
  using model = await load("vq2", device);
  const ids = model.tokenizer.encode(source).slice(0, 300);
  const requests = [{ promptLogprobs: 0 }, { embedding: "mean" as const, maxTokens: 0 }];
  let first: number | undefined;
  // Once for what is kept from then on, such as scratch memory.
  for (const request of [...requests, ...requests]) {
    {
      using batch = new Batch(
        model.model,
        model.cache,
        model.tokenizer,
        { rows: 1, block: 128, prefixes: 0 },
        () => {},
      );
      batch.submit(1, { ids, alone: true, maxTokens: 4, sampling: {}, n: 1, stop: [], ...request });
      batch.step();
      batch.cancel(1);
      assertEquals([batch.stats().sequences, batch.stats().pages.free], [0, batch.stats().pages.total]);
    }
    if (request === requests[1]) {
      assertEquals(model.device.memory().allocated, first ??= model.device.memory().allocated);
    }
  }
});

testOnDevices("the last token's embedding says what the head is given", async ({ name: device }) => {
  using model = await load("bf16", device);
  const ids = model.tokenizer.encode(source).slice(0, 40);
  using sequence = model.cache.sequence();
  const reading = embedPrompt(model.model, sequence, ids, "last");
  let next = reading.next();
  while (!next.done) next = reading.next();
  assertAlmostEquals(Math.hypot(...next.value), 1, 1e-6);
});
