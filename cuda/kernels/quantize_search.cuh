// The search of codewords for many sub-vectors, of quantize_many.cu: what a block holds in shared memory, and the nearest of 2, 4 or 8 channels.
#pragma once
#include "quantize.cuh"
#include <algorithm>

constexpr int threads = 256, warps = threads / 32;
constexpr int none = 0xffff;  // no group of codewords
constexpr int together = 8; // the search keeps the best group of so many codewords (products, with tensor cores), and then finds the best in it

template <int D, int Rows> struct SharedRows {
    alignas(16) float scaled[Rows][D]; // x~ / rms
    int longest[warps];                // fill_words' own
    float rms[Rows];
    QuantizeRow rows[Rows];
};
template <int D, int d, int Rows> struct Shared : SharedRows<D, Rows> {
    static constexpr int chunk = d == 2 ? 256 : 1024;         // codewords here at a time
    alignas(16) uint32_t words[chunk * d / (d == 2 ? 1 : 2)]; // f32 (2 channels) or integers as f16
    // Nearest is the largest x . c + bias. 2 channels: -|c|^2 / 2. Integers: longest - |c|^2 / 2 (see search_tiles), those of codewords 2 n and 2 n + 1 twice each,
    // as a product's accumulators take them.
    alignas(16) float bias[chunk * (d == 2 ? 1 : 2)];
    uint16_t codes[Rows * (D / (d == 1 ? D : d))];
};

template <int D, int Rows> constexpr size_t shared_bytes = std::max({sizeof(Shared<D, 2, Rows>), sizeof(Shared<D, 4, Rows>), sizeof(Shared<D, 8, Rows>)});

// Sum of squares of a codeword of 4 or 8 integers.
template <int d> __device__ __forceinline__ int squares_of(const int8_t* c) {
    const int* four = reinterpret_cast<const int*>(c);
    int squares = __dp4a(four[0], four[0], 0);
    if constexpr (d == 8) squares = __dp4a(four[1], four[1], squares);
    return squares;
}

// The side's codewords from `begin` on into shared memory, a chunk of them. All threads of the block; others' writes are there after the next barrier.
template <int D, int d, int Rows> __device__ void fill_words(Shared<D, d, Rows>& shared, const Side& side, int head, int begin) {
    const int book = side.codebook_head(head);
    if constexpr (d == 2) {
        const float2 c = reinterpret_cast<const float2*>(side.codebook(head, 0))[threadIdx.x];
        reinterpret_cast<float2*>(shared.words)[threadIdx.x] = c;
        shared.bias[threadIdx.x] = -0.5f * fmaf(c.y, c.y, c.x * c.x);
    } else if constexpr (d > 2) {
        const int8_t* table = reinterpret_cast<const int8_t*>(side.table) + (static_cast<int64_t>(book) * d << side.format.b);
        const float half = 0.5f * side.table_scales[book];
        const int codewords = 1 << side.format.b, count = min(shared.chunk, codewords - begin);
        if (begin == 0) {
            int longest = 0;
            for (int w = threadIdx.x; w < codewords; w += threads) longest = max(longest, squares_of<d>(table + static_cast<int64_t>(w) * d));
            longest = __reduce_max_sync(0xffffffffu, longest);
            if (threadIdx.x % 32 == 0) shared.longest[threadIdx.x / 32] = longest;
            __syncthreads();
        }
        int longest = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w) longest = max(longest, shared.longest[w]);
        for (int w = threadIdx.x; w < count; w += threads) {
            const int8_t* c = table + static_cast<int64_t>(begin + w) * d;
#pragma unroll
            for (int i = 0; i < d / 2; ++i) {
                const __half2 pair = __floats2half2_rn(c[2 * i], c[2 * i + 1]);
                shared.words[w * (d / 2) + i] = *reinterpret_cast<const uint32_t*>(&pair);
            }
            float* bias = &shared.bias[w / 2 * 4 + w % 2];
            bias[0] = bias[2] = half * (longest - squares_of<d>(c));
        }
    }
}

