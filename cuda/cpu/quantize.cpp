// A layer's memory, writing tokens into it and reading them back.
#include "page.h"
#include <cmath>

namespace {

// u of the token scale of x~ coded as the codewords in c.
uint8_t scale_code(const float* x, const float* c, int n) {
    double product = 0, norm = 0;
    for (int i = 0; i < n; i++) product += double(x[i]) * c[i], norm += double(c[i]) * c[i];
    if (!(norm > 0) || !(product > 0)) return 0;
    return static_cast<uint8_t>(std::clamp(std::round(16 * std::log2(product / norm)) + 128, 0.0, 255.0));
}

// Codes of a vector's sub-vectors.
void nearest_codes(int32_t* codes, const float* x, const Quantizer& q, int head) {
    if (q.codebook_parts == 1) return nearest(q.books[q.book(head, 0)], x, q.sub_dim, q.subs(), codes);
    for (int s = 0; s < q.subs(); s++) codes[s] = nearest(q.books[q.book(head, s)], x + s * q.sub_dim);
}

// Codes of the transformed vector x; returns u (0 where there is no token scale).
uint8_t encode(int32_t* codes, const float* x, const Quantizer& q, int head) {
    const int dim = q.head_dim;
    if (!q.token_scale) {
        nearest_codes(codes, x, q, head);
        return 0;
    }
    double squares = 0;
    for (int i = 0; i < dim; i++) squares += double(x[i]) * x[i];
    const float rms = static_cast<float>(std::sqrt(squares / dim));
    float scaled[max_head_dim] = {}, words[max_head_dim];
    for (int i = 0; i < dim; i++) scaled[i] = rms > 0 ? x[i] / rms : 0;
    nearest_codes(codes, scaled, q, head);
    if (!(rms > 0)) return 0;
    for (int s = 0; s < q.subs(); s++) std::copy_n(q.codebook(head, s) + int64_t(codes[s]) * q.sub_dim, q.sub_dim, words + s * q.sub_dim);
    return scale_code(x, words, dim);
}

void write_bf16(vi_bf16* out, const float* x, int n) {
    for (int i = 0; i < n; i++) out[i] = f32_to_bf16(x[i]);
}

} // namespace

extern "C" {

int32_t vi_kv_layer_create(vi_context* context, uint8_t* out, const vi_quantizer* keys, const vi_quantizer* values, void* key_pages,
                           void* value_pages, vi_bf16* key_recent, vi_bf16* value_recent, vi_bf16* key_sinks, vi_bf16* value_sinks,
                           const int32_t* page_table, const int32_t* exact_from, int32_t page_count, int32_t slots, int32_t max_pages,
                           int32_t sinks, int32_t window, int32_t recent) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_kv_layer_create(context, __func__, out, shape_of(keys), shape_of(values), key_pages, value_pages, key_recent, value_recent, key_sinks,
                                   value_sinks, page_table, exact_from, page_count, slots, max_pages, sinks, window, recent));
    const Quantizer& q = *keys->quantizer;
    const auto layer = new vi_kv_layer{{q.kv_heads, q.head_dim, page_count, slots, max_pages, sinks, window, recent}, keys->quantizer, values->quantizer,
                                       static_cast<uint8_t*>(key_pages), static_cast<uint8_t*>(value_pages), key_recent, value_recent, key_sinks, value_sinks,
                                       page_table, exact_from};
    std::memcpy(out, &layer, sizeof layer);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_kv_layer_destroy(vi_context* context, vi_kv_layer* layer) {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    delete layer;
    return VI_OK;
}

int32_t vi_quantize(vi_context* context, vi_kv_layer* layer, const float* keys, const float* values, const int32_t* slots, const int32_t* positions,
                    int32_t rows, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_quantize(context, __func__, shape_of(layer), keys, values, slots, positions, rows, stride));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_quantize(context, layer, keys, values, slots, positions, rows, stride));
    const int heads = layer->kv_heads, dim = layer->head_dim;
    std::vector<int32_t> lowest(layer->slots, INT32_MAX), highest(layer->slots, -1); // positions of this call that go to the ring
    for (int r = 0; r < rows; r++) {
        const int slot = slots[r], position = positions[r];
        if (position < 0) continue; // padding
        VI_CHECK(check_position(context, __func__, layer, r, slot, position));
        if (!layer->sliding()) VI_CHECK(check_page(context, __func__, layer, slot, position));
        if (layer->recent && position >= layer->exact_from[slot]) {
            lowest[slot] = std::min(lowest[slot], position), highest[slot] = std::max(highest[slot], position);
            VI_REQUIRE(context, highest[slot] - lowest[slot] < layer->recent,
                       "%s: slot %d: rows from position %d to %d are more than the ring of %d holds: raise exact_from or call for fewer rows",
                       __func__, slot, lowest[slot], highest[slot], layer->recent);
        }
    }
    const Quantizer* sides[2] = {layer->keys.get(), layer->values.get()};
    const int most = std::max(sides[0]->subs(), sides[1]->subs());
    const int64_t tasks = int64_t(rows) * heads * 2; // (row, head, side)
    std::vector<int32_t> codes(tasks * most);
    std::vector<uint8_t> scales(tasks);
    std::vector<float> vectors(tasks * dim);
    int64_t work = 0;
    for (auto q : sides) work += q->coded() ? int64_t(rows) * heads * dim << q->bits : int64_t(rows) * heads * dim;
