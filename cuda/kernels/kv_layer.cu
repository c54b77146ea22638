// A layer's memory bound to two quantizers.
#include "attention.h"

namespace {

Side side(const Quantizer& q, void* pages, vi_bf16* recent, vi_bf16* sinks) {
    return {q.format(), static_cast<uint8_t*>(pages), recent, sinks, q.codebooks, q.table, q.table_scales, q.transform(), q.codebook_heads, q.codebook_parts};
}

} // namespace

extern "C" {

VI_API int32_t vi_kv_layer_create(vi_context* context, uint8_t* out, const vi_quantizer* keys, const vi_quantizer* values, void* key_pages,
                                  void* value_pages, vi_bf16* key_recent, vi_bf16* value_recent, vi_bf16* key_sinks, vi_bf16* value_sinks,
                                  const int32_t* page_table, const int32_t* exact_from, int32_t page_count, int32_t slots, int32_t max_pages,
                                  int32_t sinks, int32_t window, int32_t recent) VI_TRY {
    const char* name = "vi_kv_layer_create";
    VI_OPEN(context, "vi_kv_layer_create");
    VI_NOT_CAPTURED(context, "vi_kv_layer_create");
    VI_REQUIRE(context, out && keys && values, "%s: out, keys or values is NULL", name);
    VI_REQUIRE(context, key_pages && value_pages, "%s: key_pages or value_pages is NULL", name);
    VI_REQUIRE(context, page_table && exact_from, "%s: page_table or exact_from is NULL", name);
    const Quantizer &k = *keys->quantizer, &v = *values->quantizer;
    VI_REQUIRE(context, k.kv_heads == v.kv_heads && k.head_dim == v.head_dim, "%s: keys have %d heads of %d and values %d of %d", name, k.kv_heads,
               k.head_dim, v.kv_heads, v.head_dim);
    VI_REQUIRE(context, page_count >= 1 && slots >= 1 && max_pages >= 1, "%s: page_count is %d, slots %d, max_pages %d", name, page_count, slots, max_pages);
    VI_REQUIRE(context, static_cast<int64_t>(max_pages) * VI_PAGE_TOKENS <= INT32_MAX, "%s: max_pages is %d: a position would not fit int32", name, max_pages);
    VI_REQUIRE(context, sinks >= 0, "%s: sinks is %d", name, sinks);
    VI_REQUIRE(context, window >= 0 && window <= recent, "%s: window is %d: 0 to recent (%d)", name, window, recent);
    VI_REQUIRE(context, recent == 0 || (key_recent && value_recent), "%s: recent is %d and its memory is NULL", name, recent);
    VI_REQUIRE(context, sinks == 0 || (key_sinks && value_sinks), "%s: sinks is %d and their memory is NULL", name, sinks);
    for (const void* address : {static_cast<const void*>(key_pages), static_cast<const void*>(value_pages), static_cast<const void*>(key_recent),
                                static_cast<const void*>(value_recent), static_cast<const void*>(key_sinks), static_cast<const void*>(value_sinks)})
        VI_REQUIRE(context, aligned_16(address), "%s: address %p is not aligned to 16 bytes", name, address);
    auto layer = std::make_unique<vi_kv_layer>();
    layer->keys = keys->quantizer;
    layer->values = values->quantizer;
    layer->cache = {side(k, key_pages, key_recent, key_sinks), side(v, value_pages, value_recent, value_sinks), page_table, exact_from,
                    k.kv_heads, k.head_dim, page_count, slots, max_pages, sinks, window, recent};
    const size_t bytes = attention_counters(context) * sizeof(int32_t);
    void* counters = nullptr;
    const int32_t status = context->allocate(&counters, bytes, name);
    if (status != VI_OK) return status;
    layer->counters = static_cast<int32_t*>(counters);
    VI_CUDA(context, "vi_kv_layer_create", cudaMemsetAsync(counters, 0, bytes, context->stream));
    vi_kv_layer* address = layer.release();
    std::memcpy(out, &address, sizeof address);
    return VI_OK;
} VI_CATCH(context, "vi_kv_layer_create")

VI_API int32_t vi_kv_layer_destroy(vi_context* context, vi_kv_layer* layer) VI_TRY {
    VI_OPEN(context, "vi_kv_layer_destroy");
    VI_NOT_CAPTURED(context, "vi_kv_layer_destroy");
    if (!layer) return VI_OK;
    const int32_t status = context->release(layer->counters, "vi_kv_layer_destroy");
    delete layer;
    return status;
} VI_CATCH(context, "vi_kv_layer_destroy")

} // extern "C"
