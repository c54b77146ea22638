// Products with weights in blocks of 32 that share a scale, and vi_pack, which brings them to the order of packed_tile.cuh. Up to 8 rows read the blocks once; for more
// rows the weights are rounded to bf16 in the workspace and multiplied by linear_large.
#include "context.h"
#include "linear.h"
#include "packed_tile.cuh"
#include <algorithm>

namespace {

constexpr int warps = 8; // that share a panel

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
    PackedStrip<FORMAT, VECTOR, warps> strip(from, blocks, warp, lane);
    wait_for_previous();
    let_next_start();
    strip.multiply(sums, input, valid);
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
