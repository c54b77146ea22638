// Argument rules of the ABI's functions, the cache's apart (cache_rules.h): check_x is those of vi_x, for both libraries. Where there is nothing to do (no rows) an
// address may be NULL. What one library alone can't do, it refuses itself, after these.
#pragma once
#include "context.h"
#include <cmath>

constexpr int event_count = 64;
constexpr int packed_inputs = 32; // of a block of VI_Q8_0, VI_Q4_0, VI_Q4_1

constexpr bool is_packed(int32_t format) { return format == VI_Q8_0 || format == VI_Q4_0 || format == VI_Q4_1; }

// ---------------------------------------------------------------- memory, events

inline int32_t check_allocate(Context* context, const char* name, const uint8_t* out, int64_t bytes) {
    VI_POINTER(context, name, out);
    VI_AT_LEAST(context, name, bytes, 1);
    return VI_OK;
}

// vi_copy_to_device and vi_copy_to_host.
inline int32_t check_transfer(Context* context, const char* name, const void* out, const void* in, int64_t bytes) {
    VI_AT_LEAST(context, name, bytes, 0);
    if (bytes == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, in);
    return VI_OK;
}

inline int32_t check_copy(Context* context, const char* name, const void* out, const void* in, int64_t bytes) {
    VI_CHECK(check_transfer(context, name, out, in, bytes));
    const uintptr_t to = reinterpret_cast<uintptr_t>(out), from = reinterpret_cast<uintptr_t>(in);
    VI_REQUIRE(context, bytes == 0 || to + bytes <= from || from + bytes <= to, "%s: %lld bytes from %p to %p overlap", name, static_cast<long long>(bytes), in,
               out);
    return VI_OK;
}

inline int32_t check_fill(Context* context, const char* name, const void* out, int32_t value, int64_t bytes) {
    VI_AT_LEAST(context, name, bytes, 0);
    VI_WITHIN(context, name, value, 0, 255);
    if (bytes == 0) return VI_OK;
    VI_POINTER(context, name, out);
    return VI_OK;
}

inline int32_t check_convert(Context* context, const char* name, const void* out, const void* in, int32_t out_dtype, int32_t in_dtype, int64_t count) {
    for (const int32_t dtype : {out_dtype, in_dtype})
        VI_REQUIRE(context, dtype == VI_F32 || dtype == VI_BF16 || dtype == VI_F16, "%s: dtype is %d, not f32 (0), bf16 (1) or f16 (2)", name, dtype);
    VI_AT_LEAST(context, name, count, 0);
    if (count == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, in);
    return VI_OK;
}

inline int32_t check_random_normal(Context* context, const char* name, const void* out, int32_t dtype, int64_t count) {
    VI_REQUIRE(context, dtype == VI_F32 || dtype == VI_BF16, "%s: dtype is %d, not f32 (0) or bf16 (1)", name, dtype);
    VI_AT_LEAST(context, name, count, 0);
    if (count == 0) return VI_OK;
    VI_POINTER(context, name, out);
    return VI_OK;
}

inline int32_t check_event(Context* context, const char* name, int32_t index) {
    VI_WITHIN(context, name, index, 0, event_count - 1);
    return VI_OK;
}

// ---------------------------------------------------------------- layers of a model

inline int32_t check_embedding(Context* context, const char* name, const float* out, const int32_t* ids, const vi_bf16* table, int32_t rows, int32_t width,
                               int32_t vocabulary) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, width, 1);
    VI_AT_LEAST(context, name, vocabulary, 1);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, ids);
    VI_POINTER(context, name, table);
    return VI_OK;
}

inline int32_t check_rmsnorm(Context* context, const char* name, const float* out, const float* x, const float* weight, float epsilon, int32_t rows,
                             int32_t width) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, width, 1);
    VI_REQUIRE(context, epsilon >= 0, "%s: epsilon is %g, not at least 0", name, epsilon);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, x);
    VI_POINTER(context, name, weight);
    return VI_OK;
}

inline int32_t check_head_norm(Context* context, const char* name, const float* x, const float* weight, float epsilon, int32_t rows, int32_t heads,
                               int32_t head_dim, int32_t stride) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, heads, 1);
    VI_WITHIN(context, name, head_dim, 1, 16384);
    VI_REQUIRE(context, int64_t(heads) * head_dim <= stride, "%s: stride is %d, less than heads (%d) * head_dim (%d)", name, stride, heads, head_dim);
    VI_REQUIRE(context, epsilon >= 0, "%s: epsilon is %g, not at least 0", name, epsilon);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, x);
    VI_POINTER(context, name, weight);
    return VI_OK;
}

