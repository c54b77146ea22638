// Rotary position embedding (arXiv 2104.09864), and the step to the next position.
#include "context.h"
#include <cmath>
#include <omp.h>

static void turn(float& low, float& high, float cosine, float sine) {
    const float a = low, b = high;
    low = a * cosine - b * sine;
    high = b * cosine + a * sine;
}

extern "C" {

int32_t vi_rope(vi_context* context, float* x, const int32_t* positions, const float* frequencies, float factor, int32_t rows, int32_t heads,
                int32_t head_dim, int32_t rotary_dim, int32_t interleaved, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_rope(context, __func__, x, positions, frequencies, factor, rows, heads, head_dim, rotary_dim, interleaved, stride));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_rope(context, x, positions, frequencies, factor, rows, heads, head_dim, rotary_dim, interleaved, stride));
    const int half = rotary_dim / 2, threads = context->threads_for(int64_t(rows) * half * (heads + 32)); // an angle costs about 32 rotations
    std::vector<float> angles(size_t(threads) * rotary_dim); // of one row a thread: cosines, then sines
#pragma omp parallel num_threads(threads)
    {
        float* cosines = angles.data() + size_t(omp_get_thread_num()) * rotary_dim;
        float* sines = cosines + half;
#pragma omp for schedule(static)
        for (int r = 0; r < rows; r++) {
            for (int i = 0; i < half; i++) {
                const double angle = static_cast<double>(positions[r]) * static_cast<double>(frequencies[i]);
                cosines[i] = static_cast<float>(std::cos(angle)) * factor;
                sines[i] = static_cast<float>(std::sin(angle)) * factor;
            }
            for (int h = 0; h < heads; h++) {
                float* low = x + size_t(r) * stride + size_t(h) * head_dim;
                if (interleaved) {
                    for (int i = 0; i < half; i++) turn(low[2 * i], low[2 * i + 1], cosines[i], sines[i]);
                } else {
                    for (int i = 0; i < half; i++) turn(low[i], low[half + i], cosines[i], sines[i]);
                }
            }
        }
    }
    return VI_OK;
} VI_CATCH(context)

int32_t vi_advance(vi_context* context, int32_t* positions, int32_t rows) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_advance(context, __func__, positions, rows));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_advance(context, positions, rows));
    for (int r = 0; r < rows; r++) positions[r]++;
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
