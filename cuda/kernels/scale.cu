// x = factor x, then perhaps a soft cap: cap tanh(x / cap).
#include "context.h"
#include <algorithm>

namespace {

__device__ float scaled(float x, float factor, float cap) { return cap > 0.0f ? cap * tanhf(x * factor / cap) : x * factor; }

template <bool VECTOR> __global__ void scale_kernel(float* __restrict__ x, float factor, float cap, int64_t count) {
    wait_for_previous();
    let_next_start();
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        if constexpr (VECTOR) { // count in units of 4 floats
            float4* place = reinterpret_cast<float4*>(x) + i;
            const float4 value = *place;
            *place = make_float4(scaled(value.x, factor, cap), scaled(value.y, factor, cap), scaled(value.z, factor, cap), scaled(value.w, factor, cap));
        } else {
            x[i] = scaled(x[i], factor, cap);
        }
    }
}

} // namespace

extern "C" VI_API int32_t vi_scale(vi_context* context, float* x, float factor, float cap, int64_t count) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_scale(context, __func__, x, factor, cap, count));
    if (count == 0) return VI_OK;
    const bool vector = count % 4 == 0 && aligned_16(x);
    if (vector) count /= 4;
    const int32_t blocks = static_cast<int32_t>(std::min<int64_t>(ceil_div<int64_t>(count, 256), context->multiprocessors * 16));
    VI_CUDA(context, __func__, launch_early(context, vector ? scale_kernel<true> : scale_kernel<false>, blocks, 256, 0, x, factor, cap, count));
    return VI_OK;
} VI_CATCH(context)
