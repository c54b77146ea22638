// The decode attention kernels: one for each pair of a key and a value format and each head dimension.
#pragma once
#include "quantizer.h"

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
    float scale;       // times log2 e: softmax by powers of 2
    int32_t rows, heads, stride;
    int32_t group, parts; // query heads of a KV head, and blocks' worth of them
};

inline size_t attention_counters(const vi_context* context) { return static_cast<size_t>(context->multiprocessors) * attention_blocks; }

// Formats in the order of the tables of launchers.
constexpr int attention_formats = 8;
inline int attention_format(const Quantizer& q) {
    switch (q.sub_dim * 100 + q.bits) {
        case 116: return 0;
        case 208: return 1;
        case 412: return 2;
        case 410: return 3;
        case 408: return 4;
        case 406: return 5;
        case 812: return 6;
        case 808: return 7;
    }
    return -1;
}

// One function a key format (attention_<format>.cu). value_format as above.
using AttentionLauncher = int32_t (*)(vi_context*, const AttentionArguments&, int value_format);
int32_t attention_bf16(vi_context*, const AttentionArguments&, int);
int32_t attention_d2b8(vi_context*, const AttentionArguments&, int);
int32_t attention_d4b12(vi_context*, const AttentionArguments&, int);
int32_t attention_d4b10(vi_context*, const AttentionArguments&, int);
int32_t attention_d4b8(vi_context*, const AttentionArguments&, int);
int32_t attention_d4b6(vi_context*, const AttentionArguments&, int);
int32_t attention_d8b12(vi_context*, const AttentionArguments&, int);
int32_t attention_d8b8(vi_context*, const AttentionArguments&, int);
// For any formats, with a codebook a sub-vector: attention_parts.cu. It allots its own partials and needs no counters.
int32_t attention_parts(vi_context*, const AttentionArguments&);
