// The gate of a SwiGLU layer: silu(x) = x / (1 + e^-x) (arXiv 2002.05202).
#include "context.h"
#include <algorithm>

namespace {

__device__ float silu(float x) { return x / (1.0f + expf(-x)); }

template <bool VECTOR>
__global__ void silu_mul_kernel(float* __restrict__ out, const float* __restrict__ gate_up, int64_t count, int32_t width) {
    wait_for_previous();
    let_next_start();
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        const int64_t row = i / width, column = i % width; // in units of 4 floats where VECTOR
        if constexpr (VECTOR) {
            const float4* in = reinterpret_cast<const float4*>(gate_up) + row * 2 * width + column;
            const float4 gate = in[0], up = in[width];
            reinterpret_cast<float4*>(out)[i] = make_float4(silu(gate.x) * up.x, silu(gate.y) * up.y, silu(gate.z) * up.z, silu(gate.w) * up.w);
        } else {
            const float* in = gate_up + row * 2 * width + column;
            out[i] = silu(in[0]) * in[width];
        }
    }
}

} // namespace

extern "C" VI_API int32_t vi_silu_mul(vi_context* context, float* out, const float* gate_up, int32_t rows, int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_silu_mul(context, __func__, out, gate_up, rows, width));
    if (rows == 0) return VI_OK;
    const bool vector = width % 4 == 0 && aligned_16(out) && aligned_16(gate_up);
    const int64_t count = static_cast<int64_t>(rows) * (vector ? width / 4 : width);
    const int32_t blocks = static_cast<int32_t>(std::min<int64_t>(ceil_div<int64_t>(count, 256), context->multiprocessors * 16));
    VI_CUDA(context, __func__, launch_early(context, vector ? silu_mul_kernel<true> : silu_mul_kernel<false>, blocks, 256, 0, out,
        gate_up, count, vector ? width / 4 : width));
    return VI_OK;
} VI_CATCH(context)
