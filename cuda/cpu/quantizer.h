// How one side of a layer is kept (Quantizer), and a layer's memory bound to two of them (vi_kv_layer).
#pragma once
#include "nearest.h"
#include <memory>

constexpr int page_tokens = VI_PAGE_TOKENS;
constexpr int max_head_dim = 128;
constexpr int max_group = 16; // query heads of one KV head

struct Quantizer {
    int kv_heads = 0, head_dim = 0, sub_dim = 0, bits = 0, codebook_heads = 0, codebook_parts = 0;
    bool hadamard = false, token_scale = false;
    std::vector<float> smooth;        // [kv_heads, head_dim] or empty
    std::vector<float> matrices;      // [3, kv_heads, head_dim, head_dim] or empty: the fitted transform, in place of the two above
    std::vector<float> codebooks;     // [codebook_heads, codebook_parts, 2^bits, sub_dim]; below 8 bits zeros follow up to 256 codewords
    std::vector<Codebook> books;      // the same for the nearest codeword
    std::vector<int8_t> components;   // up to 10 bits: codebooks in units, [book][sub_dim, component_bytes, padded_codewords], high byte first
    std::vector<float> units;         // [book]

    bool coded() const { return bits < 16; }
    int component_bytes() const { return sub_dim == 2 ? 2 : 1; }
    int subs() const { return head_dim / sub_dim; }
    int padded_codewords() const { return bits < 8 ? 256 : 1 << bits; }
    int64_t head_bytes() const { return int64_t(page_tokens) * subs() * bits / 8 + (token_scale ? page_tokens : 0); }
    int64_t page_bytes() const { return head_bytes() * kv_heads; }
    int book_count() const { return codebook_heads * codebook_parts; }
    int book(int kv_head, int sub) const { return (codebook_heads == 1 ? 0 : kv_head) * codebook_parts + (codebook_parts == 1 ? 0 : sub); }
    const int8_t* components_of(int kv_head, int sub) const {
        return components.data() + int64_t(book(kv_head, sub)) * sub_dim * component_bytes() * padded_codewords();
    }
    // `count` vectors of a head in a direction of vi_transform, strides apart; out may be x, with one stride.
    void transform(float* out, int out_stride, const float* x, int x_stride, int count, int kv_head, int direction) const;
    int transform_work() const { return head_dim * (matrices.empty() ? 8 : head_dim); } // operations a vector
    const float* codebook(int kv_head, int sub) const { return codebooks.data() + int64_t(book(kv_head, sub)) * padded_codewords() * sub_dim; }
};

struct vi_quantizer {
    std::shared_ptr<Quantizer> quantizer;
};

struct vi_kv_layer {
    std::shared_ptr<const Quantizer> keys, values;
    uint8_t *key_pages, *value_pages;
    vi_bf16 *key_recent, *value_recent, *key_sinks, *value_sinks;
    const int32_t *page_table, *exact_from;
    int page_count, slots, max_pages, sinks, window, recent;

    int kv_heads() const { return keys->kv_heads; }
    int head_dim() const { return keys->head_dim; }
    int64_t capacity() const { return int64_t(max_pages) * page_tokens; }
    int page_index(int slot, int position) const { return page_table[int64_t(slot) * max_pages + position / page_tokens]; }
    uint8_t* key_page(int index, int head) const { return key_pages + (int64_t(index) * keys->kv_heads + head) * keys->head_bytes(); }
    uint8_t* value_page(int index, int head) const { return value_pages + (int64_t(index) * values->kv_heads + head) * values->head_bytes(); }
    int64_t recent_row(int slot, int head, int position) const {
        return ((int64_t(slot) * kv_heads() + head) * recent + position % recent) * head_dim();
    }
    int64_t sink_row(int slot, int head, int position) const {
        return ((int64_t(slot) * kv_heads() + head) * sinks + position) * head_dim();
    }
};

// Checks that the page of a slot's position exists; VI_OK or the error, with the function's name in it.
inline int32_t check_page(vi_context* context, const char* name, const vi_kv_layer* layer, int slot, int position) {
    const int index = layer->page_index(slot, position);
    if (index >= 0 && index < layer->page_count) return VI_OK;
    return context->fail(VI_INVALID_ARGUMENT, "%s: slot %d, position %d: page index %d is outside the %d pages", name, slot, position,
                         index, layer->page_count);
}
