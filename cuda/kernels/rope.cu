// Rotary position embedding (arXiv 2104.09864), and the step to the next position.
#include "context.h"

namespace {

constexpr int heads_a_block = 8;

// A block turns up to 8 heads of one row, with sine and cosine made once. The channels of a pair are `step` apart, pairs are `next`.
__global__ void rope_kernel(float* __restrict__ x, const int32_t* __restrict__ positions, const float* __restrict__ frequencies, float factor,
    int32_t heads, int32_t head_dim, int32_t half, int32_t step, int32_t next, int32_t stride) {
    extern __shared__ float2 turns[]; // cos, sin
    wait_for_previous();
    let_next_start();
    const int64_t row = blockIdx.x;
    for (int32_t i = threadIdx.x; i < half; i += blockDim.x) {
        // The angle reaches 10^6 radians: it is reduced to [-pi, pi] in double precision.
        const double angle = static_cast<double>(positions[row]) * static_cast<double>(frequencies[i]);
        const double two_pi = 6.283185307179586476925286766559;
        const float reduced = static_cast<float>(fma(-rint(angle / two_pi), two_pi, angle));
        float sine, cosine;
        sincosf(reduced, &sine, &cosine);
        turns[i] = make_float2(cosine * factor, sine * factor);
    }
    __syncthreads();
    const int32_t first = blockIdx.y * heads_a_block, last = min(heads, first + heads_a_block);
    for (int32_t i = threadIdx.x; i < (last - first) * half; i += blockDim.x) {
        const int32_t head = first + i / half, pair = i % half;
        float* low = x + row * stride + static_cast<int64_t>(head) * head_dim + static_cast<int64_t>(pair) * next;
        const float2 turn = turns[pair];
        const float a = low[0], b = low[step];
        low[0] = a * turn.x - b * turn.y;
        low[step] = b * turn.x + a * turn.y;
    }
}

__global__ void advance_kernel(int32_t* positions, int32_t rows) {
    wait_for_previous();
    let_next_start();
    const int32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) positions[row] += 1;
}

} // namespace

extern "C" VI_API int32_t vi_rope(vi_context* context, float* x, const int32_t* positions, const float* frequencies, float factor,
    int32_t rows, int32_t heads, int32_t head_dim, int32_t rotary_dim, int32_t interleaved, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_rope(context, __func__, x, positions, frequencies, factor, rows, heads, head_dim, rotary_dim, interleaved, stride));
    VI_REQUIRE(context, heads <= 65535 && rotary_dim <= 4096, "%s: heads is %d and rotary_dim %d: this library takes 65535 and 4096", __func__, heads,
        rotary_dim);
    if (rows == 0) return VI_OK;
    const int32_t half = rotary_dim / 2;
    const dim3 blocks(rows, ceil_div(heads, heads_a_block));
    VI_CUDA(context, __func__, launch_early(context, rope_kernel, blocks, 256, half * sizeof(float2), x, positions, frequencies, factor, heads,
        head_dim, half, interleaved ? 1 : half, interleaved ? 2 : 1, stride));
    return VI_OK;
} VI_CATCH(context)

extern "C" VI_API int32_t vi_advance(vi_context* context, int32_t* positions, int32_t rows) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_advance(context, __func__, positions, rows));
    if (rows == 0) return VI_OK;
    VI_CUDA(context, __func__, launch_early(context, advance_kernel, ceil_div(rows, 256), 256, 0, positions, rows));
    return VI_OK;
} VI_CATCH(context)
