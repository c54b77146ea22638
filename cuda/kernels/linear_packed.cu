// Products with weights in blocks of 32 that share a scale, and vi_pack, which brings them to this order: a panel is 16 outputs; for each block come the
// scales d [16] (and minima m [16]) as f16, then for each lane 4 g + t of a warp its weights t * 8 .. t * 8 + 7 of output g and the same of output g + 8,
// as the tensor cores take them. A word of VI_Q8_0 holds w + 128 of inputs 0, 2, 1, 3, one of VI_Q4_0 and VI_Q4_1 the eight halves 0, 2, 4, 6, 1, 3, 5, 7:
// so that one mask gives a pair, which, set into the mantissa of 128, is exact in bf16.
//
// Up to 8 rows read the blocks once, as in linear.cu: x = high + middle + low, each bf16, products exact, and sum += d * (sum of a block). Nothing in the
// order of the sums depends on the number of rows. For more rows the weights are rounded to bf16 in the workspace and multiplied by linear_large.
#include "context.h"
#include "linear.h"
#include "mma.h"
#include <algorithm>
#include <cuda_fp16.h>

namespace {

constexpr int panel = VI_PACKED_ROWS, block_inputs = packed_inputs;
constexpr int steps = 4;  // blocks that a warp reads ahead
constexpr int warps = 8;  // that share a panel

template <int FORMAT> constexpr int scale_bytes = FORMAT == VI_Q4_1 ? 4 * panel : 2 * panel;
template <int FORMAT> constexpr int weight_bytes = FORMAT == VI_Q8_0 ? panel * block_inputs : panel * block_inputs / 2;
template <int FORMAT> constexpr int bytes_of = scale_bytes<FORMAT> + weight_bytes<FORMAT>;

__device__ float half_at(const uint8_t* address) { return __half2float(__ushort_as_half(*reinterpret_cast<const uint16_t*>(address))); }

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

__device__ float rest(float x, uint32_t packed, bool upper) { return x - __uint_as_float(upper ? packed & 0xffff0000u : packed << 16); }

template <int FORMAT, bool VECTOR>
__global__ void __launch_bounds__(warps * 32)
packed_kernel(float* __restrict__ out, const float* __restrict__ x, const uint8_t* __restrict__ weight, const vi_bf16* __restrict__ bias, bool accumulate,
              int32_t rows, int32_t out_features, int32_t in_features) {
    __shared__ float partial[warps][8][panel];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int32_t blocks = in_features / block_inputs, first = blockIdx.x * panel;
    const uint8_t* from = weight + static_cast<int64_t>(blockIdx.x) * blocks * bytes_of<FORMAT>;
    const bool valid = g < rows;
    const float* input = x + static_cast<int64_t>(valid ? g : 0) * in_features + t * 8;

    float sums[4] = {0, 0, 0, 0};
    Part<FORMAT> next[steps];
    int32_t b = warp * steps;
#pragma unroll
    for (int s = 0; s < steps; ++s) next[s].load(from + static_cast<int64_t>(b + s) * bytes_of<FORMAT>, lane, b + s < blocks);
    wait_for_previous();
    let_next_start();
    for (; b < blocks; b += warps * steps) {
        Part<FORMAT> now[steps];
#pragma unroll
        for (int s = 0; s < steps; ++s) {
            now[s] = next[s];
            const int32_t later = b + warps * steps + s;
            next[s].load(from + static_cast<int64_t>(later) * bytes_of<FORMAT>, lane, later < blocks);
        }
#pragma unroll
        for (int s = 0; s < steps; ++s) {
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
    partial[warp][2 * t][g] = sums[0];
    partial[warp][2 * t + 1][g] = sums[1];
    partial[warp][2 * t][g + 8] = sums[2];
    partial[warp][2 * t + 1][g + 8] = sums[3];
    __syncthreads();
    const int row = threadIdx.x / panel, output = threadIdx.x % panel;
    if (row >= rows || first + output >= out_features) return;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum += partial[w][row][output];
    if (bias) sum += bf16_to_f32(bias[first + output]);
    float& to = out[static_cast<int64_t>(row) * out_features + first + output];
    to = accumulate ? to + sum : sum;
}

// Where weight i of output o of a panel's block is: its byte, and the bits it begins at.
template <int FORMAT> __device__ int place(int o, int i, int& shift) {
    const int lane = o % 8 * 4 + i / 8, side = o / 8, j = i % 8; // j-th of the lane's eight inputs
    if constexpr (FORMAT == VI_Q8_0) {
        shift = 0;
        const int inner = j % 4; // bytes 0, 2, 1, 3
        return scale_bytes<FORMAT> + lane * 16 + side * 8 + j / 4 * 4 + (inner % 2 * 2 + inner / 2);
    } else {
        const int half = j / 2 + j % 2 * 4;
        shift = half % 2 * 4;
        return scale_bytes<FORMAT> + lane * 8 + side * 4 + half / 2;
    }
}

// The i-th weight of a GGUF block without scale, unsigned.
template <int FORMAT> __device__ uint32_t weight_of(const uint8_t* block, int i) {
    if constexpr (FORMAT == VI_Q8_0) return block[2 + i] ^ 128u;
    const uint8_t* halves = block + (FORMAT == VI_Q4_1 ? 4 : 2);
    return i < 16 ? halves[i] & 15u : halves[i - 16] >> 4;
}

// A thread brings one block of one output to its place; outputs past the end become zeros. Two halves of a byte are of one thread.
template <int FORMAT> __global__ void pack_kernel(uint8_t* __restrict__ out, const uint8_t* __restrict__ from, int64_t count, int32_t out_features, int32_t blocks) {
    constexpr int bytes = bytes_of<FORMAT> / panel;
    for (int64_t n = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; n < count; n += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        const int32_t output = static_cast<int32_t>(n / blocks), b = static_cast<int32_t>(n % blocks), o = output % panel;
        uint8_t* to = out + (static_cast<int64_t>(output / panel) * blocks + b) * bytes_of<FORMAT>;
        const uint8_t* block = output < out_features ? from + n * bytes : nullptr;
        for (int k = 0; k < scale_bytes<FORMAT> / (2 * panel); ++k)
            for (int j = 0; j < 2; ++j) to[(k * panel + o) * 2 + j] = block ? block[k * 2 + j] : 0;
        for (int i = 0; i < block_inputs; i += 1) {
            int shift;
            const int at = place<FORMAT>(o, i, shift);
            const uint32_t w = block ? weight_of<FORMAT>(block, i) : 0;
            if constexpr (FORMAT == VI_Q8_0) to[at] = static_cast<uint8_t>(w);
            else to[at] = static_cast<uint8_t>((to[at] & (shift ? 0x0fu : 0xf0u)) | w << shift);
        }
    }
}

// The weights as bf16 [out_features, in_features].
template <int FORMAT> __global__ void unpack_kernel(vi_bf16* __restrict__ out, const uint8_t* __restrict__ weight, int64_t count, int32_t blocks) {
    for (int64_t n = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; n < count; n += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        const int32_t output = static_cast<int32_t>(n / blocks), b = static_cast<int32_t>(n % blocks), o = output % panel;
        const uint8_t* block = weight + (static_cast<int64_t>(output / panel) * blocks + b) * bytes_of<FORMAT>;
        const float d = half_at(block + o * 2), m = FORMAT == VI_Q4_1 ? half_at(block + (panel + o) * 2) : 0.0f;
        constexpr int less = FORMAT == VI_Q8_0 ? 128 : FORMAT == VI_Q4_0 ? 8 : 0;
        uint32_t* to = reinterpret_cast<uint32_t*>(out + n * block_inputs);
        for (int i = 0; i < block_inputs; i += 2) {
            float value[2];
            for (int j = 0; j < 2; ++j) {
                int shift;
                const int at = place<FORMAT>(o, i + j, shift);
                const int q = FORMAT == VI_Q8_0 ? block[at] : block[at] >> shift & 15;
                value[j] = fmaf(d, static_cast<float>(q - less), m);
            }
            to[i / 2] = pack_bf16(value[0], value[1]);
        }
    }
}

// Calls body.operator()<FORMAT>() for a packed format.
template <class Body> auto by_format(int32_t format, Body body) {
    if (format == VI_Q8_0) return body.template operator()<VI_Q8_0>();
    if (format == VI_Q4_0) return body.template operator()<VI_Q4_0>();
    return body.template operator()<VI_Q4_1>();
}

int32_t grid(const vi_context* context, int64_t count) {
    return static_cast<int32_t>(std::min<int64_t>(ceil_div<int64_t>(count, 256), context->multiprocessors * 16));
}

} // namespace

int32_t linear_packed(vi_context* context, const char* name, float* out, const float* x, const void* weight, const vi_bf16* bias, const float* norm, float epsilon,
    int32_t format, int32_t output, int32_t rows, int32_t out_features, int32_t in_features) {
    VI_REQUIRE(context, aligned_16(weight), "%s: weight is not aligned to 16 bytes", name);
    const bool pairs = output == VI_OUTPUT_SILU, many = rows > 8, accumulate = output == VI_OUTPUT_SUM;
    const size_t normed_bytes = norm && !many ? align_256(static_cast<size_t>(rows) * in_features * 4) : 0;
    const size_t pairs_bytes = pairs ? align_256(static_cast<size_t>(rows) * out_features * 4) : 0;
    const size_t matrix_bytes = many ? align_256(static_cast<size_t>(out_features) * in_features * 2) : 0;
    const size_t reserved = normed_bytes + pairs_bytes + matrix_bytes;
    float* y = out;
    vi_bf16* matrix = nullptr;
    if (reserved) {
        VI_WORKSPACE(context, uint8_t, scratch, reserved + (many ? linear_large_bytes(rows, in_features) : 0), name);
        if (norm && !many) {
            float* normed = reinterpret_cast<float*>(scratch);
            const int32_t status = vi_rmsnorm(context, normed, nullptr, x, norm, epsilon, rows, in_features);
            if (status != VI_OK) return status;
            x = normed;
        }
        if (pairs) y = reinterpret_cast<float*>(scratch + normed_bytes);
        matrix = reinterpret_cast<vi_bf16*>(scratch + normed_bytes + pairs_bytes);
    }
    const uint8_t* packed = static_cast<const uint8_t*>(weight);
    const int32_t blocks = in_features / block_inputs;
    if (many) {
        const int64_t count = static_cast<int64_t>(out_features) * blocks;
        by_format(format, [&]<int FORMAT>() { unpack_kernel<FORMAT><<<grid(context, count), 256, 0, context->stream>>>(matrix, packed, count, blocks); });
        VI_LAUNCHED(context, name);
        const int32_t status = linear_large(context, name, y, x, matrix, bias, norm, epsilon, accumulate, rows, out_features, in_features, reserved);
        if (status != VI_OK) return status;
    } else {
        const bool vector = aligned_16(x);
        VI_CUDA(context, name, by_format(format, [&]<int FORMAT>() {
            return launch_early(context, vector ? packed_kernel<FORMAT, true> : packed_kernel<FORMAT, false>, ceil_div(out_features, panel), warps * 32, 0, y, x,
                packed, bias, accumulate, rows, out_features, in_features);
        }));
    }
    return pairs ? vi_gate(context, out, y, VI_SILU, rows, out_features / 2) : VI_OK;
}

extern "C" VI_API int32_t vi_pack(vi_context* context, void* out, const void* blocks, int32_t format, int32_t out_features, int32_t in_features) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_pack(context, __func__, out, blocks, format, out_features, in_features));
    const int32_t row_blocks = in_features / block_inputs;
    const int64_t count = static_cast<int64_t>(ceil_div(out_features, panel)) * panel * row_blocks;
    by_format(format, [&]<int FORMAT>() {
        pack_kernel<FORMAT><<<grid(context, count), 256, 0, context->stream>>>(static_cast<uint8_t*>(out), static_cast<const uint8_t*>(blocks), count,
            out_features, row_blocks);
    });
    VI_LAUNCHED(context, __func__);
    return VI_OK;
} VI_CATCH(context)
