// residual += factor x, x perhaps normed.
#include "simd.h"

extern "C" int32_t vi_add(vi_context* context, float* residual, const float* x, const float* norm, float epsilon, float factor, int32_t rows,
                          int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_add(context, __func__, residual, x, epsilon, factor, rows, width));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_add(context, residual, x, norm, epsilon, factor, rows, width));
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * width))
    for (int r = 0; r < rows; r++) {
        const float* from = x + size_t(r) * width;
        float* to = residual + size_t(r) * width;
        if (norm) {
            const float scale = norm_scale(from, width, epsilon);
            for (int i = 0; i < width; i++) to[i] += factor * (from[i] * scale * norm[i]);
        } else {
            for (int i = 0; i < width; i++) to[i] += factor * from[i];
        }
    }
    return VI_OK;
} VI_CATCH(context)
