// Products of up to 8 rows with bf16 weights, shared by vi_linear and vi_expert_linear. A tile is 16 outputs of all rows; the warps that share it take turns along in_features,
// 128 at a time. The products run on the tensor cores, as 16 outputs x 16 inputs times 16 inputs x 8 rows, with activations that keep all 24 bits of an f32:
// x = high + middle + low, each a bf16, so that every product is exact. The tensor cores' own sums are cut, not rounded; they are added to f32 sums every 128 inputs,
// before that counts. Nothing in the order of the sums depends on the number of rows: a row alone and in a batch of 8 has the same bits.
#pragma once
#include "context.h"
#include "mma.h"

constexpr int outputs = 16;     // of a tile
constexpr int steps = 4;        // of 32 inputs, between two additions to the f32 sums
constexpr int span = 32 * steps; // inputs a warp reads at a time

__device__ inline uint4 load_streaming(const uint4* address) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(address));
    return value;
}

// Volatile, so that it stays behind wait_for_previous().
__device__ inline float4 load_cached(const float4* address) {
    float4 value;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w) : "l"(address));
    return value;
}

// Inputs k .. k + 7 of one output, zeros past the end.
template <bool VECTOR>
__device__ uint4 load_weight(const vi_bf16* row, int32_t k, int32_t in_features) {
    if constexpr (VECTOR) {
        return k < in_features ? load_streaming(reinterpret_cast<const uint4*>(row + k)) : make_uint4(0, 0, 0, 0);
    } else {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int32_t i = k + 2 * j;
            words[j] = (i < in_features ? row[i] : 0u) | (i + 1 < in_features ? static_cast<uint32_t>(row[i + 1]) << 16 : 0u);
        }
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
}

template <bool VECTOR>
__device__ void load_input(float (&out)[8], const float* row, int32_t k, int32_t in_features, bool valid) {
    if constexpr (VECTOR) {
        const bool inside = valid && k < in_features;
        const float4 zero = make_float4(0, 0, 0, 0);
        const float4 low = inside ? load_cached(reinterpret_cast<const float4*>(row + k)) : zero;
        const float4 high = inside ? load_cached(reinterpret_cast<const float4*>(row + k) + 1) : zero;
        out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
        out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
    } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) out[j] = valid && k + j < in_features ? row[k + j] : 0.0f;
    }
}

__device__ inline float rest(float x, uint32_t packed, bool upper) { return x - __uint_as_float(upper ? packed & 0xffff0000u : packed << 16); }

// A warp's part of a tile: lane 4 g + t has inputs t * 8 .. t * 8 + 7 of each 32 of output g (`upper`), of output g + 8 (`lower`) and of row g (`input`).
template <bool VECTOR, int WARPS> struct Strip {
    const vi_bf16 *upper, *lower;
    int32_t in_features, k, t;
    uint4 weights[2][steps];

    // Asks for the first weights.
    __device__ __forceinline__ Strip(const vi_bf16* upper, const vi_bf16* lower, int32_t in_features, int warp, int t)
        : upper(upper), lower(lower), in_features(in_features), k(warp * span + t * 8), t(t) {
#pragma unroll
        for (int s = 0; s < steps; ++s) {
            weights[0][s] = load_weight<VECTOR>(upper, k + 32 * s, in_features);
            weights[1][s] = load_weight<VECTOR>(lower, k + 32 * s, in_features);
        }
    }

    // sums[0 .. 3]: outputs g, g, g + 8, g + 8 of rows 2 t, 2 t + 1, 2 t, 2 t + 1.
    __device__ __forceinline__ void multiply(float (&sums)[4], const float* input, bool valid) {
        for (; k - t * 8 < in_features; k += WARPS * span) {
            uint4 now[2][steps];
#pragma unroll
            for (int s = 0; s < steps; ++s) {
                now[0][s] = weights[0][s];
                now[1][s] = weights[1][s];
                weights[0][s] = load_weight<VECTOR>(upper, k + WARPS * span + 32 * s, in_features);
                weights[1][s] = load_weight<VECTOR>(lower, k + WARPS * span + 32 * s, in_features);
            }
            float high[4] = {0, 0, 0, 0}, middle[4] = {0, 0, 0, 0}, low[4] = {0, 0, 0, 0};
#pragma unroll
            for (int s = 0; s < steps; ++s) {
                float value[8];
                load_input<VECTOR>(value, input, k + 32 * s, in_features, valid);
                uint32_t h[4], m[4], l[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    h[j] = pack_bf16(value[2 * j], value[2 * j + 1]);
                    const float a = rest(value[2 * j], h[j], false), b = rest(value[2 * j + 1], h[j], true);
                    m[j] = pack_bf16(a, b);
                    l[j] = pack_bf16(rest(a, m[j], false), rest(b, m[j], true));
                }
                // The order of inputs inside a product is free: each lane gives the 8 that it holds.
                const uint4 u = now[0][s], v = now[1][s];
                mma_bf16(high, u.x, v.x, u.y, v.y, h[0], h[1]);
                mma_bf16(middle, u.x, v.x, u.y, v.y, m[0], m[1]);
                mma_bf16(low, u.x, v.x, u.y, v.y, l[0], l[1]);
                mma_bf16(high, u.z, v.z, u.w, v.w, h[2], h[3]);
                mma_bf16(middle, u.z, v.z, u.w, v.w, m[2], m[3]);
                mma_bf16(low, u.z, v.z, u.w, v.w, l[2], l[3]);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[i] += high[i] + (middle[i] + low[i]);
        }
    }
};
