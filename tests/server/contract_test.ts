import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { test } from "node:test";
import { chat, closeAfter, error, idle, log, source, start } from "./fixture.ts";

const { server, client } = await start({ name: "tiny", kv: ["vq2", "bf16"] });
await server.ready;
closeAfter();

/** The data of a stream's events, and the raw text. */
async function stream(
  body: unknown,
  path = "/v1/chat/completions",
): Promise<{ raw: string; data: string[]; response: Response }> {
  const response = await fetch(server.url + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const raw = await response.text();
  return { raw, data: raw.split("\n\n").filter(Boolean).map((event) => event.replace(/^data: /, "")), response };
}

test("models: each cache under its own name", async () => {
  const { data } = await client.models.list();
  assertEquals(data.map(({ id, object, owned_by }) => [id, object, owned_by]), [
    ["tiny", "model", "vecinfer"],
    ["tiny:bf16", "model", "vecinfer"],
  ]);
  assertEquals((await client.models.retrieve("tiny:bf16")).id, "tiny:bf16");
  assertEquals((await client.models.retrieve("tiny:vq2")).id, "tiny");
  assertEquals((await error(() => client.models.retrieve("huge"))).status, 404);
});

test("chat: an answer with usage, the same for content in parts and as a developer's", async () => {
  const answer = await client.chat.completions.create(chat);
  assertEquals(answer.object, "chat.completion");
  assertMatch(answer.id, /^chatcmpl-/);
  assertMatch(answer.system_fingerprint!, /^fp_[0-9a-f]{12}$/);
  const [choice] = answer.choices;
  assertEquals([choice.finish_reason, choice.message.role, choice.logprobs], ["length", "assistant", null]);
  assertEquals(answer.usage, {
    prompt_tokens: 3,
    completion_tokens: 24,
    total_tokens: 27,
    prompt_tokens_details: { cached_tokens: 0 },
  });
  const parts = await client.chat.completions.create({
    ...chat,
    messages: [{ role: "developer", content: [{ type: "text", text: "The " }, { type: "text", text: "kernel" }] }],
  });
  assertEquals(parts.choices[0].message.content, choice.message.content);
  const completion = await client.completions.create({
    model: "tiny",
    prompt: "The kernel",
    temperature: 0,
    max_tokens: 24,
  });
  assertEquals(completion.choices[0].text, choice.message.content);
});

test("chat stream: role first, then content alone, finish reasons null but for the last, usage, [DONE]", async () => {
  const whole = await client.chat.completions.create(chat);
  const { data, response } = await stream({ ...chat, stream: true, stream_options: { include_usage: true } });
  assertMatch(response.headers.get("content-type")!, /^text\/event-stream/);
  assertEquals(data.pop(), "[DONE]");
  const chunks = data.map((text) => JSON.parse(text));
  const { id, created } = chunks[0];
  for (const chunk of chunks) {
    assertEquals([chunk.id, chunk.created, chunk.model, chunk.object], [id, created, "tiny", "chat.completion.chunk"]);
    assertEquals(chunk.system_fingerprint, whole.system_fingerprint);
  }
  const last = chunks.pop();
  assertEquals(last.choices, []);
  assertEquals(last.usage, whole.usage);
  assert(chunks.every((chunk) => chunk.usage === null));
  assertEquals(chunks.shift().choices, [
    { index: 0, delta: { role: "assistant", content: "" }, logprobs: null, finish_reason: null },
  ]);
  assertEquals(chunks.pop().choices, [{ index: 0, delta: {}, logprobs: null, finish_reason: "length" }]);
  assert(chunks.length > 1);
  for (const { choices: [choice] } of chunks) {
    assertEquals([Object.keys(choice.delta), choice.finish_reason], [["content"], null]);
  }
  assertEquals(chunks.map(({ choices }) => choices[0].delta.content).join(""), whole.choices[0].message.content);
  const plain = await stream({ ...chat, stream: true });
  assert(plain.data.slice(0, -1).every((text) => !("usage" in JSON.parse(text))));
});

test("stream through the client, several choices side by side", async () => {
  const texts = ["", "", ""], reasons: unknown[] = [];
  const chunks = await client.chat.completions.create({ ...chat, n: 3, temperature: 1, seed: 5, stream: true });
  for await (const { choices: [choice] } of chunks) {
    texts[choice.index] += choice.delta.content ?? "";
    if (choice.finish_reason) reasons[choice.index] = choice.finish_reason;
  }
  assertEquals(reasons, ["length", "length", "length"]);
  const again = await client.chat.completions.create({ ...chat, n: 3, temperature: 1, seed: 5 });
  assertEquals(again.choices.map(({ message }) => message.content), texts);
  assert(texts[0] !== texts[1]);
});

test("a seed repeats, alone and beside others", async () => {
  const one = () => client.chat.completions.create({ ...chat, temperature: 1.3, top_p: 0.95, seed: 42 });
  const texts = await Promise.all([one(), one(), one(), client.chat.completions.create(chat)]);
  const alone = await one();
  for (const { choices } of texts.slice(0, 3)) {
    assertEquals(choices[0].message.content, alone.choices[0].message.content);
  }
});

test("a stop string is never seen, not even in part", async () => {
  const whole = (await client.chat.completions.create(chat)).choices[0].message.content!;
  const stop = whole.slice(12, 19);
  const { choices: [choice] } = await client.chat.completions.create({ ...chat, stop: [stop, "\u0000"] });
  assertEquals([choice.message.content, choice.finish_reason], [whole.slice(0, whole.indexOf(stop)), "stop"]);
  let seen = "";
  for await (const chunk of await client.chat.completions.create({ ...chat, stop, stream: true })) {
    seen += chunk.choices[0].delta.content ?? "";
    assert(choice.message.content!.startsWith(seen), `"${seen}"`);
  }
  assertEquals(seen, choice.message.content);
});

test("log-probabilities of chats and of completions", async () => {
  const answer = await client.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 4 });
  const content = answer.choices[0].logprobs!.content!;
  assertEquals(content.length, 24);
  assertEquals(content.map(({ token }) => token).join(""), answer.choices[0].message.content);
  for (const { token, logprob, bytes, top_logprobs } of content) {
    assertEquals(new TextDecoder().decode(Uint8Array.from(bytes!)), token);
    assert(logprob <= 0);
    assertEquals(top_logprobs.length, 4);
    assertEquals([top_logprobs[0].token, top_logprobs[0].logprob], [token, logprob]);
    assert(top_logprobs.every((top, i) => i === 0 || top.logprob <= top_logprobs[i - 1].logprob));
  }
  const { choices: [{ text, logprobs }] } = await client.completions.create({
    model: "tiny",
    prompt: "The kernel",
    temperature: 0,
    max_tokens: 6,
    logprobs: 2,
  });
  assertEquals(logprobs!.tokens!.join(""), text);
  assertEquals(logprobs!.token_logprobs, content.slice(0, 6).map(({ logprob }) => logprob));
  assertEquals(
    logprobs!.text_offset!.map((offset, i) => text.slice(offset).startsWith(logprobs!.tokens![i])),
    Array(6).fill(true),
  );
  let streamed = 0;
  for await (const chunk of await client.chat.completions.create({ ...chat, logprobs: true, stream: true })) {
    streamed += chunk.choices[0].logprobs?.content?.length ?? 0;
  }
  assertEquals(streamed, 24);
});

