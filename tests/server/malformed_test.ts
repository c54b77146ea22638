import { assert, assertEquals } from "@std/assert";
import { after, test } from "node:test";
import { serve } from "../../lib/server/mod.ts";
import { Random } from "../support/random.ts";

const server = await serve({ port: 0, device: "cpu", sequences: 2, prefixes: 0 });
await server.ready;
after(() => server.close(0));

const REQUESTS = 4000;
const seed = 20260;
const random = new Random(seed);
const pick = <T>(items: readonly T[]): T => items[random.integer(0, items.length - 1)];

/** A number that JSON.stringify cannot write, put in by name afterwards. */
const RAW = ["NaN", "Infinity", "-Infinity", "1e999", "0x10", "undefined", "01", "+1", "1.", "'a'"];
const raw = (text: string) => `@@${text}@@`;
const WRONG: unknown[] = ["", "x", true, false, [], {}, [[]], -1, 1.5, 1e300, -1e300, Number.MAX_SAFE_INTEGER * 4, {
  a: 1,
}];
const except = (...allowed: unknown[]) =>
  WRONG.filter((value) => !allowed.some((other) => JSON.stringify(other) === JSON.stringify(value)));

/** Values that are wrong for each field of a chat. */
const chat: Record<string, readonly unknown[]> = {
  model: [...except("x", ""), 5],
  messages: [
    ...WRONG,
    null,
    ...["root", "User", "", 5, null, {}].map((role) => [{ role, content: "a" }]),
    ...[5, true, {}, [], [5], [{}], [{ type: "image_url", image_url: { url: "data:," } }], [{ type: "text" }], [{
      type: "text",
      text: 5,
    }]]
      .map((content) => [{ role: "user", content }]),
    [{ content: "a" }],
    [{ role: "user", content: "a" }, 5],
    [{ role: "user", content: "a", name: 5 }],
  ],
  temperature: except(1.5),
  top_p: [...WRONG.filter((value) => value !== 1), 1.01],
  top_k: [...except(-1), -2],
  min_p: except(),
  repetition_penalty: [...except(1.5), 0],
  presence_penalty: [...except(-1, 1.5), 2.1],
  frequency_penalty: [...except(-1, 1.5), -2.1],
  n: [...WRONG, 0, 129, 100],
  max_tokens: [...except(-1), 0, -2, 5000],
  max_completion_tokens: [...except(-1), 0, -2, 1e9],
  seed: except(-1, Number.MAX_SAFE_INTEGER * 4),
  stop: [...except("x", "", []), Array(65).fill("a"), [5], [null]],
  stop_token_ids: [...except([]), [-1], [6144], ["a"], Array(65).fill(1)],
  ignore_eos: except(true, false),
  min_tokens: [...WRONG, 3, 1e9],
  logprobs: except(true, false),
  top_logprobs: [...WRONG, 0, 21, 5],
  logit_bias: [
    ...except({}, [], { a: 1 }),
    [[5]],
    [[5, true]],
    [[5, 101]],
    [["a", 1]],
    [[6144, 1]],
    { a: 1 },
    { 5: "x" },
    { 5: 101 },
    { 5: null },
    { 6144: 1 },
    { 99999999: -1 },
    {
      "-1": 1,
    },
    { 1.5: 1 },
  ],
  stream: except(true, false),
  stream_options: [...WRONG.filter((value) => typeof value !== "object"), { include_usage: "yes" }, {}],
  response_format: [
    ...WRONG,
    { type: "xml" },
    { type: "json_schema" },
    { type: "json_schema", json_schema: {} },
    ...[
      5,
      [],
      { type: "thing" },
      { pattern: "(?<=b)a" },
      { $ref: "#/nothing" },
      { $ref: "http://example.com" },
      { enum: [] },
      { enum: 5 },
      { not: {} },
      {
        type: "integer",
        minimum: 5,
        maximum: 4,
      },
      { type: "string", minLength: -1 },
      { properties: [] },
      { anyOf: [] },
      { type: "object", required: 5 },
      { type: [] },
    ]
      .map((schema) => ({ type: "json_schema", json_schema: { name: "x", schema } })),
  ],
  user: except("", "x"),
  tools: [
    ...except([]),
    [5],
    [{ type: "function" }],
    [{ type: "web_search" }],
    ...[{ name: "a b" }, { name: "f", parameters: 5 }, { name: "f", strict: 5 }, {
      name: "f",
      strict: true,
      parameters: { type: "thing" },
    }].map((f) => [{ type: "function", function: f }]),
  ],
  tool_choice: [...WRONG, "required", { type: "function" }, { type: "function", function: { name: "f" } }],
  parallel_tool_calls: except(true, false),
  chat_template_kwargs: [5, "x", [1]],
  add_generation_prompt: except(true, false),
  continue_final_message: except(false),
};

