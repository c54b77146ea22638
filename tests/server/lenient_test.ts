/** Values that other servers take, and fields of theirs: taken in their sense, or refused by name. */
import { assert, assertEquals, assertNotEquals, assertStringIncludes } from "@std/assert";
import { test } from "node:test";
import { chat, closeAfter, source, start } from "./fixture.ts";

const { server } = await start({ name: "tiny", kv: ["vq2", "bf16"], context: 512 });
await server.ready;
closeAfter();

// deno-lint-ignore no-explicit-any
type Json = any;

async function post(body: Json, path = "/v1/completions"): Promise<{ status: number; body: Json }> {
  const response = await fetch(server.url + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  return { status: response.status, body: await response.json() };
}

async function answered(body: Json, path?: string): Promise<Json> {
  const { status, body: answer } = await post(body, path);
  assertEquals(status, 200, JSON.stringify(answer));
  return answer;
}

async function text(fields: Json): Promise<string> {
  return (await answered({ prompt: "The kernel", max_tokens: 12, temperature: 0, ...fields })).choices[0].text;
}

async function refused(fields: Json, path?: string): Promise<{ message: string; param: string | null }> {
  const base = path ? { messages: chat.messages } : { prompt: "The kernel" };
  const { status, body } = await post({ ...base, max_tokens: 4, ...fields }, path);
  assertEquals(status, 400, JSON.stringify(body));
  return body.error;
}

const CHAT = "/v1/chat/completions";

test("no model, null and an empty one are the first", async () => {
  for (const model of [undefined, null, ""]) {
    assertEquals((await answered({ model, prompt: "a", max_tokens: 1 })).model, "tiny");
    assertEquals((await answered({ model, messages: chat.messages, max_tokens: 1 }, CHAT)).model, "tiny");
  }
});

test("max_tokens -1 is no limit, and 0 only reads the prompt", async () => {
  const { tokens } = await answered({ content: source.slice(0, 4000) }, "/tokenize"), prompt = tokens.slice(0, 440);
  const long = await answered({ prompt, max_tokens: -1, temperature: 0, ignore_eos: true });
  assertEquals([long.usage.completion_tokens, long.choices[0].finish_reason], [73, "length"]);
  const { content } = await answered({ tokens: prompt }, "/detokenize");
  for (const field of ["max_tokens", "max_completion_tokens"]) {
    const body = { messages: [{ role: "user", content }], temperature: 0, ignore_eos: true, [field]: -1 };
    assertEquals((await answered(body, CHAT)).usage.total_tokens, 513);
  }
  const none = await answered({ prompt: "The kernel", max_tokens: 0 });
  assertEquals([none.choices[0].text, none.choices[0].finish_reason, none.usage.completion_tokens], ["", "length", 0]);
  const echoed = await answered({ prompt: "The kernel", max_tokens: 0, echo: true });
  assertEquals(echoed.choices[0].text, "The kernel");
});

test("logit_bias as pairs, and false in them", async () => {
  const free = await answered({ prompt: "The kernel", max_tokens: 1, temperature: 0, logprobs: 0, echo: false });
  const tokens = await answered({ prompt: free.choices[0].text }, "/tokenize"), drawn = tokens.tokens.at(-1);
  assertEquals(
    await text({ logit_bias: [[300, 100]], max_tokens: 2 }),
    await text({ logit_bias: { 300: 100 }, max_tokens: 2 }),
  );
  const banned = await text({ logit_bias: { [drawn]: -100 } });
  assertNotEquals(banned, await text({}));
  assertEquals(await text({ logit_bias: [[drawn, false]] }), banned);
  assertEquals(await text({ logit_bias: [] }), await text({}));
  assertEquals((await refused({ logit_bias: [["the", 1]] })).param, "logit_bias");
});

test("top_p 0 is greedy, top_k -1 keeps all, an empty suffix and empty stops are none", async () => {
  const greedy = await text({});
  assertEquals(await text({ temperature: 1.7, seed: 5, top_p: 0 }), greedy);
  const drawn = await text({ temperature: 1.3, seed: 5 });
  assertEquals(await text({ temperature: 1.3, seed: 5, top_k: -1 }), drawn);
  for (const fields of [{ suffix: "" }, { suffix: null }, { stop: "" }, { stop: ["", ""] }, { stop: [] }]) {
    assertEquals(await text(fields), greedy);
  }
  assertEquals((await refused({ suffix: "x" })).param, "suffix");
});

test("seeds: -1 draws one, and seeds that agree in 32 bits are not the same", async () => {
  const drawn = async (seed: number) => await text({ temperature: 1.5, seed });
  const random = new Set(await Promise.all(Array.from({ length: 6 }, () => drawn(-1))));
  assert(random.size > 1);
  const seeds = [1, 2 ** 32 + 1, 2 ** 33 + 1, -(2 ** 32) + 1, 2 ** 53 + 2, 2 ** 31, -(2 ** 31), 2 ** 63];
  const texts = await Promise.all(seeds.map(drawn));
  assertEquals(new Set(texts).size, seeds.length, JSON.stringify(texts));
  assertEquals(await Promise.all(seeds.map(drawn)), texts);
  // Choices of one seed differ, also where the next number is the same one.
  const { choices } = await answered({ prompt: "The kernel", temperature: 1.5, seed: 2 ** 62, n: 3, max_tokens: 12 });
  assertEquals(new Set(choices.map(({ text }: Json) => text)).size, 3);
});

test("stop_token_ids end an answer, ignore_eos goes past its ends, min_tokens puts them off", async () => {
  const { tokens: [first] } = await answered(
    { prompt: await text({ max_tokens: 1 }), add_special_tokens: false },
    "/tokenize",
  );
  const ended = await answered({ prompt: "The kernel", temperature: 0, stop_token_ids: [first, 5] });
  assertEquals([ended.choices[0].text, ended.choices[0].finish_reason, ended.usage.completion_tokens], ["", "stop", 1]);
  const eos = 0, forced = { prompt: "The kernel", temperature: 0, max_tokens: 8 };
  const end = await answered({ prompt: "<|end_of_text|>", add_special_tokens: false }, "/tokenize");
  const id = end.tokens.length === 1 ? end.tokens[0] : eos, bias = { [id]: 100 };
  const stopped = await answered({ ...forced, logit_bias: bias });
  assertEquals([stopped.choices[0].finish_reason, stopped.usage.completion_tokens], ["stop", 1]);
  const past = await answered({ ...forced, logit_bias: bias, ignore_eos: true });
  assertEquals([past.choices[0].finish_reason, past.usage.completion_tokens], ["length", 8]);
  const late = await answered({ ...forced, logit_bias: bias, min_tokens: 5 });
  assertEquals([late.choices[0].finish_reason, late.usage.completion_tokens], ["stop", 6]);
  assertEquals(late.choices[0].text, await text({ max_tokens: 5 }));
  // A stop string counts from there on too.
  const whole = await text({}), stop = whole.slice(0, 2);
  assertEquals((await answered({ ...forced, stop, min_tokens: 8 })).choices[0].text, await text({ max_tokens: 8 }));
  assertEquals((await answered({ ...forced, stop })).choices[0].text, "");
  // What was asked comes back once the bias of the beginning is gone.
  const biased = { logit_bias: { 300: -5, [id]: -3 }, min_tokens: 3 };
  assertEquals(await text(biased), await text({ logit_bias: biased.logit_bias }));
  assertEquals((await refused({ min_tokens: 5 })).param, "min_tokens");
  assertEquals((await refused({ stop_token_ids: [6144] })).param, "stop_token_ids");
  assertEquals((await refused({ ignore_eos: true, response_format: { type: "json_object" } })).param, "ignore_eos");
});

const schema = { type: "object", properties: { a: { enum: [1, 2] } }, required: ["a"], additionalProperties: false };
const FORMS: Record<string, Json> = {
  "response_format": { response_format: { type: "json_schema", json_schema: { name: "x", schema } } },
  "response_format without a name": { response_format: { type: "json_schema", schema } },
  "json_object with a schema": { response_format: { type: "json_object", schema } },
  "json_schema": { json_schema: schema },
  "guided_json": { guided_json: schema },
  "guided_json in a text": { guided_json: JSON.stringify(schema) },
  "structured_outputs": { structured_outputs: { json: schema } },
};

for (const [name, form] of Object.entries(FORMS)) {
  test(`a schema by ${name}, in chats and in texts`, async () => {
    for (const path of [CHAT, undefined]) {
      const base = path ? chat : { prompt: "The kernel", max_tokens: 24, temperature: 0 };
      const { choices: [choice] } = await answered({ ...base, ...form }, path);
      const value = JSON.parse(choice.message?.content ?? choice.text);
      assertEquals(Object.keys(value), ["a"]);
      assert([1, 2].includes(value.a));
    }
  });
}

test("forms that are not there are refused by name, and so are two; empty ones are none", async () => {
  const absent: [Json, string][] = [
    [{ grammar: 'root ::= "a"' }, "grammar"],
    [{ guided_regex: "a+" }, "guided_regex"],
    [{ guided_choice: ["a", "b"] }, "guided_choice"],
    [{ guided_grammar: "start: x" }, "guided_grammar"],
    [{ structured_outputs: { regex: "a" } }, "structured_outputs.regex"],
    [{ structured_outputs: { choice: ["a"] } }, "structured_outputs.choice"],
    [{ structured_outputs: { grammar: "a" } }, "structured_outputs.grammar"],
    [{ guided_json: "{" }, "guided_json"],
    [{ guided_json: "5" }, "guided_json"],
    [{ json_schema: schema, guided_json: schema }, "guided_json"],
    [{ response_format: { type: "json_schema" } }, "response_format.json_schema.schema"],
  ];
  for (const path of [CHAT, undefined]) {
    for (const [fields, param] of absent) assertEquals((await refused(fields, path)).param, param);
  }
  assertEquals(
    await text({ grammar: "", guided_choice: [], guided_json: null, json_schema: null, structured_outputs: {} }),
    await text({}),
  );
});

test("fields of other servers that would change the answer are refused by name, and by what they are by default not", async () => {
  const absent: Json = {
    allowed_token_ids: [5],
    bad_words: ["a"],
    include_stop_str_in_output: true,
    logits_processors: ["x"],
    truncate_prompt_tokens: 5,
    use_beam_search: true,
    skip_special_tokens: false,
  };
  for (const [name, value] of Object.entries(absent)) {
    for (const path of [CHAT, undefined]) assertEquals((await refused({ [name]: value }, path)).param, name);
  }
  const plain = {
    allowed_token_ids: null,
    bad_words: [],
    include_stop_str_in_output: false,
    skip_special_tokens: true,
  };
  assertEquals(await text({ ...plain, use_beam_search: false }), await text({}));
  assertEquals(await text({ repeat_penalty: 1.6 }), await text({ repetition_penalty: 1.6 }));
  assertNotEquals(await text({ repeat_penalty: 1.6 }), await text({}));
});

test("timings as llama.cpp's server has them, in answers and at the end of streams", async () => {
  for (
    const [path, body] of [[CHAT, chat], [undefined, { prompt: "The kernel", max_tokens: 24, temperature: 0 }]] as const
  ) {
    const { timings, usage } = await answered(body, path);
    assertEquals([timings.predicted_n, timings.prompt_n + timings.cache_n], [
      usage.completion_tokens,
      usage.prompt_tokens,
    ]);
    for (const name of ["prompt", "predicted"]) {
      assert(timings[`${name}_ms`] > 0);
      assertEquals(timings[`${name}_per_token_ms`], timings[`${name}_ms`] / timings[`${name}_n`]);
      assertEquals(timings[`${name}_per_second`], 1000 * timings[`${name}_n`] / timings[`${name}_ms`]);
    }
    const response = await fetch(server.url + (path ?? "/v1/completions"), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true }),
    });
    const chunks = (await response.text()).split("\n\n").filter((event) => event.includes("{"))
      .map((event) => JSON.parse(event.slice(6)));
    assertEquals(chunks.slice(0, -1).some((chunk) => "timings" in chunk), false);
    assertEquals(chunks.at(-1).timings.predicted_n, 24);
  }
});

