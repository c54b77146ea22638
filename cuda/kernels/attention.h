// The decode attention kernels: one for each pair of a key and a value format below and each head dimension, and one for any formats.
#pragma once
#include "quantizer.h"
#include <string>

// Keys and values with kernels of their own: what presets and documented pairs have, what the formats of a layer are chosen from (d8b8, d4b8, d4b10 and d2b8 for
// either side), and what their choice is measured with (d4b8 beside bf16). Other pairs run in the any-pair kernel. A pair more is a line here.
#define VI_ATTENTION_PAIRS(X)                                                                          \
    X(bf16, bf16) X(bf16, d4b8) X(d4b8, bf16)                                                          \
    X(d2b8, d2b8) X(d2b8, d4b10) X(d2b8, d4b8) X(d2b8, d8b8)                                           \
    X(d4b12, d4b12) X(d4b12, d8b12)                                                                    \
    X(d4b10, d2b8) X(d4b10, d4b10) X(d4b10, d4b8) X(d4b10, d8b12) X(d4b10, d8b8)                       \
    X(d4b8, d2b8) X(d4b8, d4b10) X(d4b8, d4b8) X(d4b8, d8b8)                                           \
    X(d4b6, d4b6)                                                                                      \
    X(d8b12, d8b12) X(d8b12, d8b8)                                                                     \
    X(d8b8, d2b8) X(d8b8, d4b10) X(d8b8, d4b8) X(d8b8, d8b8)

// Of these, with 256 channels a head.
#define VI_ATTENTION_PAIRS_256(X)                                                                      \
    X(d2b8, d2b8) X(d4b12, d4b12) X(d4b10, d4b10) X(d4b10, d4b8) X(d4b8, d4b10) X(d4b8, d4b8)          \
    X(d4b8, d8b8) X(d8b12, d8b12) X(d8b12, d8b8) X(d8b8, d4b8) X(d8b8, d8b8)

struct FormatPair {
    FormatIndex keys, values;
};
#define VI_ATTENTION_PAIR(keys, values) {format_##keys, format_##values},
constexpr FormatPair attention_pairs[] = {VI_ATTENTION_PAIRS(VI_ATTENTION_PAIR)}, attention_pairs_256[] = {VI_ATTENTION_PAIRS_256(VI_ATTENTION_PAIR)};
#undef VI_ATTENTION_PAIR

constexpr bool has_attention_kernel(int keys, int values, int head_dim) {
    const auto among = [&](const auto& pairs) {
        for (const FormatPair& pair : pairs)
            if (pair.keys == keys && pair.values == values) return true;
        return false;
    };
    if (head_dim == 64 || head_dim == 128) return among(attention_pairs);
    return head_dim == 256 && among(attention_pairs_256);
}

constexpr int attention_heads = 4;   // query heads of a block: more of a KV head are more blocks
constexpr int attention_rows = 128;  // rows of a launch
constexpr int attention_blocks = 2;  // blocks of a multiprocessor, at most

// Floats of a partial result: head_dim, the maximum, the sum, and room that keeps it aligned to 16 bytes.
__host__ __device__ constexpr int attention_partial(int head_dim) { return head_dim + 4; }

struct AttentionArguments {
    Cache cache;
    float* out;
    const float* q;
    const int32_t *slots, *positions;
    float* partials;   // [blocks, 2, heads of a block, attention_partial(head_dim)]
    int32_t* counters; // [blocks]
    const float* sink_logits; // [heads], or nullptr
    float scale, soft_cap;    // times log2 e: softmax by powers of 2; soft_cap 0: none
    float cap_rate;           // 2 / the soft cap
    int32_t rows, heads, stride;
    int32_t group, parts; // query heads of a KV head, and blocks' worth of them
};

inline size_t attention_counters(const vi_context* context) { return static_cast<size_t>(context->multiprocessors) * attention_blocks; }

// One function a key format, attention_<format>.cu. value_format: its index, of a pair that has a kernel.
using AttentionLauncher = int32_t (*)(vi_context*, const char* name, const AttentionArguments&, int value_format);
#define VI_ATTENTION_LAUNCHER(format, d, b) int32_t attention_##format(vi_context*, const char* name, const AttentionArguments&, int value_format);
VI_FORMATS(VI_ATTENTION_LAUNCHER)
// The pairs that have kernels of their own by head dimension, as JSON, for vi_device_info.
std::string attention_kernels();
// Whether a layer runs in the any-pair kernel.
inline bool takes_any_pair(const vi_kv_layer& layer) {
    return layer.keys->codebook_parts > 1 || layer.values->codebook_parts > 1 ||
        !has_attention_kernel(layer.keys->place, layer.values->place, layer.cache.head_dim);
}
// For any formats, also with a codebook a sub-vector: attention_any.cu. It allots its own partials and needs no counters.
int32_t attention_any(vi_context*, const char* name, const AttentionArguments&);
