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

export { type App, type AppOptions, createApp, LONGEST_TIMEOUT } from "./app.ts";
export { LineLog, type LogEntry, standardOutput, type Writer } from "./log.ts";
export type { MetricNames } from "./metrics.ts";
export { serve, type ServeOptions, type Server } from "./serve.ts";
export type { ChatOptions } from "../chat/chat.ts";
export type { CallDelta, Tool, ToolChoice } from "../chat/tool.ts";
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
  type Owner,
  type Pooling,
  type PromptToken,
  type Timings,
  type TokenLogprob,
} from "../engine/request.ts";
export type { ChatText, TextAnswer, TextQuestion, TokenizedText } from "../engine/text_question.ts";
export { ENGINE_DEFAULTS, type EngineSizes } from "../engine/load.ts";
