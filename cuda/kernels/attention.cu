// vi_attention: checks, scratch, and the launcher of the layer's formats.
#include "attention.h"

extern "C" VI_API int32_t vi_attention(vi_context* context, float* out, const float* q, const vi_kv_layer* layer, const int32_t* slots,
                                       const int32_t* positions, float scale, int32_t rows, int32_t heads, int32_t stride) VI_TRY {
    const char* name = "vi_attention";
    VI_OPEN(context, "vi_attention");
    VI_REQUIRE(context, layer, "%s: layer is NULL", name);
    const Cache& cache = layer->cache;
    const int kv_heads = cache.kv_heads, dim = cache.head_dim;
    VI_REQUIRE(context, rows >= 0, "%s: rows is %d", name, rows);
    VI_REQUIRE(context, heads >= 1 && heads % kv_heads == 0 && heads / kv_heads <= 16, "%s: heads is %d: 1 to 16 times the %d KV heads", name, heads, kv_heads);
    VI_REQUIRE(context, static_cast<int64_t>(heads) * dim <= stride, "%s: stride is %d, less than heads * head_dim", name, stride);
    if (rows == 0) return VI_OK;
    VI_REQUIRE(context, out && q && slots && positions, "%s: out, q, slots or positions is NULL", name);

    if (layer->keys->codebook_parts > 1 || layer->values->codebook_parts > 1)
        return attention_parts(context, {cache, out, q, slots, positions, nullptr, nullptr, scale * 1.4426950408889634f, rows, heads, stride, heads / kv_heads, 1});
    const size_t partials = attention_counters(context) * 2 * attention_heads * attention_partial(dim);
    VI_WORKSPACE(context, float, scratch, partials * sizeof(float), name);
    const int group = heads / kv_heads, parts = ceil_div(group, attention_heads);
    AttentionArguments a = {cache, out, q, slots, positions, scratch, layer->counters, scale * 1.4426950408889634f, rows, heads, stride, group, parts};
    const int64_t units = static_cast<int64_t>(cache.max_pages) + (static_cast<int64_t>(cache.sinks) + cache.recent) / 16 + 2; // of a row, at most
    const int64_t fitting = INT32_MAX / (units * kv_heads * parts);
    if (fitting == 0) return context->fail(VI_UNSUPPORTED, "%s: %d pages a slot and %d heads are more than one launch counts", name, cache.max_pages, heads);
    const int most = fitting < attention_rows ? static_cast<int>(fitting) : attention_rows;
    static constexpr AttentionLauncher launchers[attention_formats] = {attention_bf16, attention_d2b8, attention_d4b12, attention_d4b10,
                                                                       attention_d4b8, attention_d4b6, attention_d8b12, attention_d8b8};
    const int key_format = attention_format(*layer->keys), value_format = attention_format(*layer->values);
    for (int first = 0; first < rows; first += most) {
        a.rows = rows - first < most ? rows - first : most;
        a.out = out + static_cast<int64_t>(first) * heads * dim;
        a.q = q + static_cast<int64_t>(first) * stride;
        a.slots = slots + first;
        a.positions = positions + first;
        const int32_t status = launchers[key_format](context, a, value_format);
        if (status != VI_OK) return status;
    }
    return VI_OK;
} VI_CATCH(context, "vi_attention")
