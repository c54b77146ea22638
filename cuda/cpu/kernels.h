// Scores and weighted sums of one page for the query heads of one row, straight from the codes or bf16: codewords go from the codebook to
// registers, where all query heads use them. For many rows the tiles of page.h are faster. Both add in the same order (dimensions,
// tokens), with fused multiply-adds, so their results are equal to the bit.
#pragma once
#include "page.h"

typedef float Pair __attribute__((vector_size(8)));
typedef float Quad __attribute__((vector_size(16)));
typedef float Oct __attribute__((vector_size(32)));

template <class T> inline T load_as(const float* p) {
    T x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// kWidth floats from pieces of four: piece(i) gives the i-th Quad.
template <class Piece> inline Vec from_quads(Piece piece) {
    const Quad a = piece(0), b = piece(1);
    const Oct low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
#if defined(__AVX512F__)
    const Quad c = piece(2), d = piece(3);
    const Oct high = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    return low;
#endif
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
            for (int v = 0; v < strip * kWidth; v += 32) __builtin_prefetch(next + d * page_tokens + t + v);
            Vec k[strip];
#pragma GCC unroll 4
            for (int v = 0; v < strip; v++) k[v] = load_bf16(page + d * page_tokens + t + v * kWidth);
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

// The same of codes [sub-vector][64].
template <int H, int SubDim, class Code>
inline void code_scores(float* out, int64_t ldo, const float* q, int64_t ldq, const Code* codes, const float* book, int subs) {
    constexpr int strip = 2;
    for (int t = 0; t < page_tokens; t += strip * kWidth) {
        Vec acc[H][strip] = {};
        for (int d = 0; d < subs * SubDim; d += 4) { // four dimensions: one codeword, half a codeword or two
            const Code* code = codes + d / SubDim * page_tokens + t;
            Vec k[strip][4];
#pragma GCC unroll 2
            for (int v = 0; v < strip; v++) {
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    k[v][i] = from_quads([&](int lane) {
                        const Code* c = code + v * kWidth + lane * 4 + i;
                        if constexpr (SubDim == 2) {
                            const Pair a = load_as<Pair>(book + c[0] * 2), b = load_as<Pair>(book + c[page_tokens] * 2);
                            return __builtin_shufflevector(a, b, 0, 1, 2, 3);
                        } else {
                            return load_as<Quad>(book + c[0] * SubDim + d % SubDim);
                        }
                    });
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

// acc [H, dim] += sum over tokens first .. last - 1 of w [H, 64] and values; the value's Strip registers from dimension d on are row(t, d, v).
template <int H, int Strip, class Row>
inline void add_values(float* acc, int64_t lda, const float* w, int64_t ldw, int first, int last, int dim, Row row) {
    for (int d = 0; d < dim; d += Strip * kWidth) {
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
    add_values<H, Strip>(acc, lda, w, ldw, first, last, dim, [=](int t, int d) {
        if (d % 32 == 0) __builtin_prefetch(next + t * dim + d);
        return load_bf16(page + t * dim + d);
    });
}

template <int H, int Strip, int SubDim, class Code>
inline void code_values(float* acc, int64_t lda, const float* w, int64_t ldw, const Code* codes, const float* book, int first, int last, int dim) {
    add_values<H, Strip>(acc, lda, w, ldw, first, last, dim, [=](int t, int d) {
        const Code* c = codes + d / SubDim * page_tokens + t;
        if constexpr (SubDim == 8) {
            const Oct low = load_as<Oct>(book + c[0] * 8);
#if defined(__AVX512F__)
            const Oct high = load_as<Oct>(book + c[page_tokens] * 8);
            return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
            return low;
#endif
        } else {
            return from_quads([=](int i) {
                if constexpr (SubDim == 4) return load_as<Quad>(book + c[i * page_tokens] * 4);
                else {
                    const Pair a = load_as<Pair>(book + c[2 * i * page_tokens] * 2), b = load_as<Pair>(book + c[(2 * i + 1) * page_tokens] * 2);
                    return __builtin_shufflevector(a, b, 0, 1, 2, 3);
                }
            });
        }
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

// Unpacked codes of the page of one side: as they lie where a code is a byte, or in `room`.
template <class Code> inline const Code* unpacked(uint16_t* room, const uint8_t* page, const Quantizer& q) {
    if (sizeof(Code) == 1 && q.bits == 8) return reinterpret_cast<const Code*>(page);
    Code* codes = reinterpret_cast<Code*>(room);
    for (int s = 0; s < q.subs(); s++) read_codes(codes + s * page_tokens, page, q, s);
    return codes;
}

// out [heads, 64] (stride ldo) = q [heads, dim] K^T of a page, without its token scales.
template <int SubDim, class Code>
inline void page_code_scores(float* out, int64_t ldo, const float* q, int heads, const uint8_t* page, const Quantizer& quantizer, int kv_head) {
    alignas(64) uint16_t room[64 * page_tokens];
    const Code* codes = unpacked<Code>(room, page, quantizer);
    const int dim = quantizer.head_dim;
    by_heads(heads, [&]<int H, int Strip>(int h) {
        code_scores<H, SubDim>(out + h * ldo, ldo, q + h * dim, dim, codes, quantizer.codebook(kv_head), quantizer.subs());
    });
}

inline void page_scores(float* out, int64_t ldo, const float* q, int heads, const uint8_t* page, const uint8_t* next, const Quantizer& quantizer,
                        int kv_head) {
    const int dim = quantizer.head_dim, bits = quantizer.bits;
    if (bits == 16)
        by_heads(heads, [&]<int H, int Strip>(int h) {
            bf16_scores<H, Strip>(out + h * ldo, ldo, q + h * dim, dim, reinterpret_cast<const vi_bf16*>(page), reinterpret_cast<const vi_bf16*>(next), dim);
        });
    else if (quantizer.sub_dim == 2) page_code_scores<2, uint8_t>(out, ldo, q, heads, page, quantizer, kv_head);
    else if (quantizer.sub_dim == 4 && bits <= 8) page_code_scores<4, uint8_t>(out, ldo, q, heads, page, quantizer, kv_head);
    else if (quantizer.sub_dim == 4) page_code_scores<4, uint16_t>(out, ldo, q, heads, page, quantizer, kv_head);
    else if (bits == 8) page_code_scores<8, uint8_t>(out, ldo, q, heads, page, quantizer, kv_head);
    else page_code_scores<8, uint16_t>(out, ldo, q, heads, page, quantizer, kv_head);
}

template <int SubDim, class Code>
inline void page_code_values(float* acc, const float* w, int64_t ldw, int heads, const uint8_t* page, const Quantizer& quantizer, int kv_head, int first,
                             int last) {
    alignas(64) uint16_t room[64 * page_tokens];
    const Code* codes = unpacked<Code>(room, page, quantizer);
    const int dim = quantizer.head_dim;
    by_heads(heads, [&]<int H, int Strip>(int h) {
        code_values<H, Strip, SubDim>(acc + h * dim, dim, w + h * ldw, ldw, codes, quantizer.codebook(kv_head), first, last, dim);
    });
}

// acc [heads, dim] += w [heads, 64] (stride ldw) V over the tokens first .. last - 1 of a page, whose token scales are in w already.
inline void page_values(float* acc, const float* w, int64_t ldw, int heads, const uint8_t* page, const uint8_t* next, const Quantizer& quantizer,
                        int kv_head, int first, int last) {
    const int dim = quantizer.head_dim, bits = quantizer.bits;
    if (bits == 16)
        by_heads(heads, [&]<int H, int Strip>(int h) {
            bf16_values<H, Strip>(acc + h * dim, dim, w + h * ldw, ldw, reinterpret_cast<const vi_bf16*>(page), reinterpret_cast<const vi_bf16*>(next),
                                  first, last, dim);
        });
    else if (quantizer.sub_dim == 2) page_code_values<2, uint8_t>(acc, w, ldw, heads, page, quantizer, kv_head, first, last);
    else if (quantizer.sub_dim == 4 && bits <= 8) page_code_values<4, uint8_t>(acc, w, ldw, heads, page, quantizer, kv_head, first, last);
    else if (quantizer.sub_dim == 4) page_code_values<4, uint16_t>(acc, w, ldw, heads, page, quantizer, kv_head, first, last);
    else if (bits == 8) page_code_values<8, uint8_t>(acc, w, ldw, heads, page, quantizer, kv_head, first, last);
    else page_code_values<8, uint16_t>(acc, w, ldw, heads, page, quantizer, kv_head, first, last);
}
