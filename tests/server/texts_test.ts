/** Embeddings, tokens of texts, texts of tokens and of chats. */
import { assert, assertAlmostEquals, assertEquals, assertStringIncludes } from "@std/assert";
import { mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL, openTokenizer } from "../../mod.ts";
import { chat, closeAfter, error, idle, source, start } from "./fixture.ts";

const path = fileURLToPath(EMBEDDED_MODEL), tokenizer = openTokenizer(path);
// The embedded model with a chat template.
const folder = mkdtempSync(join(tmpdir(), "vecinfer-texts-"));
for (const name of readdirSync(path)) symlinkSync(join(path, name), join(folder, name));
const TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}" +
  "{% if add_generation_prompt %}<assistant{{ mark }}>{% endif %}" +
  "{% if messages[0].content == 'bad' %}{{ raise_exception('no such chat') }}{% endif %}";
writeFileSync(join(folder, "chat_template.jinja"), TEMPLATE);
const { server, client } = await start({ model: folder, name: "tiny", kv: ["vq1", "bf16"], context: 1024 });
await server.ready;
closeAfter();
after(() => rmSync(folder, { recursive: true }));

// deno-lint-ignore no-explicit-any
type Json = any;

async function post(path: string, body: Json): Promise<{ status: number; body: Json }> {
  const response = await fetch(server.url + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  return { status: response.status, body: await response.json() };
}

async function answered(path: string, body: Json): Promise<Json> {
  const { status, body: answer } = await post(path, body);
  assertEquals(status, 200, JSON.stringify(answer));
  return answer;
}

test("/tokenize: vLLM's prompt and llama.cpp's content, each with its defaults", async () => {
  for (const text of ["The kernel module", "", "<|end_of_text|> é \u{1f600}", source.slice(0, 5000)]) {
    const plain = tokenizer.encode(text, { addSpecialTokens: false });
    const vllm = await answered("/tokenize", { model: "tiny", prompt: text });
    assertEquals(vllm, {
      count: vllm.tokens.length,
      max_model_len: 1024,
      tokens: tokenizer.encode(text),
      token_strs: null,
    });
    assertEquals((await answered("/tokenize", { prompt: text, add_special_tokens: false })).tokens, plain);
    assertEquals((await answered("/tokenize", { content: text })).tokens, plain);
    assertEquals((await answered("/tokenize", { content: text, add_special: true })).tokens, vllm.tokens);
    const unparsed = tokenizer.encode(text, { addSpecialTokens: false, parseSpecialTokens: false });
    assertEquals((await answered("/tokenize", { content: text, parse_special: false })).tokens, unparsed);
    const { token_strs } = await answered("/tokenize", { prompt: text, return_token_strs: true });
    assertEquals(token_strs, vllm.tokens.map((id: number) => tokenizer.vocabulary.token(id)));
  }
  const { tokens } = await answered("/tokenize", { content: "a\u{1f600}", with_pieces: true });
  const bytes = tokens.flatMap(({ piece }: Json) =>
    typeof piece === "string" ? [...new TextEncoder().encode(piece)] : piece
  );
  assertEquals(new TextDecoder().decode(Uint8Array.from(bytes)), "a\u{1f600}");
  assert(tokens.some(({ piece }: Json) => Array.isArray(piece)));
});

test("/detokenize gives back what /tokenize was given, by both names", async () => {
  for (const text of ["The kernel module", " two  spaces", "é\u{1f600}\n", source.slice(0, 3000)]) {
    const { tokens } = await answered("/tokenize", { content: text });
    assertEquals(await answered("/detokenize", { tokens }), { prompt: text, content: text });
  }
  assertEquals((await answered("/detokenize", { tokens: [] })).content, "");
  for (const tokens of [[6144], [-1], [1.5], ["a"], "x"]) {
    const { status, body: { error } } = await post("/detokenize", { tokens });
    assertEquals([status, error.param.split(".")[0]], [400, "tokens"]);
  }
});

test("/apply-template: a chat as the model reads it; /tokenize takes one too", async () => {
  const { messages } = chat, text = "<user>The kernel\n";
  assertEquals(await answered("/apply-template", { messages }), { prompt: `${text}<assistant>` });
  assertEquals((await answered("/apply-template", { messages, add_generation_prompt: false })).prompt, text);
  const more = {
    messages,
    tools: [{ type: "function", function: { name: "f" } }],
    chat_template_kwargs: { mark: "!" },
  };
  // Told as in an answer: the template does not say what a tool is, and so the system does.
  const told: string = (await answered("/apply-template", more)).prompt;
  assertStringIncludes(told, '"name":"f"');
  assert(told.startsWith("<system>") && told.endsWith(`${text}<assistant!>`), told);
  const { tokens } = await answered("/tokenize", { messages });
  assertEquals(tokens, tokenizer.encode(`${text}<assistant>`, { addSpecialTokens: false }));
  const refused = await post("/apply-template", { messages: [{ role: "user", content: "bad" }] });
  assertEquals(refused.status, 400);
  assertStringIncludes(refused.body.error.message, "no such chat");
  for (const body of [{}, { prompt: "a", content: "b" }, { prompt: "a", messages }]) {
    assertEquals((await post("/tokenize", body)).status, 400);
  }
  assertEquals((await post("/tokenize", { model: "other", prompt: "a" })).status, 404);
});

test("a long text is tokenized beside the streams, not between their tokens", async () => {
  const gaps: number[] = [];
  let last = performance.now(), done = false;
  const stream = (async () => {
    const chunks = await client.completions.create({
      model: "tiny",
      prompt: "The",
      max_tokens: 100,
      temperature: 0,
      stream: true,
    });
    for await (const _ of chunks) {
      if (!done) gaps.push(performance.now() - last);
      last = performance.now();
    }
  })();
  const { count } = await answered("/tokenize", { content: "=".repeat(40_000) });
  done = true;
  assert(count > 1000);
  await stream;
  assert(Math.max(0, ...gaps.slice(1)) < 400, `${Math.max(...gaps)} ms`);
});

test("embeddings: of length 1, the same whatever the cache, for texts and tokens, one and many", async () => {
  const texts = ["The kernel module", source.slice(0, 1500), "Eine kleine Nachtmusik"];
  const { data, usage, model, object } = await client.embeddings.create({
    model: "tiny",
    input: texts,
    encoding_format: "float",
  });
  assertEquals([data.length, model, object, data.map(({ index }) => index)], [3, "tiny", "list", [0, 1, 2]]);
  const ids = texts.map((text) => tokenizer.encode(text));
  assertEquals(usage, { prompt_tokens: ids.flat().length, total_tokens: ids.flat().length });
  for (const { embedding } of data) assertAlmostEquals(Math.hypot(...embedding), 1, 1e-5);
  const exact = await client.embeddings.create({ model: "tiny:bf16", input: ids, encoding_format: "float" });
  assertEquals(exact.data, data);
  const one = await client.embeddings.create({ model: "tiny", input: ids[1], encoding_format: "float" });
  assertEquals(one.data[0].embedding, data[1].embedding);
  // The client asks for base64 of its own accord.
  const coded = await client.embeddings.create({ model: "tiny", input: texts[0] });
  assertEquals([...coded.data[0].embedding], data[0].embedding);
  const raw = await answered("/v1/embeddings", {
    input: texts[0],
    encoding_format: "base64",
    dimensions: data[0].embedding.length,
  });
  assertEquals(raw.data[0].embedding, Buffer.from(Float32Array.from(data[0].embedding).buffer).toString("base64"));
  const last = await answered("/v1/embeddings", { input: texts[0], pooling: "last" });
  const dot = last.data[0].embedding.reduce(
    (sum: number, value: number, i: number) => sum + value * data[0].embedding[i],
    0,
  );
  assert(dot < 0.999);
});

test("more inputs than may wait are embedded one after the other, beside completions", async () => {
  const input = Array.from({ length: 100 }, (_, i) => `text ${i}`);
  const [{ data }, answer] = await Promise.all([
    client.embeddings.create({ model: "tiny", input, encoding_format: "float" }),
    client.chat.completions.create(chat),
  ]);
  assertEquals(data.length, 100);
  assertEquals(new Set(data.map(({ embedding }) => embedding[0])).size, 100);
  assertEquals(answer.choices[0].finish_reason, "length");
});

test("embeddings that cannot be are refused by field", async () => {
  for (
    const [fields, param, code] of [
      [{ dimensions: 16 }, "dimensions", "unsupported_parameter"],
      [{ input: [] }, "input", null],
      [{ input: [7000] }, "prompt", null],
      [{ input: "word ".repeat(5000) }, "prompt", "context_length_exceeded"],
      [{ encoding_format: "int8" }, "encoding_format", null],
    ] as const
  ) {
    const told = await error(() => client.embeddings.create({ model: "tiny", input: "a", ...fields } as never));
    assertEquals([told.status, told.param, told.code], [400, param, code], told.message);
  }
});

test("a client that leaves amid its embeddings ends them", async () => {
  const leaving = new AbortController(), input = Array.from({ length: 200 }, () => source.slice(0, 2500));
  const left = fetch(`${server.url}/v1/embeddings`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ input }),
    signal: leaving.signal,
  }).catch(() => undefined);
  await new Promise((resolve) => setTimeout(resolve, 100));
  leaving.abort();
  await left;
  const { pages } = await idle(server);
  assertEquals(pages.free, pages.total);
});
