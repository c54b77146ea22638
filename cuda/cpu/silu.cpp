// out = silu(gate) * up, silu(x) = x / (1 + e^-x).
#include "simd.h"
#include <numbers>

namespace {

// e^-x = 2^(-x log2 e), held below the overflow of 2^x: there x / 2^126 is already as good as zero. NaN stays NaN.
inline Vec silu(Vec x) {
    const Vec power = x * -std::numbers::log2e_v<float>, most = splat(126.0f);
    return x / (1.0f + exp2_vec(power > most ? most : power));
}

} // namespace

extern "C" int32_t vi_silu_mul(vi_context* context, float* out, const float* gate_up, int32_t rows, int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_silu_mul(context, __func__, out, gate_up, rows, width));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_silu_mul(context, out, gate_up, rows, width));
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * width * 4))
    for (int r = 0; r < rows; r++) {
        const float *gate = gate_up + size_t(r) * width * 2, *up = gate + width;
        float* to = out + size_t(r) * width;
        int i = 0;
        for (; i + kWidth <= width; i += kWidth) store(to + i, silu(load(gate + i)) * load(up + i));
        for (; i < width; i++) to[i] = silu(splat(gate[i]))[0] * up[i];
    }
    return VI_OK;
} VI_CATCH(context)
