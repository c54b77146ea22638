/**
 * What requests may hold. These schemas check requests and describe them in /openapi.json.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { drawing, tokenLimit } from "./drawing_schema.ts";
import { messageFields, toolFields } from "./tool_schema.ts";

/** Fields that a schema does not name are let through and ignored, as OpenAI's clients expect of a compatible server. */
const count = (most: number) => z.number().int().min(1).max(most);

/** What a list of parts has that is not text. */
function wrongPart(content: unknown): string {
  if (!Array.isArray(content)) return "expected a text, or a list of parts";
  if (content.length === 0) return "expected a text, or a list of at least one part";
  const at = content.findIndex((part) => part?.type !== "text" || typeof part.text !== "string"), part = content[at];
  if (typeof part?.type !== "string") return `part ${at}: expected {"type": "text", "text": "..."}`;
  if (part.type === "text") return `part ${at}: expected a text in text`;
  return `part ${at} is of type ${
    JSON.stringify(part.type).slice(0, 60)
  }, which is not supported by this server: it reads text alone`;
}

const text = z.looseObject({ type: z.literal("text"), text: z.string() });

const message = z.looseObject({
  role: z.enum(["system", "developer", "user", "assistant", "tool"]),
  content: z.union([z.string(), z.array(text).min(1), z.null()], { error: ({ input }) => wrongPart(input) }).optional(),
  name: z.string().nullish(),
  ...messageFields,
}).openapi("ChatMessage");

const bias = z.number().min(-100).max(100);

const BIASES =
  "expected biases from -100 to 100 by token ids, as an object or as pairs; false in a pair forbids a token";

const sampling = {
  temperature: z.number().min(0).max(2).nullish().openapi({
    description: "Default 1. 0 takes the most probable token.",
  }),
  top_p: z.number().min(0).max(1).nullish().openapi({ description: "0 takes the most probable token." }),
  top_k: drawing.top_k,
  min_p: z.number().min(0).max(1).nullish(),
  repetition_penalty: z.number().gt(0).max(100).nullish(),
  repeat_penalty: z.number().gt(0).max(100).nullish().openapi({ description: "The same by llama.cpp's name." }),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: z.union([
    z.record(z.string().regex(/^\d{1,9}$/), bias),
    z.array(z.tuple([z.number().int().min(0).max(2 ** 31 - 1), z.union([bias, z.literal(false)])])),
  ], { error: BIASES }).nullish(),
  seed: drawing.seed,
};

/** Tokens that a client may say end an answer. */
const STOPS = 64;

const jsonSchema = z.record(z.string(), z.unknown());

/** Ways to ask for a form of the answer: OpenAI's, llama.cpp's and vLLM's. */
const forms = {
  response_format: z.union([
    z.looseObject({ type: z.literal("text") }),
    z.looseObject({ type: z.literal("json_object"), schema: jsonSchema.nullish() }),
    z.looseObject({
      type: z.literal("json_schema"),
      schema: jsonSchema.nullish(),
      json_schema: z.looseObject({
        name: z.string().optional(),
        schema: jsonSchema.nullish(),
        strict: z.boolean().nullish(),
      }).nullish(),
    }),
  ]).nullish(),
  json_schema: jsonSchema.nullish(),
  guided_json: z.union([jsonSchema, z.string()]).nullish(),
  structured_outputs: z.looseObject({
    json: z.union([jsonSchema, z.string()]).nullish(),
    json_object: z.boolean().nullish(),
  }).nullish(),
};

const common = {
  model: z.string().nullish().openapi({ description: "Default: the first of /v1/models." }),
  n: count(128).nullish(),
  stop: z.union([z.string(), z.array(z.string()).max(STOPS)]).nullish(),
  stop_token_ids: z.array(z.number().int().min(0).max(2 ** 31 - 1)).max(STOPS).nullish(),
  ignore_eos: z.boolean().nullish(),
  min_tokens: z.number().int().min(0).max(2 ** 31).nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
  user: z.string().nullish(),
  cache_salt: z.string().max(512).nullish().openapi({
    description: "The prompt is found in the cache by requests with the same salt alone.",
  }),
  ...sampling,
  ...forms,
};

/** Body of POST /v1/chat/completions. */
export const chatRequest = z.looseObject({
  ...common,
  messages: z.array(message).min(1),
  ...toolFields,
  max_tokens: tokenLimit(1).nullish(),
  max_completion_tokens: tokenLimit(1).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.number().int().min(0).max(20).nullish(),
}).openapi("ChatCompletionRequest");

const id = z.number().int().min(0).max(2 ** 31 - 1);

