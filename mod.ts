/**
 * VecInfer: language-model inference over a key/value cache that is vector-quantized to about two bits a channel.
 *
 * ```ts
 * import { LanguageModel } from "@vecinfer/vecinfer";
 *
 * using model = await LanguageModel.load("assets/tiny-llama", { kv: "vq2" });
 * console.log(model.config);
 * for await (const piece of model.generate("The kernel", { maxTokens: 64, stop: ["\n\n"] })) {
 *   console.log(piece.text);
 * }
 * ```
 *
 * @module
 */

export {
  type EffectiveConfig,
  EMBEDDED_MODEL,
  type FinishReason,
  type GenerateOptions,
  LanguageModel,
  loadCalibration,
  type LoadOptions,
  type Piece,
} from "./lib/engine/language_model.ts";
export type { SamplingOptions } from "./lib/engine/generation.ts";
export { evaluate, type EvaluateOptions, type Quality } from "./lib/engine/evaluation.ts";
export { calibrate, type CalibrateOptions, type Recipe, trainCodebook } from "./lib/engine/calibrate.ts";
export { DOCUMENT_SEPARATOR, readText, textWindows } from "./lib/engine/text.ts";
export { type KvObserver, Llama, LlamaStep, type PrefillOptions } from "./lib/models/llama.ts";
export type { LlamaLayer, LlamaWeights } from "./lib/models/llama_weights.ts";
export { gaussianCodebook } from "./lib/cache/gaussian.ts";
export { CacheFullError, type CacheOptions, KvCache, Sequence } from "./lib/cache/cache.ts";
export {
  type Calibration,
  describeCalibration,
  exactSide,
  findCalibration,
  type LayerCalibration,
  readCalibration,
  type SideCalibration,
  writeCalibration,
} from "./lib/cache/calibration.ts";
export {
  type CacheBytes,
  cacheBytes,
  type CacheShape,
  effectiveBits,
  type Format,
  FORMATS,
  type KvConfig,
  kvConfig,
  type KvSpec,
  PRESETS,
  type SideScheme,
} from "./lib/cache/format.ts";
export * from "./lib/ops/mod.ts";
export {
  Device,
  type DeviceInfo,
  type DeviceOptions,
  type ErrorCode,
  type Functions,
  Graph,
  type MemoryInfo,
  type Native,
  type NativePointer,
  type Pointer,
  type Recorded,
  VecInferError,
} from "./lib/device.ts";
export type { Arguments, ArgumentTypes, Kind, Symbols } from "./lib/ffi/native.ts";
export { symbols } from "./lib/ffi/symbols.ts";
export { type DType, type HostArray, Tensor } from "./lib/tensor.ts";
export {
  type ChatMessage,
  type ChatTemplateOptions,
  type EncodeOptions,
  Tokenizer,
} from "./lib/tokenizer/tokenizer.ts";
export { Detokenizer, type DetokenizerOptions } from "./lib/tokenizer/detokenizer.ts";
export type { Vocabulary } from "./lib/tokenizer/vocabulary.ts";
export { StopMatcher, type StopResult } from "./lib/tokenizer/stop.ts";
export {
  type Dtype,
  Safetensors,
  type TensorData,
  type TensorInfo,
  WeightsError,
  writeSafetensors,
} from "./lib/weights/safetensors.ts";
export { type LlamaConfig, readModelConfig, type RopeScaling } from "./lib/weights/config.ts";
export { modelFingerprint } from "./lib/weights/fingerprint.ts";
