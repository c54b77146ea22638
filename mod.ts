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
 * @module
 */

export {
  calibrationFolder,
  type EffectiveConfig,
  EMBEDDED_MODEL,
  type FinishReason,
  type GenerateOptions,
  LanguageModel,
  loadCalibration,
  type LoadOptions,
  type Piece,
} from "./lib/engine/language_model.ts";
export { syntheticCalibration } from "./lib/engine/synthetic.ts";
export { Decoder, type SamplingOptions, type Token } from "./lib/engine/generation.ts";
export { evaluate, type EvaluateOptions, type Quality } from "./lib/engine/evaluation.ts";
export { attentionErrors } from "./lib/engine/attention_error.ts";
export { type CodebookUse, codebookUse, type KeyOutliers, keyOutliers } from "./lib/engine/codebook_use.ts";
export { type Drift, drifts, greedy } from "./lib/engine/drift.ts";
export { type Contender, contender, MethodCalibrator, type MethodOptions } from "./lib/engine/method.ts";
export { DEPTHS, plant, type Planted, retrieves } from "./lib/engine/retrieval.ts";
export { Activations, type CaptureOptions } from "./lib/engine/activations.ts";
export {
  calibrate,
  type CalibrateOptions,
  needsWeights,
  type Recipe,
  recipeOf,
  RECIPES,
  train,
  trainCodebook,
} from "./lib/engine/calibrate.ts";
export {
  allocate,
  DISTORTION,
  type Sensitivity,
  sensitivity,
  type SensitivityOptions,
} from "./lib/engine/sensitivity.ts";
export { DOCUMENT_SEPARATOR, readText, textWindows } from "./lib/engine/text.ts";
export {
  type KvObserver,
  Llama,
  LlamaStep,
  type PrefillOptions,
  type PrefillPlan,
  type StepObserver,
} from "./lib/models/llama.ts";
export { SYNTHETIC, syntheticConfig, syntheticLlama, syntheticPrompt } from "./lib/models/synthetic.ts";
export { llamaBytes, type LlamaLayer, type LlamaWeights } from "./lib/models/llama_weights.ts";
export { gaussianCodebook } from "./lib/cache/gaussian.ts";
export { hadamard, transformMatrices } from "./lib/cache/matrix.ts";
export {
  type ExactTokens,
  type Method,
  type MethodInfo,
  methodOf,
  METHODS,
  type ReferenceMethod,
  type TokenGroup,
} from "./lib/cache/method.ts";
export type { ProductMethod, ProductScheme } from "./lib/cache/product.ts";
export { ReferenceCache } from "./lib/cache/reference.ts";
export { CacheFullError, type CacheOptions, KvCache, Sequence } from "./lib/cache/cache.ts";
export {
  type Calibration,
  dataFreeSide,
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
  DEFAULT_KV,
  effectiveBits,
  type Format,
  FORMATS,
  type KvConfig,
  kvConfig,
  type KvSpec,
  layerFormat,
  type Preset,
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
export { type DType, type HostArray, type PackedDType, Tensor } from "./lib/tensor.ts";
export {
  type ChatMessage,
  type ChatTemplateOptions,
  type EncodeOptions,
  Tokenizer,
  type TokenizerSource,
} from "./lib/tokenizer/tokenizer.ts";
export { openTokenizer } from "./lib/engine/tokenizer.ts";
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
export { isGguf, type LlamaConfig, readModelConfig, type RopeScaling } from "./lib/weights/config.ts";
export { BLOCK_TYPES, dequantizeBlocks } from "./lib/weights/gguf_blocks.ts";
export { Gguf, type GgufTensor, type GgufValue } from "./lib/weights/gguf.ts";
export { modelFingerprint } from "./lib/weights/fingerprint.ts";
