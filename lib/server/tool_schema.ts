/**
 * Fields of a chat that are about tools, calls and the template: their schemas, and what the engine is told of them.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import type { ChatOptions } from "../chat/chat.ts";
import type { Tool, ToolChoice } from "../chat/tool.ts";
import { invalid } from "./error.ts";

/** Tools of a request at most. */
const TOOLS = 128;

/** A tool's name; forms of calls put it between marks. */
export const toolName = z.string().regex(/^[\w.-]{1,128}$/, "expected 1 to 128 letters, digits, _, - and .");

/** A JSON schema of arguments. */
export const parameters = z.record(z.string(), z.unknown());

const functionTool = z.looseObject({
  type: z.literal("function", "only tools of type function are supported by this server"),
  function: z.looseObject({
    name: toolName,
    description: z.string().nullish(),
    parameters: parameters.nullish(),
    strict: z.boolean().nullish(),
  }),
});

const named = z.looseObject({ type: z.literal("function"), function: z.looseObject({ name: z.string() }) });

const allowed = z.looseObject({
  type: z.literal("allowed_tools"),
  allowed_tools: z.looseObject({ mode: z.enum(["auto", "required"]), tools: z.array(named) }),
});

/** Calls of a message in a history. */
export const messageFields = {
  tool_calls: z.array(z.looseObject({
    id: z.string().nullish(),
    type: z.literal("function", "only calls of type function are supported by this server").nullish(),
    function: z.looseObject({
      name: z.string(),
      arguments: z.union([z.string(), z.record(z.string(), z.unknown())]).nullish(),
    }),
  })).nullish(),
  tool_call_id: z.string().nullish(),
  reasoning_content: z.string().nullish(),
};

/** Fields of a chat. */
export const toolFields = {
  tools: z.array(functionTool).max(TOOLS).nullish(),
  tool_choice: z.union([z.enum(["none", "auto", "required"]), named, allowed], {
    error: 'expected "none", "auto", "required", or {"type": "function", "function": {"name": ...}}',
  }).nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  chat_template_kwargs: z.record(z.string(), z.unknown()).nullish().openapi({
    description: "Further variables of the model's chat template.",
  }),
  add_generation_prompt: z.boolean().nullish(),
  continue_final_message: z.boolean().nullish().openapi({
    description: "The answer goes on with the last message, which is the assistant's.",
  }),
  reasoning_format: z.enum(["none", "auto", "deepseek"]).nullish().openapi({
    description: "none leaves a model's reasoning in the text; else it comes as reasoning_content.",
  }),
  reasoning_effort: z.string().nullish().openapi({
    description: "For templates that know it; none turns thinking off.",
  }),
};

const fields = z.object({
  messages: z.array(z.looseObject({ role: z.string() })),
  ...toolFields,
});

/** What the engine is told of a chat. Throws ApiError for fields that do not go together. */
export function chatOptionsOf(body: z.infer<typeof fields>): ChatOptions {
  const { tool_choice: choice, continue_final_message: continueFinal, add_generation_prompt: prompt } = body;
  let tools = (body.tools ?? []).map((tool) => plainTool(tool.function)), toolChoice: ToolChoice | undefined;
  if (typeof choice === "string") toolChoice = choice;
  else if (choice?.type === "function") toolChoice = { name: choice.function.name };
  else if (choice) {
    toolChoice = choice.allowed_tools.mode;
    const names = choice.allowed_tools.tools.map((tool) => tool.function.name);
    for (const name of names) checkChoice(tools, { name });
    tools = tools.filter(({ name }) => names.includes(name));
  }
  checkChoice(tools, toolChoice);
  if (continueFinal && prompt) {
    throw invalid(
      "continue_final_message goes on with a message, add_generation_prompt begins one: give one of them",
      "continue_final_message",
    );
  }
  if (continueFinal && body.messages.at(-1)?.role !== "assistant") {
    throw invalid("continue_final_message needs a last message of the assistant", "continue_final_message");
  }
  return {
    ...options(tools, toolChoice, body.parallel_tool_calls, variables(body)),
    ...(prompt == null ? {} : { addGenerationPrompt: prompt }),
    ...(continueFinal ? { continueFinal } : {}),
    ...(body.reasoning_format === "none" ? { reasoning: false } : {}),
  };
}

/** Options of a chat, without those that say nothing. */
export function options(
  tools: readonly Tool[],
  toolChoice: ToolChoice | undefined,
  parallel: boolean | null | undefined,
  variables: Record<string, unknown> | undefined,
): ChatOptions {
  return {
    ...(tools.length > 0 ? { tools } : {}),
    ...(tools.length > 0 && toolChoice !== undefined ? { toolChoice } : {}),
    ...(parallel === false ? { parallelToolCalls: false } : {}),
    ...(variables ? { variables } : {}),
  };
}

/** A tool without what is null. */
export function plainTool({ name, description, parameters, strict }: {
  name: string;
  description?: string | null;
  parameters?: Record<string, unknown> | null;
  strict?: boolean | null;
}): Tool {
  return {
    name,
    ...(description == null ? {} : { description }),
    ...(parameters == null ? {} : { parameters }),
    ...(strict ? { strict } : {}),
  };
}

/** Throws ApiError for names that occur twice, and for a choice that the tools do not allow. */
export function checkChoice(tools: readonly Tool[], choice: ToolChoice | undefined): void {
  const names = tools.map(({ name }) => name), twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw invalid(`tools has the function ${twice} twice`, "tools");
  if (typeof choice === "object" && !names.includes(choice.name)) {
    throw invalid(`tool_choice asks for the function ${choice.name}, which is not in tools`, "tool_choice");
  }
  if (choice === "required" && names.length === 0) {
    throw invalid("tool_choice is required, and there are no tools", "tool_choice");
  }
}

/** Variables of a template, with the effort of reasoning among them. */
export function variables(body: {
  chat_template_kwargs?: Record<string, unknown> | null;
  reasoning_effort?: string | null;
}): Record<string, unknown> | undefined {
  const { chat_template_kwargs: given, reasoning_effort: effort } = body;
  if (!given && effort == null) return undefined;
  const off = effort === "none" ? { enable_thinking: false } : {};
  return { ...(effort == null ? {} : { reasoning_effort: effort, ...off }), ...given };
}