test("logit biases and penalties change what is drawn", async () => {
  const first = (await client.chat.completions.create({ ...chat, logprobs: true })).choices[0];
  const id = await client.completions.create({
    model: "tiny",
    prompt: "The kernel",
    max_tokens: 1,
    temperature: 0,
    logprobs: 0,
  });
  assertEquals(id.choices[0].text, first.logprobs!.content![0].token);
  const banned = await client.chat.completions.create({
    ...chat,
    logit_bias: Object.fromEntries(Array.from({ length: 6144 }, (_, id) => [id, id === 100 ? 100 : -100])),
    max_completion_tokens: 4,
    logprobs: true,
  });
  const tokens = banned.choices[0].logprobs!.content!.map(({ token }) => token);
  assertEquals(new Set(tokens).size, 1);
  const repeated = await client.chat.completions.create({ ...chat, max_completion_tokens: 60 });
  const penalized = await client.chat.completions.create({
    ...chat,
    max_completion_tokens: 60,
    frequency_penalty: 2,
    presence_penalty: 2,
  });
  assert(repeated.choices[0].message.content !== penalized.choices[0].message.content);
});

test("completions: several prompts, token prompts, echo", async () => {
  const base = { model: "tiny", temperature: 0, max_tokens: 8 };
  const { choices, usage } = await client.completions.create({ ...base, prompt: ["The kernel", "To install"], n: 2 });
  assertEquals(choices.map(({ index }) => index), [0, 1, 2, 3]);
  assertEquals([choices[0].text, choices[2].text], [choices[1].text, choices[3].text]);
  assertEquals(usage!.completion_tokens, 32);
  const tokens = server.engine.config.vocabularySize;
  assertEquals(tokens, 6144);
  const echoed = await client.completions.create({ ...base, prompt: "The kernel", echo: true });
  assertEquals(echoed.choices[0].text, `The kernel${choices[0].text}`);
  const ids = await client.completions.create({ ...base, prompt: [[0, 500, 600], [0, 700]] });
  assertEquals(ids.choices.length, 2);
  assertEquals(ids.usage!.prompt_tokens, 5);
  const events = await stream({ ...base, prompt: "The kernel", stream: true }, "/v1/completions");
  const texts = events.data.slice(0, -1).map((text) => JSON.parse(text).choices[0].text);
  assertEquals(texts.join(""), choices[0].text);
});

