// vi_attention: checks, scratch, and the launcher of the layer's formats.
#include "attention.h"
#include <numbers>

std::string attention_kernels() {
#define VI_ATTENTION_TEXT(keys, values) ",\"" #keys "+" #values "\""
    const std::string pairs = &(VI_ATTENTION_PAIRS(VI_ATTENTION_TEXT))[1], pairs_256 = &(VI_ATTENTION_PAIRS_256(VI_ATTENTION_TEXT))[1];
#undef VI_ATTENTION_TEXT
    return "{\"64\":[" + pairs + "],\"128\":[" + pairs + "],\"256\":[" + pairs_256 + "]}";
}

extern "C" VI_API int32_t vi_attention(vi_context* context, float* out, const float* q, const vi_kv_layer* layer, const int32_t* slots,
                                       const int32_t* positions, const float* sink_logits, float scale, float soft_cap, int32_t rows, int32_t heads,
                                       int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_attention(context, __func__, out, q, shape_of(layer), slots, positions, soft_cap, rows, heads, stride));
    if (rows == 0) return VI_OK;
    const Cache& cache = layer->cache;
    const int kv_heads = cache.kv_heads, dim = cache.head_dim;
    const int group = heads / kv_heads, parts = ceil_div(group, attention_heads);
    constexpr float log2_e = std::numbers::log2e_v<float>;
    AttentionArguments a = {cache, out, q, slots, positions, nullptr, layer->counters, sink_logits, scale * log2_e, soft_cap * log2_e, soft_cap > 0 ? 2 / soft_cap : 0, rows, heads, stride, group, parts};
    if (takes_any_pair(*layer)) return attention_any(context, __func__, a);
    const size_t partials = attention_counters(context) * 2 * attention_heads * attention_partial(dim);
    VI_WORKSPACE(context, float, scratch, partials * sizeof(float), __func__);
    a.partials = scratch;
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
