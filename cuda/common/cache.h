// Sizes of the cache's handles as both libraries know them.
#pragma once
#include "context.h"
#include "format.h"

constexpr int page_tokens = VI_PAGE_TOKENS;
constexpr int max_head_dim = 256;
constexpr int max_group = 16; // query heads of one KV head

struct TransformShape {
    int32_t kv_heads, head_dim;
};

struct QuantizerShape {
    int32_t kv_heads, head_dim, sub_dim, bits, codebook_heads, codebook_parts, token_scale; // no codebooks: 0 heads, 0 parts

    bool coded() const { return bits < 16; }
    int32_t book_count() const { return codebook_heads * codebook_parts; }
    int64_t book_size() const { return coded() ? int64_t(sub_dim) << bits : 0; } // floats
};

struct LayerShape {
    int32_t kv_heads, head_dim, page_count, slots, max_pages, sinks, window, recent;

    VI_BOTH bool sliding() const { return max_pages == 0; } // a layer with a sliding window: a ring and nothing else
    VI_BOTH int64_t capacity() const { return sliding() ? INT32_MAX : int64_t(max_pages) * page_tokens; } // tokens of a slot
    // First element of a position's row in the ring and in the sinks.
    VI_BOTH int64_t recent_row(int slot, int head, int position) const {
        return ((int64_t(slot) * kv_heads + head) * recent + position % recent) * head_dim;
    }
    VI_BOTH int64_t sink_row(int slot, int head, int position) const { return ((int64_t(slot) * kv_heads + head) * sinks + position) * head_dim; }
};
