// out = y W^T + bias, y made of x in one go before. Tiles of rows x outputs are kept in registers, the lanes run along in_features, so that the weights are read
// as they lie, once for all rows of a tile. Every output is summed in one order, whatever the tile, the rows and the threads.
#include "linear_packed.h"
#include "simd.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

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
};

template <int Rows, int Outs> inline void tile(const Linear& l, int row, int out) {
    Vec sum[Rows][tile_outs] = {};
    const float* x = l.x + size_t(row) * l.ins;
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
            const Vec value = load(x + r * ins + i);
#pragma GCC unroll 4
            for (int o = 0; o < Outs; o++) sum[r][o] += value * w[o];
        }
    }
    if (const int rest = int(ins - i)) {
#pragma GCC unroll 6
        for (int r = 0; r < Rows; r++) {
            const Vec value = load_part(x + r * ins + i, rest);
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
        float* to = l.out + size_t(row + r) * l.outs + out;
        for (int o = 0; o < Outs; o++) {
            const float product = l.bias ? total[o] + bias[o] : total[o];
            to[o] = l.accumulate ? to[o] + product : product;
        }
    }
}

template <int Rows> void tiles(const Linear& l, int row, int first, int last) {
    int out = first;
    for (; out + tile_outs <= last; out += tile_outs) tile<Rows, tile_outs>(l, row, out);
    for (; out < last; out++) tile<Rows, 1>(l, row, out);
}

template <int Rows> void tiles(const Linear& l, int row, int rows, int first, int last) {
    if (rows == Rows) return tiles<Rows>(l, row, first, last);
    if constexpr (Rows > 1) tiles<Rows - 1>(l, row, rows, first, last);
}

} // namespace

extern "C" int32_t vi_linear(vi_context* context, float* out, const float* x, const void* weight, const vi_bf16* bias, const float* norm,
                             float epsilon, int32_t format, int32_t output, int32_t rows, int32_t out_features, int32_t in_features) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_linear(context, __func__, out, x, weight, epsilon, format, output, rows, out_features, in_features));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_linear(context, out, x, weight, bias, norm, epsilon, format, output, rows, out_features, in_features));

    const bool packed = is_packed(format), accumulate = output == VI_OUTPUT_SUM;
    const size_t normed_count = norm ? size_t(rows) * in_features : 0, pairs_count = output == VI_OUTPUT_SILU ? size_t(rows) * out_features : 0;
    float* const normed = context->scratch(normed_count + pairs_count + (packed ? linear_packed_scratch(rows, in_features) : 0));
    float* const pairs = normed + normed_count;
    if (norm) {
        const int32_t status = vi_rmsnorm(context, normed, nullptr, x, norm, epsilon, rows, in_features);
        if (status != VI_OK) return status;
        x = normed;
    }
    float* const gated = out;
    if (output == VI_OUTPUT_SILU) out = pairs;
    const auto finish = [&] { return output == VI_OUTPUT_SILU ? vi_gate(context, gated, pairs, VI_SILU, rows, out_features / 2) : VI_OK; };
    if (packed) {
        linear_packed(context, out, x, weight, bias, format, accumulate, rows, out_features, in_features, pairs + pairs_count);
        return finish();
    }
    // A block of weights (64 x in_features) stays in the second-level cache while the rows pass, a tile of rows in the first.
    const Linear l{out, x, static_cast<const vi_bf16*>(weight), bias, rows, out_features, in_features, accumulate};
    const int block_rows = 8 * tile_rows, block_outs = rows > tile_rows ? 64 : 16;
    const int row_blocks = (rows + block_rows - 1) / block_rows, out_blocks = (out_features + block_outs - 1) / block_outs;
#pragma omp parallel for collapse(2) schedule(static) num_threads(context->threads_for(int64_t(rows) * out_features * in_features))
    for (int o = 0; o < out_blocks; o++)
        for (int r = 0; r < row_blocks; r++) {
            const int first = o * block_outs, last = std::min(out_features, first + block_outs);
            const int end = std::min(rows, (r + 1) * block_rows);
            for (int row = r * block_rows; row < end; row += tile_rows)
                tiles<tile_rows>(l, row, std::min(tile_rows, end - row), first, last);
        }
    return finish();
} VI_CATCH(context)
