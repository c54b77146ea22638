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
                           int32_t sinks, int32_t window, int32_t recent) {
    const char* name = "vi_kv_layer_create";
    VI_NOT_RECORDED(context, "vi_kv_layer_create");
    VI_POINTER(context, "vi_kv_layer_create", out);
    VI_POINTER(context, "vi_kv_layer_create", keys);
    VI_POINTER(context, "vi_kv_layer_create", values);
    VI_POINTER(context, "vi_kv_layer_create", key_pages);
    VI_POINTER(context, "vi_kv_layer_create", value_pages);
    VI_POINTER(context, "vi_kv_layer_create", page_table);
    VI_POINTER(context, "vi_kv_layer_create", exact_from);
    const Quantizer &k = *keys->quantizer, &v = *values->quantizer;
    VI_REQUIRE(context, k.kv_heads == v.kv_heads && k.head_dim == v.head_dim, "%s: keys have %d heads of %d and values %d of %d", name,
               k.kv_heads, k.head_dim, v.kv_heads, v.head_dim);
    VI_REQUIRE(context, page_count >= 1 && slots >= 1 && max_pages >= 1, "%s: page_count is %d, slots %d, max_pages %d", name, page_count, slots,
               max_pages);
    VI_REQUIRE(context, int64_t(max_pages) * page_tokens <= INT32_MAX, "%s: max_pages is %d: a position would not fit int32", name, max_pages);
    VI_REQUIRE(context, sinks >= 0, "%s: sinks is %d", name, sinks);
    VI_REQUIRE(context, window >= 0 && window <= recent, "%s: window is %d: 0 to recent (%d)", name, window, recent);
    VI_REQUIRE(context, recent == 0 || (key_recent && value_recent), "%s: recent is %d and its memory is NULL", name, recent);
    VI_REQUIRE(context, sinks == 0 || (key_sinks && value_sinks), "%s: sinks is %d and their memory is NULL", name, sinks);
    VI_TRY {
        auto layer = new vi_kv_layer{keys->quantizer, values->quantizer, static_cast<uint8_t*>(key_pages), static_cast<uint8_t*>(value_pages),
                                     key_recent,      value_recent,      key_sinks,                        value_sinks,
                                     page_table,      exact_from,        page_count,                       slots,
                                     max_pages,       sinks,             window,                           recent};
        std::memcpy(out, &layer, sizeof layer);
        return VI_OK;
    }
    VI_CATCH(context, "vi_kv_layer_create")
}

int32_t vi_kv_layer_destroy(vi_context* context, vi_kv_layer* layer) {
    VI_NOT_RECORDED(context, "vi_kv_layer_destroy");
    delete layer;
    return VI_OK;
}

int32_t vi_quantize(vi_context* context, vi_kv_layer* layer, const float* keys, const float* values, const int32_t* slots, const int32_t* positions,
                    int32_t rows, int32_t stride) {
    const char* name = "vi_quantize";
    VI_CONTEXT(context);
    VI_POINTER(context, "vi_quantize", layer);
    const int heads = layer->kv_heads(), dim = layer->head_dim();
    VI_REQUIRE(context, rows >= 0, "%s: rows is %d", name, rows);
    VI_REQUIRE(context, int64_t(heads) * dim <= stride, "%s: stride is %d, less than kv_heads * head_dim", name, stride);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, "vi_quantize", keys);
    VI_POINTER(context, "vi_quantize", values);
    VI_POINTER(context, "vi_quantize", slots);
    VI_POINTER(context, "vi_quantize", positions);
    VI_RECORD(context, vi_quantize(context, layer, keys, values, slots, positions, rows, stride));
    VI_TRY {
        std::vector<int32_t> lowest(layer->slots, INT32_MAX), highest(layer->slots, -1); // positions of this call that go to the ring
        for (int r = 0; r < rows; r++) {
            const int slot = slots[r], position = positions[r];
            if (position < 0) continue; // padding
            VI_REQUIRE(context, slot >= 0 && slot < layer->slots, "%s: row %d: slot %d is outside the %d slots", name, r, slot, layer->slots);
            VI_REQUIRE(context, position < layer->capacity(), "%s: slot %d, position %d: a slot holds %lld", name, slot, position,
                       static_cast<long long>(layer->capacity()));
            if (const int32_t status = check_page(context, name, layer, slot, position)) return status;
            if (layer->recent && position >= layer->exact_from[slot]) {
                lowest[slot] = std::min(lowest[slot], position), highest[slot] = std::max(highest[slot], position);
                VI_REQUIRE(context, highest[slot] - lowest[slot] < layer->recent,
                           "%s: slot %d: rows from position %d to %d are more than the ring of %d holds: raise exact_from or call for fewer rows",
                           name, slot, lowest[slot], highest[slot], layer->recent);
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
            q.transform(to, 0, (side ? values : keys) + int64_t(r) * stride + int64_t(head) * dim, 0, 1, head, 0);
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
                const int index = layer->page_index(slot, position);
                uint8_t* page = side ? layer->value_page(index, head) : layer->key_page(index, head);
                if (q.coded()) {
                    write_codes(page, q, token, codes.data() + i * most);
                    if (q.token_scale) token_scales(page, q)[token] = scales[i];
                } else {
                    vi_bf16* to = reinterpret_cast<vi_bf16*>(page);
                    if (side) write_bf16(to + token * dim, x, dim);
                    else
                        for (int d = 0; d < dim; d++) to[d * page_tokens + token] = f32_to_bf16(x[d]);
                }
                if (position < layer->sinks) write_bf16(sinks + layer->sink_row(slot, head, position), x, dim);
                if (layer->recent && position >= layer->exact_from[slot]) write_bf16(ring + layer->recent_row(slot, head, position), x, dim);
            }
        }
        return VI_OK;
    }
    VI_CATCH(context, "vi_quantize")
}

