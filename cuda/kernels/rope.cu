// Rotary position embedding (arXiv 2104.09864), and the step to the next position.
#include "context.h"

namespace {

constexpr int heads_a_block = 8;

// cos, sin of an angle that reaches 10^6 radians: it is reduced to [-pi, pi] in double precision. Both times the factor.
__device__ float2 turn_of(int32_t position, float frequency, float factor) {
    const double angle = static_cast<double>(position) * static_cast<double>(frequency), two_pi = 6.283185307179586476925286766559;
    float sine, cosine;
    sincosf(static_cast<float>(fma(-rint(angle / two_pi), two_pi, angle)), &sine, &cosine);
    return make_float2(cosine * factor, sine * factor);
}

// A block turns up to 8 heads of one row, with sine and cosine made once. The channels of a pair are `step` apart, pairs are `next`.
__global__ void rope_kernel(float* __restrict__ x, const int32_t* __restrict__ positions, const float* __restrict__ frequencies, float factor,
    int32_t heads, int32_t head_dim, int32_t half, int32_t step, int32_t next, int32_t stride) {
    extern __shared__ float2 turns[]; // cos, sin
    wait_for_previous();
    let_next_start();
    const int64_t row = blockIdx.x;
    for (int32_t i = threadIdx.x; i < half; i += blockDim.x) turns[i] = turn_of(positions[row], frequencies[i], factor);
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

// Beyond the range: the largest.
__device__ vi_f16 f32_to_f16(float x) {
    uint16_t y;
    asm("cvt.rn.satfinite.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// A block has a row: queries are turned in place, keys turned and rounded, values rounded. Pairs as in rope_kernel; half is 0 where nothing turns.
__global__ void rope_round_kernel(float* __restrict__ queries, const float* __restrict__ keys, const float* __restrict__ values, vi_f16* __restrict__ keys_out,
    vi_f16* __restrict__ values_out, const int32_t* __restrict__ positions, const float* __restrict__ frequencies, float factor, int32_t heads, int32_t kv_heads,
    int32_t head_dim, int32_t half, int32_t step, int32_t next, int32_t stride, int32_t out_stride) {
    extern __shared__ float2 turns[];
    wait_for_previous();
    let_next_start();
    const int64_t from = static_cast<int64_t>(blockIdx.x) * stride, to = static_cast<int64_t>(blockIdx.x) * out_stride;
    for (int32_t i = threadIdx.x; i < half; i += blockDim.x) turns[i] = turn_of(positions[blockIdx.x], frequencies[i], factor);
    for (int32_t i = threadIdx.x; i < kv_heads * head_dim; i += blockDim.x) values_out[to + i] = f32_to_f16(values[from + i]);
    __syncthreads();
    for (int32_t i = threadIdx.x; i < (heads + kv_heads) * half; i += blockDim.x) {
        const int32_t head = i / half, pair = i % half;
        const float2 turn = turns[pair];
        if (head < heads) {
            float* low = queries + from + head * head_dim + pair * next;
            const float a = low[0], b = low[step];
            low[0] = a * turn.x - b * turn.y;
            low[step] = b * turn.x + a * turn.y;
        } else {
            const int32_t at = (head - heads) * head_dim + pair * next;
            const float a = keys[from + at], b = keys[from + at + step];
            keys_out[to + at] = f32_to_f16(a * turn.x - b * turn.y);
            keys_out[to + at + step] = f32_to_f16(b * turn.x + a * turn.y);
        }
    }
    const int32_t rest = head_dim - 2 * half; // channels of a head that don't turn
    for (int32_t i = threadIdx.x; i < kv_heads * rest; i += blockDim.x) {
        const int32_t at = i / rest * head_dim + 2 * half + i % rest;
        keys_out[to + at] = f32_to_f16(keys[from + at]);
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

extern "C" VI_API int32_t vi_rope_round(vi_context* context, float* queries, const float* keys, const float* values, vi_f16* keys_out, vi_f16* values_out,
    const int32_t* positions, const float* frequencies, float factor, int32_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t rotary_dim,
    int32_t interleaved, int32_t stride, int32_t out_stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_rope_round(context, __func__, queries, keys, values, keys_out, values_out, positions, frequencies, factor, rows, heads, kv_heads, head_dim,
        rotary_dim, interleaved, stride, out_stride));
    VI_REQUIRE(context, rotary_dim <= 4096, "%s: rotary_dim is %d: this library takes 4096", __func__, rotary_dim);
    if (rows == 0) return VI_OK;
    const int32_t half = rotary_dim / 2;
    VI_CUDA(context, __func__, launch_early(context, rope_round_kernel, rows, 256, half * sizeof(float2), queries, keys, values, keys_out, values_out, positions,
        frequencies, factor, heads, kv_heads, head_dim, half, interleaved ? 1 : half, interleaved ? 2 : 1, stride, out_stride));
    return VI_OK;
} VI_CATCH(context)

extern "C" VI_API int32_t vi_advance(vi_context* context, int32_t* positions, int32_t rows) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_advance(context, __func__, positions, rows));
    if (rows == 0) return VI_OK;
    VI_CUDA(context, __func__, launch_early(context, advance_kernel, ceil_div(rows, 256), 256, 0, positions, rows));
    return VI_OK;
} VI_CATCH(context)
