// Products of up to 8 rows with weights in blocks of 32 that share a scale, shared by vi_linear and vi_expert_linear. vi_pack brings them to this order: a panel is 16
// outputs; for each block come the scales d [16] (and minima m [16]) as f16, then for each lane 4 g + t of a warp its weights t * 8 .. t * 8 + 7 of output g and the same
// of output g + 8, as the tensor cores take them. A word of VI_Q8_0 holds w + 128 of inputs 0, 2, 1, 3, one of VI_Q4_0 and VI_Q4_1 the eight halves 0, 2, 4, 6, 1, 3, 5, 7:
// so that one mask gives a pair, which, set into the mantissa of 128, is exact in bf16.
//
// The blocks are read once, as in linear_tile.cuh: x = high + middle + low, each bf16, products exact, and sum += d * (sum of a block). Nothing in the
// order of the sums depends on the number of rows.
#pragma once
#include "linear_tile.cuh"
#include <cuda_fp16.h>

constexpr int panel = VI_PACKED_ROWS, block_inputs = packed_inputs;
constexpr int packed_steps = 4; // blocks that a warp reads ahead

template <int FORMAT> constexpr int scale_bytes = FORMAT == VI_Q4_1 ? 4 * panel : 2 * panel;
template <int FORMAT> constexpr int weight_bytes = FORMAT == VI_Q8_0 ? panel * block_inputs : panel * block_inputs / 2;
template <int FORMAT> constexpr int bytes_of = scale_bytes<FORMAT> + weight_bytes<FORMAT>;

__device__ inline float half_at(const uint8_t* address) { return __half2float(__ushort_as_half(*reinterpret_cast<const uint16_t*>(address))); }

// A lane's part of one block.
template <int FORMAT> struct Part {
    uint32_t words[FORMAT == VI_Q8_0 ? 4 : 2]; // output g, then g + 8
    uint16_t d[2], m[2];

    __device__ void load(const uint8_t* block, int lane, bool inside) {
        const int g = lane / 4;
        if (!inside) { // a block of zeros, in whatever way its weights are kept
            for (uint32_t& word : words) word = 0;
            d[0] = d[1] = m[0] = m[1] = 0;
            return;
        }
        const uint8_t* from = block + scale_bytes<FORMAT>;
        if constexpr (FORMAT == VI_Q8_0) {
            const uint4 value = __ldcs(reinterpret_cast<const uint4*>(from) + lane);
            words[0] = value.x, words[1] = value.y, words[2] = value.z, words[3] = value.w;
        } else {
            const uint2 value = __ldcs(reinterpret_cast<const uint2*>(from) + lane);
            words[0] = value.x, words[1] = value.y;
        }
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(block);
        d[0] = scales[g], d[1] = scales[g + 8];
        if constexpr (FORMAT == VI_Q4_1) m[0] = scales[panel + g], m[1] = scales[panel + g + 8];
    }

    // Inputs 2 j and 2 j + 1 of one output as two bf16.
    __device__ uint32_t pair(int output, int j) const {
        uint32_t value, less;
        if constexpr (FORMAT == VI_Q8_0) {
            const uint32_t bytes = words[output * 2 + j / 2] >> (j % 2 * 8) & 0x00ff00ffu;
            value = (bytes & 0x007f007fu) | 0x43004300u;         // 128 + w % 128
            less = 0x43804380u ^ (bytes & 0x00800080u);          // 256, or 128 where the upper bit is set
        } else {
            value = (words[output] >> (j * 4) & 0x000f000fu) | 0x43004300u;
            less = FORMAT == VI_Q4_0 ? 0x43084308u : 0x43004300u; // 136 or 128
        }
        const __nv_bfloat162 difference = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&value), *reinterpret_cast<const __nv_bfloat162*>(&less));
        return *reinterpret_cast<const uint32_t*>(&difference);
    }
};

