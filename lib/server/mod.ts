/**
 * A server with OpenAI's API: continuous batching, shared prefixes and a page, over a quantized cache.
 *
 * ```ts
 * import { serve } from "@vecinfer/vecinfer/server";
 *
 * const server = await serve({ kv: ["vq2+", "bf16"], port: 8000 });
 * await server.ready;
 * console.log(server.url);
 * ```
 *
 * @module
 */

export { type App, type AppOptions, createApp } from "./app.ts";
export type { LogEntry } from "./state.ts";
export { serve, type ServeOptions, type Server } from "./serve.ts";
export { Engine, type EngineGenerateOptions, type EngineOptions, type EngineState } from "../engine/engine.ts";
export {
  type CacheConfig,
  type CacheStats,
  type EngineConfig,
  EngineError,
  type EngineErrorCode,
  type EngineErrorData,
  type EngineStats,
  type GeneratedToken,
  type GenerationEvent,
  type GenerationRequest,
  type TokenLogprob,
} from "../engine/request.ts";
export { ENGINE_DEFAULTS, type EngineSizes } from "../engine/load.ts";
