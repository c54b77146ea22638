// Attention over codes of up to 10 bits by table lookups in registers, on AVX-512 with VBMI and VNNI. A register holds 64 codes, and a byte
// table of 256 entries is four registers, looked up by two two-register permutes and a blend; one of 1024 entries is four of these.
//
// Scores of up to 8 bits: q~ . k~ = sum over sub-vectors s of table_s[code_s] with table_s[c] = <q~_s, c>. An entry is fixed point of 24 bits
// in three byte tables, exact to 2^-24 of the largest entry, which is what f32 sums would leave too.
// Scores of 10 bits, whose tables a query would be four times as large: the components themselves are looked up, once for all query heads, and
// multiplied by the query in 24 bits.
// Values: out_j = sum over tokens of w_t c_j[code_t]. Components are one byte or two (see round_codebook in quantizer.cpp), weights three, exact
// to 2^-24 of the chunk's largest; sums of products are integers.
#pragma once
#include "quantizer.h"
#include <cmath>

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define VI_LOOKUP 1
#else
#define VI_LOOKUP 0
#endif

constexpr int score_table_bytes = 3 * 256;
constexpr int max_subs = max_head_dim / 2; // sub-vectors of a head

#if VI_LOOKUP

struct ByteTable {
    __m512i part[4];
    explicit ByteTable(const void* table) {
        for (int i = 0; i < 4; i++) part[i] = kept(_mm512_loadu_si512(static_cast<const char*>(table) + 64 * i));
    }
    // upper: the lanes whose code is 128 or more
    __m512i operator()(__m512i codes, __mmask64 upper) const {
        return _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(part[0], codes, part[1]), _mm512_permutex2var_epi8(part[2], codes, part[3]));
    }
};

// The codes of a sub-vector of a page (page.h): their low bytes, and the lanes in which bit 7, 8 and 9 are set.
template <bool wide> struct Codes {
    __m512i low;
    __mmask64 bit[3];
    Codes(const uint8_t* page, int subs, int sub) : low(_mm512_loadu_si512(page + sub * 64)) {
        bit[0] = _mm512_movepi8_mask(low);
        if constexpr (wide) { // the high plane: token t has two bits from 2 * (t / 16) of byte t % 16 up
            const __m512i high = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(page + subs * 64 + sub * 16)));
            const __m512i first = _mm512_set_epi32(0x40404040, 0x40404040, 0x40404040, 0x40404040, 0x10101010, 0x10101010, 0x10101010, 0x10101010,
                                                   0x04040404, 0x04040404, 0x04040404, 0x04040404, 0x01010101, 0x01010101, 0x01010101, 0x01010101);
            bit[1] = _mm512_test_epi8_mask(high, first);
            bit[2] = _mm512_test_epi8_mask(high, _mm512_slli_epi32(first, 1));
        }
    }
};

// out [blocks][64] (stride 64) of the byte table's entries for a sub-vector's codes.
template <bool wide> inline void look_up(int8_t* out, const int8_t* table, const uint8_t* const* codes, int blocks, int subs, int sub) {
    const ByteTable first(table);
    if constexpr (!wide) {
        for (int b = 0; b < blocks; b++) {
            const Codes<false> code(codes[b], subs, sub);
            _mm512_store_si512(out + b * 64, first(code.low, code.bit[0]));
        }
    } else {
        const ByteTable second(table + 256), third(table + 512), fourth(table + 768);
        for (int b = 0; b < blocks; b++) {
            const Codes<true> code(codes[b], subs, sub);
            const __m512i low = _mm512_mask_blend_epi8(code.bit[1], first(code.low, code.bit[0]), second(code.low, code.bit[0]));
            const __m512i high = _mm512_mask_blend_epi8(code.bit[1], third(code.low, code.bit[0]), fourth(code.low, code.bit[0]));
            _mm512_store_si512(out + b * 64, _mm512_mask_blend_epi8(code.bit[2], low, high));
        }
    }
}

