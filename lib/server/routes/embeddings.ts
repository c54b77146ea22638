/**
 * Embeddings of texts by OpenAI's API.
 *
 * @module
 */

import { EngineError, type GenerationRequest } from "../../engine/request.ts";
import { readBody } from "../body.ts";
import { invalid } from "../error.ts";
import { ownerOf } from "../keys.ts";
import { findModel } from "../models.ts";
import { errors, json, type Route } from "../route.ts";
import { embeddingAnswer, type EmbeddingRequest, embeddingRequest } from "../schema.ts";
import type { ServerState } from "../state.ts";

/** POST /v1/embeddings: a vector of length 1 for each input. */
export function embeddingRoute(state: ServerState): Route {
  return {
    method: "post",
    path: "/v1/embeddings",
    summary: "Embeds texts",
    request: { body: { required: true, content: { "application/json": { schema: embeddingRequest } } } },
    responses: { 200: json(embeddingAnswer, "The embeddings"), ...errors(400, 404, 413, 415, 429, 500, 503, 504) },
    async handler(context) {
      const { raw } = context.req, entry = context.get("entry");
      if (state.draining) throw new EngineError("unavailable", "the server is shutting down");
      const models = state.models(), body = await readBody(raw, embeddingRequest, state.bodyBytes);
      const { name, cache: { kv: cache } } = findModel(models, body.model);
      const requests = requestsOf(body, state.engine.config.hiddenSize);
      const abort = new AbortController(), leave = () => abort.abort(new EngineError("cancelled", "the client left"));
      const { timeout } = state, late = `the request took longer than the ${timeout} s that this server allows`;
      const timer = timeout > 0
        ? setTimeout(() => abort.abort(new EngineError("timeout", late)), timeout * 1000)
        : undefined;
      if (raw.signal.aborted) leave();
      raw.signal.addEventListener("abort", leave);
      const options = { cache, signal: abort.signal, ...ownerOf(context, state.sharePrefixes, body.cache_salt) };
      state.active++;
      const vectors: Float32Array[] = [];
      let tokens = 0;
      try {
        // One after the other: however many inputs there are, they are one client's.
        for (const request of requests) {
          for await (const event of state.engine.generate(request, options)) {
            if (event.type === "accepted") tokens += event.promptTokens;
            if (event.type === "embedding") vectors.push(event.values);
          }
        }
      } finally {
        state.active--;
        clearTimeout(timer);
        raw.signal.removeEventListener("abort", leave);
        Object.assign(entry, { model: name, prompt_tokens: tokens, inputs: requests.length });
      }
      return Response.json({
        object: "list",
        model: name,
        data: vectors.map((values, index) => ({
          object: "embedding",
          index,
          embedding: body.encoding_format === "base64" ? base64(values) : [...values],
        })),
        usage: { prompt_tokens: tokens, total_tokens: tokens },
      });
    },
  };
}

/** A request for each input. Throws ApiError for other dimensions than the model has. */
function requestsOf({ input, dimensions, pooling }: EmbeddingRequest, hiddenSize: number): GenerationRequest[] {
  if (dimensions != null && dimensions !== hiddenSize) {
    throw invalid(
      `dimensions is ${dimensions}; this model's embeddings have ${hiddenSize}, and a part of them is none`,
      "dimensions",
      "unsupported_parameter",
    );
  }
  const inputs = Array.isArray(input) && typeof input[0] !== "number" ? input : [input];
  return (inputs as (string | number[])[]).map((prompt) => ({ prompt, maxTokens: 0, embedding: pooling ?? "mean" }));
}

/** The floats' bytes, little-endian. */
function base64(values: Float32Array): string {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");
}
