// The ways of vi_linear: few rows stream the weights once, many rows go through the tensor cores, packed weights have their own.
#pragma once
#include "context.h"

// A product by vi_linear's arguments. weight is bf16 or packed.
struct Product {
    void* out;
    const void *x, *weight;
    const vi_bf16* bias;
    const float* norm;
    float epsilon;
    int32_t output, x_dtype, out_dtype, rows, out_features, in_features;
    // Up to 8 rows of f32 keep all their bits.
    bool few() const { return rows <= 8 && x_dtype == VI_F32 && out_dtype == VI_F32; }
};

// A product that is not of few rows, with a bf16 weight; name is the function's, for messages. Activations, normed where norm is not NULL, are rounded to bf16 where
// they are not yet; sums are f32, and rounded where out is bf16. VI_OUTPUT_SILU leaves gates and the other half in out [rows, out_features]. out may lie in the first
// `reserved` bytes of the workspace, of which linear_large_bytes more are already there.
int32_t linear_large(vi_context* context, const char* name, const Product& product, size_t reserved);
size_t linear_large_bytes(int32_t rows, int32_t in_features);
// vi_rmsnorm without a residual, rounded to bf16. name is the function's, for messages.
int32_t rmsnorm_rounded(vi_context* context, const char* name, vi_bf16* out, const float* x, const float* weight, float epsilon, int32_t rows, int32_t width);
// vi_gate with VI_SILU from bf16 to bf16.
int32_t gate_rounded(vi_context* context, const char* name, vi_bf16* out, const vi_bf16* gate_up, int32_t rows, int32_t width);
// Products [rows, out_features] -> out [rows, out_features / 2], both of the product's out_dtype.
inline int32_t gate(vi_context* context, const char* name, const Product& pairs, void* out) {
    if (pairs.out_dtype == VI_BF16)
        return gate_rounded(context, name, static_cast<vi_bf16*>(out), static_cast<const vi_bf16*>(pairs.out), pairs.rows, pairs.out_features / 2);
    return vi_gate(context, static_cast<float*>(out), static_cast<const float*>(pairs.out), VI_SILU, pairs.rows, pairs.out_features / 2);
}
// vi_linear with a packed format. name is the function's, for messages.
int32_t linear_packed(vi_context* context, const char* name, Product product, int32_t format);
// "cuBLASLt 13.1" or "own matrix product": what linear_large uses.
std::string linear_large_library(vi_context* context);
