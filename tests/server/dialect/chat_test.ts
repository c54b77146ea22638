import { assertEquals, assertThrows } from "@std/assert";
import { test } from "node:test";
import { EngineError } from "../../../lib/engine/request.ts";
import { chat } from "../../../lib/server/dialect/chat.ts";
import { ApiError } from "../../../lib/server/error.ts";
import type { ChatRequest } from "../../../lib/server/schema.ts";
import { at, body, end, head, piece, stream, token } from "./events.ts";

const request: ChatRequest = { model: "m", messages: [{ role: "user", content: "Hi" }] };
const chunk = (choices: string, usage = "") => `data: ${head("chat.completion.chunk")}${choices}${usage}}\n\n`;

test("a chat's stream, byte for byte: two choices side by side, usage", async () => {
  const asked = { ...request, n: 2, stream: true, stream_options: { include_usage: true } };
  const events = [
    ...at(0, { type: "accepted", promptTokens: 5 }, { type: "start", cachedTokens: 4 }, piece("A")),
    ...at(1, piece("é\n", 2)),
    ...at(0, piece(""), end("stop")),
    ...at(1, piece('"'), end("length")),
  ];
  const usage = ',"usage":null';
  assertEquals(await stream(chat, asked, events), {
    thrown: undefined,
    text: chunk('[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]', usage) +
      chunk('[{"index":1,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]', usage) +
      chunk('[{"index":0,"delta":{"content":"A"},"logprobs":null,"finish_reason":null}]', usage) +
      chunk('[{"index":1,"delta":{"content":"é\\n"},"logprobs":null,"finish_reason":null}]', usage) +
      chunk('[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]', usage) +
      chunk('[{"index":1,"delta":{"content":"\\""},"logprobs":null,"finish_reason":null}]', usage) +
      chunk('[{"index":1,"delta":{},"logprobs":null,"finish_reason":"length"}]', usage) +
      chunk(
        "[]",
        ',"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":4}}',
      ) +
      "data: [DONE]\n\n",
  });
});

test("a chat's log-probabilities: in the answer and in the stream, no infinity, also with tokens that bring no text", async () => {
  const events = at(
    0,
    piece("A", 1, [token("A", -0.5, ["A", -0.5], ["B", -Infinity])]),
    piece("", 1, [token("", -1)]),
    end("stop"),
  );
  const first = '{"token":"A","logprob":-0.5,"bytes":[65],"top_logprobs":' +
    '[{"token":"A","logprob":-0.5,"bytes":[65]},{"token":"B","logprob":-9999,"bytes":[66]}]}';
  const second = '{"token":"","logprob":-1,"bytes":[],"top_logprobs":[]}';
  const asked = { ...request, logprobs: true, top_logprobs: 2 };
  assertEquals(
    await body(chat, asked, events),
    `${head("chat.completion")}[{"index":0,"message":{"role":"assistant","content":"A","refusal":null},` +
      `"logprobs":{"content":[${first},${second}],"refusal":null},"finish_reason":"stop"}],` +
      '"usage":{"prompt_tokens":0,"completion_tokens":2,"total_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}}',
  );
  assertEquals(
    (await stream(chat, { ...asked, stream: true }, events)).text,
    chunk('[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]') +
      chunk(
        `[{"index":0,"delta":{"content":"A"},"logprobs":{"content":[${first}],"refusal":null},"finish_reason":null}]`,
      ) +
      chunk(
        `[{"index":0,"delta":{"content":""},"logprobs":{"content":[${second}],"refusal":null},"finish_reason":null}]`,
      ) +
      chunk('[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]') +
      "data: [DONE]\n\n",
  );
});

test("a chat's stream that fails ends with the error, which is thrown on", async () => {
  const error = new EngineError("timeout", "too long"), asked = { ...request, stream: true };
  const { text, thrown } = await stream(chat, asked, at(0, piece("A")), error);
  assertEquals(thrown, error);
  assertEquals(
    text.split("\n\n").slice(2).join("\n\n"),
    'data: {"error":{"message":"too long","type":"server_error","param":null,"code":"request_timeout"}}\n\n',
  );
  const secret = await stream(chat, asked, [], new Error("a path of this machine"));
  assertEquals(secret.text.includes("a path of this machine"), false);
});

test("a chat's job: a developer is the system, what is said is left as it is, limits and formats", () => {
  const schema = { type: "object" },
    parts = [{ type: "text" as const, text: "a" }, { type: "text" as const, text: "b" }];
  const job = chat.parse({
    ...request,
    messages: [
      { role: "developer", content: parts },
      { role: "assistant", content: null },
    ],
    max_tokens: 5,
    max_completion_tokens: 6,
    stop: "x",
    seed: 3,
    logit_bias: { 1: -100, 2: 50 },
    response_format: { type: "json_schema", json_schema: { schema } },
  });
  assertEquals(job, {
    requests: [{
      prompt: [{ role: "system", content: parts }, { role: "assistant", content: null }],
      stop: ["x"],
      sampling: { temperature: 1, logitBias: { 1: -1e9, 2: 50 }, seed: 3 },
      n: 1,
      maxTokens: 6,
      json: schema,
    }],
    n: 1,
    stream: false,
    includeUsage: false,
  });
});

test("what a chat does not take is refused by its name", () => {
  for (
    const [fields, param, code] of [
      [{ functions: [{}] }, "functions", "unsupported_parameter"],
      [{ audio: {} }, "audio", "unsupported_parameter"],
      [{ top_logprobs: 0 }, "top_logprobs", null],
      [{ stream_options: {} }, "stream_options", null],
    ] as const
  ) {
    const error = assertThrows(() => chat.parse({ ...request, ...fields } as ChatRequest), ApiError);
    assertEquals([error.status, error.param, error.code], [400, param, code]);
  }
  chat.parse({ ...request, tools: [], functions: "none", audio: null, prediction: false });
});
