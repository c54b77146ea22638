/** What one client sends beside what others get. Times are measured by bench/neighbours.ts. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { connect } from "node:net";
import { test } from "node:test";
import { closeAfter, idle, source, start } from "./fixture.ts";

closeAfter();

const JSON_TYPE = { "content-type": "application/json" };

/** Posts a completion; status and body. */
async function post(
  url: string,
  body: Record<string, unknown>,
  headers: Record<string, string> = {},
  path = "completions",
) {
  const response = await fetch(`${url}/v1/${path}`, {
    method: "POST",
    headers: { ...JSON_TYPE, ...headers },
    body: JSON.stringify({ model: "tiny-llama", temperature: 0, max_tokens: 8, ...body }),
  });
  // deno-lint-ignore no-explicit-any -- whatever the server answers
  return { status: response.status, body: await response.json() as any };
}

/** A socket that sends a text, and what comes back until `until` holds or it is closed. */
function exchange(url: string, text: string, until: (answer: string) => boolean, half = false): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  let answer = "";
  const socket = connect(
    { port: Number(new URL(url).port), host: "127.0.0.1" },
    () => half ? socket.end(text) : socket.write(text),
  );
  socket.setTimeout(60_000, () => socket.destroy(new Error(`nothing came after: ${answer}`)));
  socket.on("data", (part) => {
    answer += part;
    if (until(answer)) socket.destroy();
  });
  socket.on("close", () => resolve(answer));
  socket.on("error", reject);
  return promise;
}

const raw = (body: string, length = body.length): string =>
  `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${length}\r\n\r\n${body}`;

const { server } = await start({ name: "tiny-llama", sequences: 2, queue: 6, unreadBytes: 1 << 18 });
await server.ready;

test("settings that are nothing as float32 are refused, beside a stream that goes on", async () => {
  const stream = post(server.url, { prompt: "The kernel", max_tokens: 150 });
  for (
    const [field, value] of [["repetition_penalty", 1e-46], ["repetition_penalty", 1e-40], ["top_p", 1e-46]] as const
  ) {
    const told = await post(server.url, { prompt: [3122], temperature: 2, [field]: value, max_tokens: 30 });
    assertEquals([told.status, told.body.error.type], [400, "invalid_request_error"], field);
    assertMatch(told.body.error.message, /as float32/);
  }
  assertEquals((await post(server.url, { prompt: [3122], temperature: 1e-46 })).status, 200);
  assertEquals((await stream).body.usage.completion_tokens, 150);
});

test("clients take turns: one with many prompts keeps nobody out, and nobody waiting for all of them", async () => {
  const prompts = Array.from({ length: 8 }, (_, i) => `${source.slice(100 * i, 100 * i + 40)}`);
  let many = false;
  const greedy = post(server.url, { prompt: prompts, max_tokens: 60 }).then((answer) => {
    many = true;
    return answer;
  });
  while (server.engine.pending < 8) await new Promise((resolve) => setTimeout(resolve, 1));
  const others = await Promise.all(["a", "b"].map((prompt) => post(server.url, { prompt })));
  assertEquals(others.map(({ status }) => status), [200, 200]);
  assertEquals(many, false);
  assertEquals((await greedy).body.choices.length, 8);
  // More than can ever be taken is the request's fault.
  const { status, body } = await post(server.url, { prompt: [...prompts, "a"] });
  assertEquals([status, body.error.param], [400, "prompt"]);
  assertMatch(body.error.message, /9 answers are asked for; this server takes 8/);
  await idle(server);
});