inline int32_t check_add(Context* context, const char* name, const float* residual, const float* x, float epsilon, float factor, int32_t rows, int32_t width) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, width, 1);
    VI_REQUIRE(context, epsilon >= 0, "%s: epsilon is %g, not at least 0", name, epsilon);
    VI_REQUIRE(context, std::isfinite(factor), "%s: factor is %g, not a finite number", name, factor);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, residual);
    VI_POINTER(context, name, x);
    const uintptr_t to = reinterpret_cast<uintptr_t>(residual), from = reinterpret_cast<uintptr_t>(x), bytes = uintptr_t(rows) * width * sizeof(float);
    VI_REQUIRE(context, to + bytes <= from || from + bytes <= to, "%s: residual and x overlap", name);
    return VI_OK;
}

inline int32_t check_scale(Context* context, const char* name, const float* x, float factor, float cap, int64_t count) {
    VI_AT_LEAST(context, name, count, 0);
    VI_REQUIRE(context, std::isfinite(factor), "%s: factor is %g, not a finite number", name, factor);
    VI_REQUIRE(context, cap >= 0 && std::isfinite(cap), "%s: cap is %g, not a finite number from 0 on", name, cap);
    if (count == 0) return VI_OK;
    VI_POINTER(context, name, x);
    return VI_OK;
}

inline int32_t check_linear(Context* context, const char* name, const void* out, const void* x, const void* weight, const float* norm, float epsilon,
                            int32_t format, int32_t output, int32_t x_dtype, int32_t out_dtype, int32_t rows, int32_t out_features, int32_t in_features) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, out_features, 1);
    VI_AT_LEAST(context, name, in_features, 1);
    VI_REQUIRE(context, output == VI_OUTPUT_VALUES || output == VI_OUTPUT_SUM || output == VI_OUTPUT_SILU,
               "%s: output is %d, not one of VI_OUTPUT_VALUES, VI_OUTPUT_SUM, VI_OUTPUT_SILU", name, output);
    VI_REQUIRE(context, output != VI_OUTPUT_SILU || out_features % 2 == 0, "%s: out_features is %d, not even for VI_OUTPUT_SILU", name, out_features);
    VI_REQUIRE(context, epsilon >= 0, "%s: epsilon is %g, not at least 0", name, epsilon);
    VI_REQUIRE(context, format == VI_BF16 || is_packed(format), "%s: format is %d, not one of VI_BF16, VI_Q8_0, VI_Q4_0, VI_Q4_1", name, format);
    for (const int32_t dtype : {x_dtype, out_dtype})
        VI_REQUIRE(context, dtype == VI_F32 || dtype == VI_BF16, "%s: dtype is %d, not f32 (0) or bf16 (1)", name, dtype);
    VI_REQUIRE(context, x_dtype == VI_F32 || !norm, "%s: x is bf16, and a norm takes f32", name);
    VI_REQUIRE(context, out_dtype == VI_F32 || output != VI_OUTPUT_SUM, "%s: out is bf16, and VI_OUTPUT_SUM adds to f32", name);
    VI_REQUIRE(context, format == VI_BF16 || in_features % packed_inputs == 0, "%s: in_features is %d, not a multiple of %d", name, in_features, packed_inputs);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, x);
    VI_POINTER(context, name, weight);
    return VI_OK;
}

inline int32_t check_pack(Context* context, const char* name, const void* out, const void* blocks, int32_t format, int32_t out_features, int32_t in_features) {
    VI_REQUIRE(context, is_packed(format), "%s: format is %d, not one of VI_Q8_0, VI_Q4_0, VI_Q4_1", name, format);
    VI_AT_LEAST(context, name, out_features, 1);
    VI_REQUIRE(context, in_features >= packed_inputs && in_features % packed_inputs == 0, "%s: in_features is %d, not a multiple of %d", name, in_features,
               packed_inputs);
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, blocks);
    return VI_OK;
}

inline int32_t check_rope(Context* context, const char* name, const float* x, const int32_t* positions, const float* frequencies, float factor, int32_t rows,
                          int32_t heads, int32_t head_dim, int32_t rotary_dim, int32_t interleaved, int32_t stride) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, heads, 1);
    VI_REQUIRE(context, rotary_dim >= 2 && rotary_dim % 2 == 0, "%s: rotary_dim is %d, not even and at least 2", name, rotary_dim);
    VI_REQUIRE(context, rotary_dim <= head_dim, "%s: rotary_dim is %d, more than head_dim (%d)", name, rotary_dim, head_dim);
    VI_WITHIN(context, name, interleaved, 0, 1);
    VI_REQUIRE(context, std::isfinite(factor), "%s: factor is %g, not a finite number", name, factor);
    VI_REQUIRE(context, int64_t(heads) * head_dim <= stride, "%s: stride is %d, less than heads (%d) * head_dim (%d)", name, stride, heads, head_dim);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, x);
    VI_POINTER(context, name, positions);
    VI_POINTER(context, name, frequencies);
    return VI_OK;
}

