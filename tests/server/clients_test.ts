/** Other clients, where they are installed: `ai` with `@ai-sdk/openai-compatible`, and Anthropic's. */
import { assertEquals } from "@std/assert";
import { test } from "node:test";
import { z } from "zod";
import { closeAfter, start } from "./fixture.ts";

/** A module that may be absent. */
// deno-lint-ignore no-explicit-any
async function optional(name: string): Promise<any> {
  try {
    return await import(name);
  } catch {
    return undefined;
  }
}

const ai = await optional("ai"), compatible = await optional("@ai-sdk/openai-compatible");
const anthropic = await optional("@anthropic-ai/sdk");
const noAi = ai && compatible ? false : "ai and @ai-sdk/openai-compatible are not installed";
const noAnthropic = anthropic ? false : "@anthropic-ai/sdk is not installed";

const { server } = await start({ context: 1024 });
await server.ready;
closeAfter();

const small = z.number().int().min(0).max(99);

test("ai: text, whole and streamed", { skip: noAi }, async () => {
  const model = compatible.createOpenAICompatible({ name: "vecinfer", baseURL: `${server.url}/v1` })("tiny-llama");
  const asked = { model, prompt: "The kernel", temperature: 0, maxOutputTokens: 8, maxRetries: 0 };
  const { text, usage, finishReason } = await ai.generateText(asked);
  assertEquals([usage.outputTokens, finishReason], [8, "length"]);
  let streamed = "";
  for await (const part of ai.streamText(asked).textStream) streamed += part;
  assertEquals(streamed, text);
});

test("ai: an object by a schema", { skip: noAi }, async () => {
  const provider = compatible.createOpenAICompatible({
    name: "vecinfer",
    baseURL: `${server.url}/v1`,
    supportsStructuredOutputs: true,
  });
  const { object } = await ai.generateObject({
    model: provider("tiny-llama"),
    schema: z.object({ count: small, colour: z.enum(["red", "green"]) }),
    prompt: "A colour",
    maxRetries: 0,
  });
  assertEquals(["red", "green"].includes(object.colour), true);
  small.parse(object.count);
});

test("ai: tools over several steps, whole and streamed", { skip: noAi }, async () => {
  const model = compatible.createOpenAICompatible({ name: "vecinfer", baseURL: `${server.url}/v1` })("tiny-llama");
  const seen: number[] = [];
  const add = ai.tool({
    description: "Adds",
    inputSchema: z.object({ a: small, b: small }),
    execute: ({ a, b }: { a: number; b: number }) => {
      seen.push(a + b);
      return a + b;
    },
  });
  const asked = {
    model,
    tools: { add },
    prompt: "Add",
    seed: 7,
    maxOutputTokens: 60,
    maxRetries: 0,
    stopWhen: ai.isStepCount?.(3) ?? ai.stepCountIs(3),
    // The tiny model calls where it has to: in the first two steps.
    prepareStep: ({ stepNumber }: { stepNumber: number }) => ({
      toolChoice: stepNumber < 2 ? { type: "tool", toolName: "add" } : "none",
    }),
  };
  const { steps } = await ai.generateText(asked);
  assertEquals(steps.map(({ finishReason }: { finishReason: string }) => finishReason).slice(0, 2), [
    "tool-calls",
    "tool-calls",
  ]);
  assertEquals(steps.map((step: { toolResults: unknown[] }) => step.toolResults.length), [1, 1, 0]);
  const whole = seen.splice(0), stream = ai.streamText(asked);
  await stream.consumeStream();
  assertEquals((await stream.steps).length, 3);
  assertEquals(seen, whole);
});

const paint = {
  name: "paint",
  description: "Paints",
  input_schema: {
    type: "object" as const,
    properties: { colour: { enum: ["red", "green"] } },
    required: ["colour"],
    additionalProperties: false,
  },
};

test("anthropic: messages with tools, whole and streamed, and their history", { skip: noAnthropic }, async () => {
  const client = new anthropic.default({ baseURL: server.url, apiKey: "none", maxRetries: 0 });
  const asked = {
    model: "tiny-llama",
    max_tokens: 80,
    system: "You paint.",
    messages: [{ role: "user", content: "Red" }],
    tools: [paint],
    tool_choice: { type: "any", disable_parallel_tool_use: true },
    seed: 4,
  };
  const message = await client.messages.create(asked);
  assertEquals([message.role, message.stop_reason, message.content.length], ["assistant", "tool_use", 1]);
  const [use] = message.content;
  assertEquals([use.type, use.name, ["red", "green"].includes(use.input.colour)], ["tool_use", "paint", true]);
  const stream = client.messages.stream(asked), last = await stream.finalMessage();
  assertEquals(last.content[0].input, use.input);
  assertEquals([last.stop_reason, last.usage.output_tokens], ["tool_use", message.usage.output_tokens]);
  const after = await client.messages.create({
    ...asked,
    tool_choice: { type: "none" },
    max_tokens: 4,
    messages: [
      ...asked.messages,
      { role: "assistant", content: message.content },
      {
        role: "user",
        content: [{ type: "tool_result", tool_use_id: use.id, content: "done" }, { type: "text", text: "Thanks" }],
      },
    ],
  });
  assertEquals([after.content[0].type, after.stop_reason], ["text", "max_tokens"]);
});

test("anthropic: text is streamed, stop sequences are told, errors have its form", { skip: noAnthropic }, async () => {
  const client = new anthropic.default({ baseURL: server.url, apiKey: "none", maxRetries: 0 });
  const asked = {
    model: "tiny-llama",
    max_tokens: 12,
    temperature: 0,
    messages: [{ role: "user", content: "The kernel" }],
  };
  const { content: [{ text }] } = await client.messages.create(asked);
  let streamed = "";
  const stream = client.messages.stream(asked).on("text", (part: string) => void (streamed += part));
  await stream.done();
  assertEquals(streamed, text);
  const word = text.trim().split(/\s+/)[2],
    stopped = await client.messages.create({ ...asked, stop_sequences: [word] });
  assertEquals([stopped.stop_reason, stopped.stop_sequence], ["stop_sequence", word]);
  const told = await client.messages.create({ ...asked, model: "none" }).catch((error: unknown) => error);
  assertEquals([told instanceof anthropic.NotFoundError, told.error.type, told.error.error.type], [
    true,
    "error",
    "not_found_error",
  ]);
});
