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

export { Decoder, type SamplingOptions, type Token } from "./lib/engine/generation.ts";
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
export { openTokenizer } from "./lib/engine/tokenizer.ts";
export {
  type KvObserver,
  type Model,
  openModel,
  type OpenOptions,
  parameterCount,
  type PrefillOptions,
  type PrefillPlan,
  type Step,
  type StepObserver,
  weightBytesOf,
} from "./lib/models/model.ts";
export { SYNTHETIC, syntheticConfig, syntheticModel, syntheticPrompt } from "./lib/models/synthetic.ts";
export { Detokenizer, type DetokenizerOptions } from "./lib/tokenizer/detokenizer.ts";
export { StopMatcher, type StopResult } from "./lib/tokenizer/stop.ts";
export {
  type ChatMessage,
  type ChatTemplateOptions,
  type EncodeOptions,
  type Stops,
  Tokenizer,
  type TokenizerSource,
} from "./lib/tokenizer/tokenizer.ts";
export { type Vocabulary } from "./lib/tokenizer/vocabulary.ts";
export { isGguf, type ModelConfig, readModelConfig, type RopeScaling } from "./lib/weights/config.ts";
export { modelFingerprint } from "./lib/weights/fingerprint.ts";
export { Gguf, type GgufValue } from "./lib/weights/gguf.ts";
export { BLOCK_TYPES, dequantizeBlocks } from "./lib/weights/gguf_blocks.ts";
export {
  Safetensors,
  type SafetensorsType,
  type TensorData,
  WeightsError,
  writeSafetensors,
} from "./lib/weights/safetensors.ts";
export type { TensorFile, TensorInfo } from "./lib/weights/tensor_file.ts";
