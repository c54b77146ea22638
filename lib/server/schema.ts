/**
 * What requests may hold. These schemas check requests and describe them in /openapi.json.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";

/** Fields that a schema does not name are let through and ignored, as OpenAI's clients expect of a compatible server. */
const count = (most: number) => z.number().int().min(1).max(most);

const text = z.looseObject({ type: z.literal("text"), text: z.string() });

const message = z.looseObject({
  role: z.enum(["system", "developer", "user", "assistant", "tool"]),
  content: z.union([z.string(), z.array(text).min(1), z.null()]).optional(),
  name: z.string().optional(),
}).openapi("ChatMessage");

const sampling = {
  temperature: z.number().min(0).max(2).nullish().openapi({
    description: "Default 1. 0 takes the most probable token.",
  }),
  top_p: z.number().gt(0).max(1).nullish(),
  top_k: z.number().int().min(0).max(2 ** 24).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  repetition_penalty: z.number().gt(0).max(100).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: z.record(z.string().regex(/^\d{1,9}$/), z.number().min(-100).max(100)).nullish(),
  seed: z.number().int().min(Number.MIN_SAFE_INTEGER).max(Number.MAX_SAFE_INTEGER).nullish(),
};

const common = {
  model: z.string().min(1),
  n: count(128).nullish(),
  stop: z.union([z.string().min(1), z.array(z.string().min(1)).max(4)]).nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
  user: z.string().nullish(),
  ...sampling,
};

/** Body of POST /v1/chat/completions. */
export const chatRequest = z.looseObject({
  ...common,
  messages: z.array(message).min(1),
  max_tokens: count(2 ** 31).nullish(),
  max_completion_tokens: count(2 ** 31).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.number().int().min(0).max(20).nullish(),
  response_format: z.union([
    z.looseObject({ type: z.literal("text") }),
    z.looseObject({ type: z.literal("json_object") }),
    z.looseObject({
      type: z.literal("json_schema"),
      json_schema: z.looseObject({
        name: z.string().optional(),
        schema: z.record(z.string(), z.unknown()),
        strict: z.boolean().nullish(),
      }),
    }),
  ]).nullish(),
}).openapi("ChatCompletionRequest");

const id = z.number().int().min(0).max(2 ** 31 - 1);

/** Body of POST /v1/completions. */
export const completionRequest = z.looseObject({
  ...common,
  prompt: z.union([
    z.string(),
    z.array(z.string()).min(1).max(64),
    z.array(id).min(1),
    z.array(z.array(id).min(1)).min(1).max(64),
  ]),
  max_tokens: count(2 ** 31).nullish().openapi({ description: "Default 16." }),
  logprobs: z.number().int().min(0).max(5).nullish(),
  echo: z.boolean().nullish(),
}).openapi("CompletionRequest");

/** A checked body of POST /v1/chat/completions. */
export type ChatRequest = z.infer<typeof chatRequest>;

/** A checked body of POST /v1/completions. */
export type CompletionRequest = z.infer<typeof completionRequest>;

/** The body of every error. */
export const errorBody = z.object({
  error: z.object({
    message: z.string(),
    type: z.string(),
    param: z.string().nullable(),
    code: z.string().nullable(),
  }),
}).openapi("Error");

const usage = z.object({
  prompt_tokens: z.number().int(),
  completion_tokens: z.number().int(),
  total_tokens: z.number().int(),
  prompt_tokens_details: z.object({ cached_tokens: z.number().int() }),
}).openapi("Usage");

const answer = {
  id: z.string(),
  created: z.number().int(),
  model: z.string(),
  system_fingerprint: z.string(),
  usage,
};

const finish = z.enum(["stop", "length"]);

/** Answer of POST /v1/chat/completions without `stream`. */
export const chatAnswer = z.object({
  ...answer,
  object: z.literal("chat.completion"),
  choices: z.array(z.object({
    index: z.number().int(),
    message: z.object({ role: z.literal("assistant"), content: z.string(), refusal: z.null() }),
    logprobs: z.unknown(),
    finish_reason: finish,
  })),
}).openapi("ChatCompletion");

/** An answer of POST /v1/chat/completions without `stream`. */
export type ChatAnswer = z.infer<typeof chatAnswer>;

/** Answer of POST /v1/completions without `stream`. */
export const completionAnswer = z.object({
  ...answer,
  object: z.literal("text_completion"),
  choices: z.array(
    z.object({ index: z.number().int(), text: z.string(), logprobs: z.unknown(), finish_reason: finish }),
  ),
}).openapi("Completion");

/** An answer of POST /v1/completions without `stream`. */
export type CompletionAnswer = z.infer<typeof completionAnswer>;

/** One entry of GET /v1/models. */
export const model = z.object({
  id: z.string(),
  object: z.literal("model"),
  created: z.number().int(),
  owned_by: z.string(),
}).openapi("Model");
