// The gate of a SwiGLU layer: silu(x) = x / (1 + e^-x) (arXiv 2002.05202).
#include "context.h"
#include "linear.h"
#include "mma.h"
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

// The same between bf16, 8 values a thread where VECTOR.
template <bool VECTOR>
__global__ void silu_mul_rounded_kernel(vi_bf16* __restrict__ out, const vi_bf16* __restrict__ gate_up, int64_t count, int32_t width) {
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        const int64_t row = i / width, column = i % width; // in units of 8 values where VECTOR
        if constexpr (VECTOR) {
            const uint4* in = reinterpret_cast<const uint4*>(gate_up) + row * 2 * width + column;
            const uint4 gate = in[0], up = in[width];
            auto pair = [](uint32_t gate, uint32_t up) {
                return pack_bf16(silu(__uint_as_float(gate << 16)) * __uint_as_float(up << 16), silu(__uint_as_float(gate & 0xffff0000u)) * __uint_as_float(up & 0xffff0000u));
            };
            reinterpret_cast<uint4*>(out)[i] = make_uint4(pair(gate.x, up.x), pair(gate.y, up.y), pair(gate.z, up.z), pair(gate.w, up.w));
        } else {
            const vi_bf16* in = gate_up + row * 2 * width + column;
            out[i] = f32_to_bf16(silu(bf16_to_f32(in[0])) * bf16_to_f32(in[width]));
        }
    }
}

int32_t grid(const vi_context* context, int64_t count) { return static_cast<int32_t>(std::min<int64_t>(ceil_div<int64_t>(count, 256), context->multiprocessors * 16)); }

} // namespace

int32_t silu_mul_rounded(vi_context* context, const char* name, vi_bf16* out, const vi_bf16* gate_up, int32_t rows, int32_t width) {
    const bool vector = width % 8 == 0 && aligned_16(out) && aligned_16(gate_up);
    const int32_t units = vector ? width / 8 : width;
    const int64_t count = static_cast<int64_t>(rows) * units;
    auto* kernel = vector ? silu_mul_rounded_kernel<true> : silu_mul_rounded_kernel<false>;
    kernel<<<grid(context, count), 256, 0, context->stream>>>(out, gate_up, count, units);
    VI_LAUNCHED(context, name);
    return VI_OK;
}

extern "C" VI_API int32_t vi_silu_mul(vi_context* context, float* out, const float* gate_up, int32_t rows, int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_silu_mul(context, __func__, out, gate_up, rows, width));
    if (rows == 0) return VI_OK;
    const bool vector = width % 4 == 0 && aligned_16(out) && aligned_16(gate_up);
    const int64_t count = static_cast<int64_t>(rows) * (vector ? width / 4 : width);
    VI_CUDA(context, __func__, launch_early(context, vector ? silu_mul_kernel<true> : silu_mul_kernel<false>, grid(context, count), 256, 0, out,
        gate_up, count, vector ? width / 4 : width));
    return VI_OK;
} VI_CATCH(context)
