// A chunk of a sequence, of one KV head, for one row or for a few rows of the same slot: scores of all its positions, softmax, weighted sum of the values; and the
// sum of a row's chunks. For attention.cpp alone.
#pragma once
#include "attention.h"
#include "kernels.h"
#include "lookup.h"
#include "page.h"

namespace {

constexpr int chunk_tokens = 1024;
constexpr int chunk_pages = chunk_tokens / page_tokens;
constexpr int score_stride = chunk_tokens + 16; // so that the rows do not meet in one set of L1
constexpr int byte_stride = chunk_tokens + 64;
constexpr int word_blocks = 4; // pages whose components are looked up at a time: of 64 channels they fill 16 KB of L1
constexpr int max_queries = 64; // rows x query heads of a task
constexpr float infinity = std::numeric_limits<float>::infinity();

enum Source { Sinks, Pages, Ring };

struct Range {
    int begin, end;
    bool empty() const { return begin >= end; }
    Range operator&(Range other) const { return {std::max(begin, other.begin), std::min(end, other.end)}; }
};

struct Row { // sees positions begin .. end - 1, none of padding
    int slot, begin, end;
    int exact_begin, exact_end; // sinks end at exact_begin, the ring begins at exact_end
    Range range(Source source) const {
        return source == Sinks ? Range{begin, exact_begin} : source == Pages ? Range{exact_begin, exact_end} : Range{exact_end, end};
    }
    bool padding() const { return begin >= end; }
    Range chunks() const { return padding() ? Range{0, 0} : Range{begin / chunk_tokens, (end + chunk_tokens - 1) / chunk_tokens}; }
};

struct Group { // consecutive rows of one slot that are computed together
    int first, rows;
    Range chunks; // those in which a row sees something
    int chunk_count() const { return chunks.end - chunks.begin; }
};

struct Task {
    int group, head, chunk;
    int64_t partial; // where its partial results begin: m [queries], l [queries], acc [queries, head_dim]
};

struct Scratch { // of one thread
    alignas(64) float scores[max_queries * score_stride];
    alignas(64) float tile[max_head_dim * page_tokens];
    alignas(64) float block[max_queries * page_tokens];
    alignas(64) float scales[chunk_tokens];
    alignas(64) uint8_t codes[chunk_pages][max_head_dim / 4 * page_tokens]; // unpacked, where a code is less than a byte
#if VI_LOOKUP
    alignas(64) uint8_t tables[max_group][max_subs * score_table_bytes];
    float steps[max_group];
    alignas(64) uint8_t weights[max_group * 3 * byte_stride];
    alignas(64) int8_t components[4 * byte_stride];
    QueryDigits digits[max_group];
    alignas(64) uint8_t words[max_head_dim / 4 * word_blocks * 256];
#endif
    int64_t tables_of = -1; // row * kv_heads + head
};

struct Attention {
    const vi_kv_layer& layer;
    int heads, group, dim; // query heads, query heads of a KV head
    const float* queries;  // transformed, times query_factor; of a group of rows [kv_heads, rows, group, dim]
    const Row* rows;
    Scores scoring;

    const float* queries_of(const Group& g, int head) const { return queries + (int64_t(g.first) * heads + head * g.rows * group) * dim; }

    Range all(const Group& g, Source source, Range chunk) const {
        Range out{INT32_MAX, 0};
        for (int r = g.first; r < g.first + g.rows; r++) {
            const Range range = rows[r].range(source) & chunk;
            if (!range.empty()) out = {std::min(out.begin, range.begin), std::max(out.end, range.end)};
        }
        return out;
    }

    const vi_bf16* exact_row(const Group& g, Source source, bool value, int head, int position) const {
        const int slot = rows[g.first].slot;
        if (source == Sinks) return (value ? layer.value_sinks : layer.key_sinks) + layer.sink_row(slot, head, position);
        return (value ? layer.value_recent : layer.key_recent) + layer.recent_row(slot, head, position);
    }

    // Tiles of the sinks or the ring for positions start .. start + 63, zeros outside of range.
    void exact_key_tile(float* tile, const Group& g, Source source, int head, int start, Range range) const {
        for (int t = 0; t < page_tokens; t += kWidth) {
            const vi_bf16* own[kWidth]; // of these tokens, for finding a row in the ring takes a division
            for (int k = 0; k < kWidth; k++) {
                const int position = start + t + k;
                own[k] = position >= range.begin && position < range.end ? exact_row(g, source, false, head, position) : nullptr;
            }
            for (int i = 0; i < dim; i += kWidth) {
                Vec square[kWidth];
                for (int k = 0; k < kWidth; k++) square[k] = own[k] ? load_bf16(own[k] + i) : Vec{};
                transpose(square);
                for (int k = 0; k < kWidth; k++) store(tile + (i + k) * page_tokens + t, square[k]);
            }
        }
    }

