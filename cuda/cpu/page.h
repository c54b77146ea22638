// The order of a page of one KV head. Codes: [sub-vector][64 tokens], in two planes: the low bits of all sub-vectors, then the high ones.
//   bits    6      8     10     12
//   low   4 bits   8      8      8
//   high  2 bits   -      2      4
// In a plane of w bits the 64 tokens of a sub-vector fill 8 w bytes, and token t has the bits from w * (t / (8 w)) of byte t % (8 w) up,
// so that 64 codes unpack with whole-register shifts. The token scales follow, 64 bytes.
// 16 bits: keys [head_dim][64 tokens], so that scores are sums over registers of tokens; values [64 tokens][head_dim].
#pragma once
#include "quantizer.h"
#include "tile.h"

static_assert(page_tokens == 64 && formats_have({2, 4, 8}, {6, 8, 10, 12}), "the layout is written for these sizes");

inline int low_bits(int bits) { return bits < 8 ? 4 : 8; }

inline void write_bits(uint8_t* plane, int width, int token, int value) {
    const int bytes = 8 * width, shift = width * (token / bytes);
    uint8_t& byte = plane[token % bytes];
    byte = static_cast<uint8_t>((byte & ~(((1 << width) - 1) << shift)) | value << shift);
}

inline void write_codes(uint8_t* page, const Quantizer& q, int token, const int32_t* codes) {
    const int low = low_bits(q.bits), high = q.bits - low, subs = q.subs();
    uint8_t* upper = page + int64_t(subs) * 8 * low;
    for (int s = 0; s < subs; s++) {
        write_bits(page + int64_t(s) * 8 * low, low, token, codes[s] & ((1 << low) - 1));
        if (high) write_bits(upper + int64_t(s) * 8 * high, high, token, codes[s] >> low);
    }
}

inline uint8_t* token_scales(uint8_t* page, const Quantizer& q) { return page + q.head_bytes() - page_tokens; }
inline const uint8_t* token_scales(const uint8_t* page, const Quantizer& q) { return page + q.head_bytes() - page_tokens; }

// The 64 codes of one sub-vector; Code is uint8_t (up to 8 bits) or uint16_t.
template <class Code> inline void read_codes(Code* codes, const uint8_t* page, const Quantizer& q, int sub) {
    typedef uint8_t Bytes16 __attribute__((vector_size(16)));
    typedef uint8_t Bytes32 __attribute__((vector_size(32)));
    typedef Code Codes __attribute__((vector_size(32 * sizeof(Code))));
    const int low_width = low_bits(q.bits), high_width = q.bits - low_width;
    const uint8_t* lower = page + int64_t(sub) * 8 * low_width;
    const uint8_t* upper = page + int64_t(q.subs()) * 8 * low_width + int64_t(sub) * 8 * high_width;
    for (int half = 0; half < 2; half++) { // 32 tokens
        Bytes32 low, high = {};
        std::memcpy(&low, lower + (low_width == 8 ? 32 * half : 0), 32);
        if (low_width == 4) low = low >> 4 * half & 15;
        if (high_width == 4) {
            std::memcpy(&high, upper, 32);
            high = high >> 4 * half & 15;
        } else if (high_width == 2) {
            Bytes16 part;
            std::memcpy(&part, upper, 16);
            const Bytes16 first = part >> 4 * half & 3, second = part >> (4 * half + 2) & 3;
            high = __builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
                                           25, 26, 27, 28, 29, 30, 31);
        }
        Codes out = __builtin_convertvector(low, Codes);
        if (high_width) out |= __builtin_convertvector(high, Codes) << low_width;
        std::memcpy(codes + 32 * half, &out, sizeof out);
    }
}

// s = 2^((u - 128) / 16) of 64 tokens.
inline void read_scales(float* out, const uint8_t* u) {
    float exponents[page_tokens];
    for (int t = 0; t < page_tokens; t++) exponents[t] = (u[t] - 128) / 16.0f;
    for (int t = 0; t < page_tokens; t += kWidth) store(out + t, exp2_vec(load(exponents + t)));
}

