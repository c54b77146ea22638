/**
 * Device, tensors, native ops, the cache, and over them steps of a model and files of weights: what a program needs that
 * decodes by itself over a coded cache, or runs the ops alone.
 *
 * @module
 */

export * from "./ops.ts";
export type { ExpertsConfig, Multipliers, RopeScaling, SoftCaps } from "../weights/model_config.ts";
export { allocatedBytes, type CacheBytes, cacheBytes, type CacheShape, effectiveBits } from "../cache/bytes.ts";
export { type CacheOptions, KvCache } from "../cache/cache.ts";
export {
  bf16Calibration,
  bf16Side,
  type Calibration,
  dataFreeSide,
  describeCalibration,
  findCalibration,
  type LayerCalibration,
  readCalibration,
  type SideCalibration,
  writeCalibration,
} from "../cache/calibration.ts";
export { type CodedFormatName, type Format, type FormatName, FORMATS } from "../cache/format.ts";
export { gaussianCodebook } from "../cache/gaussian.ts";
export { hadamard } from "../cache/matrix.ts";
export { CacheFullError, type PageChange, type PagePool } from "../cache/pages.ts";
export {
  checkHeadDim,
  type Codebooks,
  DEFAULT_KV,
  defaultKv,
  type ExactTokens,
  fitsHeadDim,
  type KvConfig,
  kvConfig,
  type KvSpec,
  layerFormat,
  type Preset,
  PRESETS,
  presetScheme,
  type Scheme,
  type SchemeName,
  SCHEMES,
  type Side,
  SIDES,
  type SideScheme,
  type TransformKind,
  transformOf,
} from "../cache/scheme.ts";
export { growingLayers, layerWindow, type Ring } from "../cache/ring.ts";
export { Sequence, type SequenceCache, WindowError } from "../cache/sequence.ts";
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
} from "../device.ts";
export { type Arguments, type ArgumentTypes, type Kind, type Symbols } from "../ffi/native.ts";
export { symbols } from "../ffi/symbols.ts";
export { type DType, type HostArray, type PackedDType, Tensor } from "../tensor.ts";
export { Decoder } from "../engine/decoder.ts";
export {
  areAlike,
  type KvObserver,
  parameterCount,
  type PrefillPlan,
  type PromptRead,
  type RopeConfig,
  ropeFrequencies,
  type Step,
  type StepObserver,
  weightBytesOf,
} from "../models/model.ts";
export { SYNTHETIC, syntheticConfig, syntheticModel, syntheticPrompt } from "../models/synthetic.ts";
export { isGguf } from "../weights/config.ts";
export { cacheShapeOf } from "../weights/model_config.ts";
export { Gguf, type GgufValue } from "../weights/gguf.ts";
export { BLOCK_TYPES, dequantizeBlocks } from "../weights/gguf_blocks.ts";
export { Safetensors, type SafetensorsType, type TensorData, writeSafetensors } from "../weights/safetensors.ts";
export { type TensorFile, type TensorInfo } from "../weights/tensor_file.ts";