test("the context's length in /v1/models", async () => {
  const { data } = await (await fetch(`${server.url}/v1/models`)).json();
  for (const model of data) {
    assertEquals([model.max_model_len, model.context_length, model.context_window], [512, 512, 512]);
    assertEquals([model.meta.n_ctx, model.meta.n_vocab], [512, 6144]);
    assert(model.meta.n_ctx_train >= 2048);
  }
  const { max_model_len } = await (await fetch(`${server.url}/v1/models/tiny`)).json();
  assertEquals(max_model_len, 512);
});

test("parts that are not text are refused by their type and place", async () => {
  const text = { type: "text", text: "a" };
  for (
    const [part, word] of [
      [{ type: "image_url", image_url: { url: "data:," } }, "image_url"],
      [{ type: "input_audio", input_audio: {} }, "input_audio"],
      [{ type: "file", file: {} }, "file"],
      [{ type: "refusal", refusal: "no" }, "refusal"],
      [{ type: "text", text: 5 }, "text"],
      [{}, "text"],
    ] as const
  ) {
    for (const role of ["user", "assistant"]) {
      const { message, param } = await refused({ messages: [{ role, content: [text, part] }] }, CHAT);
      assertEquals(param, "messages.0.content");
      assertStringIncludes(message, word);
      assertStringIncludes(message, "part 1");
    }
  }
});
