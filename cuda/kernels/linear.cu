// Products of up to 8 rows, bound by one reading of the weights, with what comes after (the sum, the gate) in the same pass.
// Tiles are those of linear_tile.cuh; 8 warps share one, or fewer for short rows.
#include "context.h"
#include "linear.h"
#include "linear_tile.cuh"

namespace {

// Outputs of a product of few rows.
struct Few {
    float* out;
    const float* x;
    const vi_bf16 *weight, *bias;
    int32_t output, rows, out_features, in_features;
};

// WARPS share a tile, a block has TILES of them. Tiles of one block read the same x at the same time. The first weights are asked for before the kernel
// ahead of this one has ended. With PAIRS a tile is 8 outputs of the gate above the same 8 of the other half.
template <bool VECTOR, bool PAIRS, int WARPS, int TILES>
__global__ void __launch_bounds__(WARPS * 32 * TILES, 512 / (WARPS * 32 * TILES)) linear_kernel(const __grid_constant__ Few f) {
    __shared__ float partial[TILES][WARPS][8][outputs];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % WARPS, tile = threadIdx.x / 32 / WARPS;
    const int g = lane / 4, t = lane % 4;
    constexpr int own = PAIRS ? outputs / 2 : outputs; // of `count` outputs
    const int32_t in_features = f.in_features, count = PAIRS ? f.out_features / 2 : f.out_features, first = (blockIdx.x * TILES + tile) * own;
    // Outputs past the end read the last row again and are not stored.
    const vi_bf16* upper = f.weight + static_cast<int64_t>(min(first + g, count - 1)) * in_features;
    const vi_bf16* lower = f.weight + static_cast<int64_t>(PAIRS ? count + min(first + g, count - 1) : min(first + g + 8, count - 1)) * in_features;
    const bool valid = g < f.rows;
    const float* input = f.x + static_cast<int64_t>(valid ? g : 0) * in_features;

    float sums[4] = {0, 0, 0, 0};
    Strip<VECTOR, WARPS> strip(upper, lower, in_features, warp, t);
    wait_for_previous();
    let_next_start();
    strip.multiply(sums, input, valid);
    partial[tile][warp][2 * t][g] = sums[0];
    partial[tile][warp][2 * t + 1][g] = sums[1];
    partial[tile][warp][2 * t][g + 8] = sums[2];
    partial[tile][warp][2 * t + 1][g + 8] = sums[3];
    __syncthreads();
    for (int i = threadIdx.x % (WARPS * 32); i < 8 * own; i += WARPS * 32) {
        const int row = i / own, output = i % own;
        if (row >= f.rows || first + output >= count) continue;
        auto product = [&](int place, int32_t feature) {
            float sum = 0;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) sum += partial[tile][w][row][place];
            return f.bias ? sum + bf16_to_f32(f.bias[feature]) : sum;
        };
        float* const out = f.out + static_cast<int64_t>(row) * count + first + output;
        const float y = product(output, first + output);
        if constexpr (PAIRS) *out = y / (1.0f + expf(-y)) * product(output + 8, count + first + output);
        else *out = f.output == VI_OUTPUT_SUM ? *out + y : y;
    }
}

template <bool VECTOR, bool PAIRS, int WARPS, int TILES> cudaError_t launch(vi_context* context, const Few& f) {
    const int32_t tiles = PAIRS ? ceil_div(f.out_features / 2, outputs / 2) : ceil_div(f.out_features, outputs);
    return launch_early(context, linear_kernel<VECTOR, PAIRS, WARPS, TILES>, ceil_div(tiles, TILES), WARPS * 32 * TILES, 0, f);
}

template <bool VECTOR, bool PAIRS> cudaError_t launch(vi_context* context, const Few& f, int32_t warps) {
    const bool two = f.rows > 2 && f.out_features >= 2 * outputs * context->multiprocessors * 3 / 4;
    switch (warps) {
        case 8: return VECTOR && two ? launch<VECTOR, PAIRS, 8, 2>(context, f) : launch<VECTOR, PAIRS, 8, 1>(context, f);
        case 4: return launch<VECTOR, PAIRS, 4, 2>(context, f);
        case 2: return launch<VECTOR, PAIRS, 2, 4>(context, f);
    }
    return launch<VECTOR, PAIRS, 1, 8>(context, f);
}

// As many warps share a tile as leave all tiles at work at once, 16 warps a multiprocessor: where blocks follow each other, each waits for its first weights.
// This sets the order of the sums, so the number of rows is not asked.
int32_t warps_a_tile(const vi_context* context, int32_t out_features) {
    const int64_t tiles = ceil_div(out_features, outputs);
    int32_t warps = 8;
    while (warps > 1 && tiles * warps > context->multiprocessors * 16) warps /= 2;
    return warps;
}

} // namespace

extern "C" VI_API int32_t vi_linear(vi_context* context, float* out, const float* x, const void* weight, const vi_bf16* bias,
    const float* norm, float epsilon, int32_t format, int32_t output, int32_t rows, int32_t out_features, int32_t in_features) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_linear(context, __func__, out, x, weight, epsilon, format, output, rows, out_features, in_features));
    if (rows == 0) return VI_OK;
    const bool pairs = output == VI_OUTPUT_SILU;
    if (is_packed(format)) return linear_packed(context, __func__, out, x, weight, bias, norm, epsilon, format, output, rows, out_features, in_features);
    const vi_bf16* matrix = static_cast<const vi_bf16*>(weight);
    const bool vector = in_features % 8 == 0 && aligned_16(x) && aligned_16(matrix) && aligned_16(norm);
    const bool few = rows <= 8, gate_apart = pairs && !(few && vector);
    // Few rows are normed first: each tile norming its own inputs again was measured slower. Workspace for them, for pairs of products before the gate where that has a
    // pass of its own, and for what linear_large takes, which norms as it rounds.
    const size_t normed_bytes = norm && few ? align_256(static_cast<size_t>(rows) * in_features * 4) : 0;
    const size_t pairs_bytes = gate_apart ? align_256(static_cast<size_t>(rows) * out_features * 4) : 0, reserved = normed_bytes + pairs_bytes;
    float* y = out;
    if (reserved) {
        VI_WORKSPACE(context, uint8_t, scratch, reserved + (few ? 0 : linear_large_bytes(rows, in_features)), __func__);
        if (norm && few) {
            float* normed = reinterpret_cast<float*>(scratch);
            const int32_t status = vi_rmsnorm(context, normed, nullptr, x, norm, epsilon, rows, in_features);
            if (status != VI_OK) return status;
            x = normed;
        }
        if (gate_apart) y = reinterpret_cast<float*>(scratch + normed_bytes);
    }
    if (few) {
        const Few f = {y, x, matrix, bias, output, rows, out_features, in_features};
        auto* run = !vector ? launch<false, false> : pairs ? launch<true, true> : launch<true, false>;
        VI_CUDA(context, __func__, run(context, f, warps_a_tile(context, out_features)));
    } else {
        const int32_t status = linear_large(context, __func__, y, x, matrix, bias, norm, epsilon, output == VI_OUTPUT_SUM, rows, out_features, in_features, reserved);
        if (status != VI_OK) return status;
    }
    return gate_apart ? vi_gate(context, out, y, VI_SILU, rows, out_features / 2) : VI_OK;
} VI_CATCH(context)
