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

// One function a key format, attention_<format>.cu. value_format: its index.
using AttentionLauncher = int32_t (*)(vi_context*, const char* name, const AttentionArguments&, int value_format);
#define VI_ATTENTION_LAUNCHER(format, d, b) int32_t attention_##format(vi_context*, const char* name, const AttentionArguments&, int value_format);
VI_FORMATS(VI_ATTENTION_LAUNCHER)
// For any formats, with a codebook a sub-vector: attention_parts.cu. It allots its own partials and needs no counters.
int32_t attention_parts(vi_context*, const char* name, const AttentionArguments&);
