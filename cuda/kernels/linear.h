// The two ways of vi_linear: few rows stream the weights once, many rows go through the tensor cores.
#pragma once
#include "context.h"

// rows > 8. Activations are rounded to bf16; sums are f32.
int32_t linear_large(vi_context* context, float* out, const float* x, const vi_bf16* weight, const vi_bf16* bias, int32_t rows,
    int32_t out_features, int32_t in_features);
// "cuBLASLt 13.1" or "own matrix product": what linear_large uses.
std::string linear_large_library(vi_context* context);