// Codewords of 2 channels, by f32 arithmetic: 256 of them, in shared memory.
template <int D, int Rows> __device__ void search_pairs(Shared<D, 2, Rows>& shared) {
    constexpr int own = Rows * D / 2 / threads; // sub-vectors of a thread: threadIdx + p threads
    float2 x[own];
    float best[own];
    int group[own];
    const float2* words = reinterpret_cast<const float2*>(shared.words);
    auto score = [&](float2 v, int w) { return fmaf(v.x, words[w].x, fmaf(v.y, words[w].y, shared.bias[w])); };
#pragma unroll
    for (int p = 0; p < own; ++p) {
        x[p] = reinterpret_cast<const float2*>(shared.scaled)[threadIdx.x + p * threads];
        best[p] = -__builtin_huge_valf(), group[p] = 0;
    }
    for (int w = 0; w < 256; w += together) {
        float most[own];
#pragma unroll
        for (int k = 0; k < together; ++k)
#pragma unroll
            for (int p = 0; p < own; ++p) {
                const float s = score(x[p], w + k);
                most[p] = k ? fmaxf(most[p], s) : s;
            }
#pragma unroll
        for (int p = 0; p < own; ++p)
            if (most[p] > best[p]) best[p] = most[p], group[p] = w;
    }
#pragma unroll
    for (int p = 0; p < own; ++p) {
        int code = group[p];
        for (int k = together; k-- > 0;) // down, so that the lowest of equals stays
            if (score(x[p], group[p] + k) >= best[p]) code = group[p] + k;
        shared.codes[threadIdx.x + p * threads] = static_cast<uint16_t>(code);
    }
    __syncthreads();
}

// C = A B + bias of the columns. 8 channels: A's k are their high parts, then their low parts, B twice the codeword; 4 channels: one half of that.
template <int d> __device__ __forceinline__ void products(float (&c)[4], const uint32_t (&a)[d / 2], uint32_t b, float4 bias) {
    if constexpr (d == 8)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %8}, {%9, %10, %11, %12};"
            : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "f"(bias.x), "f"(bias.y), "f"(bias.z), "f"(bias.w));
    else
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
            : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(b), "f"(bias.x), "f"(bias.y), "f"(bias.z), "f"(bias.w));
}