const text: Record<string, readonly unknown[]> = {
  ...Object.fromEntries(
    Object.entries(chat).filter(([name]) =>
      !["messages", "logprobs", "top_logprobs", "response_format", "max_completion_tokens"].includes(name) &&
      !/tool|template|generation_prompt|final_message/.test(name)
    ),
  ),
  max_tokens: [...except(-1), -2, 5000],
  prompt_logprobs: [...WRONG, 21],
  prompt: [
    ...WRONG.filter((value) => value !== "x" && value !== ""),
    null,
    5,
    [5, "x"],
    [-1],
    [1.5],
    [2 ** 40],
    [6144],
    [[]],
    [[5], "x"],
    ["a", 5],
    [[[5]]],
    "word ".repeat(3000),
  ],
  logprobs: [...WRONG, 6],
  echo: except(true, false),
  suffix: ["x", 5, {}],
  best_of: [2, 5, "x"],
};

/** A body with one thing wrong. */
function malformed(): { path: string; body: string | Uint8Array; what: string } {
  const isChat = random.uniform() < 0.6, path = isChat ? "/v1/chat/completions" : "/v1/completions";
  const body: Record<string, unknown> = isChat
    ? { model: "tiny-llama", messages: [{ role: "user", content: "a" }], max_tokens: 2 }
    : { model: "tiny-llama", prompt: "a", max_tokens: 2 };
  if (random.uniform() < 0.3) body[pick(["extra", "metadata", "store"])] = pick<unknown>([1, "x", { a: [1] }, null]);
  const kind = random.integer(0, 9);
  if (kind <= 5) {
    const fields = isChat ? chat : text, field = pick(Object.keys(fields)), value = pick(fields[field]);
    body[field] = value;
    return { path, body: JSON.stringify(body), what: `${field}: ${JSON.stringify(value)?.slice(0, 60)}` };
  }
  const whole = JSON.stringify(body);
  switch (kind) {
    case 6: {
      const field = pick(["temperature", "n", "seed", "top_p", "max_tokens", "stop", "model"]), value = pick(RAW);
      body[field] = raw(value);
      return { path, body: JSON.stringify(body).replace(/"@@(.*?)@@"/, "$1"), what: `${field}: ${value}` };
    }
    case 7: {
      const bytes = new TextEncoder().encode(whole), at = random.integer(1, bytes.length - 2);
      const bad = pick([[0xff], [0xc0, 0xaf], [0xed, 0xa0, 0x80], [0xf4, 0x90, 0x80, 0x80], [0xc3], [0x80]]);
      return {
        path,
        body: Uint8Array.of(...bytes.subarray(0, at), ...bad, ...bytes.subarray(at)),
        what: `bytes ${bad}`,
      };
    }
    case 8: {
      const depth = pick([200, 5000, 200_000]), [open, close] = pick([["[", "]"], ['{"a":', "}"]]);
      const nested = open.repeat(depth) + "1" + (random.uniform() < 0.5 ? close.repeat(depth) : "");
      return { path, body: pick([nested, `${whole.slice(0, -1)},"extra":${nested}}`]), what: `depth ${depth}` };
    }
    default:
      return {
        path,
        body: pick([
          "",
          "5",
          "null",
          '"x"',
          "[]",
          "true",
          "{",
          whole.slice(0, random.integer(1, whole.length - 1)),
          `${whole}x`,
          `[${whole}]`,
          "model=x",
          "\0",
        ]),
        what: "not a JSON object",
      };
  }
}

test(`${REQUESTS} malformed requests (seed ${seed}) are answered 4xx in OpenAI's shape, and the server goes on`, async () => {
  const problems: string[] = [], statuses = new Map<number, number>();
  const workers = Array.from({ length: 16 }, async (_, worker) => {
    for (let i = worker; i < REQUESTS; i += 16) {
      const { path, body, what } = malformed();
      const response = await fetch(server.url + path, {
        method: "POST",
        body: body as BodyInit,
        headers: { "content-type": "application/json" },
      });
      const answer = await response.text();
      statuses.set(response.status, (statuses.get(response.status) ?? 0) + 1);
      let error: Record<string, unknown> | undefined;
      try {
        error = JSON.parse(answer).error;
      } catch { /* Reported below. */ }
      const shaped = typeof error?.message === "string" && error.message !== "" &&
        error.type === "invalid_request_error" &&
        "param" in error && "code" in error;
      if (response.status < 400 || response.status > 499 || !shaped) {
        problems.push(`${response.status} for ${what}: ${answer.slice(0, 200)}`);
      }
    }
  });
  await Promise.all(workers);
  assertEquals(problems, []);
  assert(statuses.get(400)! > 0.9 * REQUESTS, JSON.stringify([...statuses]));
  const response = await fetch(`${server.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "tiny-llama", prompt: "The kernel", max_tokens: 4 }),
  });
  assertEquals((await response.json()).usage.completion_tokens, 4);
  const [stats] = Object.values(server.engine.stats.caches);
  assertEquals([stats.running, stats.waiting, server.app.active], [0, 0, 0]);
});

test("methods and paths that are not there are answered 404 in OpenAI's shape", async () => {
  for (
    const [method, path] of [["GET", "/v1/chat/completions"], ["PUT", "/v1/completions"], ["POST", "/v1/models"], [
      "GET",
      "/v1",
    ], ["GET", "/%ff%00"]]
  ) {
    const response = await fetch(server.url + path, { method });
    assertEquals([response.status, (await response.json()).error.code], [404, "not_found"], `${method} ${path}`);
  }
});