template <int SubDim> inline void key_codes_tile(float* tile, const uint8_t* page, const Quantizer& q, int head) {
    typedef float Quad __attribute__((vector_size(16)));
    for (int s = 0; s < q.subs(); s++) {
        uint16_t codes[page_tokens];
        read_codes(codes, page, q, s);
        const float* book = q.codebook(head, s);
        float* rows = tile + int64_t(s) * SubDim * page_tokens;
        if constexpr (SubDim == 2) {
            for (int t = 0; t < page_tokens; t++) {
                rows[t] = book[codes[t] * 2];
                rows[page_tokens + t] = book[codes[t] * 2 + 1];
            }
        } else {
            for (int t = 0; t < page_tokens; t += 4)
#pragma GCC unroll 2
                for (int i = 0; i < SubDim; i += 4) { // four codewords' quarter or half, transposed
                    Quad w[4];
                    for (int j = 0; j < 4; j++) std::memcpy(&w[j], book + codes[t + j] * SubDim + i, 16);
                    const Quad a = __builtin_shufflevector(w[0], w[1], 0, 4, 1, 5), b = __builtin_shufflevector(w[0], w[1], 2, 6, 3, 7);
                    const Quad c = __builtin_shufflevector(w[2], w[3], 0, 4, 1, 5), d = __builtin_shufflevector(w[2], w[3], 2, 6, 3, 7);
                    w[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5), w[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
                    w[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5), w[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
                    for (int j = 0; j < 4; j++) std::memcpy(rows + (i + j) * page_tokens + t, &w[j], 16);
                }
        }
    }
}

// tile [head_dim][64 tokens]: a page's keys, without the token scales.
inline void key_tile(float* tile, const uint8_t* page, const Quantizer& q, int head) {
    if (!q.coded()) {
        const vi_bf16* rows = reinterpret_cast<const vi_bf16*>(page);
        for (int i = 0; i < q.head_dim * page_tokens; i += kWidth) store(tile + i, load_bf16(rows + i));
        return;
    }
    switch (q.sub_dim) {
    case 2: return key_codes_tile<2>(tile, page, q, head);
    case 4: return key_codes_tile<4>(tile, page, q, head);
    case 8: return key_codes_tile<8>(tile, page, q, head);
    }
}

template <int SubDim> inline void value_codes_tile(float* tile, const uint8_t* page, const Quantizer& q, int head) {
    for (int s = 0; s < q.subs(); s++) {
        uint16_t codes[page_tokens];
        read_codes(codes, page, q, s);
        const float* book = q.codebook(head, s);
        for (int t = 0; t < page_tokens; t++) std::memcpy(tile + int64_t(t) * q.head_dim + s * SubDim, book + codes[t] * SubDim, SubDim * 4);
    }
}

// tile [64 tokens][head_dim]: a page's values of tokens first .. last - 1, without the token scales; the others' are zeros,
// for what a page holds where no token is yet may be NaN.
inline void value_tile(float* tile, const uint8_t* page, const Quantizer& q, int head, int first, int last) {
    const int dim = q.head_dim;
    if (q.coded()) {
        switch (q.sub_dim) {
        case 2: return value_codes_tile<2>(tile, page, q, head);
        case 4: return value_codes_tile<4>(tile, page, q, head);
        case 8: return value_codes_tile<8>(tile, page, q, head);
        }
    }
    const vi_bf16* rows = reinterpret_cast<const vi_bf16*>(page);
    std::memset(tile, 0, int64_t(first) * dim * 4);
    for (int i = first * dim; i < last * dim; i += kWidth) store(tile + i, load_bf16(rows + i));
    std::memset(tile + int64_t(last) * dim, 0, int64_t(page_tokens - last) * dim * 4);
}
