// Tiles of out = x W^T + bias with bf16 weights. Tiles of rows x outputs are kept in registers, the lanes run along in_features, so that the weights are read
// as they lie, once for all rows of a tile. Every output is summed in one order, whatever the tile, the rows and the threads.
#pragma once
#include "simd.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

constexpr int tile_rows = kWidth == 16 ? 6 : 2;
constexpr int tile_outs = 4;
constexpr int ahead = 16; // weight rows that the prefetch runs ahead in a decode step, which waits for memory alone

typedef float Quad __attribute__((vector_size(16)));

inline Vec widen(const vi_bf16* p) {
#if defined(__AVX512F__) // two instructions, where GCC 12 makes nine of load_bf16; the mask keeps it from a false warning
    return reinterpret_cast<Vec>(reinterpret_cast<VecInt>(_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))) << 16);
#else
    return load_bf16(p);
#endif
}

// The first count < kWidth elements, then zeros.
inline Vec load_part(const float* p, int count) {
    float part[kWidth] = {};
    std::memcpy(part, p, count * sizeof *p);
    return load(part);
}

inline Vec widen_part(const vi_bf16* p, int count) {
    vi_bf16 part[kWidth] = {};
    std::memcpy(part, p, count * sizeof *p);
    return widen(part);
}

// Registers are folded in halves to four lanes.
inline Quad fold(Vec x) {
#if defined(__AVX512F__)
    const auto half = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    const auto half = x;
#endif
    return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
}

// The four lane sums: folded, transposed and added, every one in the same order.
inline Quad sums(const Vec* x) {
    const Quad a = fold(x[0]), b = fold(x[1]), c = fold(x[2]), d = fold(x[3]);
    const Quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

struct Linear {
    float* out;
    const float* x;
    const vi_bf16 *weight, *bias;
    int rows, outs, ins;
    bool accumulate;
    const int32_t *x_rows = nullptr, *out_rows = nullptr; // where row r is in x and in out; NULL: it is row r

    const float* x_row(int r) const { return x + size_t(x_rows ? x_rows[r] : r) * ins; }
    float* out_row(int r) const { return out + size_t(out_rows ? out_rows[r] : r) * outs; }
};

template <int Rows, int Outs> inline void tile(const Linear& l, int row, int out) {
    Vec sum[Rows][tile_outs] = {};
    const float* x[Rows];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; r++) x[r] = l.x_row(row + r);
    const vi_bf16* weight = l.weight + size_t(out) * l.ins;
    const size_t ins = l.ins;
    size_t i = 0;
    for (; i + kWidth <= ins; i += kWidth) {
        Vec w[Outs];
#pragma GCC unroll 4
        for (int o = 0; o < Outs; o++) {
            w[o] = widen(weight + o * ins + i);
            if constexpr (Rows <= 4) __builtin_prefetch(weight + (o + ahead) * ins + i);
        }
#pragma GCC unroll 6
        for (int r = 0; r < Rows; r++) {
            const Vec value = load(x[r] + i);
#pragma GCC unroll 4
            for (int o = 0; o < Outs; o++) sum[r][o] += value * w[o];
        }
    }
    if (const int rest = int(ins - i)) {
#pragma GCC unroll 6
        for (int r = 0; r < Rows; r++) {
            const Vec value = load_part(x[r] + i, rest);
#pragma GCC unroll 4
            for (int o = 0; o < Outs; o++) sum[r][o] += value * widen_part(weight + o * ins + i, rest);
        }
    }
    float bias[tile_outs] = {};
    if (l.bias)
        for (int o = 0; o < Outs; o++) bias[o] = bf16_to_f32(l.bias[out + o]);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; r++) {
        const Quad total = sums(sum[r]);
        float* to = l.out_row(row + r) + out;
        for (int o = 0; o < Outs; o++) {
            const float product = l.bias ? total[o] + bias[o] : total[o];
            to[o] = l.accumulate ? to[o] + product : product;
        }
    }
}

template <int Rows> inline void tiles(const Linear& l, int row, int first, int last) {
    int out = first;
    for (; out + tile_outs <= last; out += tile_outs) tile<Rows, tile_outs>(l, row, out);
    for (; out < last; out++) tile<Rows, 1>(l, row, out);
}

template <int Rows> inline void tiles(const Linear& l, int row, int rows, int first, int last) {
    if (rows == Rows) return tiles<Rows>(l, row, first, last);
    if constexpr (Rows > 1) tiles<Rows - 1>(l, row, rows, first, last);
}

// A block of weights (64 x in_features) stays in the second-level cache while the rows pass, a tile of rows in the first.
constexpr int block_rows = 8 * tile_rows;
inline int block_outs(int rows) { return rows > tile_rows ? 64 : 16; }

inline void linear_block(const Linear& l, int row_block, int out_block) {
    const int outs = block_outs(l.rows), first = out_block * outs, last = std::min(l.outs, first + outs);
    const int end = std::min(l.rows, (row_block + 1) * block_rows);
    for (int row = row_block * block_rows; row < end; row += tile_rows) tiles<tile_rows>(l, row, std::min(tile_rows, end - row), first, last);
}
