import { assert, assertEquals } from "@std/assert";
import { test } from "node:test";
import { chatAnswer, completionAnswer, errorBody, model } from "../../lib/server/schema.ts";
import { chat, closeAfter, start } from "./fixture.ts";

const { server } = await start({ name: "tiny" });
await server.ready;
closeAfter();

type Operation = { responses: Record<string, unknown>; security: unknown[] };
type Description = { paths: Record<string, Record<string, Operation>> };

test("/openapi.json lists every route, and every route it lists is there", async () => {
  const { paths }: Description = await (await fetch(`${server.url}/openapi.json`)).json();
  const listed = Object.entries(paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method} ${path}`)
  );
  assertEquals(listed.sort(), [
    "get /",
    "get /config",
    "get /health",
    "get /metrics",
    "get /openapi.json",
    "get /stats",
    "get /v1/models",
    "get /v1/models/{id}",
    "post /apply-template",
    "post /detokenize",
    "post /tokenize",
    "post /v1/chat/completions",
    "post /v1/completions",
    "post /v1/embeddings",
    "post /v1/messages",
    "post /v1/responses",
  ]);
  for (const name of listed) {
    const [method, path] = name.split(" "), body = method === "post" ? "{}" : undefined;
    const response = await fetch(server.url + path.replace("{id}", "tiny"), { method: method.toUpperCase(), body });
    const text = await response.text();
    assert(String(response.status) in paths[path][method].responses, `${name}: ${response.status} ${text}`);
  }
});

test("routes that want a key say so, and no others", async () => {
  const { server: closed } = await start({ keys: ["right"] });
  const { paths }: Description = await (await fetch(`${closed.url}/openapi.json`)).json();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, { security, responses }] of Object.entries(methods)) {
      const response = await fetch(closed.url + path.replace("{id}", "tiny"), { method: method.toUpperCase() });
      await response.text();
      assert(String(response.status) in responses, `${method} ${path}: ${response.status}`);
      assertEquals(security.length > 0, response.status === 401, `${method} ${path}: ${response.status}`);
    }
  }
});

test("answers are what their schemas describe", async () => {
  const post = async (path: string, body: unknown) =>
    await (await fetch(server.url + path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    })).json();
  chatAnswer.strict().parse(await post("/v1/chat/completions", { ...chat, logprobs: true }));
  const body = { model: "tiny", prompt: ["The kernel", "To"], max_tokens: 3, logprobs: 1 };
  completionAnswer.strict().parse(await post("/v1/completions", body));
  errorBody.strict().parse(await post("/v1/completions", {}));
  for (const entry of (await (await fetch(`${server.url}/v1/models`)).json()).data) model.strict().parse(entry);
});
