// vi_attention: checks, scratch, and the launcher of the layer's formats.
#include "attention.h"
#include <numbers>

extern "C" VI_API int32_t vi_attention(vi_context* context, float* out, const float* q, const vi_kv_layer* layer, const int32_t* slots,
                                       const int32_t* positions, float scale, int32_t rows, int32_t heads, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_attention(context, __func__, out, q, shape_of(layer), slots, positions, rows, heads, stride));
    if (rows == 0) return VI_OK;
    const Cache& cache = layer->cache;
    const int kv_heads = cache.kv_heads, dim = cache.head_dim;
    const float factor = scale * std::numbers::log2e_v<float>;
    if (layer->keys->codebook_parts > 1 || layer->values->codebook_parts > 1)
        return attention_parts(context, __func__, {cache, out, q, slots, positions, nullptr, nullptr, factor, rows, heads, stride, heads / kv_heads, 1});
    const size_t partials = attention_counters(context) * 2 * attention_heads * attention_partial(dim);
    VI_WORKSPACE(context, float, scratch, partials * sizeof(float), __func__);
    const int group = heads / kv_heads, parts = ceil_div(group, attention_heads);
    AttentionArguments a = {cache, out, q, slots, positions, scratch, layer->counters, factor, rows, heads, stride, group, parts};
    const int64_t units = static_cast<int64_t>(cache.max_pages) + (static_cast<int64_t>(cache.sinks) + cache.recent) / 16 + 2; // of a row, at most
    const int64_t fitting = INT32_MAX / (units * kv_heads * parts);
    if (fitting == 0) return context->fail(VI_UNSUPPORTED, "%s: %d pages a slot and %d heads are more than one launch counts", __func__, cache.max_pages, heads);
    const int most = fitting < attention_rows ? static_cast<int>(fitting) : attention_rows;
#define VI_ATTENTION_ENTRY(format, d, b) attention_##format,
    static constexpr AttentionLauncher launchers[] = {VI_FORMATS(VI_ATTENTION_ENTRY)};
    const AttentionLauncher launch = launchers[layer->keys->place];
    for (int first = 0; first < rows; first += most) {
        a.rows = rows - first < most ? rows - first : most;
        a.out = out + static_cast<int64_t>(first) * heads * dim;
        a.q = q + static_cast<int64_t>(first) * stride;
        a.slots = slots + first;
        a.positions = positions + first;
        VI_CHECK(launch(context, __func__, a, layer->values->place));
    }
    return VI_OK;
} VI_CATCH(context)
