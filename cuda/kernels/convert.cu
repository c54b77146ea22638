// Between f32, bf16 and f16, by way of f32, which holds both halves exactly: one rounding, to nearest even.
#include "context.h"
#include <algorithm>
#include <cuda_fp16.h>

namespace {

__device__ float to_f32(float x) { return x; }
__device__ float to_f32(vi_bf16 x) { return bf16_to_f32(x); }
__device__ float to_f32(__half x) { return __half2float(x); }
__device__ void from_f32(float& out, float x) { out = x; }
__device__ void from_f32(vi_bf16& out, float x) { out = f32_to_bf16(x); }
__device__ void from_f32(__half& out, float x) { out = __float2half_rn(x); }

template <typename T> struct alignas(4 * sizeof(T)) Four { T value[4]; };

// Four elements a thread where both addresses allow it, and the last few by themselves.
template <typename Out, typename In>
__global__ void convert_kernel(Out* __restrict__ out, const In* __restrict__ in, int64_t fours, int64_t count) {
    const int64_t first = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = first; i < fours; i += step) {
        const Four<In> from = reinterpret_cast<const Four<In>*>(in)[i];
        Four<Out> to;
#pragma unroll
        for (int j = 0; j < 4; ++j) from_f32(to.value[j], to_f32(from.value[j]));
        reinterpret_cast<Four<Out>*>(out)[i] = to;
    }
    for (int64_t i = fours * 4 + first; i < count; i += step) from_f32(out[i], to_f32(in[i]));
}

template <typename Out, typename In> void launch(vi_context* context, void* out, const void* in, int64_t count) {
    const int64_t fours = aligned_16(out) && aligned_16(in) ? count / 4 : 0;
    const int32_t blocks = static_cast<int32_t>(std::clamp<int64_t>(ceil_div<int64_t>(fours ? fours : count, 256), 1,
        context->multiprocessors * 16));
    convert_kernel<<<blocks, 256, 0, context->stream>>>(static_cast<Out*>(out), static_cast<const In*>(in), fours, count);
}

template <typename Out> void launch_from(vi_context* context, void* out, const void* in, int32_t in_dtype, int64_t count) {
    if (in_dtype == VI_F32) launch<Out, float>(context, out, in, count);
    else if (in_dtype == VI_BF16) launch<Out, vi_bf16>(context, out, in, count);
    else launch<Out, __half>(context, out, in, count);
}

} // namespace

extern "C" VI_API int32_t vi_convert(vi_context* context, void* out, const void* in, int32_t out_dtype, int32_t in_dtype, int64_t count) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_convert(context, __func__, out, in, out_dtype, in_dtype, count));
    if (count == 0) return VI_OK;
    if (out_dtype == VI_F32) launch_from<float>(context, out, in, in_dtype, count);
    else if (out_dtype == VI_BF16) launch_from<vi_bf16>(context, out, in, in_dtype, count);
    else launch_from<__half>(context, out, in, in_dtype, count);
    VI_LAUNCHED(context, __func__);
    context->constants_written = true;
    return VI_OK;
} VI_CATCH(context)
