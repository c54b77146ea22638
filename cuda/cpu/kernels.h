// Scores and weighted sums of one page for the query heads of one row, straight from the codes or bf16: codewords go from the codebook to
// registers, where all query heads use them. For many rows, and for a codebook a sub-vector, there are the tiles of page.h. Both add in the same order (dimensions,
// tokens), with fused multiply-adds, so their results are equal to the bit.
#pragma once
#include "page.h"

// kWidth floats from pieces of `size` floats (2, 4 or 8): piece i begins at piece(i). With AVX-512 a piece is one load that also merges.
template <int size, class Piece> inline Vec gather(Piece piece) {
#if defined(__AVX512F__)
    if constexpr (size == 2) {
        __m512d x = _mm512_castpd128_pd512(_mm_load_sd(reinterpret_cast<const double*>(piece(0))));
#pragma GCC unroll 8
        for (int i = 1; i < 8; i++)
            x = _mm512_mask_broadcastsd_pd(x, static_cast<__mmask8>(1 << i), _mm_load_sd(reinterpret_cast<const double*>(piece(i))));
        return reinterpret_cast<Vec>(x);
    } else if constexpr (size == 4) {
        __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(piece(0)));
#pragma GCC unroll 4
        for (int i = 1; i < 4; i++) x = _mm512_mask_broadcast_f32x4(x, static_cast<__mmask16>(15 << 4 * i), _mm_loadu_ps(piece(i)));
        return reinterpret_cast<Vec>(x);
    } else {
        return reinterpret_cast<Vec>(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(_mm256_loadu_ps(piece(0)))),
                                                        _mm256_castps_pd(_mm256_loadu_ps(piece(1))), 1));
    }
#else
    typedef float Part __attribute__((vector_size(size * 4)));
    Part part[kWidth / size];
    for (int i = 0; i < kWidth / size; i++) std::memcpy(&part[i], piece(i), sizeof(Part));
    if constexpr (size == 2) {
        typedef float Quad __attribute__((vector_size(16)));
        const Quad low = __builtin_shufflevector(part[0], part[1], 0, 1, 2, 3), high = __builtin_shufflevector(part[2], part[3], 0, 1, 2, 3);
        return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
    } else if constexpr (size == 4) {
        return __builtin_shufflevector(part[0], part[1], 0, 1, 2, 3, 4, 5, 6, 7);
    } else {
        return part[0];
    }
#endif
}

// Codes as offsets into the codebook in units of 8 bytes, which the address of a load takes as they are: code * sub_dim / 2.
inline const float* codeword(const float* book, uint16_t offset) {
    return reinterpret_cast<const float*>(reinterpret_cast<const char*>(book) + size_t(offset) * 8);
}

inline void read_offsets(uint16_t* offsets, const uint8_t* page, const Quantizer& q) {
    const int shift = q.sub_dim == 2 ? 0 : q.sub_dim == 4 ? 1 : 2;
    for (int s = 0; s < q.subs(); s++, offsets += page_tokens) {
        read_codes(offsets, page, q, s);
        for (int t = 0; t < page_tokens; t++) offsets[t] = static_cast<uint16_t>(offsets[t] << shift);
    }
}

// Four registers whose 128-bit lanes are rows of 4x4 squares, each square transposed.
inline void transpose_squares(Vec* x) {
    VecInt low, high, low2, high2;
    for (int i = 0; i < kWidth; i++) { // the four results of a lane: a0 b0 a1 b1, a2 b2 a3 b3, and the same by pairs
        const int lane = i & ~3, j = i & 3, other = j & 1 ? kWidth : 0, pair = j & 2 ? kWidth : 0;
        low[i] = lane + j / 2 + other, high[i] = lane + 2 + j / 2 + other;
        low2[i] = lane + (j & 1) + pair, high2[i] = lane + 2 + (j & 1) + pair;
    }
    const Vec a = __builtin_shuffle(x[0], x[1], low), b = __builtin_shuffle(x[0], x[1], high);
    const Vec c = __builtin_shuffle(x[2], x[3], low), d = __builtin_shuffle(x[2], x[3], high);
    x[0] = __builtin_shuffle(a, c, low2), x[1] = __builtin_shuffle(a, c, high2);
    x[2] = __builtin_shuffle(b, d, low2), x[3] = __builtin_shuffle(b, d, high2);
}

