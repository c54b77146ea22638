// out = x W^T + bias with weights in blocks of 32 that share a scale. Each 32 values of x are rounded to 8 bits with a scale of their own, the
// largest |x| / 127, so that x is met within 1/254 of it; products are then sums of integers, exact, and one f32 addition a block:
//     sum_b d_b e_b sum_i w_i x_i (+ m_b e_b sum_i x_i for VI_Q4_1), e_b the scale of x.
// Blocks are added in one order whatever the rows and the threads, so that a row's bits don't depend on the rows beside it.
//
// A panel is 16 outputs, the lanes of a register. In memory: for each block the scales d [16] (and minima m [16]) as f16, then the weights,
// unsigned: VI_Q8_0 w + 128 as [8][16][4], four weights of each output together; VI_Q4_0 and VI_Q4_1 as [4][16][4], weight i in the lower and
// weight i + 16 in the upper half. What an unsigned weight is too much is taken off by the block's sum of x.
#include "linear_packed.h"
#include <cmath>
#if defined(__AVX512VNNI__)
#define VI_VNNI
#pragma GCC diagnostic push // GCC 12 warns of its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace {

constexpr int lanes = VI_PACKED_ROWS, block = packed_inputs;

constexpr int weight_bytes(int format) { return format == VI_Q8_0 ? lanes * block : lanes * block / 2; }
constexpr int scale_bytes(int format) { return format == VI_Q4_1 ? lanes * 4 : lanes * 2; }
constexpr int offset(int format) { return format == VI_Q8_0 ? 128 : format == VI_Q4_0 ? 8 : 0; }

#if defined(VI_VNNI)

void round_block(int8_t* values, float& scale, int32_t& sum, const float* x) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16), zero = _mm512_setzero_ps();
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const __m512 by = _mm512_set1_ps(most > 0 ? 127 / most : 0);
    // NaN and what is too large become -2^31, and sums of those overflow.
    const __m512i least = _mm512_set1_epi32(-127);
    const __m512i p = _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(a, by)), least);
    const __m512i q = _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(b, by)), least);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(values), _mm512_cvtsepi32_epi8(p));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(values + 16), _mm512_cvtsepi32_epi8(q));
    // x * 0 carries a NaN or an infinity into the scale.
    scale = most / 127 + _mm512_reduce_add_ps(_mm512_fmadd_ps(a, zero, _mm512_mul_ps(b, zero)));
    sum = _mm512_reduce_add_epi32(_mm512_add_epi32(p, q));
}

inline __m512 half(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

// A tile's sums go out, with the bias; outputs past the end are left.
template <int Rows, int Panels> inline __attribute__((always_inline)) void store_tile(const PackedProduct& product, const __m512 (&sum)[Rows][Panels], int row, int panel) {
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) {
        const int first = (panel + p) * lanes, count = std::min(lanes, product.outs - first);
        const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
        __m512 bias = _mm512_setzero_ps();
        if (product.bias)
            bias = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, product.bias + first)), 16));
#pragma GCC unroll 8
        for (int r = 0; r < Rows; r++) {
            float* to = product.out_row(row + r) + first;
            __m512 total = product.bias ? _mm512_add_ps(sum[r][p], bias) : sum[r][p];
            if (product.accumulate) total = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), total);
            _mm512_mask_storeu_ps(to, mask, total);
        }
    }
}

