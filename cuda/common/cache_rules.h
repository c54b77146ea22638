// Argument rules of the cache's functions: check_x is those of vi_x, for both libraries; see rules.h.
#pragma once
#include "cache.h"
#include <cfloat>

// coded: vectors that are transformed or coded, of which there are fewer sizes than of those kept in bf16.
inline int32_t check_head_dim(Context* context, const char* name, int32_t head_dim, bool coded) {
    if (head_dim == 64 || head_dim == 128 || head_dim == 256) return VI_OK;
    if (coded) return context->fail(VI_UNSUPPORTED, "%s: head_dim %d is not supported with transforms and codes: 64, 128 and 256 are", name, head_dim);
    if (head_dim == 80 || head_dim == 96 || head_dim == 112 || head_dim == 192) return VI_OK;
    return context->fail(VI_UNSUPPORTED, "%s: head_dim %d is not supported: 64, 80, 96, 112, 128, 192 and 256 are", name, head_dim);
}

// Query heads of `kv_heads` KV heads in rows of `stride` elements.
inline int32_t check_heads(Context* context, const char* name, int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t stride) {
    VI_REQUIRE(context, heads >= 1 && heads % kv_heads == 0 && heads / kv_heads <= max_group, "%s: heads is %d, not 1 to %d times the %d KV heads", name, heads,
               max_group, kv_heads);
    VI_REQUIRE(context, int64_t(heads) * head_dim <= stride, "%s: stride is %d, less than heads (%d) * head_dim (%d)", name, stride, heads, head_dim);
    return VI_OK;
}

inline int32_t check_transform_create(Context* context, const char* name, const uint8_t* out, const float* smooth, const float* matrices, int32_t kv_heads,
                                      int32_t head_dim, int32_t hadamard) {
    VI_POINTER(context, name, out);
    VI_AT_LEAST(context, name, kv_heads, 1);
    VI_CHECK(check_head_dim(context, name, head_dim, true));
    VI_WITHIN(context, name, hadamard, 0, 1);
    VI_REQUIRE(context, !matrices || (!smooth && !hadamard), "%s: matrices stand in place of smooth and hadamard", name);
    return VI_OK;
}

inline int32_t check_transform_apply(Context* context, const char* name, const float* out, const float* x, const TransformShape* transform, int32_t direction,
                                     int32_t rows, int32_t heads, int32_t stride) {
    VI_POINTER(context, name, transform);
    VI_AT_LEAST(context, name, rows, 0);
    VI_WITHIN(context, name, direction, VI_TRANSFORM_FORWARD, VI_TRANSFORM_INVERSE);
    VI_REQUIRE(context, heads >= 1 && heads % transform->kv_heads == 0, "%s: heads is %d, not a multiple of the %d KV heads", name, heads, transform->kv_heads);
    VI_REQUIRE(context, int64_t(heads) * transform->head_dim <= stride, "%s: stride is %d, less than heads (%d) * head_dim (%d)", name, stride, heads,
               transform->head_dim);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, x);
    return VI_OK;
}

inline int32_t check_quantizer_create(Context* context, const char* name, const uint8_t* out, const float* codebooks, const TransformShape* transform,
                                      const QuantizerShape& q) {
    VI_POINTER(context, name, out);
    VI_AT_LEAST(context, name, q.kv_heads, 1);
    VI_CHECK(check_head_dim(context, name, q.head_dim, q.coded()));
    VI_WITHIN(context, name, q.token_scale, 0, 1);
    VI_REQUIRE(context, format_index(q.sub_dim, q.bits) >= 0, "%s: (sub_dim, bits) is (%d,%d), not one of %s", name, q.sub_dim, q.bits, format_text);
    if (!q.coded()) {
        VI_REQUIRE(context, !codebooks && !transform && !q.token_scale, "%s: 16 bits go without codebooks, transform and token_scale", name);
        return VI_OK;
    }
    VI_REQUIRE(context, codebooks, "%s: codebooks is NULL: only 16 bits go without", name);
    VI_REQUIRE(context, q.codebook_heads == 1 || q.codebook_heads == q.kv_heads, "%s: codebook_heads is %d, not 1 or kv_heads (%d)", name, q.codebook_heads,
               q.kv_heads);
    VI_REQUIRE(context, q.codebook_parts == 1 || q.codebook_parts == q.head_dim / q.sub_dim, "%s: codebook_parts is %d, not 1 or head_dim / sub_dim (%d)", name,
               q.codebook_parts, q.head_dim / q.sub_dim);
    VI_REQUIRE(context, !transform || (transform->kv_heads == q.kv_heads && transform->head_dim == q.head_dim),
               "%s: the transform has %d KV heads of %d channels, the quantizer %d of %d", name, transform->kv_heads, transform->head_dim, q.kv_heads, q.head_dim);
    return VI_OK;
}

