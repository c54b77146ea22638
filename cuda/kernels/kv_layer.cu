// A layer's memory bound to two quantizers.
#include "attention.h"

namespace {

Side side(const Quantizer& q, void* pages, vi_bf16* recent, vi_bf16* sinks) {
    const Transform transform = q.transform ? q.transform->view() : Transform{};
    return {q.format(), static_cast<uint8_t*>(pages), recent, sinks, q.codebooks, q.table, q.table_scales, transform, q.codebook_heads, q.codebook_parts};
}

} // namespace

extern "C" {

VI_API int32_t vi_kv_layer_create(vi_context* context, uint8_t* out, const vi_quantizer* keys, const vi_quantizer* values, void* key_pages,
                                  void* value_pages, vi_bf16* key_recent, vi_bf16* value_recent, vi_bf16* key_sinks, vi_bf16* value_sinks,
                                  const int32_t* page_table, const int32_t* exact_from, int32_t page_count, int32_t slots, int32_t max_pages,
                                  int32_t sinks, int32_t window, int32_t recent) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_kv_layer_create(context, __func__, out, shape_of(keys), shape_of(values), key_pages, value_pages, key_recent, value_recent, key_sinks,
                                   value_sinks, page_table, exact_from, page_count, slots, max_pages, sinks, window, recent));
    const Quantizer &k = *keys->quantizer, &v = *values->quantizer;
    VI_REQUIRE(context, k.kv_heads <= 16384, "%s: %d KV heads, this library takes 16384", __func__, k.kv_heads); // two blocks each in a grid's y
    for (const void* address : {static_cast<const void*>(key_pages), static_cast<const void*>(value_pages), static_cast<const void*>(key_recent),
                                static_cast<const void*>(value_recent), static_cast<const void*>(key_sinks), static_cast<const void*>(value_sinks)})
        VI_REQUIRE(context, aligned_16(address), "%s: address %p is not aligned to 16 bytes", __func__, address);
    auto layer = std::make_unique<vi_kv_layer>();
    layer->keys = keys->quantizer;
    layer->values = values->quantizer;
    layer->cache = {{k.kv_heads, k.head_dim, page_count, slots, max_pages, sinks, window, recent}, side(k, key_pages, key_recent, key_sinks),
                    side(v, value_pages, value_recent, value_sinks), page_table, exact_from};
    const size_t bytes = attention_counters(context) * sizeof(int32_t);
    void* counters = nullptr;
    VI_CHECK(context->allocate(&counters, bytes, __func__));
    layer->counters = static_cast<int32_t*>(counters);
    VI_CUDA(context, __func__, cudaMemsetAsync(counters, 0, bytes, context->stream));
    vi_kv_layer* address = layer.release();
    std::memcpy(out, &address, sizeof address);
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_kv_layer_destroy(vi_context* context, vi_kv_layer* layer) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    if (!layer) return VI_OK;
    const int32_t status = context->release(layer->counters, __func__);
    delete layer;
    return status;
} VI_CATCH(context)

} // extern "C"