// The tables of one query: [subs][3][256] bytes, entry + 2^23 in units of the returned step. NaN or infinity in q makes the step NaN.
inline float score_tables(uint8_t* tables, const float* query, const Quantizer& q, int head) {
    const int padded = q.books[0].padded;
    alignas(64) float entries[max_subs * 256]; // of all sub-vectors
    __m512 largest = _mm512_set1_ps(1e-30f);
    for (int s = 0; s < q.subs(); s++) {
        const float* words = q.books[q.book(head, s)].transposed.data();
        for (int c = 0; c < padded; c += 16) {
            __m512 x = _mm512_setzero_ps();
            for (int j = 0; j < q.sub_dim; j++)
                x = _mm512_fmadd_ps(_mm512_set1_ps(query[s * q.sub_dim + j]), _mm512_loadu_ps(words + j * padded + c), x);
            _mm512_store_ps(entries + s * padded + c, x);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
        }
    }
    float check = 0;
    for (int i = 0; i < q.head_dim; i++) check += query[i] * 0.0f;
    const float bound = _mm512_reduce_max_ps(largest);
    const __m512 factor = _mm512_set1_ps(8388606.0f / bound);
    const __m512i offset = _mm512_set1_epi32(1 << 23);
    for (int s = 0; s < q.subs(); s++)
        for (int c = 0; c < padded; c += 16) {
            const __m512i v = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(entries + s * padded + c), factor)), offset);
            uint8_t* to = tables + s * score_table_bytes + c;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 16)));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 256), _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 8)));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 512), _mm512_cvtepi32_epi8(v));
        }
    return bound / 8388606.0f + check;
}

// Scores of Blocks blocks of 64 tokens: out [Blocks * 64] = table sums * step (* scales, which may be NULL).
// 16-bit lanes take in the bytes of even and odd tokens: `both` sums whole lanes modulo 2^16, `odd` their upper bytes (128 * 255 < 2^16),
// so the even tokens' sums are both - 256 odd.
template <int Blocks>
inline void table_scores(float* out, const uint8_t* tables, const uint8_t* const* codes, const float* scales, int subs, float step) {
    __m512i both[Blocks][3], odd[Blocks][3];
    for (int b = 0; b < Blocks; b++)
        for (int p = 0; p < 3; p++) both[b][p] = odd[b][p] = _mm512_setzero_si512();
    for (int s = 0; s < subs; s++) {
        __m512i code[Blocks];
        __mmask64 upper[Blocks];
        for (int b = 0; b < Blocks; b++) code[b] = _mm512_loadu_si512(codes[b] + s * 64), upper[b] = _mm512_movepi8_mask(code[b]);
        for (int p = 0; p < 3; p++) {
            const ByteTable table(tables + s * score_table_bytes + p * 256);
            for (int b = 0; b < Blocks; b++) {
                const __m512i x = table(code[b], upper[b]);
                both[b][p] = _mm512_add_epi16(both[b][p], x);
                odd[b][p] = _mm512_add_epi16(odd[b][p], _mm512_srli_epi16(x, 8));
            }
        }
    }
    const __m512i offset = _mm512_set1_epi32(subs << 23), low = _mm512_set1_epi32(0xffff);
    const __m512 unit = _mm512_set1_ps(step);
    // 32-bit lane i holds tokens 4i .. 4i + 3 as (even, odd) x (lower, upper half).
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for (int b = 0; b < Blocks; b++) {
        __m512 token[4]; // of tokens 4i + 0 .. 3
        for (int k = 0; k < 4; k++) {
            __m512i total = _mm512_setzero_si512();
            for (int p = 0; p < 3; p++) {
                __m512i x = k & 1 ? odd[b][p] : _mm512_sub_epi16(both[b][p], _mm512_slli_epi16(odd[b][p], 8));
                x = k & 2 ? _mm512_srli_epi32(x, 16) : _mm512_and_si512(x, low);
                total = _mm512_add_epi32(total, _mm512_slli_epi32(x, 16 - 8 * p));
            }
            token[k] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(total, offset)), unit);
        }
        const __m512 even_low = _mm512_permutex2var_ps(token[0], first, token[2]), even_high = _mm512_permutex2var_ps(token[0], second, token[2]);
        const __m512 odd_low = _mm512_permutex2var_ps(token[1], first, token[3]), odd_high = _mm512_permutex2var_ps(token[1], second, token[3]);
        __m512 row[4] = {_mm512_permutex2var_ps(even_low, first, odd_low), _mm512_permutex2var_ps(even_low, second, odd_low),
                         _mm512_permutex2var_ps(even_high, first, odd_high), _mm512_permutex2var_ps(even_high, second, odd_high)};
        for (int i = 0; i < 4; i++) {
            if (scales) row[i] = _mm512_mul_ps(row[i], _mm512_loadu_ps(scales + b * 64 + i * 16));
            _mm512_storeu_ps(out + b * 64 + i * 16, row[i]);
        }
    }
}