// Scores of a bf16 page [dim][64]: out [H, 64] with stride ldo; `next` is the page to fetch meanwhile.
template <int H, int strip>
inline void bf16_scores(float* out, int64_t ldo, const float* q, int64_t ldq, const vi_bf16* page, const vi_bf16* next, int dim) {
    for (int t = 0; t < page_tokens; t += strip * kWidth) {
        Vec acc[H][strip] = {};
        for (int d = 0; d < dim; d++) {
            for (int v = 0; v < strip * kWidth; v += 32) __builtin_prefetch(next + d * page_tokens + t + v, 0, 2);
            Vec k[strip];
#pragma GCC unroll 4
            for (int v = 0; v < strip; v++) k[v] = kept(load_bf16(page + d * page_tokens + t + v * kWidth));
#pragma GCC unroll 8
            for (int h = 0; h < H; h++)
#pragma GCC unroll 4
                for (int v = 0; v < strip; v++) acc[h][v] += q[h * ldq + d] * k[v];
        }
#pragma GCC unroll 8
        for (int h = 0; h < H; h++)
#pragma GCC unroll 4
            for (int v = 0; v < strip; v++) store(out + h * ldo + t + v * kWidth, acc[h][v]);
    }
}

// The same of codes: offsets [sub-vector][64].
template <int H, int SubDim>
inline void code_scores(float* out, int64_t ldo, const float* q, int64_t ldq, const uint16_t* offsets, const float* book, int subs) {
    constexpr int strip = 2;
    for (int t = 0; t < page_tokens; t += strip * kWidth) {
        Vec acc[H][strip] = {};
        for (int d = 0; d < subs * SubDim; d += 4) { // four dimensions: one codeword, half a codeword or two
            const uint16_t* from = offsets + d / SubDim * page_tokens + t;
            Vec k[strip][4];
#pragma GCC unroll 2
            for (int v = 0; v < strip; v++) {
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) { // lane l: token 4 l + i
                    const uint16_t* c = from + v * kWidth + i;
                    if constexpr (SubDim == 2)
                        k[v][i] = gather<2>([=](int p) { return codeword(book, c[p / 2 * 4 + p % 2 * page_tokens]); });
                    else
                        k[v][i] = gather<4>([=](int p) { return codeword(book, c[p * 4]) + d % SubDim; });
                }
                transpose_squares(k[v]);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
#pragma GCC unroll 8
                for (int h = 0; h < H; h++)
#pragma GCC unroll 2
                    for (int v = 0; v < strip; v++) acc[h][v] += q[h * ldq + d + i] * k[v][i];
        }
#pragma GCC unroll 8
        for (int h = 0; h < H; h++)
#pragma GCC unroll 2
            for (int v = 0; v < strip; v++) store(out + h * ldo + t + v * kWidth, acc[h][v]);
    }
}

// acc [H, dim] += sum over tokens first .. last - 1 of w [H, 64] and values, of dimensions begin .. end - 1 in strips; row(t, d) is the value's register from d on.
template <int H, int Strip, class Row>
inline void add_values(float* acc, int64_t lda, const float* w, int64_t ldw, int first, int last, int begin, int end, Row row) {
    for (int d = begin; d < end; d += Strip * kWidth) {
        Vec sums[H][Strip];
#pragma GCC unroll 16
        for (int h = 0; h < H; h++)
#pragma GCC unroll 4
            for (int v = 0; v < Strip; v++) sums[h][v] = load(acc + h * lda + d + v * kWidth);
        for (int t = first; t < last; t++) {
            Vec x[Strip];
#pragma GCC unroll 4
            for (int v = 0; v < Strip; v++) x[v] = row(t, d + v * kWidth);
#pragma GCC unroll 16
            for (int h = 0; h < H; h++)
#pragma GCC unroll 4
                for (int v = 0; v < Strip; v++) sums[h][v] += w[h * ldw + t] * x[v];
        }
#pragma GCC unroll 16
        for (int h = 0; h < H; h++)
#pragma GCC unroll 4
            for (int v = 0; v < Strip; v++) store(acc + h * lda + d + v * kWidth, sums[h][v]);
    }
}

template <int H, int Strip>
inline void bf16_values(float* acc, int64_t lda, const float* w, int64_t ldw, const vi_bf16* page, const vi_bf16* next, int first, int last, int dim) {
    const auto row = [=](int t, int d) {
        if (d % 32 == 0) __builtin_prefetch(next + t * dim + d, 0, 2);
        return load_bf16(page + t * dim + d);
    };
    const int wide = dim - dim % (Strip * kWidth);
    add_values<H, Strip>(acc, lda, w, ldw, first, last, 0, wide, row);
    if (wide < dim) add_values<H, 1>(acc, lda, w, ldw, first, last, wide, dim, row);
}

