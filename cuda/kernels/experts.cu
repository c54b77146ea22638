// Mixtures of experts: the choice, products of up to 8 rows with the matrices of the chosen, their weighted sum.
//
// In a decode step the blocks find their expert themselves, from the ids on the device. Pairs that chose the same expert are the rows of one tile, so that its weights
// are read once, and a pair's sums are in the order of linear_tile.cuh, whatever is beside it.
#include "experts.h"
#include "packed_tile.cuh"

namespace {

constexpr int route_warps = 4; // of a block, a row each

// Orders floats as whole numbers: NaN is 1, the least, -0 and 0 are equal; 0 is none.
__device__ uint32_t order_of(float x) {
    if (isnan(x)) return 1;
    const uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__global__ void __launch_bounds__(route_warps * 32)
route_kernel(int32_t* experts, float* weights, const float* logits, int32_t method, int32_t rows, int32_t expert_count, int32_t top) {
    __shared__ float values[route_warps][max_experts];
    wait_for_previous();
    let_next_start();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int32_t row = blockIdx.x * route_warps + warp;
    if (row >= rows) return;
    float* const x = values[warp]; // a lane reads what it wrote
    for (int32_t e = lane; e < expert_count; e += 32) x[e] = logits[static_cast<int64_t>(row) * expert_count + e];
    uint32_t taken = 0; // bit j: expert lane + 32 j
    int32_t own = 0;    // of lane k: the k-th choice
    float value = 0;
    for (int32_t k = 0; k < top; ++k) {
        uint32_t best = 0, expert = ~0u;
        for (int32_t e = lane; e < expert_count; e += 32) {
            const uint32_t order = taken >> e / 32 & 1 ? 0 : order_of(x[e]);
            if (order > best) best = order, expert = e;
        }
        const uint32_t most = __reduce_max_sync(0xffffffffu, best);
        expert = __reduce_min_sync(0xffffffffu, best == most ? expert : ~0u);
        if (expert % 32 == static_cast<uint32_t>(lane)) taken |= 1u << expert / 32;
        const float found = __shfl_sync(0xffffffffu, expert % 32 == static_cast<uint32_t>(lane) ? x[expert] : 0.0f, expert % 32);
        if (lane == k) own = expert, value = found;
    }
    const float most = __shfl_sync(0xffffffffu, value, 0), weight = expf(value - most);
    float sum = 0;
    if (method == VI_ROUTE_SOFTMAX)
        for (int32_t e = lane; e < expert_count; e += 32) sum += expf(x[e] - most);
    else if (lane < top) sum = weight;
    sum = warp_sum(sum);
    if (lane >= top) return;
    experts[static_cast<int64_t>(row) * top + lane] = own;
    weights[static_cast<int64_t>(row) * top + lane] = weight / sum;
}

__global__ void __launch_bounds__(256)
expert_sum_kernel(float* residual, const float* x, const float* weights, int32_t top, int32_t width) {
    wait_for_previous();
    let_next_start();
    const int32_t i = blockIdx.y * 256 + threadIdx.x;
    if (i >= width) return;
    const int64_t row = blockIdx.x;
    const float *from = x + row * top * width + i, *weight = weights + row * top;
    float sum = 0;
#pragma unroll 8
    for (int32_t k = 0; k < top; ++k) sum = fmaf(weight[k], from[static_cast<int64_t>(k) * width], sum);
    residual[row * width + i] += sum;
}

// A warp's part of 16 outputs of an expert from `first` on, with bf16 weights; outputs past the end are the last again and are not stored.
template <bool VECTOR, int WARPS> struct Bf16Outputs : Strip<VECTOR, WARPS> {
    static constexpr int32_t first_input = 0; // of a lane, where its row begins for multiply
    static __device__ const vi_bf16* row(const Experts& e, int32_t expert, int32_t output) {
        return static_cast<const vi_bf16*>(e.weight) + (static_cast<int64_t>(expert) * e.out_features + min(output, e.out_features - 1)) * e.in_features;
    }
    __device__ __forceinline__ Bf16Outputs(const Experts& e, int32_t expert, int32_t first, int warp, int lane)
        : Strip<VECTOR, WARPS>(row(e, expert, first + lane / 4), row(e, expert, first + lane / 4 + 8), e.in_features, warp, lane % 4) {}
};

// The same with packed weights.
template <int FORMAT, bool VECTOR, int WARPS> struct PackedOutputs : PackedStrip<FORMAT, VECTOR, WARPS> {
    static constexpr int32_t first_input = 8;
    __device__ __forceinline__ PackedOutputs(const Experts& e, int32_t expert, int32_t first, int warp, int lane)
        : PackedStrip<FORMAT, VECTOR, WARPS>(static_cast<const uint8_t*>(e.weight) +
                (static_cast<int64_t>(expert) * e.out_features + first) / panel * (e.in_features / block_inputs) * bytes_of<FORMAT>,
            e.in_features / block_inputs, warp, lane) {}
};

// Block (i, p) makes outputs 16 i .. 16 i + 15 of pair p and of the next seven pairs with the same expert; a pair that another's block makes has none of its own.
// Small blocks, many at a time on a multiprocessor, share the weights evenly among them. Ids that are not fresh are older than the kernel ahead of this one, so that
// the first weights are asked for before it has ended; vi_route says where they are fresh, and everything else that writes ids is waited for.
template <class Outputs, int WARPS>
__global__ void __launch_bounds__(WARPS * 32, 512 / (WARPS * 32)) few_kernel(const __grid_constant__ Experts e) {
    __shared__ float partial[WARPS][8][outputs];
    __shared__ int32_t places[8];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int32_t first = blockIdx.x * outputs, leader = blockIdx.y, pairs = e.pairs();
    if (e.fresh) wait_for_previous();
    // Past the first-level cache, where ids of an earlier layer may be.
    int32_t id = lane < pairs ? __ldcg(e.experts + lane) : -1;
    const int32_t expert = leader < 32 ? __shfl_sync(0xffffffffu, id, leader) : __ldcg(e.experts + leader);
    const bool exists = e.exists(expert);
    int32_t before = 0, members = 0, pair = -1; // of this lane's row
    for (int32_t base = 0; exists;) {
        for (uint32_t same = __ballot_sync(0xffffffffu, id == expert); same; same &= same - 1) {
            const int32_t p = base + __ffs(same) - 1;
            if (p < leader) ++before;
            else if (members++ == g) pair = p;
        }
        base += 32;
        if (base >= pairs || members >= 8) break;
        id = base + lane < pairs ? __ldcg(e.experts + base + lane) : -1;
    }
    if (!exists || before % 8) {
        if (!e.fresh) wait_for_previous();
        let_next_start();
        for (int i = threadIdx.x; !exists && i < outputs; i += WARPS * 32)
            if (first + i < e.out_features) e.out[static_cast<int64_t>(leader) * e.out_features + first + i] = __uint_as_float(0x7fffffffu);
        return;
    }
    Outputs strip(e, expert, first, warp, lane);
    if (!e.fresh) wait_for_previous();
    let_next_start();
    const bool valid = pair >= 0;
    const float* input = e.x + static_cast<int64_t>(e.x_row(valid ? pair : leader)) * e.in_features + Outputs::first_input * t;
    float sums[4] = {0, 0, 0, 0};
    strip.multiply(sums, input, valid);
    partial[warp][2 * t][g] = sums[0];
    partial[warp][2 * t + 1][g] = sums[1];
    partial[warp][2 * t][g + 8] = sums[2];
    partial[warp][2 * t + 1][g + 8] = sums[3];
    if (warp == 0 && t == 0) places[g] = pair;
    __syncthreads();
    for (int i = threadIdx.x; i < 8 * outputs; i += WARPS * 32) {
        const int row = i / outputs, output = i % outputs;
        if (places[row] < 0 || first + output >= e.out_features) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sum += partial[w][row][output];
        if (e.bias) sum += bf16_to_f32(e.bias[static_cast<int64_t>(expert) * e.out_features + first + output]);
        e.out[static_cast<int64_t>(places[row]) * e.out_features + first + output] = sum;
    }
}

template <class Outputs, int WARPS> cudaError_t launch(vi_context* context, const Experts& e) {
    return launch_early(context, few_kernel<Outputs, WARPS>, dim3(ceil_div(e.out_features, outputs), e.pairs()), WARPS * 32, 0, e);
}

template <bool VECTOR, int WARPS> cudaError_t launch(vi_context* context, const Experts& e) {
    switch (e.format) {
        case VI_Q8_0: return launch<PackedOutputs<VI_Q8_0, VECTOR, WARPS>, WARPS>(context, e);
        case VI_Q4_0: return launch<PackedOutputs<VI_Q4_0, VECTOR, WARPS>, WARPS>(context, e);
        case VI_Q4_1: return launch<PackedOutputs<VI_Q4_1, VECTOR, WARPS>, WARPS>(context, e);
    }
    return launch<Bf16Outputs<VECTOR, WARPS>, WARPS>(context, e);
}

// As many warps share a tile as leave all tiles of one row at work at once, 16 warps a multiprocessor, as in linear.cu. This sets the order of the sums, so the number of
// rows is not asked.
template <bool VECTOR> cudaError_t launch(vi_context* context, const Experts& e) {
    const int64_t tiles = int64_t(ceil_div(e.out_features, outputs)) * e.top, most = context->multiprocessors * 16;
    if (tiles * 8 <= most) return launch<VECTOR, 8>(context, e);
    if (tiles * 4 <= most) return launch<VECTOR, 4>(context, e);
    return tiles * 2 <= most ? launch<VECTOR, 2>(context, e) : launch<VECTOR, 1>(context, e);
}

} // namespace

extern "C" VI_API int32_t vi_route(vi_context* context, int32_t* experts, float* weights, const float* logits, int32_t method, int32_t rows, int32_t expert_count,
    int32_t top) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_route(context, __func__, experts, weights, logits, method, rows, expert_count, top));
    if (rows == 0) return VI_OK;
    VI_CUDA(context, __func__, launch_early(context, route_kernel, ceil_div(rows, route_warps), route_warps * 32, 0, experts, weights, logits, method, rows,
        expert_count, top));
    context->experts_written = true;
    return VI_OK;
} VI_CATCH(context)

