// Rotary position embedding (arXiv 2104.09864), and the step to the next position.
#include "context.h"
#include <algorithm>
#include <bit>
#include <cmath>
#include <omp.h>

static void turn(float& low, float& high, float cosine, float sine) {
    const float a = low, b = high;
    low = a * cosine - b * sine;
    high = b * cosine + a * sine;
}

// Beyond the range: the largest. NaN stays NaN.
static vi_f16 f32_to_f16(float x) {
    const float limited = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
    return std::bit_cast<vi_f16>(static_cast<_Float16>(limited));
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

int32_t vi_rope_round(vi_context* context, float* queries, const float* keys, const float* values, vi_f16* keys_out, vi_f16* values_out,
                      const int32_t* positions, const float* frequencies, float factor, int32_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim,
                      int32_t rotary_dim, int32_t interleaved, int32_t stride, int32_t out_stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_rope_round(context, __func__, queries, keys, values, keys_out, values_out, positions, frequencies, factor, rows, heads, kv_heads, head_dim,
                              rotary_dim, interleaved, stride, out_stride));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_rope_round(context, queries, keys, values, keys_out, values_out, positions, frequencies, factor, rows, heads, kv_heads, head_dim,
                                     rotary_dim, interleaved, stride, out_stride));
    const size_t width = size_t(kv_heads) * head_dim;
    std::vector<float> turned(rows * width);
    for (int r = 0; r < rows; r++) std::copy_n(keys + size_t(r) * stride, width, turned.data() + r * width);
    if (rotary_dim != 0) {
        VI_CHECK(vi_rope(context, queries, positions, frequencies, factor, rows, heads, head_dim, rotary_dim, interleaved, stride));
        VI_CHECK(vi_rope(context, turned.data(), positions, frequencies, factor, rows, kv_heads, head_dim, rotary_dim, interleaved, static_cast<int32_t>(width)));
    }
    for (int r = 0; r < rows; r++)
        for (size_t i = 0; i < width; i++) {
            keys_out[size_t(r) * out_stride + i] = f32_to_f16(turned[r * width + i]);
            values_out[size_t(r) * out_stride + i] = f32_to_f16(values[size_t(r) * stride + i]);
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
