import { assert, assertEquals, assertMatch, assertRejects, assertStringIncludes } from "@std/assert";
import { test } from "node:test";
import OpenAI, { APIError, APIUserAbortError } from "openai";
import { mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, Tokenizer } from "../../mod.ts";
import { chat, closeAfter, error, idle, log, source, start } from "./fixture.ts";

closeAfter();

test("401 for no key or a wrong one; page, health and description stay open", async () => {
  const { server, client } = await start({ keys: ["right", "also right"] });
  await server.ready;
  assertEquals((await error(() => client.models.list())).status, 401);
  const told = await error(() => client.chat.completions.create({ ...chat, model: "tiny-llama" }));
  assertEquals([told.status, told.code], [401, "invalid_api_key"]);
  for (const path of ["/config", "/stats", "/metrics"]) {
    const response = await fetch(server.url + path);
    assertEquals([response.status, (await response.json()).error.code], [401, "invalid_api_key"]);
  }
  for (const path of ["/", "/health", "/openapi.json"]) {
    const response = await fetch(server.url + path);
    await response.text();
    assertEquals(response.status, 200);
  }
  for (const apiKey of ["right", "also right"]) {
    assertEquals((await new OpenAI({ baseURL: `${server.url}/v1`, apiKey }).models.list()).data.length, 1);
  }
});

test("503 until the model is loaded, 429 with retry-after for too many requests", async () => {
  const { server, client } = await start({ sequences: 1, queue: 1 });
  const early = await error(() => client.chat.completions.create({ ...chat, model: "tiny-llama" }));
  assertEquals([early.status, early.code, early.type], [503, "unavailable", "server_error"]);
  const health = await fetch(`${server.url}/health`);
  assertEquals([health.status, await health.json()], [503, { status: "loading" }]);
  await server.ready;
  assertEquals((await (await fetch(`${server.url}/health`)).json()).status, "ok");
  const body = { ...chat, model: "tiny-llama", max_completion_tokens: 80 };
  const outcomes = await Promise.allSettled(Array.from({ length: 5 }, () => client.chat.completions.create(body)));
  const failed = outcomes.flatMap((outcome) =>
    outcome.status === "rejected" ? [outcome.reason as InstanceType<typeof APIError>] : []
  );
  assertEquals(outcomes.length - failed.length, 2);
  for (const told of failed) {
    assertEquals([told.status, told.code, told.type], [429, "rate_limit_exceeded", "rate_limit_error"]);
    assertMatch(told.headers!.get("retry-after")!, /^\d+$/);
  }
  await idle(server);
});

test("leaving in the queue, in the prompt and in the answer ends the work and gives everything back", async () => {
  const { server, client } = await start({ name: "tiny" });
  await server.ready;
  await client.chat.completions.create({ ...chat, messages: [{ role: "user", content: source.slice(0, 4000) }] });
  const before = await idle(server);
  const prompts = [source.slice(0, 6000), "The kernel"];
  for (const [prompt, ms] of [[0, 5], [0, 60], [1, 30], [1, 200]] as const) {
    for (const streaming of [true, false]) {
      const leaving = Array.from({ length: 6 }, async () => {
        const abort = new AbortController();
        setTimeout(() => abort.abort(), ms);
        const request = {
          ...chat,
          messages: [{ role: "user" as const, content: prompts[prompt] }],
          max_completion_tokens: 400,
        };
        if (!streaming) {
          return await assertRejects(
            () => client.chat.completions.create(request, { signal: abort.signal }),
            APIUserAbortError,
          );
        }
        try {
          const chunks = await client.chat.completions.create({ ...request, stream: true }, { signal: abort.signal });
          for await (const _ of chunks);
        } catch (error) {
          assert(error instanceof APIUserAbortError || (error as Error).name === "AbortError", String(error));
        }
      });
      await Promise.all(leaving);
    }
  }
  const after = await idle(server);
  assertEquals(after.pages, before.pages);
  assertEquals(after.pages.free, after.pages.total);
  assertEquals(after.deviceBytes, before.deviceBytes);
  // Far fewer than the 48 x 400 tokens that were asked for.
  const generated = after.totals.generatedTokens - before.totals.generatedTokens;
  assert(generated < 8000, `${generated} tokens`);
  assertEquals((await client.chat.completions.create(chat)).choices[0].finish_reason, "length");
  assert(log.some(({ finish }) => finish === "abort"));
});

