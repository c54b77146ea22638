// out = activation(gate) * up. Each activation is x / (1 + e^-z) of some z(x).
#include "simd.h"
#include <numbers>

namespace {

// x / (1 + e^-z), e^-z = 2^(-z log2 e); 0 where that would overflow. NaN stays NaN.
inline Vec sigmoid_times(Vec x, Vec z) {
    const Vec power = z * -std::numbers::log2e_v<float>, most = splat(126.0f);
    const Vec y = x / (1.0f + exp2_vec(power > most ? most : power));
    return power > most ? Vec{} : y;
}

template <int activation> inline Vec gated(Vec gate, Vec up) {
    if constexpr (activation == VI_SILU) {
        return sigmoid_times(gate, gate) * up;
    } else if constexpr (activation == VI_GELU) {
        constexpr float twice = 2 * 0.7978845608028654f; // sqrt(2 / pi)
        return sigmoid_times(gate, twice * (gate + 0.044715f * (gate * gate * gate))) * up;
    } else {
        const Vec most = splat(7.0f);
        gate = gate > most ? most : gate;
        up = up > most ? most : up < -most ? -most : up;
        return sigmoid_times(gate, 1.702f * gate) * (up + 1.0f);
    }
}

template <int activation> void rows_of(float* out, const float* gate_up, int rows, int width, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int r = 0; r < rows; r++) {
        const float *gate = gate_up + size_t(r) * width * 2, *up = gate + width;
        float* to = out + size_t(r) * width;
        int i = 0;
        for (; i + kWidth <= width; i += kWidth) store(to + i, gated<activation>(load(gate + i), load(up + i)));
        for (; i < width; i++) to[i] = gated<activation>(splat(gate[i]), splat(up[i]))[0];
    }
}

} // namespace

extern "C" int32_t vi_gate(vi_context* context, float* out, const float* gate_up, int32_t activation, int32_t rows, int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_gate(context, __func__, out, gate_up, activation, rows, width));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_gate(context, out, gate_up, activation, rows, width));
    const int threads = context->threads_for(int64_t(rows) * width * 4);
    if (activation == VI_SILU) rows_of<VI_SILU>(out, gate_up, rows, width, threads);
    else if (activation == VI_GELU) rows_of<VI_GELU>(out, gate_up, rows, width, threads);
    else rows_of<VI_SWIGLU_CLAMPED>(out, gate_up, rows, width, threads);
    return VI_OK;
} VI_CATCH(context)
