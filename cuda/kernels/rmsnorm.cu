// Root mean square normalization (arXiv 1910.07467), with the residual addition before it.
#include "context.h"
#include "linear.h"
#include "mma.h"
#include <algorithm>

namespace {

// Four values, or one, as f32 or rounded.
__device__ inline void store(float* out, float4 x) { *reinterpret_cast<float4*>(out) = x; }
__device__ inline void store(vi_bf16* out, float4 x) { *reinterpret_cast<uint2*>(out) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w)); }
__device__ inline void store(float* out, float x) { *out = x; }
__device__ inline void store(vi_bf16* out, float x) { *out = f32_to_bf16(x); }

// One block a row; the second pass finds the row in L1. Each thread reads only what it wrote itself, so that out may be x.
template <bool VECTOR, class Out>
__global__ void rmsnorm_kernel(Out* out, float* residual, const float* x, const float* __restrict__ weight, float epsilon, int32_t width) {
    __shared__ float shared[32];
    wait_for_previous();
    let_next_start();
    const int64_t start = static_cast<int64_t>(blockIdx.x) * width;
    const float* normed = residual ? residual + start : x + start;
    float sum = 0;
    if constexpr (VECTOR) {
        for (int32_t i = threadIdx.x; i < width / 4; i += blockDim.x) {
            float4 value = reinterpret_cast<const float4*>(x + start)[i];
            if (residual) {
                float4* place = reinterpret_cast<float4*>(residual + start) + i;
                const float4 before = *place;
                value = make_float4(before.x + value.x, before.y + value.y, before.z + value.z, before.w + value.w);
                *place = value;
            }
            sum = fmaf(value.x, value.x, fmaf(value.y, value.y, fmaf(value.z, value.z, fmaf(value.w, value.w, sum))));
        }
    } else {
        for (int32_t i = threadIdx.x; i < width; i += blockDim.x) {
            float value = x[start + i];
            if (residual) residual[start + i] = value = residual[start + i] + value;
            sum = fmaf(value, value, sum);
        }
    }
    const float scale = 1.0f / sqrtf(block_sum(sum, shared) / static_cast<float>(width) + epsilon);
    if constexpr (VECTOR) {
        for (int32_t i = threadIdx.x; i < width / 4; i += blockDim.x) {
            const float4 value = reinterpret_cast<const float4*>(normed)[i];
            const float4 factor = reinterpret_cast<const float4*>(weight)[i];
            store(out + start + 4 * i, make_float4(value.x * scale * factor.x, value.y * scale * factor.y, value.z * scale * factor.z, value.w * scale * factor.w));
        }
    } else {
        for (int32_t i = threadIdx.x; i < width; i += blockDim.x) store(out + start + i, normed[i] * scale * weight[i]);
    }
}

template <class Out>
cudaError_t launch(vi_context* context, Out* out, float* residual, const float* x, const float* weight, float epsilon, int32_t rows, int32_t width) {
    const bool vector = width % 4 == 0 && aligned_16(out) && aligned_16(x) && aligned_16(weight) && aligned_16(residual);
    const int32_t items = vector ? width / 4 : width;
    const int32_t threads = std::min(1024, ceil_div(items, 32) * 32);
    return launch_early(context, vector ? rmsnorm_kernel<true, Out> : rmsnorm_kernel<false, Out>, rows, threads, 0, out, residual, x, weight, epsilon, width);
}

} // namespace

int32_t rmsnorm_rounded(vi_context* context, const char* name, vi_bf16* out, const float* x, const float* weight, float epsilon, int32_t rows, int32_t width) {
    VI_CUDA(context, name, launch(context, out, nullptr, x, weight, epsilon, rows, width));
    return VI_OK;
}

extern "C" VI_API int32_t vi_rmsnorm(vi_context* context, float* out, float* residual, const float* x, const float* weight,
    float epsilon, int32_t rows, int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_rmsnorm(context, __func__, out, x, weight, epsilon, rows, width));
    if (rows == 0) return VI_OK;
    VI_CUDA(context, __func__, launch(context, out, residual, x, weight, epsilon, rows, width));
    return VI_OK;
} VI_CATCH(context)
