// RMSNorm of each head of each row, in place.
#include "simd.h"

extern "C" int32_t vi_head_norm(vi_context* context, float* x, const float* weight, float epsilon, int32_t rows, int32_t heads, int32_t head_dim,
                                int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_head_norm(context, __func__, x, weight, epsilon, rows, heads, head_dim, stride));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_head_norm(context, x, weight, epsilon, rows, heads, head_dim, stride));
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * heads * head_dim))
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < heads; h++) {
            float* head = x + size_t(r) * stride + size_t(h) * head_dim;
            const float scale = norm_scale(head, head_dim, epsilon);
            for (int i = 0; i < head_dim; i++) head[i] = head[i] * scale * weight[i];
        }
    return VI_OK;
} VI_CATCH(context)