    void exact_value_tile(float* tile, const Group& g, Source source, int head, int start, Range range) const {
        for (int t = 0; t < page_tokens; t++) {
            const bool inside = start + t >= range.begin && start + t < range.end;
            const vi_bf16* row = inside ? exact_row(g, source, true, head, start + t) : nullptr;
            for (int i = 0; i < dim; i += kWidth) store(tile + t * dim + i, inside ? load_bf16(row + i) : Vec{});
        }
    }

    // acc [group, dim] += the weights w [group, 64] of positions from start on times values, which lie in the ring as in a page, up to its end and from its begin.
    void ring_values(float* acc, const float* w, const Group& g, int head, int start, Range range) const {
        for (Range run = range; !run.empty(); run = {run.end, range.end}) {
            run.end = std::min(range.end, run.begin + layer.recent - run.begin % layer.recent);
            const vi_bf16* rows = exact_row(g, Ring, true, head, run.begin) - int64_t(run.begin - start) * dim;
            by_heads(group, [&]<int H, int Strip>(int h) {
                bf16_values<H, Strip>(acc + h * dim, dim, w + h * page_tokens, page_tokens, rows, rows, run.begin - start, run.end - start, dim);
            });
        }
    }

    const uint8_t* page(const Group& g, bool value, int head, int start) const {
        return layer.page(value, rows[g.first].slot, head, start);
    }

    // Fetches a page into L2 a stage ahead: values while their keys are scored, the next chunk's keys while values are summed.
    static void fetch(const uint8_t* page, const Quantizer& q) {
        for (int64_t i = 0; i < q.head_bytes(); i += 64) __builtin_prefetch(page + i, 0, 2);
    }

#if VI_LOOKUP
    // Codes, as bytes or of 10 bits as they are, and token scales of the pages that hold range; returns their number.
    int byte_codes(const uint8_t** codes, Scratch& s, const Group& g, bool value, int head, Range range) const {
        const Quantizer& q = value ? *layer.values : *layer.keys;
        int count = 0;
        for (int start = range.begin / page_tokens * page_tokens; start < range.end; start += page_tokens, count++) {
            const uint8_t* from = page(g, value, head, start);
            if (!value) fetch(page(g, true, head, start), *layer.values);
            else if (start + chunk_tokens < rows[g.first].exact_end) fetch(page(g, false, head, start + chunk_tokens), *layer.keys);
            codes[count] = q.bits >= 8 ? from : s.codes[count];
            for (int sub = 0; sub < q.subs() && q.bits < 8; sub++) read_codes(s.codes[count] + sub * page_tokens, from, q, sub);
            if (q.token_scale) read_scales(s.scales + count * page_tokens, token_scales(from, q));
        }
        return count;
    }

    // Scores of the pages that hold range, by tables.
    void table_scores_of(Scratch& s, const Group& g, int head, Range chunk, Range range) const {
        const Quantizer& q = *layer.keys;
        const float* query = queries_of(g, head);
        if (s.tables_of != int64_t(g.first) * layer.kv_heads + head) {
            s.tables_of = int64_t(g.first) * layer.kv_heads + head;
            for (int i = 0; i < group; i++)
                if (q.bits > 8) s.digits[i].set(query + i * dim, q, head);
                else s.steps[i] = score_tables(s.tables[i], query + i * dim, q, head);
        }
        const int begin = range.begin / page_tokens * page_tokens;
        const uint8_t* codes[chunk_pages];
        const int count = byte_codes(codes, s, g, false, head, range);
        float* const scores = s.scores + begin - chunk.begin;
        if (q.bits > 8) {
            for (int b = 0; b < count; b += word_blocks) {
                const int blocks = std::min(word_blocks, count - b);
                for (int sub = 0; sub < q.subs(); sub++)
                    look_up_words(s.words + sub * word_blocks * 256, s.components, byte_stride, q.components_of(head, sub), codes + b, blocks, q.subs(), sub);
                for (int i = 0; i < group; i++)
                    for (int c = 0; c < blocks; c++)
                        word_scores(scores + i * score_stride + (b + c) * page_tokens, s.words + c * 256, word_blocks * 256, s.digits[i],
                                    q.token_scale ? s.scales + (b + c) * page_tokens : nullptr, q.subs());
            }
        } else {
            for (int i = 0; i < group; i++) // one query's tables stay in L1
                for (int b = 0; b < count; b += 2) {
                    float* to = scores + i * score_stride + b * page_tokens;
                    const float* scales = q.token_scale ? s.scales + b * page_tokens : nullptr;
                    if (b + 1 < count) table_scores<2>(to, s.tables[i], codes + b, scales, q.subs(), s.steps[i]);
                    else table_scores<1>(to, s.tables[i], codes + b, scales, q.subs(), s.steps[i]);
                }
        }
        for (int i = 0; i < group; i++) {
            float* row = scores + i * score_stride;
            std::fill(row, row + range.begin - begin, -infinity);
            std::fill(row + range.end - begin, row + count * page_tokens, -infinity);
        }
    }

