// out = y W^T + bias, y made of x in one go before, and what becomes of it.
#include "linear.h"
#include "linear_packed.h"

extern "C" int32_t vi_linear(vi_context* context, void* to, const void* from, const void* weight, const vi_bf16* bias, const float* norm,
                             float epsilon, int32_t format, int32_t output, int32_t x_dtype, int32_t out_dtype, int32_t rows, int32_t out_features,
                             int32_t in_features) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_linear(context, __func__, to, from, weight, norm, epsilon, format, output, x_dtype, out_dtype, rows, out_features, in_features));
    if (x_dtype != VI_F32 || out_dtype != VI_F32) return context->fail(VI_UNSUPPORTED, "%s: the CPU library takes and gives f32 alone", __func__);
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_linear(context, to, from, weight, bias, norm, epsilon, format, output, x_dtype, out_dtype, rows, out_features, in_features));
    float* out = static_cast<float*>(to);
    const float* x = static_cast<const float*>(from);

    const bool packed = is_packed(format), accumulate = output == VI_OUTPUT_SUM;
    const size_t normed_count = norm ? size_t(rows) * in_features : 0, pairs_count = output == VI_OUTPUT_SILU ? size_t(rows) * out_features : 0;
    float* const normed = context->scratch(normed_count + pairs_count + (packed ? linear_packed_scratch(rows, in_features) : 0));
    float* const pairs = normed + normed_count;
    if (norm) {
        const int32_t status = vi_rmsnorm(context, normed, nullptr, x, norm, epsilon, rows, in_features);
        if (status != VI_OK) return status;
        x = normed;
    }
    float* const gated = out;
    if (output == VI_OUTPUT_SILU) out = pairs;
    const auto finish = [&] { return output == VI_OUTPUT_SILU ? vi_gate(context, gated, pairs, VI_SILU, rows, out_features / 2) : VI_OK; };
    if (packed) {
        linear_packed(context, out, x, weight, bias, format, accumulate, rows, out_features, in_features, pairs + pairs_count);
        return finish();
    }
    const Linear l{out, x, static_cast<const vi_bf16*>(weight), bias, rows, out_features, in_features, accumulate};
    const int row_blocks = (rows + block_rows - 1) / block_rows, out_blocks = (out_features + block_outs(rows) - 1) / block_outs(rows);
#pragma omp parallel for collapse(2) schedule(static) num_threads(context->threads_for(int64_t(rows) * out_features * in_features))
    for (int o = 0; o < out_blocks; o++)
        for (int r = 0; r < row_blocks; r++) linear_block(l, r, o);
    return finish();
} VI_CATCH(context)