test("a client that does not read ends its own rows", async () => {
  const before = server.engine.stats.caches["vq2+"].totals.generatedTokens;
  const body = JSON.stringify({
    model: "tiny-llama",
    messages: [{ role: "user", content: "The kernel" }],
    stream: true,
    n: 2,
    logprobs: true,
    top_logprobs: 20,
    max_tokens: 1000,
    temperature: 1,
    logit_bias: { 1: -100, 2: -100 },
  });
  // Without a socket, whose buffers are megabytes.
  const response = await server.app.fetch(
    new Request(`${server.url}/v1/chat/completions`, { method: "POST", headers: JSON_TYPE, body }),
  );
  const after = await idleEngine();
  assert(after - before < 1000, `${after - before} tokens`);
  // Others did not notice, and what it left unread is told as an error.
  assertEquals((await post(server.url, { prompt: "a" })).status, 200);
  assertMatch(await response.text(), /bytes of the answer unread/);
  await idle(server);
});

/** Waits until no row runs, whatever clients still have to read. */
async function idleEngine(): Promise<number> {
  for (let i = 0; i < 2400; i++) {
    const { sequences, waiting, totals } = server.engine.stats.caches["vq2+"];
    if (i > 10 && sequences + waiting === 0) return totals.generatedTokens;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error("rows run on");
}

test("requests that come before the first is answered are answered in their order", async () => {
  const texts = ["The kernel", "A file", "Some process"],
    bodies = texts.map((prompt) => raw(JSON.stringify({ model: "tiny-llama", prompt, max_tokens: 4, temperature: 0 })));
  const answer = await exchange(server.url, bodies.join(""), (all) => all.split('"finish_reason"').length === 4);
  assertEquals(answer.split("HTTP/1.1 200 OK").length - 1, 3, answer);
  const alone = await Promise.all(texts.map((prompt) => post(server.url, { prompt, max_tokens: 4 })));
  const got = [...answer.matchAll(/"text":("(?:[^"\\]|\\.)*")/g)].map(([, text]) => JSON.parse(text));
  assertEquals(got, alone.map(({ body }) => body.choices[0].text));
});

test("a body that is cut is the client's fault; a path with two slashes is no other path", async () => {
  const answer = await exchange(server.url, raw('{"model":"tiny', 100), () => false, true);
  assert(answer === "" || /^HTTP\/1\.1 400 /.test(answer), answer);
  for (const path of ["//x/metrics", "///metrics", "//localhost/metrics", "//v1/models"]) {
    const told = await exchange(
      server.url,
      `GET ${path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n`,
      () => false,
    );
    assertMatch(told, /^HTTP\/1\.1 404 /, path);
  }
});

test("prompts of another key, or with another salt, are not found in the cache", async () => {
  const keys = ["one", "two"], prompt = source.slice(0, 2000);
  for (const share of [false, true]) {
    const { server: closed } = await start({ name: "tiny-llama", keys, prefixes: 8, sharePrefixes: share });
    await closed.ready;
    const cached = async (key: string, cache_salt?: string | null): Promise<boolean> => {
      const { status, body } = await post(closed.url, { prompt, max_tokens: 1, cache_salt }, {
        authorization: `Bearer ${key}`,
      });
      assertEquals(status, 200, JSON.stringify(body));
      return body.usage.prompt_tokens_details.cached_tokens > 0;
    };
    assertEquals(await cached("one"), false);
    assertEquals(await cached("two"), share);
    assertEquals(await cached("one", null), true);
    assertEquals(await cached("one", "salt"), false);
    assertEquals(await cached("one", "salt"), true);
    assertEquals(await cached("two", "salt"), share);
    assertEquals(await cached("two", "salt 2"), false);
    const { status } = await post(closed.url, { prompt, cache_salt: 5 }, { authorization: "Bearer one" });
    assertEquals(status, 400);
    await closed.close(0);
  }
});

test("what fails is told neutrally; where the model is, is nobody's business", async () => {
  const { server: failed } = await start({ model: "no/such/folder" });
  assertMatch((await failed.failed).message, /no\/such\/folder/);
  const { status, body } = await post(failed.url, { prompt: "a" });
  assertEquals([status, body.error.message], [503, "the engine failed; the server's log says why"]);
});
