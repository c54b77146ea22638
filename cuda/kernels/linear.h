// The ways of vi_linear: few rows stream the weights once, many rows go through the tensor cores, packed weights have their own.
#pragma once
#include "context.h"

// rows > 8; name is the function's, for messages. Activations, normed where norm is not NULL, are rounded to bf16; sums are f32. out may lie in the first
// `reserved` bytes of the workspace, of which linear_large_bytes more are already there.
int32_t linear_large(vi_context* context, const char* name, float* out, const float* x, const vi_bf16* weight, const vi_bf16* bias, const float* norm, float epsilon,
    bool accumulate, int32_t rows, int32_t out_features, int32_t in_features, size_t reserved);
size_t linear_large_bytes(int32_t rows, int32_t in_features);
// vi_rmsnorm without a residual, rounded to bf16. name is the function's, for messages.
int32_t rmsnorm_rounded(vi_context* context, const char* name, vi_bf16* out, const float* x, const float* weight, float epsilon, int32_t rows, int32_t width);
// vi_linear with a packed format. name is the function's, for messages.
int32_t linear_packed(vi_context* context, const char* name, float* out, const float* x, const void* weight, const vi_bf16* bias, const float* norm, float epsilon,
    int32_t format, int32_t output, int32_t rows, int32_t out_features, int32_t in_features);
// "cuBLASLt 13.1" or "own matrix product": what linear_large uses.
std::string linear_large_library(vi_context* context);
