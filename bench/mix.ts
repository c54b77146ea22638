/**
 * What the soak asks a server: a table of requests, each made anew from random numbers.
 *
 * To add an endpoint, add an entry: its share of all requests, how one is made, and the statuses that are right for it.
 *
 * @module
 */

/** What requests are made from. */
export interface Making {
  /** Name of the model. */
  model: string;
  /** A number in [0, 1). */
  random(): number;
  /** A whole number from `low` to `high`. */
  integer(low: number, high: number): number;
  /** Some text of about so many tokens that no other request has. */
  excerpt(tokens: number): string;
}

/** One request. */
export interface MixedRequest {
  /** Its path. */
  path: string;
  /** Its body, for a POST. */
  body?: unknown;
  /** Headers besides the content type. */
  headers?: Record<string, string>;
  /** The method, where it is neither GET without nor POST with a body. */
  method?: string;
}

/** A kind of request. */
export interface MixEntry {
  /** Its share: how often, relative to the others. */
  weight: number;
  /** Statuses that are right. 429 and what comes of leaving always are. Default 200. */
  statuses?: readonly number[];
  /** Makes one. */
  make(making: Making): MixedRequest;
}

const COMPLETION = "/v1/completions", CHAT = "/v1/chat/completions";

const user = (content: unknown) => [{ role: "user", content }];

/** A schema of records, with a text and a list in each. */
const SCHEMA = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 12 },
    parts: { type: "array", items: { enum: ["a", "b", 3] }, maxItems: 3 },
  },
  required: ["name", "parts"],
};

/** All kinds of requests. */
export const MIX: Readonly<Record<string, MixEntry>> = {
  "completion": {
    weight: 4,
    make: ({ model, excerpt, integer }) => ({
      path: COMPLETION,
      body: { model, prompt: excerpt(integer(4, 60)), max_tokens: integer(1, 60) },
    }),
  },
  "completion, streamed": {
    weight: 6,
    make: ({ model, excerpt, integer }) => ({
      path: COMPLETION,
      body: { model, prompt: excerpt(integer(4, 300)), max_tokens: integer(1, 120), stream: true },
    }),
  },
  "chat, streamed": {
    weight: 6,
    make: ({ model, excerpt, integer }) => ({
      path: CHAT,
      body: { model, messages: user(excerpt(integer(4, 200))), max_tokens: integer(1, 100), stream: true },
    }),
  },
  "chat with choices and log-probabilities": {
    weight: 2,
    make: ({ model, excerpt, integer }) => ({
      path: CHAT,
      body: {
        model,
        messages: user(excerpt(20)),
        max_tokens: integer(1, 30),
        n: integer(1, 4),
        logprobs: true,
        top_logprobs: integer(0, 20),
        stream: integer(0, 1) === 1,
      },
    }),
  },
  "several prompts": {
    weight: 2,
    make: ({ model, excerpt, integer }) => ({
      path: COMPLETION,
      body: {
        model,
        prompt: Array.from({ length: integer(2, 6) }, () => excerpt(integer(2, 40))),
        max_tokens: integer(1, 20),
      },
    }),
  },
  "token ids": {
    weight: 1,
    make: ({ model, integer }) => ({
      path: COMPLETION,
      body: { model, prompt: Array.from({ length: integer(1, 400) }, () => integer(3, 3000)), max_tokens: 8 },
    }),
  },
  "a shared prefix": {
    weight: 2,
    make: ({ model, integer }) => ({
      path: COMPLETION,
      body: {
        model,
        prompt: `${"The kernel reads its files in blocks. ".repeat(40)}${integer(0, 1e9)}`,
        max_tokens: 8,
        cache_salt: `${integer(0, 2)}`,
        stream: true,
      },
    }),
  },
  "JSON of a schema": {
    weight: 2,
    make: ({ model, integer }) => ({
      path: CHAT,
      body: {
        model,
        messages: user("A record, please."),
        max_tokens: 80,
        response_format: integer(0, 1) === 0
          ? { type: "json_object" }
          : { type: "json_schema", json_schema: { name: "record", schema: SCHEMA } },
      },
    }),
  },
  "responses": {
    weight: 2,
    make: ({ model, excerpt, integer }) => ({
      path: "/v1/responses",
      body: { model, input: excerpt(integer(4, 60)), max_output_tokens: integer(16, 60), stream: integer(0, 1) === 1 },
    }),
  },
  "messages": {
    weight: 2,
    make: ({ model, excerpt, integer }) => ({
      path: "/v1/messages",
      body: { model, messages: user(excerpt(integer(4, 60))), max_tokens: integer(1, 60), stream: integer(0, 1) === 1 },
    }),
  },
  "tools": {
    weight: 1,
    make: ({ model, integer }) => ({
      path: CHAT,
      body: {
        model,
        messages: user("What is the weather in Paris?"),
        tools: [{ type: "function", function: { name: "weather", parameters: SCHEMA } }],
        tool_choice: (["auto", "required", "none"] as const)[integer(0, 2)],
        max_tokens: 60,
      },
    }),
  },
  "fields that are wrong": {
    weight: 1,
    statuses: [400],
    make: ({ model, integer }) => ({
      path: CHAT,
      body: [
        { model, messages: [] },
        { model, messages: user("a"), temperature: 5 },
        { model, messages: user("a"), repetition_penalty: 1e-46 },
        { model, messages: user("word ".repeat(20_000)) },
        {
          model,
          messages: user("a"),
          response_format: { type: "json_schema", json_schema: { schema: { $ref: "#/no" } } },
        },
      ][integer(0, 4)],
    }),
  },
  "no such model": {
    weight: 0.5,
    statuses: [404],
    make: () => ({ path: COMPLETION, body: { model: "none", prompt: "a" } }),
  },
  "no JSON": {
    weight: 0.5,
    statuses: [415],
    make: () => ({ path: COMPLETION, body: { prompt: "a" }, headers: { "content-type": "text/plain" } }),
  },
  "status": {
    weight: 3,
    make: ({ model, integer }) => ({
      path: [
        "/health",
        "/stats",
        "/metrics",
        "/config",
        "/v1/models",
        `/v1/models/${model}`,
        "/openapi.json",
        "/",
      ][integer(0, 7)],
    }),
  },
  "no such path": { weight: 0.5, statuses: [404], make: ({ integer }) => ({ path: `/v1/${integer(0, 1e9)}` }) },
};
