/**
 * The C ABI as data. Generated from cuda/include/vecinfer.h by scripts/chores/symbols.ts: run that instead of editing this file.
 *
 * @module
 */

/** SHA-256 of the header, as `vi_abi_hash` of a library that fits reports it. */
export const ABI_HASH = "c110b8a643e1ebca16feece3ab65e1160327d3a0e35a358b58998ba957ea4d60";

/** `VI_OK` of vecinfer.h. */
export const VI_OK = 0;
/** a shape, a size or a value that the function refuses */
export const VI_INVALID_ARGUMENT = 1;
/** `VI_OUT_OF_MEMORY` of vecinfer.h. */
export const VI_OUT_OF_MEMORY = 2;
/** no driver, no such device, or one that this build has no code for */
export const VI_NO_DEVICE = 3;
/** the device reported an error while launching or running */
export const VI_DEVICE_ERROR = 4;
/** valid, but not built in this library; the message names what is */
export const VI_UNSUPPORTED = 5;
/** `VI_INTERNAL_ERROR` of vecinfer.h. */
export const VI_INTERNAL_ERROR = 6;
/** `VI_F32` of vecinfer.h. */
export const VI_F32 = 0;
/** `VI_BF16` of vecinfer.h. */
export const VI_BF16 = 1;
/** `VI_F16` of vecinfer.h. */
export const VI_F16 = 2;
/** `VI_I32` of vecinfer.h. */
export const VI_I32 = 3;
/** `VI_U8` of vecinfer.h. */
export const VI_U8 = 4;
/** blocks of 32 weights, see vi_pack */
export const VI_Q8_0 = 5;
/** `VI_Q4_0` of vecinfer.h. */
export const VI_Q4_0 = 6;
/** `VI_Q4_1` of vecinfer.h. */
export const VI_Q4_1 = 7;
/** what vi_linear does with its products */
export const VI_OUTPUT_VALUES = 0;
/** `VI_OUTPUT_SUM` of vecinfer.h. */
export const VI_OUTPUT_SUM = 1;
/** `VI_OUTPUT_SILU` of vecinfer.h. */
export const VI_OUTPUT_SILU = 2;
/** `VI_PACKED_ROWS` of vecinfer.h. */
export const VI_PACKED_ROWS = 16;
/** activations of vi_gate */
export const VI_SILU = 0;
/** `VI_GELU` of vecinfer.h. */
export const VI_GELU = 1;
/** `VI_SWIGLU_CLAMPED` of vecinfer.h. */
export const VI_SWIGLU_CLAMPED = 2;
/** of keys and values, see vi_transform_create */
export const VI_TRANSFORM_FORWARD = 0;
/** `VI_TRANSFORM_QUERY` of vecinfer.h. */
export const VI_TRANSFORM_QUERY = 1;
/** `VI_TRANSFORM_INVERSE` of vecinfer.h. */
export const VI_TRANSFORM_INVERSE = 2;
/** the weights that vi_route gives */
export const VI_ROUTE_SOFTMAX = 0;
/** `VI_ROUTE_NORMALIZED` of vecinfer.h. */
export const VI_ROUTE_NORMALIZED = 1;
/** `VI_ROUTE_TOP_SOFTMAX` of vecinfer.h. */
export const VI_ROUTE_TOP_SOFTMAX = 2;
/** `VI_PAGE_TOKENS` of vecinfer.h. */
export const VI_PAGE_TOKENS = 64;
/** floats a row in the settings of vi_sample */
export const VI_SAMPLE_SETTINGS = 8;

