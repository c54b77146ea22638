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
template <int Points, int Dim>
inline void nearest_block(const Codebook& book, const float* x, size_t stride, int32_t* codes) {
    const int dim = Dim ? Dim : book.dim;
    Vec best[Points];
    VecInt found[Points];
    for (int p = 0; p < Points; p++) best[p] = splat(-std::numeric_limits<float>::infinity()), found[p] = VecInt{};
    for (int c = 0; c < book.padded; c += kWidth) {
        const Vec norm = load(&book.half_norm[c]);
        Vec score[Points];
        for (int p = 0; p < Points; p++) score[p] = -norm;
#pragma GCC unroll 16
        for (int i = 0; i < dim; i++) {
            const Vec word = load(book.transposed.data() + size_t(i) * book.padded + c);
#pragma GCC unroll 16
            for (int p = 0; p < Points; p++) score[p] += x[p * stride + i] * word;
        }
#pragma GCC unroll 16
        for (int p = 0; p < Points; p++) {
            const VecInt better = score[p] > best[p];
            best[p] = better ? score[p] : best[p];
            found[p] = better ? VecInt{} + c : found[p];
        }
    }
    for (int p = 0; p < Points; p++) {
        int code = 0;
        float top = -std::numeric_limits<float>::infinity();
        for (int i = 0; i < kWidth; i++) {
            const int index = found[p][i] + i;
            if (best[p][i] > top || (best[p][i] == top && index < code)) top = best[p][i], code = index;
        }
        codes[p] = code;
    }
}

template <int Dim> inline void nearest_points(const Codebook& book, const float* x, size_t stride, int count, int32_t* codes) {
    constexpr int block = kWidth == 16 ? 8 : 4; // best, found and score of each, and the codeword
    int n = 0;
    for (; n + block <= count; n += block) nearest_block<block, Dim>(book, x + n * stride, stride, codes + n);
    for (; n < count; n++) nearest_block<1, Dim>(book, x + n * stride, stride, codes + n);
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
