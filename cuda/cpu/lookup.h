// Attention over codes of up to 8 bits without dequantizing them, on AVX-512 with VBMI and VNNI.
//
// Keys: q~ . k~ = sum over sub-vectors s of table_s[code_s] with table_s[c] = <q~_s, c>. Values: out_j = sum over tokens of w_t c_j[code_t].
// Both need 256-entry lookups by byte, and a register holds 64 codes: a byte table of 256 entries is four registers, looked up by two
// two-register permutes and a blend. Entries are fixed point of 24 bits in three such byte tables, so a lookup is exact to 2^-24 of the
// largest entry, which is what f32 sums would leave too; sums run in integer lanes, so their order does not matter.
#pragma once
#include "quantizer.h"
#include <cmath>

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define VI_LOOKUP 1
#else
#define VI_LOOKUP 0
#endif

constexpr int table_bytes = 3 * 256;

// Codeword components as three signed bytes each, v = (h 2^16 + m 2^8 + l) plane_scale with all of h, m, l in -128..127.
inline void value_planes(Quantizer& q) {
    const int words = q.padded_codewords();
    q.planes.resize(int64_t(q.codebook_heads) * q.sub_dim * table_bytes);
    for (int head = 0; head < q.codebook_heads; head++) {
        const float* book = q.codebooks.data() + int64_t(head) * words * q.sub_dim;
        float largest = 1e-30f;
        for (int i = 0; i < words * q.sub_dim; i++) largest = std::max(largest, std::fabs(book[i]));
        const double scale = double(largest) / (127 * 65793); // 65793 = 2^16 + 2^8 + 1
        q.plane_scales.push_back(static_cast<float>(scale));
        for (int c = 0; c < words; c++)
            for (int j = 0; j < q.sub_dim; j++) {
                int8_t* table = q.planes.data() + (int64_t(head) * q.sub_dim + j) * table_bytes;
                int v = static_cast<int>(std::nearbyint(book[c * q.sub_dim + j] / scale));
                for (int plane = 2; plane >= 0; plane--) {
                    const int8_t digit = static_cast<int8_t>(v & 255);
                    table[plane * 256 + c] = digit;
                    v = (v - digit) >> 8;
                }
            }
    }
}

#if VI_LOOKUP

struct ByteTable {
    __m512i part[4];
    explicit ByteTable(const void* table) {
        for (int i = 0; i < 4; i++) part[i] = _mm512_loadu_si512(static_cast<const char*>(table) + 64 * i);
    }
    // upper: the lanes whose code is 128 or more
    __m512i operator()(__m512i codes, __mmask64 upper) const {
        return _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(part[0], codes, part[1]), _mm512_permutex2var_epi8(part[2], codes, part[3]));
    }
};

// The tables of one query: [subs][3][256] bytes, entry + 2^23 in units of the returned step. NaN or infinity in q makes the step NaN.
inline float score_tables(uint8_t* tables, const float* query, const Quantizer& q, int head) {
    const Codebook& book = q.books[q.codebook_head(head)];
    alignas(64) float entries[64 * 256]; // of all sub-vectors
    __m512 largest = _mm512_set1_ps(1e-30f);
    for (int s = 0; s < q.subs(); s++)
        for (int c = 0; c < book.padded; c += 16) {
            __m512 x = _mm512_setzero_ps();
            for (int j = 0; j < q.sub_dim; j++)
                x = _mm512_fmadd_ps(_mm512_set1_ps(query[s * q.sub_dim + j]), _mm512_loadu_ps(&book.transposed[j * book.padded + c]), x);
            _mm512_store_ps(entries + s * book.padded + c, x);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
        }
    float check = 0;
    for (int i = 0; i < q.head_dim; i++) check += query[i] * 0.0f;
    const float bound = _mm512_reduce_max_ps(largest);
    const __m512 factor = _mm512_set1_ps(8388606.0f / bound);
    const __m512i offset = _mm512_set1_epi32(1 << 23);
    for (int s = 0; s < q.subs(); s++)
        for (int c = 0; c < book.padded; c += 16) {
            const __m512i v = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(entries + s * book.padded + c), factor)), offset);
            uint8_t* to = tables + s * table_bytes + c;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 16)));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 256), _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 8)));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 512), _mm512_cvtepi32_epi8(v));
        }
    return bound / 8388606.0f + check;
}

// Scores of Blocks blocks of 64 tokens: out [Blocks * 64] = table sums * step (* scales, which may be NULL).
// 16-bit lanes take in the bytes of even and odd tokens: `both` sums whole lanes modulo 2^16, `odd` their upper bytes (64 * 255 < 2^16),
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
            const ByteTable table(tables + s * table_bytes + p * 256);
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

constexpr float weight_units = 16777000.0f; // below 2^24 whatever the rounding of w * (units / largest)

// Weights w >= 0 [count, a multiple of 64] as three unsigned bytes each: planes [3][stride]; returns their step.
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

// out[g * dim + d] += sum_t w_g[t] v[t, d] for Heads query heads: weights [Heads][3][stride] bytes, steps[g] their unit.
// Of the nine products of byte planes the six above 2^-24 are taken, in three sums by their weight.
template <int Heads>
inline void table_values(float* out, const uint8_t* weights, int64_t stride, const float* steps, const uint8_t* const* codes, int blocks, const Quantizer& q,
                         int head) {
    const int8_t* planes = q.planes.data() + int64_t(q.codebook_head(head)) * q.sub_dim * table_bytes;
    for (int s = 0; s < q.subs(); s++)
        for (int j = 0; j < q.sub_dim; j++) {
            const int8_t* table = planes + j * table_bytes;
            const ByteTable high(table), middle(table + 256), low(table + 512);
            __m512i sum[Heads][3];
            for (int g = 0; g < Heads; g++)
                for (int p = 0; p < 3; p++) sum[g][p] = _mm512_setzero_si512();
            for (int b = 0; b < blocks; b++) {
                const __m512i code = _mm512_loadu_si512(codes[b] + s * 64);
                const __mmask64 upper = _mm512_movepi8_mask(code);
                const __m512i h = high(code, upper), m = middle(code, upper), l = low(code, upper);
                for (int g = 0; g < Heads; g++) {
                    const uint8_t* w = weights + g * 3 * stride + b * 64;
                    const __m512i wh = _mm512_loadu_si512(w), wm = _mm512_loadu_si512(w + stride), wl = _mm512_loadu_si512(w + 2 * stride);
                    sum[g][0] = _mm512_dpbusd_epi32(sum[g][0], wh, h);
                    sum[g][1] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum[g][1], wh, m), wm, h);
                    sum[g][2] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum[g][2], wh, l), wm, m), wl, h);
                }
            }
            for (int g = 0; g < Heads; g++) {
                __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[g][0]), _mm512_set1_ps(65536.0f));
                x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[g][1]), _mm512_set1_ps(256.0f), x);
                x = _mm512_add_ps(_mm512_cvtepi32_ps(sum[g][2]), x);
                // high 2^16 x weight 2^16, and the three sums are 2^0, 2^-8, 2^-16 of that
                out[g * q.head_dim + s * q.sub_dim + j] += _mm512_reduce_add_ps(x) * (steps[g] * 65536.0f * q.plane_scales[q.codebook_head(head)]);
            }
        }
}

#endif
