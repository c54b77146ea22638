// norm(x) = x / sqrt(mean(x^2) + epsilon) * weight (arXiv 1910.07467), after an optional residual sum.
#include "simd.h"

extern "C" int32_t vi_rmsnorm(vi_context* context, float* out, float* residual, const float* x, const float* weight, float epsilon, int32_t rows,
                              int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_rmsnorm(context, __func__, out, x, weight, epsilon, rows, width));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_rmsnorm(context, out, residual, x, weight, epsilon, rows, width));
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * width))
    for (int r = 0; r < rows; r++) {
        const float* row = x + size_t(r) * width;
        if (residual) {
            float* to = residual + size_t(r) * width;
            for (int i = 0; i < width; i++) to[i] += row[i];
            row = to;
        }
        const float scale = norm_scale(row, width, epsilon);
        float* to = out + size_t(r) * width;
        for (int i = 0; i < width; i++) to[i] = row[i] * scale * weight[i];
    }
    return VI_OK;
} VI_CATCH(context)
