// out[r] = table[ids[r]].
#include "context.h"
#include <limits>

extern "C" int32_t vi_embedding(vi_context* context, float* out, const int32_t* ids, const vi_bf16* table, int32_t rows, int32_t width,
                                int32_t vocabulary) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_embedding(context, __func__, out, ids, table, rows, width, vocabulary));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_embedding(context, out, ids, table, rows, width, vocabulary));
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * width))
    for (int r = 0; r < rows; r++) {
        float* row = out + size_t(r) * width;
        const int32_t id = ids[r];
        if (id < 0 || id >= vocabulary) {
            std::fill(row, row + width, std::numeric_limits<float>::quiet_NaN());
            continue;
        }
        const vi_bf16* entry = table + size_t(id) * width;
        for (int i = 0; i < width; i++) row[i] = bf16_to_f32(entry[i]);
    }
    return VI_OK;
} VI_CATCH(context)
