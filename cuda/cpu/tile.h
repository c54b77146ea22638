// What attention does on tiles in L1: transposition, and products of a few rows with a tile.
#pragma once
#include "simd.h"

// One step of the transposition below: swaps the off-diagonal blocks of `width` lanes between rows i and i + width.
template <int width> inline void transpose_step(Vec* rows) {
    VecInt low, high;
    for (int j = 0; j < kWidth; j++) {
        low[j] = j & width ? kWidth + j - width : j;
        high[j] = j & width ? kWidth + j : j + width;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; i++) {
        if (i & width) continue;
        const Vec a = rows[i], b = rows[i + width];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + width] = __builtin_shuffle(a, b, high);
    }
}

// Transposes a square of kWidth rows.
inline void transpose(Vec* rows) {
    transpose_step<1>(rows);
    transpose_step<2>(rows);
    if constexpr (kWidth >= 8) transpose_step<4>(rows);
    if constexpr (kWidth >= 16) transpose_step<8>(rows);
}

// c [Rows, n] (+)= a [Rows, k] b [k, n]: a strip of c stays in registers, b streams from L1. n a multiple of the strip.
template <int Rows, int strip>
inline void multiply_rows(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int n, int k, bool add) {
    for (int j = 0; j < n; j += strip * kWidth) {
        Vec acc[Rows][strip];
#pragma GCC unroll 6
        for (int m = 0; m < Rows; m++)
#pragma GCC unroll 4
            for (int v = 0; v < strip; v++) acc[m][v] = add ? load(c + m * ldc + j + v * kWidth) : Vec{};
        for (int i = 0; i < k; i++) {
            Vec row[strip];
#pragma GCC unroll 4
            for (int v = 0; v < strip; v++) row[v] = kept(load(b + i * ldb + j + v * kWidth));
#pragma GCC unroll 6
            for (int m = 0; m < Rows; m++)
#pragma GCC unroll 4
                for (int v = 0; v < strip; v++) acc[m][v] += a[m * lda + i] * row[v];
        }
#pragma GCC unroll 6
        for (int m = 0; m < Rows; m++)
#pragma GCC unroll 4
            for (int v = 0; v < strip; v++) store(c + m * ldc + j + v * kWidth, acc[m][v]);
    }
}

// The same for any m.
template <int strip>
inline void multiply_strips(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int m, int n, int k, bool add) {
    constexpr int block = kWidth == 16 ? 6 : 4;
    for (; m >= block; m -= block, c += block * ldc, a += block * lda) multiply_rows<block, strip>(c, ldc, a, lda, b, ldb, n, k, add);
    switch (m) {
    case 1: return multiply_rows<1, strip>(c, ldc, a, lda, b, ldb, n, k, add);
    case 2: return multiply_rows<2, strip>(c, ldc, a, lda, b, ldb, n, k, add);
    case 3: return multiply_rows<3, strip>(c, ldc, a, lda, b, ldb, n, k, add);
    case 4: return multiply_rows<4, strip>(c, ldc, a, lda, b, ldb, n, k, add);
    case 5: return multiply_rows<5, strip>(c, ldc, a, lda, b, ldb, n, k, add);
    }
}

// The same for n a multiple of 16: wide strips, then what is left. A row's bits do not depend on the other rows: its sums run in the order of k.
inline void multiply(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb, int m, int n, int k, bool add) {
    constexpr int strip = kWidth == 16 ? 4 : 2;
    const int wide = n - n % (strip * kWidth);
    multiply_strips<strip>(c, ldc, a, lda, b, ldb, m, wide, k, add);
    if (wide < n) multiply_strips<1>(c + wide, ldc, a, lda, b + wide, ldb, m, n - wide, k, add);
}
