// Nearest codewords, and the statistic of smooth factors.
#include "nearest.h"

extern "C" {

int32_t vi_codebook_assign(vi_context* context, int32_t* codes, const float* points, const float* codebook, int32_t count, int32_t dim,
                           int32_t codewords) {
    VI_CONTEXT(context);
    VI_TRY {
        VI_REQUIRE(context, count >= 0, "vi_codebook_assign: count is %d, not at least 0", count);
        VI_REQUIRE(context, dim >= 1 && dim <= 16, "vi_codebook_assign: dim is %d, not in 1..16", dim);
        VI_REQUIRE(context, codewords >= 1 && codewords <= 65536, "vi_codebook_assign: codewords is %d, not in 1..65536", codewords);
        if (count == 0) return VI_OK;
        VI_POINTER(context, "vi_codebook_assign", codes);
        VI_POINTER(context, "vi_codebook_assign", points);
        VI_POINTER(context, "vi_codebook_assign", codebook);
        VI_RECORD(context, vi_codebook_assign(context, codes, points, codebook, count, dim, codewords));
        const Codebook book(codebook, codewords, dim);
        constexpr int block = 64;
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(count) * dim * codewords / 8))
        for (int n = 0; n < count; n += block) nearest(book, points + size_t(n) * dim, dim, std::min(block, count - n), codes + n);
        return VI_OK;
    }
    VI_CATCH(context, "vi_codebook_assign")
}

int32_t vi_channel_max(vi_context* context, float* maxima, const float* x, int32_t rows, int32_t width, int32_t stride) {
    VI_CONTEXT(context);
    VI_TRY {
        VI_REQUIRE(context, rows >= 0, "vi_channel_max: rows is %d, not at least 0", rows);
        VI_REQUIRE(context, width >= 1, "vi_channel_max: width is %d, not at least 1", width);
        VI_REQUIRE(context, stride >= width, "vi_channel_max: stride is %d, less than width %d", stride, width);
        if (rows == 0) return VI_OK;
        VI_POINTER(context, "vi_channel_max", maxima);
        VI_POINTER(context, "vi_channel_max", x);
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
    }
    VI_CATCH(context, "vi_channel_max")
}

} // extern "C"