    void table_values_of(Scratch& s, float* acc, const Group& g, int head, Range chunk, Range range) const {
        const Quantizer& q = *layer.values;
        const int begin = range.begin / page_tokens * page_tokens;
        const uint8_t* codes[chunk_pages];
        const int count = byte_codes(codes, s, g, true, head, range);
        float units[max_group];
        for (int i = 0; i < group; i++) {
            alignas(64) float w[chunk_tokens];
            const float* from = s.scores + i * score_stride + begin - chunk.begin;
            std::fill(w, w + range.begin - begin, 0.0f);
            for (int t = range.begin - begin; t < range.end - begin; t++) w[t] = q.token_scale ? from[t] * s.scales[t] : from[t];
            std::fill(w + range.end - begin, w + count * page_tokens, 0.0f);
            units[i] = weight_planes(s.weights + i * 3 * byte_stride, byte_stride, w, count * page_tokens);
        }
        table_values(acc, s.components, s.weights, byte_stride, units, group, codes, count, q, head);
    }
#endif

    // s.scores[query][position - chunk.begin], -infinity where a row does not look.
    void scores(Scratch& s, const Group& g, int head, Range chunk) const {
        const Quantizer& q = *layer.keys;
        const float* query = queries_of(g, head);
        const int count = g.rows * group, width = (chunk.end - chunk.begin + page_tokens - 1) / page_tokens * page_tokens;
        for (Source source : {Pages, Sinks, Ring}) {
            const Range range = all(g, source, chunk);
            if (range.empty()) continue;
#if VI_LOOKUP
            if (source == Pages && q.bits <= 10 && g.rows == 1) {
                table_scores_of(s, g, head, chunk, range);
                continue;
            }
#endif
            for (int start = range.begin / page_tokens * page_tokens; start < range.end; start += page_tokens) {
                const uint8_t* keys = source == Pages ? page(g, false, head, start) : nullptr;
                if (keys && g.rows == 1 && q.codebook_parts <= 1) {
                    page_scores(s.block, page_tokens, query, group, keys, page(g, true, head, start), q, head);
                    if (layer.values->coded()) fetch(page(g, true, head, start), *layer.values);
                } else {
                    if (keys) key_tile(s.tile, keys, q, head);
                    else exact_key_tile(s.tile, g, source, head, start, range);
                    multiply(s.block, page_tokens, query, dim, s.tile, page_tokens, count, page_tokens, dim, false);
                }
                const bool scaled = keys && q.token_scale;
                if (scaled) read_scales(s.scales, token_scales(keys, q));
                for (int i = 0; i < count; i++) {
                    const Range own = rows[g.first + i / group].range(source) & Range{start, std::min(start + page_tokens, chunk.end)};
                    float *to = s.scores + i * score_stride - chunk.begin, *from = s.block + i * page_tokens - start;
                    for (int t = own.begin; t < own.end; t++) to[t] = scaled ? from[t] * s.scales[t - start] : from[t];
                }
            }
        }
        for (int i = 0; i < count; i++) {
            const Row& row = rows[g.first + i / group];
            float* to = s.scores + i * score_stride;
            if (scoring.soft_cap > 0) cap_scores(to, width, scoring.cap());
            std::fill(to, to + std::clamp(row.begin - chunk.begin, 0, width), -infinity);
            std::fill(to + std::clamp(row.end - chunk.begin, 0, width), to + width, -infinity);
        }
    }