// Components of a sub-vector of four, of `blocks` blocks: out [blocks][4][64 bytes], each 32-bit lane a codeword whose bytes are offset by 128.
// Lane 4 l + i of register j is token 16 l + 4 j + i. Not inlined, for the registers that a table of 1024 entries takes.
__attribute__((noinline)) inline void look_up_words(uint8_t* out, int8_t* rows, int64_t stride, const int8_t* tables,
                                                    const uint8_t* const* codes, int blocks, int subs, int sub) {
    for (int r = 0; r < 4; r++) look_up<true>(rows + r * stride, tables + r * 1024, codes, blocks, subs, sub);
    const __m512i offset = _mm512_set1_epi8(-128);
    for (int b = 0; b < blocks; b++, out += 256) {
        __m512i x[4];
        for (int r = 0; r < 4; r++) x[r] = _mm512_xor_si512(_mm512_load_si512(rows + r * stride + b * 64), offset);
        const __m512i low = _mm512_unpacklo_epi8(x[0], x[1]), high = _mm512_unpackhi_epi8(x[0], x[1]);
        const __m512i low2 = _mm512_unpacklo_epi8(x[2], x[3]), high2 = _mm512_unpackhi_epi8(x[2], x[3]);
        _mm512_store_si512(out, _mm512_unpacklo_epi16(low, low2));
        _mm512_store_si512(out + 64, _mm512_unpackhi_epi16(low, low2));
        _mm512_store_si512(out + 128, _mm512_unpacklo_epi16(high, high2));
        _mm512_store_si512(out + 192, _mm512_unpackhi_epi16(high, high2));
    }
}

constexpr float query_units = 8355000.0f; // below 127 * 65536 + 127 * 256 + 127 whatever the rounding, so that the high digit is a byte

// A query times the units of the codebooks as signed digits to the base 256, digits[3][subs] of four bytes, the high one first; its step, and
// the sums that the offset of the components adds to each digit. NaN or infinity in q makes the step NaN.
struct QueryDigits {
    int32_t digits[3][max_head_dim / 4];
    int32_t offset[3];
    float step;

    void set(const float* query, const Quantizer& q, int head) {
        float x[max_head_dim], largest = 1e-30f, check = 0;
        for (int i = 0; i < q.head_dim; i++) {
            x[i] = query[i] * q.units[q.book(head, i / 4)];
            largest = std::max(largest, std::fabs(x[i])), check += query[i] * 0.0f;
        }
        const float factor = query_units / largest;
        for (int p = 0; p < 3; p++) offset[p] = 0;
        for (int i = 0; i < q.head_dim; i++) {
            int n = check == 0 ? static_cast<int>(std::nearbyint(x[i] * factor)) : 0;
            for (int p = 2; p >= 0; p--) {
                const int8_t digit = static_cast<int8_t>(n & 255);
                n = (n - digit) >> 8;
                std::memcpy(reinterpret_cast<char*>(&digits[p][i / 4]) + i % 4, &digit, 1);
                offset[p] += 128 * digit;
            }
        }
        step = largest / query_units + check;
    }
};

// Scores of a block of 64 tokens from words [subs][word_stride]: out [64] = q . k * step (* scales, which may be NULL).
inline void word_scores(float* out, const uint8_t* words, int64_t word_stride, const QueryDigits& query, const float* scales, int subs) {
    __m512i sum[4][3];
    for (int j = 0; j < 4; j++)
        for (int p = 0; p < 3; p++) sum[j][p] = _mm512_set1_epi32(-query.offset[p]);
    for (int s = 0; s < subs; s++) {
        __m512i word[4];
        for (int j = 0; j < 4; j++) word[j] = kept(_mm512_load_si512(words + s * word_stride + j * 64));
        for (int p = 0; p < 3; p++) {
            const __m512i digit = kept(_mm512_set1_epi32(query.digits[p][s]));
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) sum[j][p] = kept(_mm512_dpbusd_epi32(sum[j][p], word[j], digit));
        }
    }
    __m512 token[4];
    for (int j = 0; j < 4; j++) {
        const __m512 low = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[j][1]), _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(sum[j][2]));
        token[j] = _mm512_mul_ps(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[j][0]), _mm512_set1_ps(65536.0f), low), _mm512_set1_ps(query.step));
    }
    // The 4x4 quarters transposed: row l gets quarter l of all four.
    const __m512 a = _mm512_shuffle_f32x4(token[0], token[1], 0x44), b = _mm512_shuffle_f32x4(token[2], token[3], 0x44);
    const __m512 c = _mm512_shuffle_f32x4(token[0], token[1], 0xee), d = _mm512_shuffle_f32x4(token[2], token[3], 0xee);
    __m512 row[4] = {_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd), _mm512_shuffle_f32x4(c, d, 0x88),
                     _mm512_shuffle_f32x4(c, d, 0xdd)};
    for (int i = 0; i < 4; i++) {
        if (scales) row[i] = _mm512_mul_ps(row[i], _mm512_loadu_ps(scales + i * 16));
        _mm512_storeu_ps(out + i * 16, row[i]);
    }
}

