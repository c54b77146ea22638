// Mixtures of experts: the choice, products with the matrices of the chosen, their weighted sum. The pairs (row, choice) of one expert are the rows of one product,
// whose tiles are those of vi_linear, so that a pair's bits don't depend on the pairs beside it.
#include "common/expert_rules.h"
#include "linear.h"
#include "linear_packed.h"
#include <limits>

namespace {

// A piece of work of one thread: of the pairs first .. first + count - 1 in the order of experts, one block of outputs (and of rows).
struct Piece {
    int expert, first, count, out_block, row_block;
};

// Calls each(expert, first, count) for the experts that have pairs; their pairs follow each other in order [pairs], in the order of rows.
// An expert that doesn't exist is expert_count.
template <class Each> void by_expert(std::vector<int32_t>& order, const int32_t* experts, int expert_count, Each each) {
    const int pairs = static_cast<int>(order.size());
    const auto expert = [&](int pair) { return experts[pair] >= 0 && experts[pair] < expert_count ? experts[pair] : expert_count; };
    std::vector<int> next(expert_count + 2);
    for (int p = 0; p < pairs; p++) next[expert(p) + 1]++;
    for (int e = 0; e <= expert_count; e++) next[e + 1] += next[e];
    const std::vector<int> first = next;
    for (int p = 0; p < pairs; p++) order[next[expert(p)]++] = p;
    for (int e = 0; e <= expert_count; e++)
        if (first[e + 1] > first[e]) each(e, first[e], first[e + 1] - first[e]);
}

} // namespace

extern "C" int32_t vi_route(vi_context* context, int32_t* experts, float* weights, const float* logits, int32_t method, int32_t rows, int32_t expert_count,
                            int32_t top) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_route(context, __func__, experts, weights, logits, method, rows, expert_count, top));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_route(context, experts, weights, logits, method, rows, expert_count, top));
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * expert_count * (top + 8)))
    for (int r = 0; r < rows; r++) {
        const float* x = logits + size_t(r) * expert_count;
        int32_t* chosen = experts + size_t(r) * top;
        float* weight = weights + size_t(r) * top;
        bool taken[max_experts] = {};
        for (int k = 0; k < top; k++) {
            int best = -1;
            for (int e = 0; e < expert_count; e++)
                if (!taken[e] && (best < 0 || x[e] > x[best] || (std::isnan(x[best]) && !std::isnan(x[e])))) best = e;
            taken[best] = true, chosen[k] = best;
        }
        const float most = x[chosen[0]];
        double sum = 0;
        for (int k = 0; k < top; k++) sum += weight[k] = std::exp(x[chosen[k]] - most);
        if (method == VI_ROUTE_SOFTMAX) {
            sum = 0;
            for (int e = 0; e < expert_count; e++) sum += std::exp(x[e] - most);
        }
        for (int k = 0; k < top; k++) weight[k] = static_cast<float>(weight[k] / sum);
    }
    return VI_OK;
} VI_CATCH(context)

extern "C" int32_t vi_expert_linear(vi_context* context, float* out, const float* x, const void* weight, const vi_bf16* bias, const int32_t* experts,
                                    int32_t format, int32_t rows, int32_t top, int32_t expert_count, int32_t out_features, int32_t in_features,
                                    int32_t x_top) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_expert_linear(context, __func__, out, x, weight, experts, format, rows, top, expert_count, out_features, in_features, x_top));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_expert_linear(context, out, x, weight, bias, experts, format, rows, top, expert_count, out_features, in_features, x_top));

    const bool packed = is_packed(format);
    const int pairs = rows * top, panels = out_features / VI_PACKED_ROWS;
    std::vector<int32_t> order(pairs), x_rows(pairs);
    std::vector<Piece> pieces;
    by_expert(order, experts, expert_count, [&](int expert, int first, int count) {
        if (expert == expert_count) {
            for (int i = first; i < first + count; i++)
                std::fill_n(out + size_t(order[i]) * out_features, out_features, std::numeric_limits<float>::quiet_NaN());
            return;
        }
        const int outs = packed ? packed_step(count) * VI_PACKED_ROWS : block_outs(count), row_blocks = packed ? 1 : (count + block_rows - 1) / block_rows;
        for (int o = 0; o * outs < out_features; o++)
            for (int r = 0; r < row_blocks; r++) pieces.push_back({expert, first, count, o, r});
    });
    for (int i = 0; i < pairs; i++) x_rows[i] = x_top == 1 ? order[i] / top : order[i];
    const PackedRows rounded =
        packed ? round_rows(context, context->scratch(linear_packed_scratch(pairs, in_features)), x, x_rows.data(), pairs, in_features) : PackedRows{};

    const int64_t matrix = packed ? int64_t(out_features) * in_features / packed_inputs * block_bytes(format) : int64_t(out_features) * in_features * 2;
    const int count = static_cast<int>(pieces.size());
#pragma omp parallel for schedule(dynamic) num_threads(context->threads_for(int64_t(pairs) * out_features * in_features))
    for (int i = 0; i < count; i++) {
        const Piece& p = pieces[i];
        const uint8_t* own = static_cast<const uint8_t*>(weight) + p.expert * matrix;
        const vi_bf16* offsets = bias ? bias + size_t(p.expert) * out_features : nullptr;
        const int32_t* out_rows = order.data() + p.first;
        if (packed) {
            const int step = packed_step(p.count);
            multiply_packed({out, own, offsets, rounded.from(p.first, in_features), out_features, in_features, false, out_rows}, format, p.count,
                            p.out_block * step, std::min(panels, (p.out_block + 1) * step));
        } else {
            linear_block({out, x, reinterpret_cast<const vi_bf16*>(own), offsets, p.count, out_features, in_features, false, x_rows.data() + p.first, out_rows},
                         p.row_block, p.out_block);
        }
    }
    return VI_OK;
} VI_CATCH(context)

extern "C" int32_t vi_expert_sum(vi_context* context, float* residual, const float* x, const float* weights, int32_t rows, int32_t top, int32_t width) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_expert_sum(context, __func__, residual, x, weights, rows, top, width));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_expert_sum(context, residual, x, weights, rows, top, width));
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * top * width))
    for (int r = 0; r < rows; r++) {
        const float *from = x + size_t(r) * top * width, *weight = weights + size_t(r) * top;
        float* to = residual + size_t(r) * width;
        for (int i = 0; i < width; i++) {
            float sum = 0;
            for (int k = 0; k < top; k++) sum = std::fma(weight[k], from[size_t(k) * width + i], sum);
            to[i] += sum;
        }
    }
    return VI_OK;
} VI_CATCH(context)
