// vi_quantize for the rows of a prompt.
#pragma once
#include "quantizer.h"

constexpr int quantize_many_rows = 160; // from so many rows of a call on

int32_t quantize_many(vi_context* context, const Cache& cache, const float* keys, const float* values, const int32_t* slots, const int32_t* positions,
                      int32_t rows, int32_t stride);
