// Exact causal attention of a prompt, and over the tokens that the cache already holds.
//
// Flash attention (arXiv 2205.14135): a task is a block of up to 64 queries of one KV head, its rows times the head's query heads; it goes
// through the keys 64 at a time with an online softmax. The keys' tile is transposed, so that both products run along registers; a tile of bf16
// values is widened first.
#include "attention.h"
#include "tile.h"
#include <cmath>

namespace {

constexpr int max_queries = 64;
constexpr float infinity = std::numeric_limits<float>::infinity();

inline Vec load_row(const float* p) { return load(p); }
inline Vec load_row(const vi_bf16* p) { return load_bf16(p); }

// tile [dim][64]: `count` keys transposed, zeros behind them.
template <class T> void transposed_tile(float* tile, const T* keys, int64_t stride, int count, int dim) {
    for (int t = 0; t < page_tokens; t += kWidth)
        for (int i = 0; i < dim; i += kWidth) {
            Vec square[kWidth];
            for (int k = 0; k < kWidth; k++) square[k] = t + k < count ? load_row(keys + (t + k) * stride + i) : Vec{};
            transpose(square);
            for (int k = 0; k < kWidth; k++) store(tile + (i + k) * page_tokens + t, square[k]);
        }
}

template <class T> struct Prompt {
    const float* q;
    const T *keys, *values;
    Scores scores;
    int first, rows, window, heads, kv_heads, dim; // window: of the sliding window, INT32_MAX without
    int64_t q_stride, kv_stride;

    // Rows row .. row + count - 1 of one KV head: their outputs, and log2 sum 2^score, go to out [rows, heads, dim] and lse [rows, heads].
    void block(float* out, float* lse, int row, int count, int head) const {
        const int group = heads / kv_heads, queries = count * group;
        const float factor = scores.query_factor();
        alignas(64) float query[max_queries * max_head_dim];
        alignas(64) float tile[max_head_dim * page_tokens];
        alignas(64) float score[max_queries * page_tokens];
        alignas(64) float acc[max_queries * max_head_dim];
        float most[max_queries], total[max_queries];
        for (int i = 0; i < queries; i++) {
            const float* from = q + (row + i / group) * q_stride + (head * group + i % group) * int64_t(dim);
            for (int d = 0; d < dim; d++) query[i * dim + d] = from[d] * factor;
            most[i] = -infinity, total[i] = 0;
        }
        std::fill_n(acc, queries * dim, 0.0f);
        const int end = first + row + count; // keys seen by the last row
        const int begin = std::max(0, first + row + 1 - window) / page_tokens * page_tokens; // of what the first row sees
        for (int start = begin; start < end; start += page_tokens) {
            const int width = std::min(page_tokens, end - start);
            transposed_tile(tile, keys + start * kv_stride + head * int64_t(dim), kv_stride, width, dim);
            multiply(score, page_tokens, query, dim, tile, page_tokens, queries, page_tokens, dim, false);
            for (int i = 0; i < queries; i++) {
                float* x = score + i * page_tokens;
                const int seen = std::max(0, first + row + i / group + 1 - start), hidden = seen - window;
                if (scores.soft_cap > 0) cap_scores(x, page_tokens, scores.cap());
                if (seen < page_tokens) std::fill(x + seen, x + page_tokens, -infinity);
                if (hidden > 0) std::fill(x, x + std::min(hidden, page_tokens), -infinity);
                Vec top = splat(most[i]);
                for (int t = 0; t < page_tokens; t += kWidth) {
                    const Vec v = load(x + t);
                    top = v > top ? v : top;
                }
                const float m = maximum(top);
                const Vec shift = splat(m == -infinity ? 0.0f : m);
                Vec sums = Vec{};
                for (int t = 0; t < page_tokens; t += kWidth) {
                    const Vec v = exp2_vec(load(x + t) - shift);
                    sums += v;
                    store(x + t, v);
                }
                if (m > most[i] && start > begin) {
                    const float shrink = std::exp2(most[i] - m);
                    total[i] *= shrink;
                    for (int d = 0; d < dim; d += kWidth) store(acc + i * dim + d, load(acc + i * dim + d) * shrink);
                }
                most[i] = m;
                total[i] += sum(sums);
            }
            const T* from = values + start * kv_stride + head * int64_t(dim);
            if constexpr (std::is_same_v<T, float>) {
                multiply(acc, dim, score, page_tokens, from, kv_stride, queries, dim, width, true);
            } else {
                for (int t = 0; t < width; t++)
                    for (int d = 0; d < dim; d += kWidth) store(tile + t * dim + d, load_row(from + t * kv_stride + d));
                multiply(acc, dim, score, page_tokens, tile, dim, queries, dim, width, true);
            }
        }
        for (int i = 0; i < queries; i++) {
            const int64_t at = int64_t(row + i / group) * heads + head * group + i % group;
            const float inverse = 1 / total[i];
            for (int d = 0; d < dim; d++) out[at * dim + d] = acc[i * dim + d] * inverse;
            lse[at] = most[i] + std::log2(total[i]);
        }
    }
};

} // namespace

