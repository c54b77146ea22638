/**
 * What requests to /v1/responses may hold, and what it answers.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { drawing, tokenLimit } from "./drawing_schema.ts";
import { parameters, toolName } from "./tool_schema.ts";

const part = z.looseObject({ type: z.string() });

const item = z.looseObject({
  type: z.string().nullish(),
  role: z.enum(["system", "developer", "user", "assistant"]).nullish(),
  content: z.union([z.string(), z.array(part), z.null()]).optional(),
}).openapi("ResponseInputItem");

const tool = z.looseObject({
  type: z.literal("function", "only tools of type function are supported by this server"),
  name: toolName,
  description: z.string().nullish(),
  parameters: parameters.nullish(),
  strict: z.boolean().nullish(),
});

const named = z.looseObject({ type: z.literal("function"), name: z.string() });

/** Body of POST /v1/responses. */
export const responsesRequest = z.looseObject({
  model: z.string().nullish(),
  input: z.union([z.string(), z.array(item).min(1)]),
  instructions: z.string().nullish(),
  tools: z.array(tool).max(128).nullish(),
  tool_choice: z.union([
    z.enum(["none", "auto", "required"]),
    named,
    z.looseObject({ type: z.literal("allowed_tools"), mode: z.enum(["auto", "required"]), tools: z.array(named) }),
  ], { error: 'expected "none", "auto", "required", or {"type": "function", "name": ...}' }).nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  text: z.looseObject({
    format: z.union([
      z.looseObject({ type: z.literal("text") }),
      z.looseObject({ type: z.literal("json_object") }),
      z.looseObject({ type: z.literal("json_schema"), schema: parameters, name: z.string().optional() }),
    ]).nullish(),
  }).nullish(),
  reasoning: z.looseObject({ effort: z.string().nullish() }).nullish(),
  max_output_tokens: tokenLimit(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  top_logprobs: z.number().int().min(0).max(20).nullish(),
  seed: drawing.seed,
  stream: z.boolean().nullish(),
  store: z.boolean().nullish().openapi({ description: "Nothing is stored, whatever it is." }),
  metadata: z.record(z.string(), z.unknown()).nullish(),
  cache_salt: z.string().max(512).nullish(),
  chat_template_kwargs: z.record(z.string(), z.unknown()).nullish(),
}).openapi("ResponsesRequest");

/** A checked body of POST /v1/responses. */
export type ResponsesRequest = z.infer<typeof responsesRequest>;

/** Answer of POST /v1/responses without `stream`. */
export const responsesAnswer = z.looseObject({
  id: z.string(),
  object: z.literal("response"),
  created_at: z.number().int(),
  status: z.enum(["completed", "incomplete", "failed", "in_progress"]),
  model: z.string(),
  output: z.array(z.looseObject({ type: z.string(), id: z.string() })),
  usage: z.unknown(),
}).openapi("Response");
