// The gate of feed-forward layers, out = activation(gate) * up. Each activation is x / (1 + e^-z) of some z(x).
#include "context.h"
#include <algorithm>

namespace {

// x / (1 + e^-z); 0 where that would overflow, as in the CPU library. NaN stays NaN.
__device__ float sigmoid_times(float x, float z) { return z < -87.0f ? 0.0f : x / (1.0f + expf(-z)); }

template <int ACTIVATION> __device__ float gated(float gate, float up) {
    if constexpr (ACTIVATION == VI_SILU) {
        return sigmoid_times(gate, gate) * up;
    } else if constexpr (ACTIVATION == VI_GELU) {
        constexpr float twice = 2 * 0.7978845608028654f; // sqrt(2 / pi)
        return sigmoid_times(gate, twice * (gate + 0.044715f * (gate * gate * gate))) * up;
    } else {
        gate = gate > 7.0f ? 7.0f : gate;
        up = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
        return sigmoid_times(gate, 1.702f * gate) * (up + 1.0f);
    }
}

template <int ACTIVATION, bool VECTOR>
__global__ void gate_kernel(float* __restrict__ out, const float* __restrict__ gate_up, int64_t count, int32_t width) {
    wait_for_previous();
    let_next_start();
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        const int64_t row = i / width, column = i % width; // in units of 4 floats where VECTOR
        if constexpr (VECTOR) {
            const float4* in = reinterpret_cast<const float4*>(gate_up) + row * 2 * width + column;
            const float4 gate = in[0], up = in[width];
            reinterpret_cast<float4*>(out)[i] = make_float4(gated<ACTIVATION>(gate.x, up.x), gated<ACTIVATION>(gate.y, up.y),
                                                            gated<ACTIVATION>(gate.z, up.z), gated<ACTIVATION>(gate.w, up.w));
        } else {
            const float* in = gate_up + row * 2 * width + column;
            out[i] = gated<ACTIVATION>(in[0], in[width]);
        }
    }
}

template <int ACTIVATION> cudaError_t launch(vi_context* context, float* out, const float* gate_up, int32_t rows, int32_t width) {
    const bool vector = width % 4 == 0 && aligned_16(out) && aligned_16(gate_up);
    const int64_t count = static_cast<int64_t>(rows) * (vector ? width / 4 : width);
    const int32_t blocks = static_cast<int32_t>(std::min<int64_t>(ceil_div<int64_t>(count, 256), context->multiprocessors * 16));
    return launch_early(context, vector ? gate_kernel<ACTIVATION, true> : gate_kernel<ACTIVATION, false>, blocks, 256, 0, out, gate_up, count,
        vector ? width / 4 : width);
}

} // namespace

extern "C" VI_API int32_t vi_gate(vi_context* context, float* out, const float* gate_up, int32_t activation, int32_t rows, int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_gate(context, __func__, out, gate_up, activation, rows, width));
    if (rows == 0) return VI_OK;
    auto* run = activation == VI_SILU ? launch<VI_SILU> : activation == VI_GELU ? launch<VI_GELU> : launch<VI_SWIGLU_CLAMPED>;
    VI_CUDA(context, __func__, run(context, out, gate_up, rows, width));
    return VI_OK;
} VI_CATCH(context)
