/**
 * Device, tensors, native ops and the cache: what a program needs that runs its own model over a coded cache, or the ops alone.
 *
 * @module
 */

export * from "./ops.ts";
export { CacheFullError, type CacheOptions, KvCache, Sequence } from "../cache/cache.ts";
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
} from "../cache/calibration.ts";
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
} from "../cache/format.ts";
export { gaussianCodebook } from "../cache/gaussian.ts";
export { hadamard, transformMatrices } from "../cache/matrix.ts";
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
export { Gguf, type GgufTensor, type GgufValue } from "../weights/gguf.ts";
export { BLOCK_TYPES, dequantizeBlocks } from "../weights/gguf_blocks.ts";
export { type Dtype, Safetensors, type TensorData, type TensorInfo, writeSafetensors } from "../weights/safetensors.ts";
