// The launchers of one key format, for attention_<format>.cu.
#pragma once
#include "attention.cuh"

template <class K, class V, bool Wide> constexpr size_t attention_bytes = AttentionShape<K, V, Wide>::KeyTable::bytes +
    AttentionShape<K, V, Wide>::ValueTable::bytes + sizeof(AttentionShared<K::D, AttentionShape<K, V, Wide>::warps>);

template <class K, class V, bool Wide = false> int32_t attention_launch(vi_context* context, const char* name, const AttentionArguments& a) {
    if constexpr (!Wide && attention_wide<K, V>) {
        // Where blocks go from row to row, two of them hide each other's preparations, which is worth more than copies of the tables.
        const bool few = static_cast<int64_t>(a.rows) * a.cache.kv_heads * a.parts <= context->multiprocessors;
        if (few && context->properties.major >= 9 && attention_bytes<K, V, true> <= context->shared_limit) return attention_launch<K, V, true>(context, name, a);
    }
    using Shape = AttentionShape<K, V, Wide>;
    constexpr size_t bytes = attention_bytes<K, V, Wide>;
    if (bytes > context->shared_limit)
        return context->fail(VI_UNSUPPORTED, "%s: these formats need %zu bytes of shared memory, %s has %zu", name, bytes, context->properties.name,
                             context->shared_limit);
    VI_SHARED(context, name, (attention_kernel<K, V, Wide>), bytes);
    VI_CUDA(context, name,
            launch_early(context, attention_kernel<K, V, Wide>, context->multiprocessors * Shape::blocks, Shape::warps * 32, bytes, a));
    return VI_OK;
}

using PairLauncher = int32_t (*)(vi_context*, const char* name, const AttentionArguments&);

template <int D, FormatIndex key, FormatIndex value> constexpr PairLauncher attention_pair() { // nullptr: the any-pair kernel's
    if constexpr (has_attention_kernel(key, value, D))
        return attention_launch<Format<D, formats[key].sub_dim, formats[key].bits>, Format<D, formats[value].sub_dim, formats[value].bits>>;
    else return nullptr;
}

template <int D, FormatIndex key> int32_t attention_values(vi_context* context, const char* name, const AttentionArguments& a, int value_format) {
#define VI_ATTENTION_VALUE(format, d, b) attention_pair<D, key, format_##format>(),
    static constexpr PairLauncher pairs[] = {VI_FORMATS(VI_ATTENTION_VALUE)};
#undef VI_ATTENTION_VALUE
    return pairs[value_format](context, name, a);
}

#define VI_ATTENTION(format)                                                                                                          \
    int32_t attention_##format(vi_context* context, const char* name, const AttentionArguments& a, int value_format) {                \
        const auto values = a.cache.head_dim == 64 ? attention_values<64, format_##format>                                            \
            : a.cache.head_dim == 128              ? attention_values<128, format_##format>                                           \
                                                   : attention_values<256, format_##format>;                                          \
        return values(context, name, a, value_format);                                                                                \
    }
