// residual += factor x, x perhaps normed.
#include "context.h"
#include <algorithm>

namespace {

__device__ float4 times(float4 x, float factor) { return make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor); }
__device__ float4 times(float4 x, float4 y) { return make_float4(x.x * y.x, x.y * y.y, x.z * y.z, x.w * y.w); }
__device__ float4 sum(float4 x, float4 y) { return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w); }

template <bool VECTOR>
__global__ void add_kernel(float* __restrict__ residual, const float* __restrict__ x, float factor, int64_t count) {
    wait_for_previous();
    let_next_start();
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        if constexpr (VECTOR) { // count in units of 4 floats
            float4* place = reinterpret_cast<float4*>(residual) + i;
            *place = sum(*place, times(reinterpret_cast<const float4*>(x)[i], factor));
        } else {
            residual[i] += factor * x[i];
        }
    }
}

// One block a row; the second pass finds the row in L1.
template <bool VECTOR>
__global__ void add_normed_kernel(float* __restrict__ residual, const float* __restrict__ x, const float* __restrict__ norm, float epsilon, float factor,
                                  int32_t width) {
    __shared__ float shared[32];
    wait_for_previous();
    let_next_start();
    const int64_t start = static_cast<int64_t>(blockIdx.x) * width;
    float squares = 0;
    if constexpr (VECTOR) {
        for (int32_t i = threadIdx.x; i < width / 4; i += blockDim.x) {
            const float4 value = reinterpret_cast<const float4*>(x + start)[i];
            squares = fmaf(value.x, value.x, fmaf(value.y, value.y, fmaf(value.z, value.z, fmaf(value.w, value.w, squares))));
        }
    } else {
        for (int32_t i = threadIdx.x; i < width; i += blockDim.x) squares = fmaf(x[start + i], x[start + i], squares);
    }
    const float scale = 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(width) + epsilon);
    if constexpr (VECTOR) {
        for (int32_t i = threadIdx.x; i < width / 4; i += blockDim.x) {
            float4* place = reinterpret_cast<float4*>(residual + start) + i;
            const float4 normed = times(times(reinterpret_cast<const float4*>(x + start)[i], scale), reinterpret_cast<const float4*>(norm)[i]);
            *place = sum(*place, times(normed, factor));
        }
    } else {
        for (int32_t i = threadIdx.x; i < width; i += blockDim.x) residual[start + i] += factor * (x[start + i] * scale * norm[i]);
    }
}

} // namespace

extern "C" VI_API int32_t vi_add(vi_context* context, float* residual, const float* x, const float* norm, float epsilon, float factor, int32_t rows,
    int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_add(context, __func__, residual, x, epsilon, factor, rows, width));
    if (rows == 0) return VI_OK;
    const bool vector = width % 4 == 0 && aligned_16(residual) && aligned_16(x) && aligned_16(norm);
    if (norm) {
        const int32_t threads = std::min(1024, ceil_div(vector ? width / 4 : width, 32) * 32);
        VI_CUDA(context, __func__, launch_early(context, vector ? add_normed_kernel<true> : add_normed_kernel<false>, rows, threads, 0, residual, x, norm,
            epsilon, factor, width));
    } else {
        const int64_t count = static_cast<int64_t>(rows) * (vector ? width / 4 : width);
        const int32_t blocks = static_cast<int32_t>(std::min<int64_t>(ceil_div<int64_t>(count, 256), context->multiprocessors * 16));
        VI_CUDA(context, __func__, launch_early(context, vector ? add_kernel<true> : add_kernel<false>, blocks, 256, 0, residual, x, factor, count));
    }
    return VI_OK;
} VI_CATCH(context)