inline int32_t check_quantizer_codebook(Context* context, const char* name, const float* out, const QuantizerShape* quantizer) {
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, quantizer);
    VI_REQUIRE(context, quantizer->coded(), "%s: 16 bits have no codebook", name);
    return VI_OK;
}

inline int32_t check_page_bytes(Context* context, const char* name, const uint8_t* out, const QuantizerShape* quantizer) {
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, quantizer);
    return VI_OK;
}

inline int32_t check_kv_layer_create(Context* context, const char* name, const uint8_t* out, const QuantizerShape* keys, const QuantizerShape* values,
                                     const void* key_pages, const void* value_pages, const void* key_recent, const void* value_recent, const void* key_sinks,
                                     const void* value_sinks, const int32_t* page_table, const int32_t* exact_from, int32_t page_count, int32_t slots,
                                     int32_t max_pages, int32_t sinks, int32_t window, int32_t recent) {
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, keys);
    VI_POINTER(context, name, values);
    VI_POINTER(context, name, exact_from);
    const bool sliding = page_count == 0 && max_pages == 0;
    if (sliding) {
        VI_REQUIRE(context, !key_pages && !value_pages && !page_table, "%s: page_count is 0 and there are pages or a page_table", name);
        VI_REQUIRE(context, !keys->coded() && !values->coded(), "%s: a layer with a sliding window keeps bf16, not codes", name);
        VI_REQUIRE(context, sinks == 0, "%s: sinks is %d: a layer with a sliding window has none", name, sinks);
        VI_AT_LEAST(context, name, window, 1);
    } else {
        VI_POINTER(context, name, key_pages);
        VI_POINTER(context, name, value_pages);
        VI_POINTER(context, name, page_table);
        VI_AT_LEAST(context, name, page_count, 1);
        VI_AT_LEAST(context, name, max_pages, 1);
    }
    VI_REQUIRE(context, keys->kv_heads == values->kv_heads && keys->head_dim == values->head_dim, "%s: keys have %d heads of %d channels, values %d of %d", name,
               keys->kv_heads, keys->head_dim, values->kv_heads, values->head_dim);
    VI_AT_LEAST(context, name, slots, 1);
    VI_REQUIRE(context, int64_t(max_pages) * page_tokens <= INT32_MAX, "%s: max_pages is %d: a position would not fit int32", name, max_pages);
    VI_AT_LEAST(context, name, sinks, 0);
    VI_REQUIRE(context, window >= 0 && window <= recent, "%s: window is %d, not in 0..recent (%d)", name, window, recent);
    VI_REQUIRE(context, recent == 0 || (key_recent && value_recent), "%s: recent is %d and its memory is NULL", name, recent);
    VI_REQUIRE(context, sinks == 0 || (key_sinks && value_sinks), "%s: sinks is %d and their memory is NULL", name, sinks);
    return VI_OK;
}

inline int32_t check_quantize(Context* context, const char* name, const LayerShape* layer, const float* keys, const float* values, const int32_t* slots,
                              const int32_t* positions, int32_t rows, int32_t stride) {
    VI_POINTER(context, name, layer);
    VI_AT_LEAST(context, name, rows, 0);
    VI_REQUIRE(context, int64_t(layer->kv_heads) * layer->head_dim <= stride, "%s: stride is %d, less than kv_heads (%d) * head_dim (%d)", name, stride,
               layer->kv_heads, layer->head_dim);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, keys);
    VI_POINTER(context, name, values);
    VI_POINTER(context, name, slots);
    VI_POINTER(context, name, positions);
    return VI_OK;
}

// heads: in all, with no need to share KV heads evenly, for they are only rotated.
inline int32_t check_rope_quantize(Context* context, const char* name, const LayerShape* layer, const float* queries, const float* keys, const float* values,
                                   const int32_t* slots, const int32_t* positions, const float* frequencies, int32_t rows, int32_t heads, int32_t stride) {
    VI_CHECK(check_quantize(context, name, layer, keys, values, slots, positions, rows, stride));
    VI_WITHIN(context, name, heads, 1, int64_t(max_group) * layer->kv_heads);
    VI_REQUIRE(context, int64_t(heads) * layer->head_dim <= stride, "%s: stride is %d, less than heads (%d) * head_dim (%d)", name, stride, heads,
               layer->head_dim);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, queries);
    VI_POINTER(context, name, frequencies);
    return VI_OK;
}

