// Nearest codewords, and the statistic of smooth factors.
#include "nearest.h"

extern "C" {

int32_t vi_codebook_assign(vi_context* context, int32_t* codes, const float* points, const float* codebook, int32_t count, int32_t dim,
                           int32_t codewords) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_codebook_assign(context, __func__, codes, points, codebook, count, dim, codewords));
    if (count == 0) return VI_OK;
    VI_RECORD(context, vi_codebook_assign(context, codes, points, codebook, count, dim, codewords));
    const Codebook book(codebook, codewords, dim);
    constexpr int block = 64;
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(count) * dim * codewords / 8))
    for (int n = 0; n < count; n += block) nearest(book, points + size_t(n) * dim, dim, std::min(block, count - n), codes + n);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_channel_max(vi_context* context, float* maxima, const float* x, int32_t rows, int32_t width, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_channel_max(context, __func__, maxima, x, rows, width, stride));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_channel_max(context, maxima, x, rows, width, stride));
    constexpr int block = 64; // channels
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * width))
    for (int first = 0; first < width; first += block) {
        const int last = std::min(width, first + block);
        for (int r = 0; r < rows; r++) {
            const float* row = x + size_t(r) * stride;
            for (int i = first; i < last; i++) {
                const float size = __builtin_fabsf(row[i]);
                maxima[i] = size > maxima[i] ? size : maxima[i];
            }
        }
    }
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