inline int32_t check_rope_round(Context* context, const char* name, const float* queries, const float* keys, const float* values, const vi_f16* keys_out,
                                const vi_f16* values_out, const int32_t* positions, const float* frequencies, float factor, int32_t rows, int32_t heads,
                                int32_t kv_heads, int32_t head_dim, int32_t rotary_dim, int32_t interleaved, int32_t stride, int32_t out_stride) {
    if (rotary_dim != 0)
        VI_CHECK(check_rope(context, name, queries, positions, frequencies, factor, rows, heads, head_dim, rotary_dim, interleaved, stride));
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, heads, 1);
    VI_AT_LEAST(context, name, kv_heads, 1);
    VI_AT_LEAST(context, name, head_dim, 1);
    const int64_t width = int64_t(kv_heads) * head_dim;
    VI_REQUIRE(context, int64_t(heads) * head_dim <= stride, "%s: stride is %d, less than heads (%d) * head_dim (%d)", name, stride, heads, head_dim);
    VI_REQUIRE(context, width <= stride, "%s: stride is %d, less than kv_heads (%d) * head_dim (%d)", name, stride, kv_heads, head_dim);
    VI_REQUIRE(context, width <= out_stride, "%s: out_stride is %d, less than kv_heads (%d) * head_dim (%d)", name, out_stride, kv_heads, head_dim);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, queries);
    VI_POINTER(context, name, keys);
    VI_POINTER(context, name, values);
    VI_POINTER(context, name, keys_out);
    VI_POINTER(context, name, values_out);
    return VI_OK;
}

inline int32_t check_gate(Context* context, const char* name, const float* out, const float* gate_up, int32_t activation, int32_t rows, int32_t width) {
    VI_REQUIRE(context, activation == VI_SILU || activation == VI_GELU || activation == VI_SWIGLU_CLAMPED,
               "%s: activation is %d, not one of VI_SILU, VI_GELU, VI_SWIGLU_CLAMPED", name, activation);
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, width, 1);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, gate_up);
    return VI_OK;
}

inline int32_t check_advance(Context* context, const char* name, const int32_t* positions, int32_t rows) {
    VI_AT_LEAST(context, name, rows, 0);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, positions);
    return VI_OK;
}

// ---------------------------------------------------------------- codebooks

inline int32_t check_codebook_assign(Context* context, const char* name, const int32_t* codes, const float* points, const float* codebook, int32_t count,
                                     int32_t dim, int32_t codewords) {
    VI_AT_LEAST(context, name, count, 0);
    VI_WITHIN(context, name, dim, 1, 16);
    VI_WITHIN(context, name, codewords, 1, 65536);
    if (count == 0) return VI_OK;
    VI_POINTER(context, name, codes);
    VI_POINTER(context, name, points);
    VI_POINTER(context, name, codebook);
    return VI_OK;
}

// vi_kmeans_start and vi_kmeans_step.
inline int32_t check_kmeans(Context* context, const char* name, const float* codebook, const float* points, int32_t count, int32_t dim, int32_t codewords) {
    VI_WITHIN(context, name, dim, 1, 16);
    VI_WITHIN(context, name, codewords, 1, 65536);
    VI_REQUIRE(context, count >= codewords, "%s: count is %d, less than codewords (%d)", name, count, codewords);
    VI_POINTER(context, name, codebook);
    VI_POINTER(context, name, points);
    return VI_OK;
}

inline int32_t check_channel_max(Context* context, const char* name, const float* maxima, const float* x, int32_t rows, int32_t width, int32_t stride) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, width, 1);
    VI_REQUIRE(context, stride >= width, "%s: stride is %d, less than width (%d)", name, stride, width);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, maxima);
    VI_POINTER(context, name, x);
    return VI_OK;
}

// ---------------------------------------------------------------- sampling

inline int32_t check_sample(Context* context, const char* name, const int32_t* ids, const float* logits, const float* settings, const int32_t* seeds,
                            const int32_t* positions, int32_t rows, int32_t vocabulary) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, vocabulary, 1);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, ids);
    VI_POINTER(context, name, logits);
    VI_POINTER(context, name, settings);
    VI_POINTER(context, name, seeds);
    VI_POINTER(context, name, positions);
    return VI_OK;
}

inline int32_t check_log_probabilities(Context* context, const char* name, const float* out_targets, const float* out_values, const int32_t* out_ids,
                                       const float* logits, const int32_t* targets, int32_t rows, int32_t vocabulary, int32_t top) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, vocabulary, 1);
    VI_WITHIN(context, name, top, 0, vocabulary);
    VI_REQUIRE(context, !out_targets == !targets, "%s: out_targets and targets come together, or both are NULL", name);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, logits);
    if (top == 0) return VI_OK;
    VI_POINTER(context, name, out_values);
    VI_POINTER(context, name, out_ids);
    return VI_OK;
}

inline int32_t check_compare(Context* context, const char* name, const float* out, const float* logits, const float* reference, const int32_t* targets,
                             int32_t rows, int32_t vocabulary) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_AT_LEAST(context, name, vocabulary, 1);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, logits);
    VI_POINTER(context, name, reference);
    VI_POINTER(context, name, targets);
    return VI_OK;
}
