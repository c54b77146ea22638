// Rotary position embedding (arXiv 2104.09864, halves convention), and the step to the next position.
#include "context.h"

namespace {

constexpr int heads_a_block = 8;

// cos, sin of an angle that reaches 10^6 radians: it is reduced to [-pi, pi] in double precision.
__device__ float2 turn_of(int32_t position, float frequency) {
    const double angle = static_cast<double>(position) * static_cast<double>(frequency), two_pi = 6.283185307179586476925286766559;
    float2 turn;
    sincosf(static_cast<float>(fma(-rint(angle / two_pi), two_pi, angle)), &turn.y, &turn.x);
    return turn;
}

// A block turns up to 8 heads of one row, with sine and cosine made once.
__global__ void rope_kernel(float* __restrict__ x, const int32_t* __restrict__ positions, const float* __restrict__ frequencies,
    int32_t heads, int32_t half, int32_t stride) {
    extern __shared__ float2 turns[]; // cos, sin
    wait_for_previous();
    let_next_start();
    const int64_t row = blockIdx.x;
    for (int32_t i = threadIdx.x; i < half; i += blockDim.x) turns[i] = turn_of(positions[row], frequencies[i]);
    __syncthreads();
    const int32_t first = blockIdx.y * heads_a_block, last = min(heads, first + heads_a_block);
    for (int32_t i = threadIdx.x; i < (last - first) * half; i += blockDim.x) {
        const int32_t head = first + i / half, pair = i % half;
        float* low = x + row * stride + static_cast<int64_t>(head) * 2 * half + pair;
        const float2 turn = turns[pair];
        const float a = low[0], b = low[half];
        low[0] = a * turn.x - b * turn.y;
        low[half] = b * turn.x + a * turn.y;
    }
}

// A block has a row: queries are turned in place, keys turned and rounded, values rounded.
__global__ void rope_round_kernel(float* __restrict__ queries, const float* __restrict__ keys, const float* __restrict__ values, vi_bf16* __restrict__ keys_out,
    vi_bf16* __restrict__ values_out, const int32_t* __restrict__ positions, const float* __restrict__ frequencies, int32_t heads, int32_t kv_heads,
    int32_t half, int32_t stride, int32_t out_stride) {
    extern __shared__ float2 turns[];
    wait_for_previous();
    let_next_start();
    const int64_t from = static_cast<int64_t>(blockIdx.x) * stride, to = static_cast<int64_t>(blockIdx.x) * out_stride;
    for (int32_t i = threadIdx.x; i < half; i += blockDim.x) turns[i] = turn_of(positions[blockIdx.x], frequencies[i]);
    for (int32_t i = threadIdx.x; i < kv_heads * 2 * half; i += blockDim.x) values_out[to + i] = f32_to_bf16(values[from + i]);
    __syncthreads();
    for (int32_t i = threadIdx.x; i < (heads + kv_heads) * half; i += blockDim.x) {
        const int32_t head = i / half, pair = i % half;
        const float2 turn = turns[pair];
        if (head < heads) {
            float* low = queries + from + head * 2 * half + pair;
            const float a = low[0], b = low[half];
            low[0] = a * turn.x - b * turn.y;
            low[half] = b * turn.x + a * turn.y;
        } else {
            const int32_t at = (head - heads) * 2 * half + pair;
            const float a = keys[from + at], b = keys[from + at + half];
            keys_out[to + at] = f32_to_bf16(a * turn.x - b * turn.y);
            keys_out[to + at + half] = f32_to_bf16(b * turn.x + a * turn.y);
        }
    }
}

__global__ void advance_kernel(int32_t* positions, int32_t rows) {
    wait_for_previous();
    let_next_start();
    const int32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) positions[row] += 1;
}

} // namespace

extern "C" VI_API int32_t vi_rope(vi_context* context, float* x, const int32_t* positions, const float* frequencies, int32_t rows,
    int32_t heads, int32_t head_dim, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_rope(context, __func__, x, positions, frequencies, rows, heads, head_dim, stride));
    VI_REQUIRE(context, heads <= 65535 && head_dim <= 4096, "%s: heads is %d and head_dim %d: this library takes 65535 and 4096", __func__, heads, head_dim);
    if (rows == 0) return VI_OK;
    const int32_t half = head_dim / 2;
    const dim3 blocks(rows, ceil_div(heads, heads_a_block));
    VI_CUDA(context, __func__, launch_early(context, rope_kernel, blocks, 256, half * sizeof(float2), x, positions, frequencies, heads,
        half, stride));
    return VI_OK;
} VI_CATCH(context)

extern "C" VI_API int32_t vi_rope_round(vi_context* context, float* queries, const float* keys, const float* values, vi_bf16* keys_out, vi_bf16* values_out,
    const int32_t* positions, const float* frequencies, int32_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t stride, int32_t out_stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_rope_round(context, __func__, queries, keys, values, keys_out, values_out, positions, frequencies, rows, heads, kv_heads, head_dim, stride,
        out_stride));
    VI_REQUIRE(context, head_dim <= 4096, "%s: head_dim is %d: this library takes 4096", __func__, head_dim);
    if (rows == 0) return VI_OK;
    const int32_t half = head_dim / 2;
    VI_CUDA(context, __func__, launch_early(context, rope_round_kernel, rows, 256, half * sizeof(float2), queries, keys, values, keys_out, values_out, positions,
        frequencies, heads, kv_heads, half, stride, out_stride));
    return VI_OK;
} VI_CATCH(context)

extern "C" VI_API int32_t vi_advance(vi_context* context, int32_t* positions, int32_t rows) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_advance(context, __func__, positions, rows));
    if (rows == 0) return VI_OK;
    VI_CUDA(context, __func__, launch_early(context, advance_kernel, ceil_div(rows, 256), 256, 0, positions, rows));
    return VI_OK;
} VI_CATCH(context)