/** Parameter kinds of every function. "buffer" is host memory, "pointer" a device address or a handle. All return i32. */
export const symbols = {
  vi_abi_hash: ["buffer", "i32"],
  vi_device_count: ["buffer", "buffer", "i32"],
  vi_context_create: ["buffer", "i32", "i32"],
  vi_context_destroy: ["pointer"],
  vi_last_error: ["pointer", "buffer", "i32"],
  vi_device_info: ["pointer", "buffer", "i32"],
  vi_synchronize: ["pointer"],
  vi_allocate: ["pointer", "buffer", "i64"],
  vi_free: ["pointer", "pointer"],
  vi_memory_info: ["pointer", "buffer"],
  vi_copy_to_device: ["pointer", "pointer", "buffer", "i64"],
  vi_copy_to_host: ["pointer", "buffer", "pointer", "i64"],
  vi_copy: ["pointer", "pointer", "pointer", "i64"],
  vi_fill: ["pointer", "pointer", "i32", "i64"],
  vi_convert: ["pointer", "pointer", "pointer", "i32", "i32", "i64"],
  vi_random_normal: ["pointer", "pointer", "i32", "i32", "f32", "f32", "i64"],
  vi_event_record: ["pointer", "i32"],
  vi_event_elapsed: ["pointer", "buffer", "i32", "i32"],
  vi_graph_begin: ["pointer"],
  vi_graph_end: ["pointer", "buffer"],
  vi_graph_launch: ["pointer", "pointer"],
  vi_graph_destroy: ["pointer", "pointer"],
  vi_embedding: ["pointer", "pointer", "pointer", "pointer", "i32", "i32", "i32"],
  vi_rmsnorm: ["pointer", "pointer", "pointer", "pointer", "pointer", "f32", "i32", "i32"],
  vi_head_norm: ["pointer", "pointer", "pointer", "f32", "i32", "i32", "i32", "i32"],
  vi_add: ["pointer", "pointer", "pointer", "pointer", "f32", "f32", "i32", "i32"],
  vi_scale: ["pointer", "pointer", "f32", "f32", "i64"],
  vi_linear: [
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "f32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
  ],
  vi_pack: ["pointer", "pointer", "pointer", "i32", "i32", "i32"],
  vi_rope: ["pointer", "pointer", "pointer", "pointer", "f32", "i32", "i32", "i32", "i32", "i32", "i32"],
  vi_rope_round: [
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "f32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
  ],
  vi_gate: ["pointer", "pointer", "pointer", "i32", "i32", "i32"],
  vi_advance: ["pointer", "pointer", "i32"],
  vi_route: ["pointer", "pointer", "pointer", "pointer", "i32", "i32", "i32", "i32"],
  vi_expert_linear: [
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
  ],
  vi_expert_sum: ["pointer", "pointer", "pointer", "pointer", "i32", "i32", "i32"],
  vi_codebook_assign: ["pointer", "pointer", "pointer", "pointer", "i32", "i32", "i32"],
  vi_kmeans_start: ["pointer", "pointer", "pointer", "pointer", "i32", "i32", "i32", "i32"],
  vi_kmeans_step: ["pointer", "pointer", "pointer", "pointer", "pointer", "i32", "i32", "i32", "i32", "i32"],
  vi_channel_max: ["pointer", "pointer", "pointer", "i32", "i32", "i32"],
  vi_transform_create: ["pointer", "buffer", "pointer", "pointer", "i32", "i32", "i32"],
  vi_transform_destroy: ["pointer", "pointer"],
  vi_transform_apply: ["pointer", "pointer", "pointer", "pointer", "i32", "i32", "i32", "i32"],
  vi_quantizer_create: ["pointer", "buffer", "pointer", "pointer", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  vi_quantizer_destroy: ["pointer", "pointer"],
  vi_quantizer_codebook: ["pointer", "pointer", "pointer"],
  vi_page_bytes: ["pointer", "buffer", "pointer"],
  vi_kv_layer_create: [
    "pointer",
    "buffer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
  ],
  vi_kv_layer_destroy: ["pointer", "pointer"],
  vi_quantize: ["pointer", "pointer", "pointer", "pointer", "pointer", "pointer", "i32", "i32"],
  vi_rope_quantize: [
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "i32",
    "i32",
    "i32",
  ],
  vi_dequantize: ["pointer", "pointer", "pointer", "pointer", "i32", "i32", "i32"],
  vi_attention: [
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "f32",
    "f32",
    "i32",
    "i32",
    "i32",
  ],
  vi_attention_prefill: [
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "f32",
    "f32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
    "i32",
  ],
  vi_sample: [
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "pointer",
    "i32",
    "i32",
  ],
  vi_log_probabilities: ["pointer", "pointer", "pointer", "pointer", "pointer", "pointer", "i32", "i32", "i32"],
  vi_compare: ["pointer", "pointer", "pointer", "pointer", "pointer", "i32", "i32"],
} as const;
