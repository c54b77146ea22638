// RMSNorm of each head of each row, in place.
#include "context.h"
#include <algorithm>

namespace {

constexpr int32_t warp_head_dim = 512; // up to which a warp norms a head, and a block several

// One head by `threads` threads, of which this is the thread-th; `total` adds up what each of them has. Each thread reads again only what it writes.
template <bool VECTOR, class Total>
__device__ void norm_head(float* head, const float* __restrict__ weight, float epsilon, int32_t head_dim, int32_t thread, int32_t threads, Total total) {
    float squares = 0;
    if constexpr (VECTOR) {
        for (int32_t i = thread; i < head_dim / 4; i += threads) {
            const float4 value = reinterpret_cast<const float4*>(head)[i];
            squares = fmaf(value.x, value.x, fmaf(value.y, value.y, fmaf(value.z, value.z, fmaf(value.w, value.w, squares))));
        }
    } else {
        for (int32_t i = thread; i < head_dim; i += threads) squares = fmaf(head[i], head[i], squares);
    }
    const float scale = 1.0f / sqrtf(total(squares) / static_cast<float>(head_dim) + epsilon);
    if constexpr (VECTOR) {
        for (int32_t i = thread; i < head_dim / 4; i += threads) {
            const float4 value = reinterpret_cast<const float4*>(head)[i], factor = reinterpret_cast<const float4*>(weight)[i];
            reinterpret_cast<float4*>(head)[i] =
                make_float4(value.x * scale * factor.x, value.y * scale * factor.y, value.z * scale * factor.z, value.w * scale * factor.w);
        }
    } else {
        for (int32_t i = thread; i < head_dim; i += threads) head[i] = head[i] * scale * weight[i];
    }
}

// A warp, or where WHOLE a block, takes head after head; count: of all rows.
template <bool VECTOR, bool WHOLE>
__global__ void head_norm_kernel(float* x, const float* __restrict__ weight, float epsilon, int64_t count, int32_t heads, int32_t head_dim, int32_t stride) {
    __shared__ float shared[32];
    wait_for_previous();
    let_next_start();
    const int32_t own = WHOLE ? 1 : blockDim.x / 32; // heads of a block at a time
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * own + (WHOLE ? 0 : threadIdx.x / 32); i < count; i += static_cast<int64_t>(gridDim.x) * own) {
        float* head = x + i / heads * stride + i % heads * head_dim;
        if constexpr (WHOLE)
            norm_head<VECTOR>(head, weight, epsilon, head_dim, threadIdx.x, blockDim.x, [&](float squares) { return block_sum(squares, shared); });
        else
            norm_head<VECTOR>(head, weight, epsilon, head_dim, threadIdx.x % 32, 32, [](float squares) { return warp_sum(squares); });
    }
}

} // namespace

extern "C" VI_API int32_t vi_head_norm(vi_context* context, float* x, const float* weight, float epsilon, int32_t rows, int32_t heads, int32_t head_dim,
    int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_head_norm(context, __func__, x, weight, epsilon, rows, heads, head_dim, stride));
    if (rows == 0) return VI_OK;
    const bool vector = head_dim % 4 == 0 && stride % 4 == 0 && aligned_16(x) && aligned_16(weight), whole = head_dim > warp_head_dim;
    const int32_t threads = whole ? std::min(1024, ceil_div(vector ? head_dim / 4 : head_dim, 32) * 32) : 128;
    const int64_t count = static_cast<int64_t>(rows) * heads, wanted = whole ? count : ceil_div<int64_t>(count, threads / 32);
    const int32_t blocks = static_cast<int32_t>(std::min<int64_t>(wanted, context->multiprocessors * 64));
    auto* kernel = whole ? (vector ? head_norm_kernel<true, true> : head_norm_kernel<false, true>)
                         : (vector ? head_norm_kernel<true, false> : head_norm_kernel<false, false>);
    VI_CUDA(context, __func__, launch_early(context, kernel, blocks, threads, 0, x, weight, epsilon, count, heads, head_dim, stride));
    return VI_OK;
} VI_CATCH(context)
