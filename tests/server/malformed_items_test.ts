/** Malformed bodies of /v1/responses and /v1/messages: each is refused in its API's shape. */
import { assert, assertEquals } from "@std/assert";
import { test } from "node:test";
import { closeAfter, start } from "./fixture.ts";

const { server } = await start({ context: 512 });
await server.ready;
closeAfter();

const responses = { model: "tiny-llama", input: "a", max_output_tokens: 1 };
const messages = { model: "tiny-llama", messages: [{ role: "user", content: "a" }], max_tokens: 1 };
const call = { type: "function_call", call_id: "c", name: "f", arguments: "{}" };

const cases: [path: string, fields: Record<string, unknown>][] = [
  ...[
    { input: [] },
    { input: 5 },
    { input: [5] },
    { input: [{ role: "root", content: "a" }] },
    { input: [{ role: "user", content: [{ type: "input_file", file_id: "x" }] }] },
    { input: [{ role: "user", content: [{ type: "input_text", text: 5 }] }] },
    { input: [{ type: "item_reference", id: "x" }] },
    { tools: [{ type: "web_search" }] },
    { tools: [{ type: "function", name: "a b" }] },
    { tools: [{ type: "function", name: "f", parameters: 5 }] },
    { tools: [{ type: "function", name: "f", strict: true, parameters: { type: "thing" } }] },
    { tools: "x" },
    { tool_choice: "required" },
    { tool_choice: { type: "function", name: "g" } },
    { text: { format: { type: "xml" } } },
    { text: { format: { type: "json_schema", schema: { type: "thing" } } } },
    { previous_response_id: "x" },
    { background: true },
    { max_output_tokens: 0 },
    { temperature: 3 },
    { stream: "yes" },
  ].map((fields): [string, Record<string, unknown>] => ["/v1/responses", { ...responses, ...fields }]),
  ...[
    { messages: [] },
    { messages: [{ role: "user" }] },
    { messages: [{ role: "user", content: [{ type: "image", source: {} }] }] },
    { messages: [{ role: "user", content: [{ type: "text", text: 5 }] }] },
    { messages: [{ role: "user", content: [{ type: "tool_result", tool_use_id: "x", content: 5 }] }] },
    { system: 5 },
    { system: [{ type: "image" }] },
    { max_tokens: undefined },
    { max_tokens: 0 },
    { tools: [{ name: "a b" }] },
    { tools: [{ type: "web_search_20250305", name: "web_search" }] },
    { tools: [{ name: "f", strict: true, input_schema: { type: "thing" } }] },
    { tool_choice: { type: "any" } },
    { tool_choice: { type: "tool" } },
    { tool_choice: { type: "tool", name: "g" } },
    { stop_sequences: [""] },
    { container: "x" },
    { stream: 5 },
  ].map((fields): [string, Record<string, unknown>] => ["/v1/messages", { ...messages, ...fields }]),
];

test("/v1/responses and /v1/messages refuse what is wrong, each in its API's shape", async () => {
  for (const [path, body] of cases) {
    const response = await fetch(server.url + path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    const told = await response.json(), what = `${path} ${JSON.stringify(body)}: ${JSON.stringify(told)}`;
    assertEquals(response.status, 400, what);
    assert(told.error.message.length > 5, what);
    assertEquals(told.error.type, "invalid_request_error", what);
    if (path === "/v1/messages") assertEquals(told.type, "error", what);
    else assertEquals(Object.keys(told.error).sort(), ["code", "message", "param", "type"], what);
  }
});

test("a history that begins with calls and results, and one that ends with the assistant, is answered", async () => {
  const items = [call, { type: "function_call_output", call_id: "c", output: "1" }, { type: "reasoning", summary: [] }];
  const blocks = [
    {
      role: "assistant",
      content: [{ type: "thinking", thinking: "hm", signature: "" }, {
        type: "tool_use",
        id: "c",
        name: "f",
        input: {},
      }],
    },
    {
      role: "user",
      content: [{ type: "tool_result", tool_use_id: "c", is_error: true, content: [{ type: "text", text: "no" }] }],
    },
    { role: "assistant", content: "The" },
  ];
  for (
    const [path, body] of [["/v1/responses", { ...responses, input: items }], ["/v1/messages", {
      ...messages,
      messages: blocks,
    }]] as const
  ) {
    const response = await fetch(server.url + path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    assertEquals(response.status, 200, await response.text());
  }
});
