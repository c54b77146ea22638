// How one side of a layer is kept (Quantizer), and a layer's memory bound to two of them (vi_kv_layer).
#pragma once
#include "nearest.h"
#include "transform.h"

struct Quantizer : QuantizerShape {
    std::shared_ptr<const Transform> transform; // one that changes nothing where none was given
    std::vector<float> codebooks;     // [codebook_heads, codebook_parts, 2^bits, sub_dim]; below 8 bits zeros follow up to 256 codewords
    std::vector<Codebook> books;      // the same for the nearest codeword
    std::vector<int8_t> components;   // up to 10 bits: codebooks in units, [book][sub_dim, component_bytes, padded_codewords], high byte first
    std::vector<float> units;         // [book]

    explicit Quantizer(const QuantizerShape& shape) : QuantizerShape(shape) {}
    int component_bytes() const { return sub_dim == 2 ? 2 : 1; }
    int subs() const { return head_dim / sub_dim; }
    int padded_codewords() const { return bits < 8 ? 256 : 1 << bits; }
    int64_t head_bytes() const { return int64_t(page_tokens) * subs() * bits / 8 + (token_scale ? page_tokens : 0); }
    int64_t page_bytes() const { return head_bytes() * kv_heads; }
    int book(int kv_head, int sub) const { return (codebook_heads == 1 ? 0 : kv_head) * codebook_parts + (codebook_parts == 1 ? 0 : sub); }
    const int8_t* components_of(int kv_head, int sub) const {
        return components.data() + int64_t(book(kv_head, sub)) * sub_dim * component_bytes() * padded_codewords();
    }
    const float* codebook(int kv_head, int sub) const { return codebooks.data() + int64_t(book(kv_head, sub)) * padded_codewords() * sub_dim; }
};

struct vi_quantizer {
    std::shared_ptr<const Quantizer> quantizer; // layers share it
};

inline const QuantizerShape* shape_of(const vi_quantizer* quantizer) { return quantizer ? quantizer->quantizer.get() : nullptr; }

struct vi_kv_layer : LayerShape {
    std::shared_ptr<const Quantizer> keys, values;
    uint8_t *key_pages, *value_pages;
    vi_bf16 *key_recent, *value_recent, *key_sinks, *value_sinks;
    const int32_t *page_table, *exact_from;

    int page_index(int slot, int position) const { return page_table[int64_t(slot) * max_pages + position / page_tokens]; }
    uint8_t* key_page(int index, int head) const { return key_pages + (int64_t(index) * kv_heads + head) * keys->head_bytes(); }
    uint8_t* value_page(int index, int head) const { return value_pages + (int64_t(index) * kv_heads + head) * values->head_bytes(); }
    // The page of one KV head that holds a slot's position.
    uint8_t* page(bool value, int slot, int head, int position) const {
        const int index = page_index(slot, position);
        return value ? value_page(index, head) : key_page(index, head);
    }
};

inline const LayerShape* shape_of(const vi_kv_layer* layer) { return layer; }

// Checks that the page of a slot's position exists; VI_OK or the error, with the function's name in it.
inline int32_t check_page(vi_context* context, const char* name, const vi_kv_layer* layer, int slot, int position) {
    const int index = layer->page_index(slot, position);
    if (index >= 0 && index < layer->page_count) return VI_OK;
    return context->fail(VI_INVALID_ARGUMENT, "%s: slot %d, position %d: page index %d is outside the %d pages", name, slot, position,
                         index, layer->page_count);
}

// Checks that a row's slot exists and holds its position.
inline int32_t check_position(vi_context* context, const char* name, const vi_kv_layer* layer, int row, int slot, int position) {
    VI_REQUIRE(context, slot >= 0 && slot < layer->slots, "%s: row %d: slot %d is outside the %d slots", name, row, slot, layer->slots);
    VI_REQUIRE(context, position < layer->capacity(), "%s: slot %d, position %d: a slot holds %lld", name, slot, position,
               static_cast<long long>(layer->capacity()));
    return VI_OK;
}
