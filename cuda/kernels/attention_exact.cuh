// The part of decode attention that no format changes: bf16 tokens of sinks and ring.
#pragma once
#include "attention_score.cuh"
#include "transform.cuh"
#include "quantizer.h"

template <int d> __device__ inline void load_channels(uint32_t* out, const vi_bf16* from) {
    if constexpr (d == 2) {
        out[0] = from ? *reinterpret_cast<const uint32_t*>(from) : 0;
    } else if constexpr (d == 4) {
        const uint2 x = from ? *reinterpret_cast<const uint2*>(from) : make_uint2(0, 0);
        out[0] = x.x, out[1] = x.y;
    } else {
        const uint4 x = from ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
        out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
    }
}

// Adds tiles first, first + step, ... below last of 16 exact tokens, sinks before the ring's, to a warp's sum, m and l. d: see Values.
template <int D, int d, class Row>
__device__ inline void attention_exact(float (&sum)[D / 16][4], float (&m)[2], float (&l)[2], float headroom, const Cache& cache, const Row& r, int kv_head,
                                       const float* queries, float soft_cap, float cap_rate, int first_tile, int last_tile, int step) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool first = t < 2;
    const int count = r.coded_begin + r.tokens - r.coded_end;
    auto row_of = [&](const Side& side, int i) -> const vi_bf16* { // the i-th exact token, or nullptr
        if (i >= count) return nullptr;
        return i < r.coded_begin ? side.sinks + cache.sink_row(r.slot, kv_head, i)
                                 : side.recent + cache.recent_row(r.slot, kv_head, r.coded_end + i - r.coded_begin);
    };
#pragma unroll 1
    for (int tile = first_tile; tile < last_tile; tile += step) {
        const int start = tile * 16;
        uint32_t w[2][D / 8];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const vi_bf16* key = row_of(cache.keys, start + g + 8 * i);
#pragma unroll
            for (int c = 0; c < D / 32; ++c) {
                const uint4 x = key ? reinterpret_cast<const uint4*>(key + t * (D / 4))[c] : make_uint4(0, 0, 0, 0);
                w[i][4 * c] = x.x, w[i][4 * c + 1] = x.y, w[i][4 * c + 2] = x.z, w[i][4 * c + 3] = x.w;
            }
        }
        Score<false> score;
        const float* x = queries + g % 4 * D + t * (D / 4);
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
            uint32_t q[2];
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const float u = x[4 * i + 2 * k], z = x[4 * i + 2 * k + 1];
                const uint32_t high = pack_bf16(u, z);
                q[k] = g < 4 ? high : pack_bf16(u - __uint_as_float(high << 16), z - __uint_as_float(high & 0xffff0000u));
            }
            mma_bf16(score.c, w[0][2 * i], w[1][2 * i], w[0][2 * i + 1], w[1][2 * i + 1], q[0], q[1]);
        }
        uint32_t v[4][D / 16]; // loaded only now: with the keys they would not fit the registers
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const vi_bf16* value = row_of(cache.values, start + 2 * t + k % 2 * 8 + k / 2);
#pragma unroll
            for (int j = 0; j < D / 8 / d; ++j) // channels as in Values
                load_channels<d>(&v[k][j * (d / 2)], value ? value + d * (g + 8 * j) : nullptr);
        }
        const float one[4] = {1, 1, 1, 1};
        float s0, s1;
        score.scores(s0, s1, one, first);
        if (soft_cap > 0) s0 = soft_capped(s0, soft_cap, cap_rate), s1 = soft_capped(s1, soft_cap, cap_rate);
        if (start + (first ? g : g + 8) >= count) s0 = s1 = -__builtin_huge_valf();

        float n0 = s0, n1 = s1;
#pragma unroll
        for (int offset = 2; offset < 32; offset *= 2) {
            n0 = fmaxf(n0, __shfl_xor_sync(0xffffffffu, n0, offset));
            n1 = fmaxf(n1, __shfl_xor_sync(0xffffffffu, n1, offset));
        }
        n0 = fmaxf(m[0], n0 - headroom);
        n1 = fmaxf(m[1], n1 - headroom);
        const float f0 = exp2_fast(m[0] - n0), f1 = exp2_fast(m[1] - n1);
        m[0] = n0, m[1] = n1;
        const float p0 = exp2_fast(s0 - n0), p1 = exp2_fast(s1 - n1);
        l[0] = l[0] * f0 + p0;
        l[1] = l[1] * f1 + p1;
        Weights<false, true> p;
        p.set(p0, p1, first);
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
#pragma unroll
            for (int c = 0; c < 4; ++c) sum[i][c] *= c % 2 ? f1 : f0;
            mma_bf16(sum[i], __byte_perm(v[0][i], v[2][i], 0x5410), __byte_perm(v[0][i], v[2][i], 0x7632), __byte_perm(v[1][i], v[3][i], 0x5410),
                     __byte_perm(v[1][i], v[3][i], 0x7632), p.b[0], p.b[1]);
        }
    }
}
