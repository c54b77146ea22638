/** Tools through OpenAI's client, over the embedded model: what it must write is held to a grammar, so its calls are valid. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { test } from "node:test";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { closeAfter, error, start } from "./fixture.ts";

const { server, client } = await start({ context: 1024 });
await server.ready;
closeAfter();

const add = {
  type: "function" as const,
  function: {
    name: "add",
    description: "Adds two numbers",
    parameters: {
      type: "object",
      properties: { a: { type: "integer", minimum: 0, maximum: 99 }, b: { type: "integer", minimum: 0, maximum: 99 } },
      required: ["a", "b"],
      additionalProperties: false,
    },
  },
};
const colour = {
  type: "function" as const,
  function: {
    name: "paint",
    parameters: {
      type: "object",
      properties: { colour: { enum: ["red", "green"] } },
      required: ["colour"],
      additionalProperties: false,
    },
  },
};
const chat = {
  model: "tiny-llama",
  messages: [{ role: "user" as const, content: "Add 1 and 2" }],
  tools: [add, colour],
  max_completion_tokens: 200,
};

/** Requires a call's arguments to be valid. */
function checkCall({ name, arguments: json }: { name: string; arguments: string }): void {
  const value = JSON.parse(json);
  if (name === "add") {
    assertEquals(Object.keys(value), ["a", "b"]);
    assertEquals([value.a, value.b].every((one) => Number.isInteger(one) && one >= 0 && one < 100), true, json);
  } else {
    assertEquals(name, "paint");
    assertEquals(["red", "green"].includes(value.colour), true, json);
  }
}

test("tools: required gives valid calls, whatever the seed", async () => {
  const seed = Date.now() % 1e6;
  const { choices } = await client.chat.completions.create({
    ...chat,
    n: 4,
    seed,
    tool_choice: "required",
    parallel_tool_calls: false,
  });
  for (const { message, finish_reason } of choices) {
    assertEquals([message.content, finish_reason, message.tool_calls?.length], [null, "tool_calls", 1], `seed ${seed}`);
    const [call] = message.tool_calls!;
    assertEquals([call.type, /^call_[0-9a-f]{24}$/.test(call.id)], ["function", true]);
    if (call.type === "function") checkCall(call.function);
  }
});

test("tools: one by name, streamed, comes to the same arguments as whole", async () => {
  const asked = { ...chat, seed: 5, tool_choice: { type: "function" as const, function: { name: "paint" } } };
  const { choices: [{ message }] } = await client.chat.completions.create(asked);
  const [whole] = message.tool_calls!;
  let name = "", json = "", text = "";
  const reasons: unknown[] = [];
  for await (const { choices } of await client.chat.completions.create({ ...asked, stream: true })) {
    for (const { delta, finish_reason } of choices) {
      text += delta.content ?? "";
      if (finish_reason) reasons.push(finish_reason);
      for (const call of delta.tool_calls ?? []) {
        assertEquals(call.index, 0);
        name += call.function?.name ?? "";
        json += call.function?.arguments ?? "";
      }
    }
  }
  assertEquals([text, reasons], ["", ["tool_calls"]]);
  assertEquals(whole.type === "function" && { ...whole.function }, { name, arguments: json });
  checkCall({ name, arguments: json });
});

test("tools: none and no choice are answered as text, strict ones may be called only in their form", async () => {
  for (const tool_choice of ["none", "auto"] as const) {
    const { choices: [{ message }] } = await client.chat.completions.create({
      ...chat,
      tools: [{ ...add, function: { ...add.function, strict: true } }, colour],
      tool_choice,
      seed: 1,
      max_completion_tokens: 12,
    });
    assertEquals([message.tool_calls, typeof message.content], [undefined, "string"]);
  }
});

test("tools: histories with calls and results are taken, also parts, null and an empty list of calls", async () => {
  const { choices: [{ message }] } = await client.chat.completions.create({
    ...chat,
    messages: [
      { role: "user", content: "Add" },
      {
        role: "assistant",
        content: null,
        tool_calls: [{ id: "c1", type: "function", function: { name: "add", arguments: '{"a":1,"b":2}' } }],
      },
      { role: "tool", tool_call_id: "c1", content: [{ type: "text", text: "3" }] },
      { role: "assistant", content: "3", tool_calls: [] },
      { role: "user", content: "Thanks" },
    ],
    max_completion_tokens: 4,
  });
  assertEquals(typeof message.content, "string");
});

