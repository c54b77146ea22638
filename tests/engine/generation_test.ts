import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { test } from "node:test";
import { EMBEDDED_MODEL, LanguageModel, type LoadOptions, type Piece } from "../../mod.ts";

const load = (options: LoadOptions = {}) => LanguageModel.load(EMBEDDED_MODEL, { device: "cpu", ...options });
const ids = (piece: { tokens: { id: number }[] }) => piece.tokens.map(({ id }) => id);

test("ten lines load a model and generate with a 2-bit cache", async () => {
  using model = await load();
  let text = "";
  for await (const piece of model.generate("The kernel", { maxTokens: 32 })) text += piece.text;
  assert(text.length > 30, text);
  assertEquals(model.config.kv, "vq2+");
  assert(model.config.calibration.endsWith("vq2+.vecinfer.safetensors"), model.config.calibration);
  assertEquals(model.cache.freePages, model.cache.pageCount);
});

test("a model without calibration runs data-free, and says so", async () => {
  using model = await load({ calibration: "data-free" });
  assertEquals(model.config.calibration, "data-free (no calibration file)");
  assertEquals(model.config.bytesPerToken, 512 + 32);
  const { text } = await model.complete("The kernel", { maxTokens: 16 });
  assert(text.length > 10);
});

test("keys and values take different presets, each with its own calibration", async () => {
  using model = await load({ kv: { keys: "vq3", values: "vq1.5", sinks: 0, window: 16 } });
  assertEquals([model.config.keys, model.config.values, model.config.sinks, model.config.window], [
    "d4b12",
    "d8b12",
    0,
    16,
  ]);
  assert(/keys .*vq3.*, values .*vq1\.5/.test(model.config.calibration), model.config.calibration);
  assert((await model.complete("The kernel", { maxTokens: 40 })).tokens.length === 40);
});

test("a stop string ends the text before it, also where tokens cut through it", async () => {
  using model = await load({ kv: "bf16" });
  const { text } = await model.complete("To install the package, run", { maxTokens: 48 });
  const stop = text.slice(20, 27);
  const cut = await model.complete("To install the package, run", { maxTokens: 48, stop: ["never to be seen", stop] });
  assertEquals(cut.text, text.slice(0, text.indexOf(stop)));
  assertEquals(cut.finishReason, "stop");
  let streamed = "";
  for await (const piece of model.generate("To install the package, run", { maxTokens: 48, stop: [stop] })) {
    streamed += piece.text;
  }
  assertEquals(streamed, cut.text);
});

test("a seed repeats a draw, other seeds draw otherwise", async () => {
  using model = await load();
  const draw = (seed: number) => model.complete("The", { maxTokens: 24, temperature: 1, seed });
  const [first, again, other] = [await draw(7), await draw(7), await draw(8)];
  assertEquals(ids(first), ids(again));
  assert(ids(first).join() !== ids(other).join());
  assert(first.tokens.every(({ logprob }) => logprob <= 0 && Number.isFinite(logprob)));
});

test("logit bias forbids a token, and is gone at the next prompt", async () => {
  using model = await load({ kv: "bf16" });
  const plain = await model.complete("The kernel", { maxTokens: 8 }), first = ids(plain)[0];
  const biased = await model.complete("The kernel", { maxTokens: 8, logitBias: { [first]: -Infinity } });
  assert(!ids(biased).includes(first));
  assertEquals(ids(await model.complete("The kernel", { maxTokens: 8 })), ids(plain));
});

test("a penalty keeps greedy text from repeating a token", async () => {
  using model = await load({ kv: "bf16" });
  const { tokens } = await model.complete("a a a a a a", { maxTokens: 40, frequencyPenalty: 1000 });
  assertEquals(new Set(tokens.map(({ id }) => id)).size, tokens.length);
});

test("an abort during the prompt and between tokens throws its reason and gives the pages back", async () => {
  using model = await load({ context: 2048 });
  const prompt = model.encode("The kernel ".repeat(300)).slice(0, 900);
  const during = new AbortController();
  await assertRejects(
    () => model.complete(prompt, { signal: during.signal, onPrefill: () => during.abort(new Error("in the prompt")) }),
    Error,
    "in the prompt",
  );
  const between = new AbortController();
  const pieces: Piece[] = [];
  await assertRejects(
    async () => {
      for await (const piece of model.generate("The kernel", { signal: between.signal })) {
        pieces.push(piece);
        if (pieces.length === 3) between.abort(new Error("between tokens"));
      }
    },
    Error,
    "between tokens",
  );
  assertEquals(pieces.length, 3);
  assertEquals(model.cache.freePages, model.cache.pageCount);
  assert((await model.complete("The kernel", { maxTokens: 4 })).tokens.length === 4);
});

test("leaving the loop early gives the pages back", async () => {
  using model = await load();
  for await (const piece of model.generate("The kernel")) if (piece.text) break;
  assertEquals(model.cache.freePages, model.cache.pageCount);
});

test("a prompt longer than the context is refused with both numbers; a full context ends with length", async () => {
  using model = await load({ context: 64 });
  await assertRejects(() => model.complete("word ".repeat(200)), RangeError, "do not fit the context of 64");
  const prompt = model.encode("word ".repeat(200)).slice(0, 60);
  const { tokens, finishReason } = await model.complete(prompt, { logitBias: { 1: -Infinity } });
  assertEquals([tokens.length, finishReason], [5, "length"]);
});

test("bad settings and tokens are refused by name, and the model goes on", async () => {
  using model = await load();
  await assertRejects(() => model.complete("a", { temperature: -1 }), RangeError, "temperature is -1");
  await assertRejects(() => model.complete("a", { topP: 0 }), RangeError, "topP is 0");
  await assertRejects(() => model.complete("a", { maxTokens: 0 }), RangeError, "maxTokens is 0");
  await assertRejects(() => model.complete([99999]), RangeError, "token 99999");
  await assertRejects(() => model.complete([]), RangeError, "no tokens");
  await assertRejects(() => model.complete([{ role: "user", content: "hi" }]), Error, "chat template");
  assert((await model.complete("a", { maxTokens: 2 })).tokens.length === 2);
});

test("a sequence of its own continues a conversation", async () => {
  using model = await load({ kv: "bf16", sequences: 2 });
  using sequence = model.cache.sequence();
  const prompt = model.encode("To install the package, run");
  const whole = await model.complete(prompt, { maxTokens: 24 });
  const first: number[] = [];
  for await (const piece of model.generate(prompt, { maxTokens: 12, sequence })) first.push(...ids(piece));
  assertEquals(sequence.length, prompt.length + 11);
  const second: number[] = [];
  for await (const piece of model.generate([first.at(-1)!], { maxTokens: 12, sequence })) second.push(...ids(piece));
  assertEquals([...first, ...second], ids(whole));
});

test("unknown presets and contexts are refused", async () => {
  await assertRejects(() => load({ kv: "vq9" }), RangeError, "vq9");
  await assertRejects(() => load({ context: 0 }), RangeError, "context is 0");
});

test("a disposed model refuses to generate", async () => {
  const model = await load();
  model[Symbol.dispose]();
  await assertRejects(() => model.complete("a", { maxTokens: 2 }), Error, "dispose");
  assertThrows(() => model.device.synchronize(), Error, "disposed");
});