template <int H, int Strip, int SubDim>
inline void code_values(float* acc, int64_t lda, const float* w, int64_t ldw, const uint16_t* offsets, const float* book, int first, int last, int dim) {
    add_values<H, Strip>(acc, lda, w, ldw, first, last, 0, dim, [=](int t, int d) {
        const uint16_t* c = offsets + d / SubDim * page_tokens + t;
        return gather<SubDim>([=](int p) { return codeword(book, c[p * page_tokens]); });
    });
}

// Calls body.operator()<H, Strip>(first head) for up to `heads` heads: as many at a time as the registers hold the sums of.
template <class Body> inline void by_heads(int heads, Body body) {
    constexpr int wide = kWidth == 16 ? 4 : 2, narrow = wide / 2;
    int h = 0;
    for (; heads - h >= 8; h += 8) body.template operator()<8, narrow>(h);
    switch (heads - h) {
    case 1: return body.template operator()<1, wide>(h);
    case 2: return body.template operator()<2, wide>(h);
    case 3: return body.template operator()<3, wide>(h);
    case 4: return body.template operator()<4, wide>(h);
    case 5: return body.template operator()<5, narrow>(h);
    case 6: return body.template operator()<6, narrow>(h);
    case 7: return body.template operator()<7, narrow>(h);
    }
}

// out [heads, 64] (stride ldo) = q [heads, dim] K^T of a page, without its token scales. `next` is the page to fetch meanwhile.
inline void page_scores(float* out, int64_t ldo, const float* q, int heads, const uint8_t* page, const uint8_t* next, const Quantizer& quantizer,
                        int kv_head) {
    const int dim = quantizer.head_dim;
    if (!quantizer.coded()) {
        by_heads(heads, [&]<int H, int Strip>(int h) {
            bf16_scores<H, Strip>(out + h * ldo, ldo, q + h * dim, dim, reinterpret_cast<const vi_bf16*>(page),
                                  reinterpret_cast<const vi_bf16*>(next), dim);
        });
        return;
    }
    alignas(64) uint16_t offsets[max_head_dim / 2 * page_tokens];
    read_offsets(offsets, page, quantizer);
    const float* book = quantizer.codebook(kv_head, 0);
    by_heads(heads, [&]<int H, int Strip>(int h) {
        float* to = out + h * ldo;
        switch (quantizer.sub_dim) {
        case 2: return code_scores<H, 2>(to, ldo, q + h * dim, dim, offsets, book, quantizer.subs());
        case 4: return code_scores<H, 4>(to, ldo, q + h * dim, dim, offsets, book, quantizer.subs());
        case 8: return code_scores<H, 8>(to, ldo, q + h * dim, dim, offsets, book, quantizer.subs());
        }
    });
}

// acc [heads, dim] += w [heads, 64] (stride ldw) V over the tokens first .. last - 1 of a page, whose token scales are in w already.
inline void page_values(float* acc, const float* w, int64_t ldw, int heads, const uint8_t* page, const uint8_t* next, const Quantizer& quantizer,
                        int kv_head, int first, int last) {
    const int dim = quantizer.head_dim;
    if (!quantizer.coded()) {
        by_heads(heads, [&]<int H, int Strip>(int h) {
            bf16_values<H, Strip>(acc + h * dim, dim, w + h * ldw, ldw, reinterpret_cast<const vi_bf16*>(page), reinterpret_cast<const vi_bf16*>(next),
                                  first, last, dim);
        });
        return;
    }
    alignas(64) uint16_t offsets[max_head_dim / 2 * page_tokens];
    read_offsets(offsets, page, quantizer);
    const float* book = quantizer.codebook(kv_head, 0);
    by_heads(heads, [&]<int H, int Strip>(int h) {
        float* to = acc + h * dim;
        switch (quantizer.sub_dim) {
        case 2: return code_values<H, Strip, 2>(to, dim, w + h * ldw, ldw, offsets, book, first, last, dim);
        case 4: return code_values<H, Strip, 4>(to, dim, w + h * ldw, ldw, offsets, book, first, last, dim);
        case 8: return code_values<H, Strip, 8>(to, dim, w + h * ldw, ldw, offsets, book, first, last, dim);
        }
    });
}