inline int32_t check_dequantize(Context* context, const char* name, const float* keys, const float* values, const LayerShape* layer, int32_t slot, int32_t first,
                                int32_t count) {
    VI_POINTER(context, name, layer);
    VI_REQUIRE(context, !layer->sliding(), "%s: a layer with a sliding window has no pages to read back", name);
    VI_REQUIRE(context, slot >= 0 && slot < layer->slots, "%s: slot %d is outside the %d slots", name, slot, layer->slots);
    VI_REQUIRE(context, first >= 0 && count >= 0 && int64_t(first) + count <= layer->capacity(), "%s: first is %d and count %d: a slot holds %lld", name, first,
               count, static_cast<long long>(layer->capacity()));
    if (count == 0) return VI_OK;
    VI_POINTER(context, name, keys);
    VI_POINTER(context, name, values);
    return VI_OK;
}

inline int32_t check_soft_cap(Context* context, const char* name, float soft_cap) {
    VI_REQUIRE(context, soft_cap >= 0 && soft_cap <= FLT_MAX, "%s: soft_cap is %g, not 0 or a positive number", name, soft_cap);
    return VI_OK;
}

inline int32_t check_attention(Context* context, const char* name, const float* out, const float* q, const LayerShape* layer, const int32_t* slots,
                               const int32_t* positions, float soft_cap, int32_t rows, int32_t heads, int32_t stride) {
    VI_POINTER(context, name, layer);
    VI_AT_LEAST(context, name, rows, 0);
    VI_CHECK(check_soft_cap(context, name, soft_cap));
    VI_CHECK(check_heads(context, name, heads, layer->kv_heads, layer->head_dim, stride));
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, q);
    VI_POINTER(context, name, slots);
    VI_POINTER(context, name, positions);
    return VI_OK;
}

inline int32_t check_attention_prefill(Context* context, const char* name, const void* out, const float* q, const void* keys, const void* values,
                                       const LayerShape* layer, float soft_cap, int32_t slot, int32_t past, int32_t first, int32_t rows,
                                       int32_t sliding_window, int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t q_stride, int32_t kv_stride,
                                       int32_t kv_dtype, int32_t out_dtype) {
    VI_CHECK(check_soft_cap(context, name, soft_cap));
    VI_AT_LEAST(context, name, sliding_window, 0);
    VI_AT_LEAST(context, name, past, 0);
    VI_AT_LEAST(context, name, first, 0);
    VI_AT_LEAST(context, name, rows, 0);
    VI_REQUIRE(context, int64_t(past) + first + rows <= INT32_MAX, "%s: past (%d) + first (%d) + rows (%d) does not fit int32", name, past, first, rows);
    VI_CHECK(check_head_dim(context, name, head_dim, false));
    VI_AT_LEAST(context, name, kv_heads, 1);
    VI_CHECK(check_heads(context, name, heads, kv_heads, head_dim, q_stride));
    VI_REQUIRE(context, int64_t(kv_heads) * head_dim <= kv_stride, "%s: kv_stride is %d, less than kv_heads (%d) * head_dim (%d)", name, kv_stride, kv_heads,
               head_dim);
    VI_REQUIRE(context, past == 0 || layer, "%s: layer is NULL and past is %d", name, past);
    if (past > 0) {
        VI_REQUIRE(context, layer->kv_heads == kv_heads && layer->head_dim == head_dim, "%s: the layer has %d KV heads of %d channels, the call %d of %d", name,
                   layer->kv_heads, layer->head_dim, kv_heads, head_dim);
        VI_REQUIRE(context, slot >= 0 && slot < layer->slots, "%s: slot %d is outside the %d slots", name, slot, layer->slots);
        VI_REQUIRE(context, past <= layer->capacity(), "%s: past is %d: a slot holds %lld", name, past, static_cast<long long>(layer->capacity()));
        VI_REQUIRE(context, !layer->sliding() || layer->window == sliding_window, "%s: sliding_window is %d, the layer's is %d", name, sliding_window, layer->window);
    }
    VI_REQUIRE(context, kv_dtype == VI_F32 || kv_dtype == VI_BF16 || kv_dtype == VI_F16, "%s: kv_dtype is %d, not f32 (0), bf16 (1) or f16 (2)", name, kv_dtype);
    VI_REQUIRE(context, out_dtype == VI_F32 || out_dtype == VI_BF16, "%s: out_dtype is %d, not f32 (0) or bf16 (1)", name, out_dtype);
    VI_REQUIRE(context, out_dtype == VI_F32 || kv_dtype == VI_F16, "%s: out is bf16, and keys and values are not f16", name);
    VI_REQUIRE(context, kv_dtype == VI_F32 || (kv_stride % 8 == 0 && reinterpret_cast<uintptr_t>(keys) % 16 == 0 && reinterpret_cast<uintptr_t>(values) % 16 == 0),
               "%s: rows of %s keys and values begin at multiples of 16 bytes: kv_stride is %d", name, kv_dtype == VI_F16 ? "f16" : "bf16", kv_stride);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, q);
    VI_POINTER(context, name, keys);
    VI_POINTER(context, name, values);
    return VI_OK;
}
