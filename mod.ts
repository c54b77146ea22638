/**
 * VecInfer: language-model inference over a key/value cache that is vector-quantized to about two bits a channel.
 *
 * ```ts
 * import { LanguageModel } from "@vecinfer/vecinfer";
 *
 * using model = await LanguageModel.load("assets/tiny-llama", { kv: "vq2+" });
 * console.log(model.config);
 * for await (const piece of model.generate("The kernel", { maxTokens: 64, stop: ["\n\n"] })) {
 *   console.log(piece.text);
 * }
 * ```
 *
 * Here is what a user of models needs. `./ops` has device, tensors, native operations, the cache and what stands over them,
 * `./calibrate` training, evaluation and comparison of caches, `./server` the endpoint.
 *
 * @module
 */

export { CacheFullError } from "./lib/cache/pages.ts";
export { DEFAULT_KV, type KvSpec, type Preset, PRESETS } from "./lib/cache/scheme.ts";
export { type ErrorCode, VecInferError } from "./lib/device.ts";
export {
  type GenerateOptions,
  LanguageModel,
  type LoadOptions,
  type Piece,
  type SyntheticOptions,
} from "./lib/engine/language_model.ts";
export { type EffectiveConfig, EMBEDDED_MODEL, type RuntimeOptions } from "./lib/engine/load.ts";
export { type FinishReason } from "./lib/engine/request.ts";
export { type SamplingOptions } from "./lib/engine/sampler.ts";
export { openTokenizer } from "./lib/engine/tokenizer.ts";
export { pull, type PulledFile, type PullOptions, type PullProgress, type PullResult } from "./lib/hub/hub.ts";
export { type TransferOptions } from "./lib/hub/transfer.ts";
export { type Model, openModel, type OpenOptions, type PrefillOptions } from "./lib/models/model.ts";
export {
  type ChatMessage,
  type ChatTemplateOptions,
  type EncodeOptions,
  type Stops,
  Tokenizer,
  type TokenizerSource,
} from "./lib/tokenizer/tokenizer.ts";
export { type Detokenizer, type DetokenizerOptions } from "./lib/tokenizer/detokenizer.ts";
export { type Vocabulary } from "./lib/tokenizer/vocabulary.ts";
export { type ModelConfig, readModelConfig } from "./lib/weights/config.ts";
export { WeightsError } from "./lib/weights/safetensors.ts";
