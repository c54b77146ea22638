/**
 * What requests to /v1/messages may hold, and what it answers.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { drawing } from "./drawing_schema.ts";
import { parameters, toolName } from "./tool_schema.ts";

const block = z.looseObject({ type: z.string() });

/** Fields that say what the prompt is. */
const prompt = {
  model: z.string().nullish(),
  messages: z.array(z.looseObject({
    role: z.enum(["user", "assistant", "system"]),
    content: z.union([z.string(), z.array(block)]),
  })).min(1),
  system: z.union([z.string(), z.array(block)]).nullish(),
  tools: z.array(z.looseObject({
    name: toolName,
    type: z.literal("custom", "only tools of the client's own are supported by this server").nullish(),
    description: z.string().nullish(),
    input_schema: parameters.nullish(),
    strict: z.boolean().nullish(),
  })).max(128).nullish(),
  tool_choice: z.looseObject({
    type: z.enum(["auto", "any", "tool", "none"]),
    name: z.string().nullish(),
    disable_parallel_tool_use: z.boolean().nullish(),
  }).nullish(),
  thinking: z.looseObject({ type: z.enum(["enabled", "disabled", "adaptive"]) }).nullish(),
  cache_salt: z.string().max(512).nullish(),
  chat_template_kwargs: z.record(z.string(), z.unknown()).nullish(),
};

/** Body of POST /v1/messages. */
export const messagesRequest = z.looseObject({
  ...prompt,
  max_tokens: z.number().int().min(1).max(2 ** 31),
  stop_sequences: z.array(z.string().min(1)).max(64).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  top_k: drawing.top_k,
  seed: drawing.seed,
  stream: z.boolean().nullish(),
}).openapi("MessagesRequest");

/** A checked body of POST /v1/messages. */
export type MessagesRequest = z.infer<typeof messagesRequest>;

/** Answer of POST /v1/messages without `stream`. */
export const messagesAnswer = z.looseObject({
  id: z.string(),
  type: z.literal("message"),
  role: z.literal("assistant"),
  model: z.string(),
  content: z.array(block),
  stop_reason: z.enum(["end_turn", "max_tokens", "stop_sequence", "tool_use"]).nullable(),
  stop_sequence: z.string().nullable(),
  usage: z.looseObject({ input_tokens: z.number().int(), output_tokens: z.number().int() }),
}).openapi("Message");
