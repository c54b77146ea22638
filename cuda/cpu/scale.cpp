// x = factor x, then perhaps a soft cap: cap tanh(x / cap).
#include "simd.h"
#include <numbers>

namespace {

// Within 2e-7 relative. Near 0 a polynomial (Cephes, tanhf), as 1 - 2 / (e^2x + 1) loses digits there; its sign is x's. NaN stays NaN.
inline Vec tanh_vec(Vec x) {
    const Vec positive = x < 0.0f ? -x : x;
    const Vec square = x * x;
    Vec y = splat(-5.70498872745e-3f);
    y = y * square + 2.06390887954e-2f;
    y = y * square - 5.37397155531e-2f;
    y = y * square + 1.33314422036e-1f;
    y = y * square - 3.33332819422e-1f;
    const Vec near = x + x * square * y;
    const Vec power = positive * (2 * std::numbers::log2e_v<float>), most = splat(126.0f); // held below the overflow of 2^x
    const Vec far = 1.0f - 2.0f / (exp2_vec(power > most ? most : power) + 1.0f);
    return positive < 0.625f ? near : x < 0.0f ? -far : far;
}

inline Vec capped(Vec x, float factor, float cap) { return cap > 0 ? cap * tanh_vec(x * factor / cap) : x * factor; }

} // namespace

extern "C" int32_t vi_scale(vi_context* context, float* x, float factor, float cap, int64_t count) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_scale(context, __func__, x, factor, cap, count));
    if (count == 0) return VI_OK;
    VI_RECORD(context, vi_scale(context, x, factor, cap, count));
    const int64_t whole = count / kWidth * kWidth;
#pragma omp parallel for schedule(static) num_threads(context->threads_for(count * (cap > 0 ? 8 : 1)))
    for (int64_t i = 0; i < whole; i += kWidth) store(x + i, capped(load(x + i), factor, cap));
    for (int64_t i = whole; i < count; i++) x[i] = capped(splat(x[i]), factor, cap)[0];
    return VI_OK;
} VI_CATCH(context)