/** Body of POST /v1/completions. */
export const completionRequest = z.looseObject({
  ...common,
  prompt: z.union([
    z.string(),
    // The first that fits is taken, and a list of many ids is not looked through for texts.
    z.array(id).min(1),
    z.array(z.string()).min(1).max(64),
    z.array(z.array(id).min(1)).min(1).max(64),
  ]),
  max_tokens: tokenLimit(0).nullish().openapi({ description: "Default 16. 0 only reads the prompt." }),
  logprobs: z.number().int().min(0).max(5).nullish().openapi({
    description: "With echo also of the prompt's tokens, each read from the cache as generated ones are.",
  }),
  echo: z.boolean().nullish(),
  prompt_logprobs: z.number().int().min(0).max(20).nullish(),
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

/** Body of POST /v1/embeddings. */
export const embeddingRequest = z.looseObject({
  model: common.model,
  input: z.union([
    z.string(),
    z.array(z.string()).min(1).max(2048),
    z.array(id).min(1),
    z.array(z.array(id).min(1)).min(1).max(2048),
  ]),
  encoding_format: z.enum(["float", "base64"]).nullish(),
  cache_salt: common.cache_salt,
  dimensions: z.number().int().min(1).nullish(),
  pooling: z.enum(["mean", "last"]).nullish().openapi({
    description: "The mean over the tokens (default), or the last token.",
  }),
}).openapi("EmbeddingRequest");

/** A checked body of POST /v1/embeddings. */
export type EmbeddingRequest = z.infer<typeof embeddingRequest>;

/** Answer of POST /v1/embeddings. */
export const embeddingAnswer = z.object({
  object: z.literal("list"),
  model: z.string(),
  data: z.array(z.object({
    object: z.literal("embedding"),
    index: z.number().int(),
    embedding: z.union([z.array(z.number()), z.string()]),
  })),
  usage: z.object({ prompt_tokens: z.number().int(), total_tokens: z.number().int() }),
}).openapi("Embeddings");

/** Body of POST /tokenize: vLLM's `prompt` or chat, or llama.cpp's `content`. */
export const tokenizeRequest = z.looseObject({
  model: common.model,
  prompt: z.string().nullish(),
  content: z.string().nullish(),
  messages: z.array(message).min(1).nullish(),
  add_special_tokens: z.boolean().nullish().openapi({ description: "Default true with prompt, false with messages." }),
  add_special: z.boolean().nullish().openapi({ description: "The same with content. Default false." }),
  parse_special: z.boolean().nullish().openapi({
    description: "Whether names of control tokens become them. Default true.",
  }),
  return_token_strs: z.boolean().nullish(),
  with_pieces: z.boolean().nullish(),
  ...toolFields,
}).openapi("TokenizeRequest");

/** Answer of POST /tokenize. */
export const tokenizeAnswer = z.looseObject({
  count: z.number().int(),
  max_model_len: z.number().int(),
  tokens: z.array(z.union([z.number().int(), z.looseObject({ id: z.number().int(), piece: z.unknown() })])),
  token_strs: z.array(z.string()).nullable(),
}).openapi("Tokens");

/** Body of POST /detokenize. */
export const detokenizeRequest = z.looseObject({ model: common.model, tokens: z.array(id) }).openapi(
  "DetokenizeRequest",
);

/** Answer of POST /detokenize: the text by vLLM's name and by llama.cpp's. */
export const detokenizeAnswer = z.object({ prompt: z.string(), content: z.string() }).openapi("DetokenizedText");

/** Body of POST /apply-template. */
export const templateRequest = z.looseObject({
  model: common.model,
  messages: z.array(message).min(1),
  ...toolFields,
}).openapi("TemplateRequest");

/** Answer of POST /apply-template. */
export const templateAnswer = z.object({ prompt: z.string() }).openapi("TemplateText");

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
  timings: z.record(z.string(), z.number()).optional().openapi({ description: "As llama.cpp's server has them." }),
  usage,
};

const finish = z.enum(["stop", "length"]);

const toolCall = z.object({
  id: z.string(),
  type: z.literal("function"),
  function: z.object({ name: z.string(), arguments: z.string() }),
});

/** Answer of POST /v1/chat/completions without `stream`. */
export const chatAnswer = z.object({
  ...answer,
  object: z.literal("chat.completion"),
  choices: z.array(z.object({
    index: z.number().int(),
    message: z.object({
      role: z.literal("assistant"),
      content: z.string().nullable(),
      refusal: z.null(),
      reasoning_content: z.string().optional(),
      tool_calls: z.array(toolCall).optional(),
    }),
    logprobs: z.unknown(),
    finish_reason: z.enum(["stop", "length", "tool_calls"]),
  })),
}).openapi("ChatCompletion");

/** An answer of POST /v1/chat/completions without `stream`. */
export type ChatAnswer = z.infer<typeof chatAnswer>;

/** Answer of POST /v1/completions without `stream`. */
export const completionAnswer = z.object({
  ...answer,
  object: z.literal("text_completion"),
  choices: z.array(
    z.object({
      index: z.number().int(),
      text: z.string(),
      logprobs: z.unknown(),
      finish_reason: finish,
      prompt_logprobs: z.unknown().optional(),
    }),
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
  max_model_len: z.number().int().openapi({ description: "Tokens of the longest sequence." }),
  context_length: z.number().int(),
  context_window: z.number().int(),
  meta: z.object({ n_ctx: z.number().int(), n_ctx_train: z.number().int(), n_vocab: z.number().int() }),
}).openapi("Model");