extern "C" int32_t vi_attention_prefill(vi_context* context, void* to, const float* q, const void* keys, const void* values, const vi_kv_layer* layer,
                                        const float* sink_logits, float scale, float soft_cap, int32_t slot, int32_t past, int32_t first, int32_t rows,
                                        int32_t sliding_window, int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t q_stride, int32_t kv_stride, int32_t kv_dtype, int32_t out_dtype) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_attention_prefill(context, __func__, to, q, keys, values, shape_of(layer), soft_cap, slot, past, first, rows, sliding_window, heads, kv_heads, head_dim, q_stride,
                                     kv_stride, kv_dtype, out_dtype));
    if (out_dtype != VI_F32) return context->fail(VI_UNSUPPORTED, "%s: the CPU library gives f32 alone", __func__);
    if (kv_dtype == VI_F16) return context->fail(VI_UNSUPPORTED, "%s: the CPU library reads keys and values as f32 and bf16", __func__);
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_attention_prefill(context, to, q, keys, values, layer, sink_logits, scale, soft_cap, slot, past, first, rows, sliding_window, heads, kv_heads, head_dim,
                                            q_stride, kv_stride, kv_dtype, out_dtype));
    float* out = static_cast<float*>(to);
    const int64_t count = int64_t(rows) * heads;
    const int window = sliding_window ? sliding_window : INT32_MAX;
    const Scores scores{scale, soft_cap, sink_logits};
    std::vector<float> lse(count), past_out, past_lse;
    if (past > 0) { // first, for it may refuse
        past_out.resize(count * head_dim), past_lse.resize(count);
        const std::vector<int32_t> slots(rows, slot), positions(rows, past - 1);
        std::vector<int32_t> lowest(rows);
        for (int r = 0; r < rows; r++) lowest[r] = std::max(0, past + first + r + 1 - window);
        VI_CHECK(attend(context, __func__, past_out.data(), past_lse.data(), q, layer, slots.data(), positions.data(), lowest.data(), {scale, soft_cap, nullptr},
                        rows, heads, q_stride));
    }
    const int block = max_queries / (heads / kv_heads), blocks = (rows + block - 1) / block;
    const int threads = context->threads_for(count * std::min(first + rows / 2, window) * head_dim);
    const auto run = [&](const auto* k, const auto* v) {
        const Prompt prompt{q, k, v, scores, first, rows, window, heads, kv_heads, head_dim, q_stride, kv_stride};
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int task = blocks * kv_heads - 1; task >= 0; task--) { // the last rows see most: first
            const int row = task / kv_heads * block;
            prompt.block(out, lse.data(), row, std::min(block, rows - row), task % kv_heads);
        }
    };
    if (kv_dtype == VI_F32) run(static_cast<const float*>(keys), static_cast<const float*>(values));
    else run(static_cast<const vi_bf16*>(keys), static_cast<const vi_bf16*>(values));
    if (past == 0 && !sink_logits) return VI_OK;
    // out = (2^lse out + 2^past_lse past_out) / (2^lse + 2^past_lse + 2^sink)
#pragma omp parallel for num_threads(context->threads_for(count * head_dim))
    for (int64_t i = 0; i < count; i++) {
        const float sink = scores.sink(static_cast<int>(i % heads)), before = past > 0 ? past_lse[i] : -infinity;
        const float weight = 1 / (1 + std::exp2(before - lse[i]) + std::exp2(sink - lse[i]));
        const float past_weight = before == -infinity ? 0.0f : 1 / (1 + std::exp2(lse[i] - before) + std::exp2(sink - before));
        for (int d = 0; d < head_dim; d++) {
            float& x = out[i * head_dim + d];
            x = weight * x + (past > 0 ? past_weight * past_out[i * head_dim + d] : 0.0f);
        }
    }
    return VI_OK;
} VI_CATCH(context)