constexpr float weight_units = 16777000.0f; // below 2^24 whatever the rounding of w * (units / largest)

// Weights w >= 0 [count, a multiple of 64] as three bytes each: planes [3][stride], the high one first. Returns their unit.
inline float weight_planes(uint8_t* planes, int64_t stride, const float* w, int count) {
    __m512 largest = _mm512_setzero_ps();
    for (int t = 0; t < count; t += 16) largest = _mm512_max_ps(largest, _mm512_loadu_ps(w + t));
    const float bound = std::max(_mm512_reduce_max_ps(largest), 1e-30f);
    const __m512 factor = _mm512_set1_ps(weight_units / bound);
    for (int t = 0; t < count; t += 16) {
        const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(w + t), factor));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(planes + t), _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 16)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(planes + stride + t), _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 8)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(planes + 2 * stride + t), _mm512_cvtepi32_epi8(v));
    }
    return bound / weight_units;
}

// The sums of four registers' lanes.
inline __m128 sums(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 lanes = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// out [heads, dim] += sum over the tokens of `blocks` blocks of 64 of weight and value. weights [heads][3][stride], units [heads].
// Four byte rows of a sub-vector at a time are looked up into tile [4][stride], which all heads multiply.
// Not inlined, and each sum kept: else GCC 12 moves or spills the sums in every round.
__attribute__((noinline)) inline void table_values(float* out, int8_t* tile, const uint8_t* weights, int64_t stride, const float* units, int heads,
                                                   const uint8_t* const* codes, int blocks, const Quantizer& q, int head) {
    const int rows = q.sub_dim * q.component_bytes();
    for (int first = 0; first < rows; first += 4)
        for (int s = 0; s < q.subs(); s++) {
            const int8_t* tables = q.components_of(head, s);
            const float unit = q.units[q.book(head, s)];
            for (int r = 0; r < 4; r++) {
                const int8_t* table = tables + (first + r) * q.padded_codewords();
                if (q.bits > 8) look_up<true>(tile + r * stride, table, codes, blocks, q.subs(), s);
                else look_up<false>(tile + r * stride, table, codes, blocks, q.subs(), s);
            }
            for (int h = 0; h < heads; h++) {
                __m512i sum[4][3];
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++)
#pragma GCC unroll 3
                    for (int p = 0; p < 3; p++) sum[r][p] = _mm512_setzero_si512();
                const uint8_t* w = weights + h * 3 * stride;
                for (int t = 0; t < blocks * 64; t += 64) {
                    __m512i v[4];
#pragma GCC unroll 4
                    for (int r = 0; r < 4; r++) v[r] = kept(_mm512_load_si512(tile + r * stride + t));
#pragma GCC unroll 3
                    for (int p = 0; p < 3; p++) {
                        const __m512i x = kept(_mm512_load_si512(w + p * stride + t));
#pragma GCC unroll 4
                        for (int r = 0; r < 4; r++) sum[r][p] = kept(_mm512_dpbusd_epi32(sum[r][p], x, v[r]));
                    }
                }
                __m512 total[4];
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++) {
                    const __m512 low = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][1]), _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(sum[r][2]));
                    total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][0]), _mm512_set1_ps(65536.0f), low);
                }
                alignas(16) float row[4];
                _mm_store_ps(row, sums(total[0], total[1], total[2], total[3]));
                float* to = out + h * q.head_dim + s * q.sub_dim;
                if (q.component_bytes() == 2)
                    for (int c = 0; c < 2; c++) to[c] += (row[2 * c] * 256 + row[2 * c + 1]) * (units[h] * unit);
                else
                    for (int c = 0; c < 4; c++) to[first + c] += row[c] * (units[h] * unit);
            }
        }
}

#endif