extern "C" VI_API int32_t vi_expert_linear(vi_context* context, float* out, const float* x, const void* weight, const vi_bf16* bias, const int32_t* experts,
    int32_t format, int32_t rows, int32_t top, int32_t expert_count, int32_t out_features, int32_t in_features, int32_t x_top) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_expert_linear(context, __func__, out, x, weight, experts, format, rows, top, expert_count, out_features, in_features, x_top));
    if (rows == 0) return VI_OK;
    VI_REQUIRE(context, format == VI_BF16 || aligned_16(weight), "%s: weight is not aligned to 16 bytes", __func__);
    const Experts e = {out, x, weight, bias, experts, format, rows, top, expert_count, out_features, in_features, x_top, context->experts_written};
    if (rows > 8) return experts_many(context, __func__, e);
    const bool vector = aligned_16(x) && (is_packed(format) || e.aligned());
    VI_CUDA(context, __func__, vector ? launch<true>(context, e) : launch<false>(context, e));
    return VI_OK;
} VI_CATCH(context)

extern "C" VI_API int32_t vi_expert_sum(vi_context* context, float* residual, const float* x, const float* weights, int32_t rows, int32_t top, int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_expert_sum(context, __func__, residual, x, weights, rows, top, width));
    if (rows == 0) return VI_OK;
    VI_CUDA(context, __func__, launch_early(context, expert_sum_kernel, dim3(rows, ceil_div(width, 256)), 256, 0, residual, x, weights, top, width));
    return VI_OK;
} VI_CATCH(context)