// Codewords of 4 or 8 channels, by tensor cores: the codebook is integers (exact in f16) times a scale, x is split into two f16, so that
// x . c / scale comes out to about 22 bits. A warp goes through all codewords for `tiles` times 16 sub-vectors; each lane keeps, for its rows, the group of
// 8 products whose best is the largest. Of the 16 codewords that a lane has in a group the best is found by f32 arithmetic.
// The first chunk of codewords is in shared memory.
// Maxima are of the numbers' bits as integers, three at a time (Hopper has an instruction for it): the same order where the largest is not below 0. The bias is
// high enough for that wherever 0 lies among the codewords: then some codeword has x . c >= 0. Otherwise all codewords are gone through once more.
template <int D, int d, int Rows> __device__ void search_tiles(Shared<D, d, Rows>& shared, const Side& side, int head) {
    constexpr int subs = Rows * D / d, of_warp = subs / 16 < warps ? 1 : subs / 16 / warps, tiles = of_warp < 8 ? of_warp : 8, chunk = Shared<D, d, Rows>::chunk;
    static_assert(of_warp % tiles == 0);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, codewords = 1 << side.format.b;
    int held = 0; // first codeword in shared memory
    for (int pass = 0; pass < of_warp; pass += tiles) {
        const int own = (warp * of_warp + pass) * 16, first = own < subs ? own : 0; // warps without any do others' work again
        uint32_t a[tiles][d / 2];
        int best[tiles][2], group[tiles][2];
#pragma unroll
        for (int i = 0; i < tiles; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                best[i][h] = -1, group[i][h] = none;
                const float2 x = reinterpret_cast<const float2*>(shared.scaled)[(first + i * 16 + g + 8 * h) * (d / 2) + t % (d / 2)];
                const float x0 = fminf(fmaxf(x.x, -65504.0f), 65504.0f), x1 = fminf(fmaxf(x.y, -65504.0f), 65504.0f);
                const __half2 high = __floats2half2_rn(x0, x1);
                const __half2 low = __floats2half2_rn(x0 - __low2float(high), x1 - __high2float(high));
                if constexpr (d == 8) {
                    a[i][h] = *reinterpret_cast<const uint32_t*>(&high);
                    a[i][2 + h] = *reinterpret_cast<const uint32_t*>(&low);
                } else {
                    a[i][h] = t < 2 ? *reinterpret_cast<const uint32_t*>(&high) : *reinterpret_cast<const uint32_t*>(&low);
                }
            }
        for (int begin = 0; begin < codewords; begin += chunk) {
            const int count = min(chunk, codewords - begin);
            if (begin != held) {
                __syncthreads();
                fill_words(shared, side, head, held = begin);
                __syncthreads();
            }
            for (int w = 0; w < count; w += together * 8) {
                int most[tiles][2];
#pragma unroll
                for (int j = 0; j < together; ++j) {
                    const uint32_t b = shared.words[(w + j * 8 + g) * (d / 2) + t % (d / 2)];
                    const float4 bias = *reinterpret_cast<const float4*>(&shared.bias[(w + j * 8 + 2 * t) * 2]);
#pragma unroll
                    for (int i = 0; i < tiles; ++i) {
                        float c[4];
                        products<d>(c, a[i], b, bias);
#pragma unroll
                        for (int h = 0; h < 2; ++h) {
                            const int x = __float_as_int(c[2 * h]), y = __float_as_int(c[2 * h + 1]);
                            most[i][h] = __vimax3_s32(j ? most[i][h] : best[i][h], x, y);
                        }
                    }
                }
#pragma unroll
                for (int i = 0; i < tiles; ++i)
#pragma unroll
                    for (int h = 0; h < 2; ++h)
                        if (most[i][h] != best[i][h]) best[i][h] = most[i][h], group[i][h] = begin + w + 2 * t;
            }
        }
#pragma unroll
        for (int i = 0; i < tiles; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
#pragma unroll
                for (int offset = 1; offset < 4; offset *= 2) {
                    const int other = __shfl_xor_sync(0xffffffffu, best[i][h], offset);
                    const int other_group = __shfl_xor_sync(0xffffffffu, group[i][h], offset);
                    if (other > best[i][h] || (other == best[i][h] && other_group < group[i][h])) best[i][h] = other, group[i][h] = other_group;
                }
                if (t == 0 && own < subs) shared.codes[first + i * 16 + g + 8 * h] = static_cast<uint16_t>(group[i][h]);
            }
    }
    __syncthreads();
    const int book = side.codebook_head(head);
    const int8_t* table = reinterpret_cast<const int8_t*>(side.table) + (static_cast<int64_t>(book) * d << side.format.b);
    const float half = 0.5f * side.table_scales[book];
    const bool all_held = codewords <= chunk;
    for (int s = threadIdx.x; s < subs; s += threads) {
        const int group = shared.codes[s]; // first codeword of the lane's in it
        float x[d], most = -__builtin_huge_valf();
        int code = 0;
#pragma unroll
        for (int i = 0; i < d; ++i) x[i] = shared.scaled[0][s * d + i];
        auto take = [&](float value, int w) {
            if (value > most) most = value, code = w;
        };
        auto from_table = [&](int w) {
            const int8_t* c = table + static_cast<int64_t>(w) * d;
            float value = -half * squares_of<d>(c);
            const int four[2] = {*reinterpret_cast<const int*>(c), d == 8 ? *reinterpret_cast<const int*>(c + d - 4) : 0};
#pragma unroll
            for (int i = 0; i < d; ++i) value = fmaf(x[i], static_cast<float>(static_cast<int8_t>(four[i / 4] >> i % 4 * 8)), value);
            take(value, w);
        };
        if (group == none) {
            for (int w = 0; w < codewords; ++w) from_table(w);
        } else if (all_held) { // codewords 2 n and 2 n + 1 by one load or two
            code = group;
#pragma unroll
            for (int j = 0; j < together; ++j) {
                const int w = group + j * 8;
                alignas(16) uint32_t words[d];
#pragma unroll
                for (int i = 0; i < d; i += 4) *reinterpret_cast<uint4*>(words + i) = *reinterpret_cast<const uint4*>(&shared.words[w * (d / 2) + i]);
                const float2 bias = *reinterpret_cast<const float2*>(&shared.bias[w * 2]);
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    float value = 0;
#pragma unroll
                    for (int i = 0; i < d / 2; ++i) {
                        const float2 c = __half22float2(*reinterpret_cast<const __half2*>(&words[k * (d / 2) + i]));
                        value = fmaf(x[2 * i + 1], c.y, fmaf(x[2 * i], c.x, value));
                    }
                    take(value + (k ? bias.y : bias.x), w + k);
                }
            }
        } else {
            code = group;
#pragma unroll
            for (int j = 0; j < together; ++j) from_table(group + j * 8), from_table(group + j * 8 + 1);
        }
        shared.codes[s] = static_cast<uint16_t>(code);
    }
    __syncthreads();
}
