/**
 * The native operations, outputs first. They write into tensors that the caller gives, and on CUDA only enqueue.
 *
 * All throw VecInferError: INVALID_ARGUMENT naming op, argument, and what was expected and found; DISPOSED for a tensor
 * that is gone; and whatever the library reports.
 *
 * @module
 */
export * from "./add.ts";
export * from "./attention.ts";
export * from "./channel.ts";
export type { RowsOptions, StrideOptions } from "./check.ts";
export * from "./codebook.ts";
export * from "./convert.ts";
export * from "./embedding.ts";
export * from "./gate.ts";
export * from "./head_norm.ts";
export { KvLayer, type KvLayerOptions, PAGE_TOKENS, type RopeQuantizeOptions } from "./kv_layer.ts";
export * from "./linear.ts";
export * from "./pack.ts";
export * from "./position.ts";
export { Quantizer, type QuantizerOptions } from "./quantizer.ts";
export * from "./random.ts";
export * from "./rmsnorm.ts";
export * from "./rope.ts";
export * from "./sample.ts";
export * from "./scale.ts";
export * from "./transform.ts";