// A warp's part of a panel; WARPS take turns along its blocks. Lanes as in Strip.
template <int FORMAT, bool VECTOR, int WARPS> struct PackedStrip {
    const uint8_t* from;
    int32_t blocks, b;
    int lane;
    Part<FORMAT> next[packed_steps];

    // Asks for the first blocks of a panel.
    __device__ __forceinline__ PackedStrip(const uint8_t* from, int32_t blocks, int warp, int lane) : from(from), blocks(blocks), b(warp * packed_steps), lane(lane) {
#pragma unroll
        for (int s = 0; s < packed_steps; ++s) next[s].load(from + static_cast<int64_t>(b + s) * bytes_of<FORMAT>, lane, b + s < blocks);
    }

    // input: the row of this lane, from input t * 8 on. sums as in Strip.
    __device__ __forceinline__ void multiply(float (&sums)[4], const float* input, bool valid) {
        for (; b < blocks; b += WARPS * packed_steps) {
            Part<FORMAT> now[packed_steps];
#pragma unroll
            for (int s = 0; s < packed_steps; ++s) {
                now[s] = next[s];
                const int32_t later = b + WARPS * packed_steps + s;
                next[s].load(from + static_cast<int64_t>(later) * bytes_of<FORMAT>, lane, later < blocks);
            }
#pragma unroll
            for (int s = 0; s < packed_steps; ++s) {
                float value[8];
                const bool inside = valid && b + s < blocks;
                const float* at = input + static_cast<int64_t>(b + s) * block_inputs;
                if constexpr (VECTOR) {
                    const float4 zero = make_float4(0, 0, 0, 0);
                    const float4 low = inside ? reinterpret_cast<const float4*>(at)[0] : zero, high = inside ? reinterpret_cast<const float4*>(at)[1] : zero;
                    value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
                    value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
                } else {
#pragma unroll
                    for (int j = 0; j < 8; ++j) value[j] = inside ? at[j] : 0.0f;
                }
                float high[4] = {0, 0, 0, 0}, middle[4] = {0, 0, 0, 0}, low[4] = {0, 0, 0, 0}, total[4] = {0, 0, 0, 0};
                uint32_t h[4], m[4], l[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    h[j] = pack_bf16(value[2 * j], value[2 * j + 1]);
                    const float a = rest(value[2 * j], h[j], false), c = rest(value[2 * j + 1], h[j], true);
                    m[j] = pack_bf16(a, c);
                    l[j] = pack_bf16(rest(a, m[j], false), rest(c, m[j], true));
                }
#pragma unroll
                for (int j = 0; j < 4; j += 2) { // the order of inputs inside a product is free: each lane gives the 8 that it holds
                    const uint32_t u = now[s].pair(0, j), v = now[s].pair(1, j), w = now[s].pair(0, j + 1), z = now[s].pair(1, j + 1);
                    mma_bf16(high, u, v, w, z, h[j], h[j + 1]);
                    mma_bf16(middle, u, v, w, z, m[j], m[j + 1]);
                    mma_bf16(low, u, v, w, z, l[j], l[j + 1]);
                    if constexpr (FORMAT == VI_Q4_1) { // the sums of x, as products with ones
                        constexpr uint32_t ones = 0x3f803f80u;
                        mma_bf16(total, ones, ones, ones, ones, h[j], h[j + 1]);
                        mma_bf16(total, ones, ones, ones, ones, m[j], m[j + 1]);
                        mma_bf16(total, ones, ones, ones, ones, l[j], l[j + 1]);
                    }
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float d = __half2float(__ushort_as_half(now[s].d[i / 2]));
                    sums[i] = fmaf(d, high[i] + (middle[i] + low[i]), sums[i]);
                    if constexpr (FORMAT == VI_Q4_1) sums[i] = fmaf(__half2float(__ushort_as_half(now[s].m[i / 2])), total[i], sums[i]);
                }
            }
        }
    }
};
