// The launchers of one key format, for attention_<format>.cu.
#pragma once
#include "attention.cuh"

template <class K, class V, bool Wide> constexpr size_t attention_bytes = AttentionShape<K, V, Wide>::KeyTable::bytes +
    AttentionShape<K, V, Wide>::ValueTable::bytes + sizeof(AttentionShared<K::D, AttentionShape<K, V, Wide>::warps>);

template <class K, class V, bool Wide = false> int32_t attention_launch(vi_context* context, const AttentionArguments& a) {
    if constexpr (!Wide && attention_wide<K, V>) {
        // Where blocks go from row to row, two of them hide each other's preparations, which is worth more than copies of the tables.
        const bool few = static_cast<int64_t>(a.rows) * a.cache.kv_heads * a.parts <= context->multiprocessors;
        if (few && context->properties.major >= 9 && attention_bytes<K, V, true> <= context->shared_limit) return attention_launch<K, V, true>(context, a);
    }
    using Shape = AttentionShape<K, V, Wide>;
    constexpr size_t bytes = attention_bytes<K, V, Wide>;
    if (bytes > context->shared_limit)
        return context->fail(VI_UNSUPPORTED, "vi_attention: these formats need %zu bytes of shared memory, %s has %zu", bytes, context->properties.name,
                             context->shared_limit);
    VI_SHARED(context, "vi_attention", (attention_kernel<K, V, Wide>), bytes);
    VI_CUDA(context, "vi_attention",
            launch_early(context, attention_kernel<K, V, Wide>, context->multiprocessors * Shape::blocks, Shape::warps * 32, bytes, a));
    return VI_OK;
}

template <int D, int d, int b> int32_t attention_values(vi_context* context, const AttentionArguments& a, int value_format) {
    using K = Format<D, d, b>;
    switch (value_format) {
        case 0: return attention_launch<K, Format<D, 1, 16>>(context, a);
        case 1: return attention_launch<K, Format<D, 2, 8>>(context, a);
        case 2: return attention_launch<K, Format<D, 4, 12>>(context, a);
        case 3: return attention_launch<K, Format<D, 4, 10>>(context, a);
        case 4: return attention_launch<K, Format<D, 4, 8>>(context, a);
        case 5: return attention_launch<K, Format<D, 4, 6>>(context, a);
        case 6: return attention_launch<K, Format<D, 8, 12>>(context, a);
        case 7: return attention_launch<K, Format<D, 8, 8>>(context, a);
    }
    return context->fail(VI_INTERNAL_ERROR, "vi_attention: value format %d", value_format);
}

#define VI_ATTENTION(name, d, b)                                                                             \
    int32_t name(vi_context* context, const AttentionArguments& a, int value_format) {                       \
        return a.cache.head_dim == 64 ? attention_values<64, d, b>(context, a, value_format)                 \
                                      : attention_values<128, d, b>(context, a, value_format);               \
    }