test("response_format: an answer of a JSON schema, or any JSON object", async () => {
  const schema = {
    type: "object",
    properties: { tool: { enum: ["make", "cmake"] }, jobs: { type: "integer", minimum: 1, maximum: 64 } },
    required: ["tool", "jobs"],
  };
  const answer = await client.chat.completions.create({
    ...chat,
    temperature: 1,
    seed: 3,
    max_completion_tokens: 60,
    response_format: { type: "json_schema", json_schema: { name: "build", strict: true, schema } },
  });
  const value = JSON.parse(answer.choices[0].message.content!);
  assert(
    ["make", "cmake"].includes(value.tool) && value.jobs >= 1 && value.jobs <= 64,
    answer.choices[0].message.content!,
  );
  assertEquals(answer.choices[0].finish_reason, "stop");
  const refused = await error(() =>
    client.chat.completions.create({
      ...chat,
      response_format: {
        type: "json_schema",
        json_schema: { name: "x", schema: { type: "string", pattern: "(?<=b)a" } },
      },
    })
  );
  assertEquals([refused.status, refused.param], [400, "response_format"]);
  assertStringIncludes(refused.message, "(?<=b)");
  const object = await client.chat.completions.create({
    ...chat,
    response_format: { type: "json_object" },
    max_completion_tokens: 12,
  });
  assertMatch(object.choices[0].message.content!, /^\{/);
});

test("errors: wrong fields, context, model, size, path, each in OpenAI's shape", async () => {
  const long = source.slice(0, 40000);
  for (
    const [call, status, code, param] of [
      [() => client.chat.completions.create({ ...chat, temperature: 9 }), 400, null, "temperature"],
      [() => client.chat.completions.create({ ...chat, messages: [] }), 400, null, "messages"],
      [() => client.chat.completions.create({ ...chat, max_completion_tokens: 0 }), 400, null, "max_completion_tokens"],
      [() => client.chat.completions.create({ ...chat, top_logprobs: 2 }), 400, null, "top_logprobs"],
      [
        () => client.chat.completions.create({ ...chat, messages: [{ role: "user", content: long }] }),
        400,
        "context_length_exceeded",
        "prompt",
      ],
      [
        () => client.completions.create({ model: "tiny", prompt: "x".repeat(900_000) }),
        400,
        "context_length_exceeded",
        "prompt",
      ],
      [
        () => client.chat.completions.create({ ...chat, max_completion_tokens: 5000 }),
        400,
        "context_length_exceeded",
        "prompt",
      ],
      [() => client.chat.completions.create({ ...chat, model: "gpt-5" }), 404, "model_not_found", "model"],
      [
        () => client.chat.completions.create({ ...chat, functions: [{ name: "f" }] }),
        400,
        "unsupported_parameter",
        "functions",
      ],
      [() => client.completions.create({ model: "tiny", prompt: [7000] }), 400, null, "prompt"],
      [() => client.completions.create({ model: "tiny", prompt: "x".repeat(5 << 20) }), 413, "request_too_large", null],
      [() => client.embeddings.create({ model: "tiny", input: [7000] }), 400, null, "prompt"],
      [() => client.get("/nothing"), 404, "not_found", null],
    ] as const
  ) {
    const told = await error(call);
    assertEquals([told.status, told.code, told.param], [status, code, param], told.message);
    assertEquals(Object.keys(told.error as object).sort(), ["code", "message", "param", "type"]);
  }
});

test("of several prompts one that is wrong ends all", async () => {
  const before = await idle(server);
  const told = await error(() =>
    client.completions.create({ model: "tiny", prompt: [[0, 5], [0, 6], [7000]], max_tokens: 900 })
  );
  assertEquals([told.status, told.param], [400, "prompt"]);
  const after = await idle(server);
  assertEquals(after.pages, before.pages);
  assert(after.totals.generatedTokens - before.totals.generatedTokens < 500);
});

test("request ids, CORS only where asked for, configuration, metrics and description", async () => {
  const given = await fetch(`${server.url}/health`, {
    headers: { "x-request-id": "mine-1", origin: "https://a.example" },
  });
  assertEquals([given.headers.get("x-request-id"), given.headers.get("access-control-allow-origin")], ["mine-1", null]);
  await given.text();
  assertMatch((await fetch(`${server.url}/v1/models`)).headers.get("x-request-id")!, /^req_[0-9a-f]{32}$/);
  const { server: open } = await start({ cors: ["https://a.example"] });
  for (const [origin, allowed] of [["https://a.example", "https://a.example"], ["https://b.example", null]] as const) {
    const response = await fetch(`${open.url}/health`, { headers: { origin } });
    await response.text();
    assertEquals(response.headers.get("access-control-allow-origin"), allowed);
  }
  const config = await (await fetch(`${server.url}/config`)).json();
  assertEquals(
    config.models.map((
      { id, kv, window, sinks, context }: Record<string, unknown>,
    ) => [id, kv, window, sinks, context]),
    [
      ["tiny", "vq2", 128, 4, 2048],
      ["tiny:bf16", "bf16", 0, 0, 2048],
    ],
  );
  assertMatch(config.chatTemplate, /^plain/);
  const metrics = await (await fetch(`${server.url}/metrics`)).text();
  for (
    const name of [
      "num_requests_running",
      "time_to_first_token_seconds_bucket",
      "kv_cache_bytes_per_token",
      "generation_tokens_total",
    ]
  ) {
    assertMatch(metrics, new RegExp(`^vecinfer:${name}\\{.*model_name="tiny"`, "m"));
  }
  const description = await (await fetch(`${server.url}/openapi.json`)).json();
  assertEquals(description.openapi, "3.1.0");
  for (const [, name] of JSON.stringify(description).matchAll(/"#\/components\/schemas\/(\w+)"/g)) {
    assert(name in description.components.schemas, name);
  }
  assert("/v1/chat/completions" in description.paths);
  // Lines without a method are of no request.
  assertEquals(log.filter((entry) => entry.method !== undefined && !JSON.parse(JSON.stringify(entry)).id), []);
});
