// What becomes of a score before the softmax, and what is in its sum besides; in powers of 2, as attention has them: times log2 e.
#pragma once
#include "attention_tile.cuh"

// cap tanh(score / cap), as cap - 2 cap / (e^(2 score / cap) + 1), in parts of log2 e: off by some 2^-22 of the cap. rate: 2 / cap, without log2 e.
__device__ __forceinline__ float soft_capped(float score, float cap, float rate) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(exp2_fast(score * rate) + 1));
    return fmaf(-2 * cap, inverse, cap);
}

// What a sink's logit adds to a sum of 2^(score - most).
__device__ inline float sink_weight(float logit, float most) { return exp2_fast(fmaf(logit, 1.4426950408889634f, -most)); }
