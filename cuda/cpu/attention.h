// Attention over what the cache of a layer holds; shared by decoding and by prompts with a past.
#pragma once
#include "quantizer.h"
#include <limits>
#include <numbers>

// What becomes of the products of queries and keys, as vi_attention describes it.
struct Scores {
    float scale, soft_cap;
    const float* sink_logits; // [heads] or NULL

    // Queries are multiplied by this once; what the products then need is `capped`. Scores are logarithms to the base 2, so that 2^x serves the softmax.
    float query_factor() const { return soft_cap > 0 ? scale / soft_cap : scale * std::numbers::log2e_v<float>; }
    float cap() const { return soft_cap * std::numbers::log2e_v<float>; }
    // The sink's logit to the base 2; -infinity where there is none.
    float sink(int head) const { return sink_logits ? sink_logits[head] * std::numbers::log2e_v<float> : -std::numeric_limits<float>::infinity(); }
};

// x [count, a multiple of kWidth] <- cap tanh(x).
inline void cap_scores(float* x, int count, float cap) {
    for (int t = 0; t < count; t += kWidth) store(x + t, cap * tanh_vec(load(x + t)));
}

// out [rows, heads, head_dim] as vi_attention describes it, and lse [rows, heads] (may be NULL) = log2 of the sum of 2^score, the sinks' included.
// lowest [rows]: the first position that a row sees; NULL: all that the layer lets it see. A row that sees nothing, as one with position < 0,
// has zeros and lse -infinity. Checks slots, positions and page indices; `name` is the caller's for messages.
int32_t attend(vi_context* context, const char* name, float* out, float* lse, const float* q, const vi_kv_layer* layer, const int32_t* slots,
               const int32_t* positions, const int32_t* lowest, const Scores& scores, int rows, int heads, int64_t stride);