int32_t vi_rope_quantize(vi_context* context, vi_kv_layer* layer, float* queries, float* keys, const float* values, const int32_t* slots,
                         const int32_t* positions, const float* frequencies, int32_t rows, int32_t heads, int32_t stride) {
    VI_CONTEXT(context);
    VI_TRY {
        VI_REQUIRE(context, layer, "vi_rope_quantize: layer is NULL");
        const int kv_heads = layer->keys->kv_heads, head_dim = layer->keys->head_dim;
        VI_REQUIRE(context, heads >= 1 && heads <= max_group * kv_heads, "vi_rope_quantize: heads is %d, not 1 to %d times the %d KV heads", heads, max_group,
                   kv_heads);
        int32_t status = vi_rope(context, queries, positions, frequencies, rows, heads, head_dim, stride);
        if (status == VI_OK) status = vi_rope(context, keys, positions, frequencies, rows, kv_heads, head_dim, stride);
        return status == VI_OK ? vi_quantize(context, layer, keys, values, slots, positions, rows, stride) : status;
    }
    VI_CATCH(context, "vi_rope_quantize")
}

int32_t vi_dequantize(vi_context* context, float* keys, float* values, const vi_kv_layer* layer, int32_t slot, int32_t first, int32_t count) {
    const char* name = "vi_dequantize";
    VI_CONTEXT(context);
    VI_POINTER(context, "vi_dequantize", layer);
    VI_REQUIRE(context, slot >= 0 && slot < layer->slots, "%s: slot %d is outside the %d slots", name, slot, layer->slots);
    VI_REQUIRE(context, first >= 0 && count >= 0 && int64_t(first) + count <= layer->capacity(), "%s: first is %d and count %d: a slot holds %lld",
               name, first, count, static_cast<long long>(layer->capacity()));
    if (count == 0) return VI_OK;
    VI_POINTER(context, "vi_dequantize", keys);
    VI_POINTER(context, "vi_dequantize", values);
    VI_RECORD(context, vi_dequantize(context, keys, values, layer, slot, first, count));
    for (int page = first / page_tokens; page <= (first + count - 1) / page_tokens; page++)
        if (const int32_t status = check_page(context, name, layer, slot, page * page_tokens)) return status;
    const int heads = layer->kv_heads(), dim = layer->head_dim();
    const int first_page = first / page_tokens, pages = (first + count - 1) / page_tokens - first_page + 1;
#pragma omp parallel for num_threads(context->threads_for(int64_t(count) * heads * (layer->keys->transform_work() + layer->values->transform_work())))
    for (int task = 0; task < pages * heads * 2; task++) {
        const int side = task & 1, head = task / 2 % heads, start = (first_page + task / 2 / heads) * page_tokens;
        const Quantizer& q = side ? *layer->values : *layer->keys;
        const int index = layer->page_index(slot, start);
        const uint8_t* page = side ? layer->value_page(index, head) : layer->key_page(index, head);
        const int begin = std::max(first - start, 0), end = std::min(first + count - start, page_tokens);
        float tile[page_tokens * max_head_dim], scales[page_tokens];
        if (side) value_tile(tile, page, q, head, begin, end);
        else key_tile(tile, page, q, head);
        if (q.token_scale) read_scales(scales, token_scales(page, q));
        float* out = (side ? values : keys) + (int64_t(start + begin - first) * heads + head) * dim;
        for (int t = begin; t < end; t++)
            for (int i = 0; i < dim; i++)
                out[(t - begin) * heads * dim + i] = (side ? tile[t * dim + i] : tile[i * page_tokens + t]) * (q.token_scale ? scales[t] : 1.0f);
        q.transform(out, heads * dim, out, heads * dim, end - begin, head, 2);
    }
    return VI_OK;
}
}
