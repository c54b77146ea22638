// Nearest codeword: argmin_c |x - c|^2 = argmax_c x . c - |c|^2 / 2, in f32, the lowest index where that score is equal.
// A point with NaN has code 0.
#pragma once
#include "simd.h"
#include <limits>

// Codewords across the lanes; the padding up to whole registers can't win.
struct Codebook {
    int dim = 0, codewords = 0, padded = 0;
    std::vector<float> transposed; // [dim][padded]
    std::vector<float> half_norm;  // [padded]

    Codebook() = default;
    Codebook(const float* codebook, int codewords, int dim) // codebook [codewords, dim]
        : dim(dim), codewords(codewords), padded((codewords + kWidth - 1) / kWidth * kWidth), transposed(size_t(dim) * padded),
          half_norm(padded, std::numeric_limits<float>::infinity()) {
        for (int c = 0; c < codewords; c++) {
            double norm = 0;
            for (int i = 0; i < dim; i++) {
                const float x = codebook[size_t(c) * dim + i];
                transposed[size_t(i) * padded + c] = x;
                norm += double(x) * x;
            }
            half_norm[c] = float(norm / 2);
        }
    }
};

// Codes of Points points, of which `stride` elements separate one from the next. Each codeword is loaded once for all of them.
// A single point is compared with Strips registers of codewords at a time: with one, each comparison waits for the last.
template <int Points, int Dim, int Strips = 1>
inline void nearest_block(const Codebook& book, const float* x, size_t stride, int32_t* codes) {
    static_assert(Points == 1 || Strips == 1);
    constexpr int chains = Points * Strips;
    const int dim = Dim ? Dim : book.dim;
    Vec best[chains];
    VecInt found[chains];
    for (int n = 0; n < chains; n++) best[n] = splat(-std::numeric_limits<float>::infinity()), found[n] = VecInt{};
    for (int c = 0; c < book.padded; c += Strips * kWidth) {
        Vec score[chains];
#pragma GCC unroll 16
        for (int n = 0; n < chains; n++) score[n] = -load(&book.half_norm[c + n / Points * kWidth]);
#pragma GCC unroll 16
        for (int i = 0; i < dim; i++)
#pragma GCC unroll 16
            for (int strip = 0; strip < Strips; strip++) {
                const Vec word = load(book.transposed.data() + size_t(i) * book.padded + c + strip * kWidth);
#pragma GCC unroll 16
                for (int p = 0; p < Points; p++) score[strip * Points + p] += x[p * stride + i] * word;
            }
#pragma GCC unroll 16
        for (int n = 0; n < chains; n++) {
            const VecInt better = score[n] > best[n];
            best[n] = better ? score[n] : best[n];
            found[n] = better ? VecInt{} + (c + n / Points * kWidth) : found[n];
        }
    }
    for (int p = 0; p < Points; p++) {
        int code = 0;
        float top = -std::numeric_limits<float>::infinity();
        for (int n = p; n < chains; n += Points)
            for (int i = 0; i < kWidth; i++) {
                const int index = found[n][i] + i;
                if (best[n][i] > top || (best[n][i] == top && index < code)) top = best[n][i], code = index;
            }
        codes[p] = code;
    }
}

template <int Dim> inline void nearest_points(const Codebook& book, const float* x, size_t stride, int count, int32_t* codes) {
    constexpr int block = kWidth == 16 ? 8 : 4; // best, found and score of each, and the codeword
    int n = 0;
    for (; n + block <= count; n += block) nearest_block<block, Dim>(book, x + n * stride, stride, codes + n);
    for (; n < count; n++) {
        if (book.padded % (4 * kWidth) == 0) nearest_block<1, Dim, 4>(book, x + n * stride, stride, codes + n);
        else nearest_block<1, Dim>(book, x + n * stride, stride, codes + n);
    }
}

// codes[n] of the points x[n * stride .. + dim), n < count. The same bits whatever the count.
inline void nearest(const Codebook& book, const float* x, size_t stride, int count, int32_t* codes) {
    switch (book.dim) {
    case 2: return nearest_points<2>(book, x, stride, count, codes);
    case 4: return nearest_points<4>(book, x, stride, count, codes);
    case 8: return nearest_points<8>(book, x, stride, count, codes);
    default: return nearest_points<0>(book, x, stride, count, codes);
    }
}

inline int nearest(const Codebook& book, const float* x) {
    int32_t code;
    nearest(book, x, book.dim, 1, &code);
    return code;
}
