// Attention over what the cache of a layer holds; shared by decoding and by prompts with a past.
#pragma once
#include "quantizer.h"

// out [rows, heads, head_dim] as vi_attention describes it, and lse [rows, heads] (may be NULL) = log2 sum_j 2^(score_j log2 e).
// A row with position < 0 has zeros and lse -infinity. Checks slots, positions and page indices; `name` is the caller's for messages.
int32_t attend(vi_context* context, const char* name, float* out, float* lse, const float* q, const vi_kv_layer* layer, const int32_t* slots,
               const int32_t* positions, float scale, int rows, int heads, int64_t stride);