#pragma omp parallel for num_threads(context->threads_for(work))
    for (int64_t task = 0; task < tasks; task++) {
        const int side = task & 1, head = task / 2 % heads, r = static_cast<int>(task / 2 / heads);
        if (positions[r] < 0) continue;
        const Quantizer& q = *sides[side];
        float* to = vectors.data() + task * dim;
        q.transform->apply(to, 0, (side ? values : keys) + int64_t(r) * stride + int64_t(head) * dim, 0, 1, head, VI_TRANSFORM_FORWARD);
        if (q.coded()) scales[task] = encode(codes.data() + task * most, to, q, head);
    }
    // Tokens of a page share bytes, heads do not: one thread writes all rows of a head.
#pragma omp parallel for num_threads(context->threads_for(tasks * dim))
    for (int task = 0; task < heads * 2; task++) {
        const int side = task & 1, head = task / 2;
        const Quantizer& q = *sides[side];
        vi_bf16 *ring = side ? layer->value_recent : layer->key_recent, *sinks = side ? layer->value_sinks : layer->key_sinks;
        for (int r = 0; r < rows; r++) {
            const int slot = slots[r], position = positions[r], token = position % page_tokens;
            if (position < 0) continue;
            const int64_t i = (int64_t(r) * heads + head) * 2 + side;
            const float* x = vectors.data() + i * dim;
            uint8_t* const page = layer->sliding() ? nullptr : layer->page(side, slot, head, position);
            vi_bf16* const plain = reinterpret_cast<vi_bf16*>(page);
            if (page && q.coded()) {
                write_codes(page, q, token, codes.data() + i * most);
                if (q.token_scale) token_scales(page, q)[token] = scales[i];
            } else if (page && side) {
                write_bf16(plain + token * dim, x, dim);
            } else if (page) {
                for (int d = 0; d < dim; d++) plain[d * page_tokens + token] = f32_to_bf16(x[d]);
            }
            if (position < layer->sinks) write_bf16(sinks + layer->sink_row(slot, head, position), x, dim);
            if (layer->recent && position >= layer->exact_from[slot]) write_bf16(ring + layer->recent_row(slot, head, position), x, dim);
        }
    }
    return VI_OK;
} VI_CATCH(context)

int32_t vi_rope_quantize(vi_context* context, vi_kv_layer* layer, float* queries, float* keys, const float* values, const int32_t* slots,
                         const int32_t* positions, const float* frequencies, int32_t rows, int32_t heads, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_rope_quantize(context, __func__, shape_of(layer), queries, keys, values, slots, positions, frequencies, rows, heads, stride));
    if (rows == 0) return VI_OK;
    VI_CHECK(vi_rope(context, queries, positions, frequencies, 1, rows, heads, layer->head_dim, layer->head_dim, 0, stride));
    VI_CHECK(vi_rope(context, keys, positions, frequencies, 1, rows, layer->kv_heads, layer->head_dim, layer->head_dim, 0, stride));
    return vi_quantize(context, layer, keys, values, slots, positions, rows, stride);
} VI_CATCH(context)

int32_t vi_dequantize(vi_context* context, float* keys, float* values, const vi_kv_layer* layer, int32_t slot, int32_t first, int32_t count) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_dequantize(context, __func__, keys, values, shape_of(layer), slot, first, count));
    if (count == 0) return VI_OK;
    VI_RECORD(context, vi_dequantize(context, keys, values, layer, slot, first, count));
    for (int page = first / page_tokens; page <= (first + count - 1) / page_tokens; page++)
        VI_CHECK(check_page(context, __func__, layer, slot, page * page_tokens));
    const int heads = layer->kv_heads, dim = layer->head_dim;
    const int first_page = first / page_tokens, pages = (first + count - 1) / page_tokens - first_page + 1;
#pragma omp parallel for num_threads(context->threads_for(int64_t(count) * heads * (layer->keys->transform->work() + layer->values->transform->work())))
    for (int task = 0; task < pages * heads * 2; task++) {
        const int side = task & 1, head = task / 2 % heads, start = (first_page + task / 2 / heads) * page_tokens;
        const Quantizer& q = side ? *layer->values : *layer->keys;
        const uint8_t* page = layer->page(side, slot, head, start);
        const int begin = std::max(first - start, 0), end = std::min(first + count - start, page_tokens);
        float tile[page_tokens * max_head_dim], scales[page_tokens];
        if (side) value_tile(tile, page, q, head, begin, end);
        else key_tile(tile, page, q, head);
        if (q.token_scale) read_scales(scales, token_scales(page, q));
        float* out = (side ? values : keys) + (int64_t(start + begin - first) * heads + head) * dim;
        for (int t = begin; t < end; t++)
            for (int i = 0; i < dim; i++)
                out[(t - begin) * heads * dim + i] = (side ? tile[t * dim + i] : tile[i * page_tokens + t]) * (q.token_scale ? scales[t] : 1.0f);
        q.transform->apply(out, heads * dim, out, heads * dim, end - begin, head, VI_TRANSFORM_INVERSE);
    }
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