test("tools: what does not go together is refused by its name", async () => {
  const refused = async (fields: Record<string, unknown>, param: string, part: string): Promise<void> => {
    const told = await error(() => client.chat.completions.create({ ...chat, ...fields } as typeof chat));
    assertEquals([told.status, told.param], [400, param]);
    assertStringIncludes(told.message, part);
  };
  await refused({ tool_choice: { type: "function", function: { name: "sub" } } }, "tool_choice", "sub");
  await refused({ tools: [], tool_choice: "required" }, "tool_choice", "there are no tools");
  await refused({ tools: [add, add] }, "tools", "add twice");
  await refused({ tools: [{ type: "function", function: { name: "a b" } }] }, "tools.0.function.name", "letters");
  await refused({ tools: [{ type: "custom", custom: { name: "x" } }] }, "tools.0.type", "function");
  const parameters = { type: "object", properties: { a: { type: "nothing" } } };
  const strict = { type: "function", function: { name: "f", parameters, strict: true } };
  await refused({ tools: [strict] }, "tools", "the tool f is strict");
  await refused({ continue_final_message: true }, "continue_final_message", "last message of the assistant");
});

test("tools: an answer goes on with the last message", async () => {
  const messages = [{ role: "user" as const, content: "Hi" }, { role: "assistant" as const, content: "The ker" }];
  const asked = { model: "tiny-llama", messages, max_completion_tokens: 1, continue_final_message: true };
  const answer = await client.chat.completions.create(asked);
  assertEquals(answer.usage?.completion_tokens, 1);
});

test("openai: runTools calls the function and hands its result back", async () => {
  const seen: unknown[] = [];
  const runner = client.chat.completions.runTools({
    ...chat,
    seed: 3,
    tool_choice: { type: "function", function: { name: "add" } },
    tools: [{
      type: "function",
      function: {
        ...add.function,
        parse: JSON.parse,
        function: ({ a, b }: { a: number; b: number }) => {
          seen.push([a, b]);
          return String(a + b);
        },
      },
    }],
  }, { maxChatCompletions: 2 });
  await runner.done();
  assertEquals(seen.length > 0, true);
  assertEquals(runner.messages.some(({ role }) => role === "tool"), true);
});

const Point = z.object({ x: z.number().int().min(0).max(9), name: z.enum(["a", "b"]) });

test("openai: responses, whole and parsed by zod", async () => {
  const response = await client.responses.parse({
    model: "tiny-llama",
    instructions: "Answer in JSON.",
    input: "A point",
    text: { format: zodTextFormat(Point, "point") },
    max_output_tokens: 100,
  });
  assertEquals([response.status, response.object], ["completed", "response"]);
  Point.parse(response.output_parsed);
  assertEquals(
    response.output_text,
    response.output[0].type === "message" && response.output[0].content[0].type === "output_text"
      ? response.output[0].content[0].text
      : "",
  );
});

test("openai: responses as a stream, with a call, come to the response at the end", async () => {
  const { function: fn } = colour;
  const stream = await client.responses.create({
    model: "tiny-llama",
    input: [
      { role: "user", content: [{ type: "input_text", text: "Paint" }] },
      { type: "function_call", call_id: "c1", name: "paint", arguments: '{"colour":"red"}' },
      { type: "function_call_output", call_id: "c1", output: "done" },
      { role: "user", content: "Again" },
    ],
    tools: [{ type: "function", name: fn.name, parameters: fn.parameters, strict: true }],
    tool_choice: "required",
    parallel_tool_calls: false,
    max_output_tokens: 100,
    stream: true,
  });
  const types: string[] = [];
  let json = "", next = 0;
  for await (const event of stream) {
    assertEquals(event.sequence_number, next++);
    if (types.at(-1) !== event.type) types.push(event.type);
    if (event.type === "response.function_call_arguments.delta") json += event.delta;
    if (event.type === "response.function_call_arguments.done") assertEquals(event.arguments, json);
    if (event.type !== "response.completed") continue;
    const [item] = event.response.output;
    assertEquals([item.type, event.response.output.length], ["function_call", 1]);
    if (item.type === "function_call") checkCall(item);
  }
  assertEquals(types, [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.completed",
  ]);
  const text: string[] = [];
  const words = await client.responses.create({
    model: "tiny-llama",
    input: "The kernel",
    max_output_tokens: 6,
    stream: true,
  });
  let all = "";
  for await (const event of words) {
    if (text.at(-1) !== event.type) text.push(event.type);
    if (event.type === "response.output_text.delta") all += event.delta;
    if (event.type === "response.incomplete") {
      assertEquals(event.response.incomplete_details, { reason: "max_output_tokens" });
      const [item] = event.response.output;
      assertEquals(item.type === "message" && item.content[0].type === "output_text" && item.content[0].text, all);
    }
  }
  assertEquals(text, [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.incomplete",
  ]);
});

test("responses: what needs a memory, and parts that are not text, are refused by name", async () => {
  const request = { model: "tiny-llama", input: "x" };
  const state = await error(() => client.responses.create({ ...request, previous_response_id: "resp_1" }));
  assertEquals([state.status, state.param], [400, "previous_response_id"]);
  const image = await error(() =>
    client.responses.create({
      ...request,
      input: [{ role: "user", content: [{ type: "input_image", image_url: "x", detail: "auto" }] }],
    })
  );
  assertStringIncludes(image.message, '"input_image"');
});
