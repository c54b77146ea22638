// Argument rules of the functions of mixtures of experts: check_x is those of vi_x, for both libraries; see rules.h.
#pragma once
#include "rules.h"

constexpr int max_experts = 1024;
constexpr int max_top = 32;

inline int32_t check_top(Context* context, const char* name, int32_t expert_count, int32_t top) {
    VI_WITHIN(context, name, expert_count, 1, max_experts);
    VI_WITHIN(context, name, top, 1, expert_count < max_top ? expert_count : max_top);
    return VI_OK;
}

inline int32_t check_route(Context* context, const char* name, const int32_t* experts, const float* weights, const float* logits, int32_t method, int32_t rows,
                           int32_t expert_count, int32_t top) {
    VI_REQUIRE(context, method == VI_ROUTE_SOFTMAX || method == VI_ROUTE_NORMALIZED || method == VI_ROUTE_TOP_SOFTMAX,
               "%s: method is %d, not one of VI_ROUTE_SOFTMAX, VI_ROUTE_NORMALIZED, VI_ROUTE_TOP_SOFTMAX", name, method);
    VI_AT_LEAST(context, name, rows, 0);
    VI_CHECK(check_top(context, name, expert_count, top));
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, experts);
    VI_POINTER(context, name, weights);
    VI_POINTER(context, name, logits);
    return VI_OK;
}

inline int32_t check_expert_linear(Context* context, const char* name, const float* out, const float* x, const void* weight, const int32_t* experts, int32_t format,
                                   int32_t rows, int32_t top, int32_t expert_count, int32_t out_features, int32_t in_features, int32_t x_top) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_CHECK(check_top(context, name, expert_count, top));
    VI_REQUIRE(context, int64_t(rows) * top <= INT32_MAX, "%s: rows (%d) * top (%d) does not fit int32", name, rows, top);
    VI_AT_LEAST(context, name, out_features, 1);
    VI_AT_LEAST(context, name, in_features, 1);
    VI_REQUIRE(context, x_top == 1 || x_top == top, "%s: x_top is %d, not 1 or top (%d)", name, x_top, top);
    VI_REQUIRE(context, format == VI_BF16 || is_packed(format), "%s: format is %d, not one of VI_BF16, VI_Q8_0, VI_Q4_0, VI_Q4_1", name, format);
    VI_REQUIRE(context, format == VI_BF16 || in_features % packed_inputs == 0, "%s: in_features is %d, not a multiple of %d", name, in_features, packed_inputs);
    VI_REQUIRE(context, format == VI_BF16 || out_features % VI_PACKED_ROWS == 0, "%s: out_features is %d, not a multiple of %d as packed experts need", name,
               out_features, VI_PACKED_ROWS);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, out);
    VI_POINTER(context, name, x);
    VI_POINTER(context, name, weight);
    VI_POINTER(context, name, experts);
    return VI_OK;
}

inline int32_t check_expert_sum(Context* context, const char* name, const float* residual, const float* x, const float* weights, int32_t rows, int32_t top,
                                int32_t width) {
    VI_AT_LEAST(context, name, rows, 0);
    VI_WITHIN(context, name, top, 1, max_top);
    VI_AT_LEAST(context, name, width, 1);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, name, residual);
    VI_POINTER(context, name, x);
    VI_POINTER(context, name, weights);
    return VI_OK;
}
