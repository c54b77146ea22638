// out = x weight^T + bias for up to 8 rows, bound by one reading of the weights.
//
// A tile is 16 outputs of all rows; the warps that share it, 8 or fewer for short rows, take turns along in_features, 128 at a time. The products run on the tensor cores, as
// 16 outputs x 16 inputs times 16 inputs x 8 rows, with activations that keep all 24 bits of an f32: x = high + middle + low, each a bf16, so
// that every product is exact. The tensor cores' own sums are cut, not rounded; they are added to f32 sums every 128 inputs, before that counts.
// Nothing in the order of the sums depends on the number of rows: a row alone and in a batch of 8 has the same bits.
#include "context.h"
#include "linear.h"
#include "mma.h"

namespace {

constexpr int outputs = 16;     // of a tile
constexpr int steps = 4;        // of 32 inputs, between two additions to the f32 sums
constexpr int span = 32 * steps; // inputs a warp reads at a time

__device__ uint4 load_streaming(const uint4* address) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(address));
    return value;
}

// Volatile, so that it stays behind wait_for_previous().
__device__ float4 load_cached(const float4* address) {
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

__device__ float rest(float x, uint32_t packed, bool upper) { return x - __uint_as_float(upper ? packed & 0xffff0000u : packed << 16); }

// WARPS share a tile, a block has TILES of them. Tiles of one block read the same x at the same time.
template <bool VECTOR, int WARPS, int TILES>
__global__ void __launch_bounds__(WARPS * 32 * TILES, 512 / (WARPS * 32 * TILES))
linear_kernel(float* __restrict__ out, const float* __restrict__ x, const vi_bf16* __restrict__ weight, const vi_bf16* __restrict__ bias,
    int32_t rows,
              int32_t out_features, int32_t in_features) {
    __shared__ float partial[TILES][WARPS][8][outputs];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % WARPS, tile = threadIdx.x / 32 / WARPS;
    const int g = lane / 4, t = lane % 4;
    const int32_t first = (blockIdx.x * TILES + tile) * outputs;
    // Outputs past the end read the last row again and are not stored.
    const vi_bf16* upper = weight + static_cast<int64_t>(min(first + g, out_features - 1)) * in_features;
    const vi_bf16* lower = weight + static_cast<int64_t>(min(first + g + 8, out_features - 1)) * in_features;
    const bool valid = g < rows;
    const float* input = x + static_cast<int64_t>(valid ? g : 0) * in_features;

    wait_for_previous();
    float sums[4] = {0, 0, 0, 0};
    uint4 weights[2][steps];
    int32_t k = warp * span + t * 8;
#pragma unroll
    for (int s = 0; s < steps; ++s) {
        weights[0][s] = load_weight<VECTOR>(upper, k + 32 * s, in_features);
        weights[1][s] = load_weight<VECTOR>(lower, k + 32 * s, in_features);
    }
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
    let_next_start(); // not before: the next kernel's blocks would compete for the memory
    partial[tile][warp][2 * t][g] = sums[0];
    partial[tile][warp][2 * t + 1][g] = sums[1];
    partial[tile][warp][2 * t][g + 8] = sums[2];
    partial[tile][warp][2 * t + 1][g + 8] = sums[3];
    __syncthreads();
    for (int i = threadIdx.x % (WARPS * 32); i < 8 * outputs; i += WARPS * 32) {
        const int row = i / outputs, output = i % outputs;
        if (row >= rows || first + output >= out_features) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sum += partial[tile][w][row][output];
        if (bias) sum += bf16_to_f32(bias[first + output]);
        out[static_cast<int64_t>(row) * out_features + first + output] = sum;
    }
}

template <bool VECTOR, int WARPS, int TILES>
cudaError_t launch(vi_context* context, float* out, const float* x, const vi_bf16* weight, const vi_bf16* bias, int32_t rows,
    int32_t out_features, int32_t in_features) {
    return launch_early(context, linear_kernel<VECTOR, WARPS, TILES>, ceil_div(out_features, outputs * TILES), WARPS * 32 * TILES, 0, out,
        x, weight, bias, rows,
                        out_features, in_features);
}

// Short rows leave fewer turns to each warp than it takes to keep the memory busy. Where there are tiles enough, fewer warps share one.
// This sets the order of the sums, so the number of rows is not asked.
int32_t warps_a_tile(const vi_context* context, int32_t out_features, int32_t in_features) {
    const int64_t tiles = ceil_div(out_features, outputs);
    int32_t warps = 8;
    while (warps > 1 && in_features < 4 * warps * span && tiles * warps > context->multiprocessors * 16) warps /= 2;
    return warps;
}

} // namespace

extern "C" VI_API int32_t vi_linear(vi_context* context, float* out, const float* x, const vi_bf16* weight, const vi_bf16* bias,
    int32_t rows, int32_t out_features, int32_t in_features) VI_TRY {
    VI_OPEN(context, "vi_linear");
    VI_REQUIRE(context, rows >= 0, "vi_linear: rows is %d", rows);
    VI_REQUIRE(context, out_features >= 1, "vi_linear: out_features is %d", out_features);
    VI_REQUIRE(context, in_features >= 1, "vi_linear: in_features is %d", in_features);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, "vi_linear", out);
    VI_POINTER(context, "vi_linear", x);
    VI_POINTER(context, "vi_linear", weight);
    if (rows > 8) return linear_large(context, out, x, weight, bias, rows, out_features, in_features);
    const bool vector = in_features % 8 == 0 && aligned_16(x) && aligned_16(weight);
    const int32_t warps = warps_a_tile(context, out_features, in_features);
    const bool pairs = rows > 2 && out_features >= 2 * outputs * context->multiprocessors * 3 / 4;
    auto* run = launch<true, 1, 8>;
    if (warps == 8) run = !vector ? launch<false, 8, 1> : pairs ? launch<true, 8, 2> : launch<true, 8, 1>;
    else if (warps == 4) run = vector ? launch<true, 4, 2> : launch<false, 4, 2>;
    else if (warps == 2) run = vector ? launch<true, 2, 4> : launch<false, 2, 4>;
    else if (!vector) run = launch<false, 1, 8>;
    VI_CUDA(context, "vi_linear", run(context, out, x, weight, bias, rows, out_features, in_features));
    return VI_OK;
} VI_CATCH(context, "vi_linear")