test("a prompt that was read before is found again, with the same answer", async () => {
  const { server, client } = await start({ prefixes: 4 });
  await server.ready;
  const request = {
    ...chat,
    model: "tiny-llama",
    messages: [{ role: "user" as const, content: source.slice(0, 3000) }],
  };
  const [first, second] = [
    await client.chat.completions.create(request),
    await client.chat.completions.create(request),
  ];
  const { prompt_tokens, prompt_tokens_details } = second.usage!;
  assertEquals(first.usage!.prompt_tokens_details!.cached_tokens, 0);
  assertEquals(prompt_tokens_details!.cached_tokens, Math.floor((prompt_tokens - 1) / 128) * 128);
  assertEquals(second.choices[0].message.content, first.choices[0].message.content);
  const stats = await idle(server);
  assertEquals(stats.pages.total - stats.pages.free, stats.pages.prefix);
  server.engine.clearPrefixes();
  await new Promise((resolve) => setTimeout(resolve, 200));
  assertEquals((await idle(server)).pages.free, stats.pages.total);
});

test("shutting down ends running streams with an event, and takes no more", async () => {
  const { server, client } = await start();
  await server.ready;
  const response = await fetch(`${server.url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...chat, model: "tiny-llama", max_completion_tokens: 2000, stream: true }),
  });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = (await reader.read()).value!;
  const short = client.chat.completions.create({ ...chat, model: "tiny-llama" });
  while (server.app.active < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  const closed = server.close(1);
  const refused = await error(() => client.chat.completions.create({ ...chat, model: "tiny-llama" }));
  assertEquals([refused.status, refused.code], [503, "unavailable"]);
  for (let part = await reader.read(); !part.done; part = await reader.read()) text += part.value;
  const last = text.trimEnd().split("\n\n").at(-1)!;
  assertEquals(JSON.parse(last.replace(/^data: /, "")).error.code, "unavailable", last);
  assertEquals((await short).choices[0].finish_reason, "length");
  await closed;
  assertEquals(server.engine.state, "closed");
});

test("a request that takes longer than allowed is ended", async () => {
  const { server, client } = await start({ timeout: 0.2 });
  await server.ready;
  const told = await error(() =>
    client.chat.completions.create({ ...chat, model: "tiny-llama", max_completion_tokens: 2000 })
  );
  assertEquals([told.status, told.code], [504, "request_timeout"]);
  assertEquals((await idle(server)).pages.free, 4 * 32);
});

test("a model that is not there: the server says so and goes on answering", async () => {
  const { server } = await start({ model: "no/such/folder" });
  await assertRejects(() => server.ready, Error, "no/such/folder");
  const health = await fetch(`${server.url}/health`);
  assertEquals([health.status, await health.json()], [503, { status: "failed" }]);
});

test("a model's own chat template makes the prompt", async () => {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-chat-")), assets = fileURLToPath(EMBEDDED_MODEL);
  try {
    for (const name of readdirSync(assets)) symlinkSync(join(assets, name), join(folder, name));
    const template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]";
    writeFileSync(join(folder, "chat_template.jinja"), template);
    const { server, client } = await start({ model: folder, name: "chatty" });
    await server.ready;
    assertEquals((await (await fetch(`${server.url}/config`)).json()).chatTemplate, "the model's own");
    const messages = [{ role: "developer" as const, content: "Be brief." }, {
      role: "user" as const,
      content: "The kernel",
    }];
    const answer = await client.chat.completions.create({ ...chat, model: "chatty", messages });
    const prompt = Tokenizer.open(assets).encode("[system] Be brief.\n[user] The kernel\n[assistant]");
    const same = await client.completions.create({ model: "chatty", prompt, temperature: 0, max_tokens: 24 });
    assertEquals(answer.choices[0].message.content, same.choices[0].text);
    assertEquals(answer.usage!.prompt_tokens, prompt.length);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test("chats are refused by name where the fallback is off", async () => {
  const { server, client } = await start({ chatFallback: "refuse" });
  await server.ready;
  const told = await error(() => client.chat.completions.create({ ...chat, model: "tiny-llama" }));
  assertEquals([told.status, told.param], [400, "messages"]);
  assertStringIncludes(told.message, "no chat template");
});