    // acc [queries, dim] = sum over positions of weight and value, the weights in s.scores.
    void values(Scratch& s, float* acc, const Group& g, int head, Range chunk) const {
        const Quantizer& q = *layer.values;
        const int count = g.rows * group;
        std::fill_n(acc, count * dim, 0.0f);
        for (Source source : {Pages, Sinks, Ring}) {
            const Range range = all(g, source, chunk);
            if (range.empty()) continue;
#if VI_LOOKUP
            if (source == Pages && q.bits <= 10 && g.rows == 1) {
                table_values_of(s, acc, g, head, chunk, range);
                continue;
            }
#endif
            for (int start = range.begin / page_tokens * page_tokens; start < range.end; start += page_tokens) {
                const Range inside = range & Range{start, start + page_tokens};
                const uint8_t* values = source == Pages ? page(g, true, head, start) : nullptr;
                const bool scaled = values && q.token_scale, direct = values && g.rows == 1 && q.codebook_parts <= 1;
                if (scaled) read_scales(s.scales, token_scales(values, q));
                for (int i = 0; i < count && !(direct && !scaled); i++) { // the weights of this source
                    Range own = rows[g.first + i / group].range(source) & inside;
                    if (own.empty()) own = {start, start};
                    float *to = s.block + i * page_tokens - start, *from = s.scores + i * score_stride - chunk.begin;
                    std::fill(to + start, to + own.begin, 0.0f);
                    for (int t = own.begin; t < own.end; t++) to[t] = scaled ? from[t] * s.scales[t - start] : from[t];
                    std::fill(to + own.end, to + start + page_tokens, 0.0f);
                }
                if (direct) {
                    const float* w = scaled ? s.block : s.scores + start - chunk.begin;
                    const int ahead = start + chunk_tokens;
                    const uint8_t* next = ahead < rows[g.first].exact_end ? page(g, false, head, ahead) : values;
                    if (layer.keys->coded()) fetch(next, *layer.keys);
                    page_values(acc, w, scaled ? page_tokens : score_stride, group, values, next, q, head, inside.begin - start, inside.end - start);
                    continue;
                }
                if (source == Ring && g.rows == 1) {
                    ring_values(acc, s.block, g, head, start, inside);
                    continue;
                }
                if (values) value_tile(s.tile, values, q, head, inside.begin - start, inside.end - start);
                else exact_value_tile(s.tile, g, source, head, start, range);
                multiply(acc, dim, s.block, page_tokens, s.tile, dim, count, dim, page_tokens, true);
            }
        }
    }

    void run(Scratch& s, float* partial, const Group& g, const Task& task) const {
        const int queries_count = g.rows * group;
        Range seen{INT32_MAX, 0};
        for (int r = g.first; r < g.first + g.rows; r++) seen = {std::min(seen.begin, rows[r].begin), std::max(seen.end, rows[r].end)};
        // What no row sees is left out, by whole pages, so that a row's sums run in the same lanes.
        const Range chunk{std::max(task.chunk * chunk_tokens, seen.begin / page_tokens * page_tokens), std::min(seen.end, (task.chunk + 1) * chunk_tokens)};
        scores(s, g, task.head, chunk);
        const int width = (chunk.end - chunk.begin + page_tokens - 1) / page_tokens * page_tokens;
        for (int i = 0; i < queries_count; i++) {
            constexpr int strip = page_tokens / kWidth; // independent chains
            float* row = s.scores + i * score_stride;
            Vec most[strip], total[strip];
            for (int v = 0; v < strip; v++) most[v] = splat(-infinity), total[v] = Vec{};
            for (int t = 0; t < width; t += page_tokens)
#pragma GCC unroll 8
                for (int v = 0; v < strip; v++) {
                    const Vec x = load(row + t + v * kWidth);
                    most[v] = x > most[v] ? x : most[v];
                }
            float m = -infinity;
            for (int v = 0; v < strip; v++) m = std::max(m, maximum(most[v]));
            // m is -infinity where the row sees nothing of this chunk, or all its scores are NaN
            const Vec shift = splat(m == -infinity ? 0.0f : m);
            for (int t = 0; t < width; t += page_tokens)
#pragma GCC unroll 8
                for (int v = 0; v < strip; v++) {
                    const Vec x = exp2_vec(load(row + t + v * kWidth) - shift);
                    total[v] += x;
                    store(row + t + v * kWidth, x);
                }
            partial[i] = m;
            for (int v = 1; v < strip; v++) total[0] += total[v];
            partial[queries_count + i] = sum(total[0]);
        }
        values(s, partial + 2 * queries_count, g, task.head, chunk);
    }

    // Puts the chunks of one query together: M = max m_c, out = sum 2^(m_c - M) acc_c / sum 2^(m_c - M) l_c, c in order; 2^(sink - M) is one more term below.
    float merge(float* out, const float* results, const Task* tasks, int chunks, int queries_count, int query, float sink) const {
        float most = -infinity, total = 0;
        for (int c = 0; c < chunks; c++) most = std::max(most, results[tasks[c].partial + query]);
        std::fill_n(out, dim, 0.0f);
        for (int c = 0; c < chunks; c++) {
            const float* partial = results + tasks[c].partial;
            const float factor = most == -infinity ? 1.0f : std::exp2(partial[query] - most);
            const float* acc = partial + 2 * queries_count + query * dim;
            total += factor * partial[queries_count + query];
            for (int i = 0; i < dim; i++) out[i] += factor * acc[i];
        }
        total += std::exp2(sink - (most == -infinity ? 0.0f : most));
        const float inverse = 1 / total;
        for (int i = 0; i < dim; i++) out[i] *= inverse;
        return most + std::log2(total);
    }
};

} // namespace
