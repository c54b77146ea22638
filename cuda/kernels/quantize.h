// What vi_quantize and vi_rope_quantize launch for many rows: quantize_many.cu.
#pragma once
#include "quantizer.h"

// Queries and frequencies of vi_rope_quantize; frequencies NULL: no rotation.
struct Rope {
    float* queries;
    const float* frequencies;
    int32_t heads;
};

// A head has one codebook. name is the function's, for messages.
int32_t quantize_many(vi_context* context, const char* name, const Cache& c, const float* keys, const float* values, const int32_t* slots,
                      const int32_t* positions, const Rope& rope, int32_t rows, int32_t stride);