// Rows rows from `row` on times Panels panels from `panel` on.
template <int Format, int Rows, int Panels> void tile(const PackedProduct& product, int row, int panel) {
    constexpr int bytes = scale_bytes(Format) + weight_bytes(Format);
    const int blocks = product.ins / block;
    const int8_t* x = product.x.values + size_t(row) * product.ins;
    const float* scales = product.x.scales + size_t(row) * blocks;
    const int32_t* x_sums = product.x.sums + size_t(row) * blocks;
    const uint8_t* weight = product.weight + size_t(panel) * blocks * bytes;
    __m512 sum[Rows][Panels];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; p++) sum[r][p] = _mm512_setzero_ps();
    for (int b = 0; b < blocks; b++) {
        const uint8_t* from[Panels];
#pragma GCC unroll 4
        for (int p = 0; p < Panels; p++) from[p] = weight + (size_t(p) * blocks + b) * bytes;
        __m512i dots[Rows][Panels];
#pragma GCC unroll 8
        for (int r = 0; r < Rows; r++) {
            const __m512i start = _mm512_set1_epi32(-offset(Format) * x_sums[size_t(r) * blocks + b]);
#pragma GCC unroll 4
            for (int p = 0; p < Panels; p++) dots[r][p] = start;
        }
        if constexpr (Format == VI_Q8_0) {
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) {
                __m512i w[Panels];
#pragma GCC unroll 4
                for (int p = 0; p < Panels; p++) w[p] = _mm512_loadu_si512(from[p] + scale_bytes(Format) + k * 64);
#pragma GCC unroll 8
                for (int r = 0; r < Rows; r++) {
                    int32_t four;
                    std::memcpy(&four, x + size_t(r) * product.ins + b * block + k * 4, 4);
                    const __m512i value = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                    for (int p = 0; p < Panels; p++) dots[r][p] = _mm512_dpbusd_epi32(dots[r][p], w[p], value);
                }
            }
        } else {
            const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                __m512i low[Panels], high[Panels];
#pragma GCC unroll 4
                for (int p = 0; p < Panels; p++) {
                    const __m512i w = _mm512_loadu_si512(from[p] + scale_bytes(Format) + k * 64);
                    low[p] = _mm512_and_si512(w, mask), high[p] = _mm512_and_si512(_mm512_srli_epi16(w, 4), mask);
                }
#pragma GCC unroll 8
                for (int r = 0; r < Rows; r++) {
                    int32_t four, four_more;
                    std::memcpy(&four, x + size_t(r) * product.ins + b * block + k * 4, 4);
                    std::memcpy(&four_more, x + size_t(r) * product.ins + b * block + 16 + k * 4, 4);
                    const __m512i value = _mm512_set1_epi32(four), value_more = _mm512_set1_epi32(four_more);
#pragma GCC unroll 4
                    for (int p = 0; p < Panels; p++)
                        dots[r][p] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(dots[r][p], low[p], value), high[p], value_more);
                }
            }
        }
#pragma GCC unroll 4
        for (int p = 0; p < Panels; p++) {
            const __m512 d = half(from[p]);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; r++) {
                const __m512 e = _mm512_set1_ps(scales[size_t(r) * blocks + b]);
                sum[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r][p]), _mm512_mul_ps(d, e), sum[r][p]);
                if constexpr (Format == VI_Q4_1)
                    sum[r][p] = _mm512_fmadd_ps(half(from[p] + lanes * 2), _mm512_mul_ps(e, _mm512_set1_ps(float(x_sums[size_t(r) * blocks + b]))),
                                                sum[r][p]);
            }
        }
    }
    store_tile<Rows, Panels>(product, sum, row, panel);
}

template <int Format, int Rows> void tiles(const PackedProduct& product, int row, int rows, int first, int last) {
    if (rows < Rows) {
        if constexpr (Rows > 1) tiles<Format, Rows - 1>(product, row, rows, first, last);
        return;
    }
    int panel = first;
    if constexpr (Rows > 1)
        for (; panel + 2 <= last; panel += 2) tile<Format, Rows, 2>(product, row, panel);
    for (; panel < last; panel++) tile<Format, Rows, 1>(product, row, panel);
}

constexpr int tile_rows = 6;

#else

float half(const uint8_t* p) {
    _Float16 x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

void round_block(int8_t* values, float& scale, int32_t& sum, const float* x) {
    float most = 0, check = 0;
    for (int i = 0; i < block; i++) most = std::max(most, std::abs(x[i])), check += x[i] * 0; // a NaN or an infinity reaches the scale
    const float by = most > 0 ? 127 / most : 0;
    sum = 0;
    for (int i = 0; i < block; i++) {
        const float scaled = x[i] * by, value = std::isfinite(scaled) ? std::nearbyint(scaled) : 0;
        values[i] = static_cast<int8_t>(value), sum += values[i];
    }
    scale = most / 127 + check;
}

constexpr int tile_rows = 1;

template <int Format, int Rows> void tiles(const PackedProduct& product, int row, int, int first, int last) {
    constexpr int bytes = scale_bytes(Format) + weight_bytes(Format);
    const int blocks = product.ins / block;
    for (int panel = first; panel < last; panel++) {
        float sum[lanes] = {};
        for (int b = 0; b < blocks; b++) {
            const uint8_t* from = product.weight + (size_t(panel) * blocks + b) * bytes;
            const uint8_t* weight = from + scale_bytes(Format);
            const int8_t* x = product.x.values + size_t(row) * product.ins + b * block;
            const float e = product.x.scales[size_t(row) * blocks + b];
            const int32_t x_sum = product.x.sums[size_t(row) * blocks + b];
            int32_t dots[lanes];
            for (int32_t& dot : dots) dot = -offset(Format) * x_sum;
            for (int k = 0; k < weight_bytes(Format) / 64; k++)
                for (int o = 0; o < lanes; o++)
                    for (int j = 0; j < 4; j++) {
                        const int w = weight[k * 64 + o * 4 + j];
                        if constexpr (Format == VI_Q8_0) dots[o] += w * x[k * 4 + j];
                        else dots[o] += (w & 15) * x[k * 4 + j] + (w >> 4) * x[16 + k * 4 + j];
                    }
            for (int o = 0; o < lanes; o++) {
                sum[o] = std::fma(float(dots[o]), half(from + o * 2) * e, sum[o]);
                if constexpr (Format == VI_Q4_1) sum[o] = std::fma(half(from + (lanes + o) * 2), e * float(x_sum), sum[o]);
            }
        }
        for (int o = 0; o < lanes && panel * lanes + o < product.outs; o++) {
            float& to = product.out_row(row)[panel * lanes + o];
            const float total = product.bias ? sum[o] + bf16_to_f32(product.bias[panel * lanes + o]) : sum[o];
            to = product.accumulate ? to + total : total;
        }
    }
}

#endif

template <int Format> void multiply(const PackedProduct& product, int rows, int first, int last) {
    for (int row = 0; row < rows; row += tile_rows) tiles<Format, tile_rows>(product, row, std::min(tile_rows, rows - row), first, last);
}

} // namespace

