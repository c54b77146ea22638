import { assertEquals, assertThrows } from "@std/assert";
import { test } from "node:test";
import { text } from "../../../lib/server/dialect/text.ts";
import { ApiError } from "../../../lib/server/error.ts";
import type { CompletionRequest } from "../../../lib/server/schema.ts";
import { at, body, end, head, piece, stream, token } from "./events.ts";

const request: CompletionRequest = { model: "m", prompt: "Hi" };
const chunk = (choices: string) => `data: ${head("text_completion")}${choices}}\n\n`;
const USAGE =
  '"usage":{"prompt_tokens":0,"completion_tokens":2,"total_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}}';

test("a text's stream, byte for byte: nothing before the first piece", async () => {
  const events = at(0, piece("A"), piece("b"), piece(""), end("length"));
  assertEquals(
    (await stream(text, { ...request, stream: true }, events)).text,
    chunk('[{"index":0,"text":"A","logprobs":null,"finish_reason":null}]') +
      chunk('[{"index":0,"text":"b","logprobs":null,"finish_reason":null}]') +
      chunk('[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]') +
      "data: [DONE]\n\n",
  );
});

test("echo: each choice begins with its own prompt", async () => {
  const asked = { ...request, prompt: ["p", "q"], n: 2, echo: true };
  const events = [...at(3, piece("A"), end("stop")), ...at(0, piece("B"), end("stop")), ...at(1, end("stop"))];
  assertEquals(
    (await stream(text, { ...asked, stream: true }, events)).text.split("\n\n").slice(0, 5).join("\n\n") + "\n\n",
    ["p", "p", "q", "q"].map((echo, i) =>
      chunk(`[{"index":${i},"text":"${echo}","logprobs":null,"finish_reason":null}]`)
    ).join("") + chunk('[{"index":3,"text":"A","logprobs":null,"finish_reason":null}]'),
  );
  assertEquals(
    await body(text, asked, events),
    `${head("text_completion")}[` +
      ["pB", "p", "q", "qA"].map((text, i) =>
        `{"index":${i},"text":"${text}","logprobs":null,"finish_reason":"${i === 2 ? "length" : "stop"}"}`
      ).join(",") + `],${USAGE}`,
  );
});

test("log-probabilities: where in the text each token begins, in the answer and along the stream", async () => {
  const events = at(
    0,
    piece("Aé", 1, [token("Aé", -0.5, ["Aé", -0.5], ["B", -Infinity])]),
    piece("c", 1, [token("c", -1, ["c", -1])]),
    end("stop"),
  );
  const asked = { ...request, logprobs: 2 };
  assertEquals(
    await body(text, asked, events),
    `${head("text_completion")}[{"index":0,"text":"Aéc","logprobs":{"tokens":["Aé","c"],"token_logprobs":[-0.5,-1],` +
      `"top_logprobs":[{"Aé":-0.5,"B":-9999},{"c":-1}],"text_offset":[0,2]},"finish_reason":"stop"}],${USAGE}`,
  );
  assertEquals(
    (await stream(text, { ...asked, logprobs: 0, stream: true }, events)).text,
    chunk(
      '[{"index":0,"text":"Aé","logprobs":{"tokens":["Aé"],"token_logprobs":[-0.5],"top_logprobs":null,' +
        '"text_offset":[0]},"finish_reason":null}]',
    ) + chunk(
      '[{"index":0,"text":"c","logprobs":{"tokens":["c"],"token_logprobs":[-1],"top_logprobs":null,' +
        '"text_offset":[2]},"finish_reason":null}]',
    ) + chunk('[{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}]') + "data: [DONE]\n\n",
  );
});

test("a text's job: one request for each prompt, 16 tokens unless told", () => {
  const same = { stop: [], sampling: { temperature: 1 }, n: 3 };
  for (
    const [prompt, prompts] of [["a", ["a"]], [["a", "b"], ["a", "b"]], [[1, 2], [[1, 2]]], [[[1], [2]], [[1], [2]]]]
  ) {
    const job = text.parse({ ...request, prompt, n: 3 } as CompletionRequest);
    assertEquals(job.requests, (prompts as string[]).map((prompt) => ({ prompt, maxTokens: 16, ...same })));
    assertEquals([job.n, job.stream, job.includeUsage, "echo" in job], [3, false, false, false]);
  }
});

test("what a text completion does not take is refused by its name", () => {
  for (
    const [fields, param, code] of [
      [{ suffix: "x" }, "suffix", "unsupported_parameter"],
      [{ best_of: 2 }, "best_of", "unsupported_parameter"],
      [{ stream_options: {} }, "stream_options", null],
      [{ prompt_logprobs: 0, stream: true }, "prompt_logprobs", null],
      [{ grammar: "root ::= x" }, "grammar", "unsupported_parameter"],
    ] as const
  ) {
    const error = assertThrows(() => text.parse({ ...request, ...fields } as CompletionRequest), ApiError);
    assertEquals([error.status, error.param, error.code], [400, param, code]);
  }
  text.parse({ ...request, n: 2, best_of: 2 });
});