int packed_step(int rows) { return rows > tile_rows ? 2 : 1; }

void multiply_packed(const PackedProduct& product, int32_t format, int rows, int first, int last) {
    switch (format) {
    case VI_Q8_0: return multiply<VI_Q8_0>(product, rows, first, last);
    case VI_Q4_0: return multiply<VI_Q4_0>(product, rows, first, last);
    case VI_Q4_1: return multiply<VI_Q4_1>(product, rows, first, last);
    }
}

size_t linear_packed_scratch(int rows, int ins) { return size_t(rows) * (ins / block) * 2 + size_t(rows) * ins / 4; }

PackedRows round_rows(vi_context* context, float* scratch, const float* x, const int32_t* x_rows, int rows, int ins) {
    const int blocks = ins / block;
    const size_t count = size_t(rows) * blocks;
    const PackedRows to{reinterpret_cast<int8_t*>(scratch + 2 * count), scratch, reinterpret_cast<int32_t*>(scratch + count)};
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * ins * 2))
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < blocks; b++) {
            const size_t at = size_t(r) * blocks + b;
            round_block(to.values + at * block, to.scales[at], to.sums[at], x + size_t(x_rows ? x_rows[r] : r) * ins + size_t(b) * block);
        }
    return to;
}

void linear_packed(vi_context* context, float* out, const float* x, const void* weight, const vi_bf16* bias, int32_t format, bool accumulate, int rows,
                   int outs, int ins, float* scratch) {
    const PackedProduct product{out, static_cast<const uint8_t*>(weight), bias, round_rows(context, scratch, x, nullptr, rows, ins), outs, ins, accumulate};
    const int panels = (outs + lanes - 1) / lanes, step = packed_step(rows), blocks = (panels + step - 1) / step;
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * outs * ins))
    for (int p = 0; p < blocks; p++) multiply_packed(product, format, rows, p * step, std::min(panels, (p + 1) * step));
}

extern "C" int32_t vi_pack(vi_context* context, void* out, const void* blocks, int32_t format, int32_t out_features, int32_t in_features) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_pack(context, __func__, out, blocks, format, out_features, in_features));
    const int bytes = block_bytes(format);
    const int count = in_features / block, panels = (out_features + lanes - 1) / lanes, scales = scale_bytes(format);
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(out_features) * in_features))
    for (int p = 0; p < panels; p++)
        for (int b = 0; b < count; b++) {
            uint8_t* to = static_cast<uint8_t*>(out) + (size_t(p) * count + b) * lanes * bytes;
            std::memset(to, 0, size_t(lanes) * bytes);
            for (int o = 0; o < lanes && p * lanes + o < out_features; o++) {
                const uint8_t* from = static_cast<const uint8_t*>(blocks) + (size_t(p * lanes + o) * count + b) * bytes;
                std::memcpy(to + o * 2, from, 2);
                if (format == VI_Q4_1) std::memcpy(to + (lanes + o) * 2, from + 2, 2);
                from += format == VI_Q4_1 ? 4 : 2;
                for (int k = 0; k < weight_bytes(format) / 64; k++)
                    for (int j = 0; j < 4; j++)
                        to[scales + k * 64 + o * 4 + j] = static_cast<uint8_t>(from[k * 4 + j] ^ (format == VI_Q8_0 ? 128 : 0));
            }
        }
    return VI_OK;
} VI_CATCH(context)
