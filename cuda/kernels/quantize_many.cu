// vi_quantize and vi_rope_quantize for many rows, one kernel from the rows to the pages: a block takes 8 or 32 rows of one KV head and side, transforms them into
// shared memory, finds the codes of their sub-vectors, and writes them into the pages. Layers that keep bf16 alone have a kernel of their own (store_kernel).
#include "quantize.h"
#include "quantize.cuh"
#include <algorithm>

namespace {

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

// The codes of one token that lie together in one lane's words: `own` of b bits. Tokens share words, not bytes (or else see write_shared).
__device__ void write_piece(const PageFormat& f, uint8_t* page, bool value, int token, int sub, int step, int own, const uint16_t* codes) {
    int word, bit, lane;
    f.locate(value, token, sub, word, bit, lane);
    const int bits = own * f.b, unit = bits % 32 == 0 ? 32 : bits % 16 == 0 ? 16 : 8;
    int at = word * 32 + bit, held = 0;
    uint64_t buffer = 0;
    for (int i = 0; i < own; ++i) {
        buffer |= static_cast<uint64_t>(codes[sub + i * step]) << held;
        held += f.b;
        for (; held >= unit; held -= unit, buffer >>= unit, at += unit) {
            uint8_t* to = page + f.offset(token, lane, at / 32) + at % 32 / 8;
            if (unit == 32) *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(buffer);
            else if (unit == 16) *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(buffer);
            else *to = static_cast<uint8_t>(buffer);
        }
    }
}

// The same where a token's bits do not fill bytes: its bits alone are changed.
__device__ void write_shared(const PageFormat& f, uint8_t* page, bool value, int token, int sub, int step, int own, const uint16_t* codes) {
    for (int i = 0; i < own; ++i) {
        int word, bit, lane;
        f.locate(value, token, sub + i * step, word, bit, lane);
        write_bits(f, page, token, lane, word, bit, codes[sub + i * step]);
    }
}

// The rows x[0 .. Rows - 1] of shared memory times a matrix [D, D], in place, by tensor cores: x and M are each split into two numbers of 11 bits (tf32), of
// whose four products the three larger are added up, so that 22 bits count. A warp has D / 8 columns of all rows. Rows lie in `x` with chunks of 16 channels
// exchanged where the row's number is odd (`chunked`), so that a quarter of a warp reads different banks. All threads, after a barrier; ends with one.
__device__ __forceinline__ int chunked(int row, int channel) { return channel ^ (row & 1) * 16; }
__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void split(float x, uint32_t& high, uint32_t& low) {
    high = (__float_as_uint(x) + 0x1000) & 0xffffe000;
    low = __float_as_uint(x - __uint_as_float(high));
}
template <int D, int Rows> __device__ void multiply(float (&x)[Rows][D], const float* matrix) {
    constexpr int columns = D / warps, n = columns / 8, m = (Rows + 15) / 16;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const float* from = matrix + warp * columns + g;
    float sum[m][n][4] = {}, rest[m][n][4] = {};
#pragma unroll 2
    for (int k = 0; k < D; k += 16) { // lane t has the channels 4 t .. 4 t + 3 of 16: two of them a product
        float4 four[m][2];
#pragma unroll
        for (int i = 0; i < m; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = i * 16 + h * 8 + g;
                four[i][h] = i * 16 + h * 8 < Rows ? *reinterpret_cast<const float4*>(&x[row][chunked(row, k) + 4 * t]) : make_float4(0, 0, 0, 0);
            }
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint32_t high[m][4], low[m][4];
#pragma unroll
            for (int i = 0; i < m; ++i)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    split(step ? four[i][h].z : four[i][h].x, high[i][h], low[i][h]);
                    split(step ? four[i][h].w : four[i][h].y, high[i][2 + h], low[i][2 + h]);
                }
#pragma unroll
            for (int j = 0; j < n; ++j) {
                const float* b = from + (k + 4 * t + 2 * step) * D + j * 8;
                uint32_t high0, low0, high1, low1;
                split(__ldg(b), high0, low0);
                split(__ldg(b + D), high1, low1);
#pragma unroll
                for (int i = 0; i < m; ++i) {
                    mma_tf32(rest[i][j], high[i], low0, low1);
                    mma_tf32(rest[i][j], low[i], high0, high1);
                    mma_tf32(sum[i][j], high[i], high0, high1);
                }
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < m; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h)
            if (i * 16 + h * 8 < Rows)
#pragma unroll
                for (int j = 0; j < n; ++j)
                    *reinterpret_cast<float2*>(&x[i * 16 + h * 8 + g][warp * columns + j * 8 + 2 * t]) =
                        make_float2(sum[i][j][2 * h] + rest[i][j][2 * h], sum[i][j][2 * h + 1] + rest[i][j][2 * h + 1]);
    __syncthreads();
}

// Exact copies of the rows first, first + step, ... of the block, as the transformed vectors v of a warp, and these scaled into shared memory.
template <int D, int Rows, int count>
__device__ void write_rows(SharedRows<D, Rows>& shared, const float (&v)[count][D / 32], const Cache& c, const Side& side, int head, int first, int step, int rows) {
    constexpr int N = D / 32;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < count; ++j) {
        const int i = first + j * step;
        float squares = 0;
        if (i < rows) {
            const QuantizeRow r = shared.rows[i];
            if (r.page >= 0) write_exact<D>(v[j], c, side, r, head);
        }
        for (int k = 0; k < N; ++k) squares += v[j][k] * v[j][k];
        const float rms = side.format.token_scale ? sqrtf(warp_sum(squares) / D) : 1.0f, inverse = rms > 0 ? 1 / rms : 0.0f;
        for (int k = 0; k < N; ++k) shared.scaled[i][lane * N + k] = v[j][k] * inverse;
        if (lane == 0) shared.rms[i] = rms;
    }
}

// The codes of the block's `count` rows in shared memory, into the pages. d = 1: bf16, which has no codes.
template <int D, int d, int Rows> __device__ void encode(Shared<D, d, Rows>& shared, const Cache& c, const Side& side, bool value, int head, int count) {
    constexpr int N = D / 32, n = D / d;
    const PageFormat f = side.format;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto page_of = [&](const QuantizeRow& r) { return side.page(r.page, head, c.kv_heads); };
    if constexpr (d == 1) {
        for (int i = threadIdx.x; i < count * (D / 2); i += threads) {
            const QuantizeRow r = shared.rows[i / (D / 2)];
            if (r.page < 0) continue;
            const int channel = i % (D / 2) * 2;
            int word, bit, to;
            f.locate(value, r.position % page_tokens, channel, word, bit, to);
            const float* v = &shared.scaled[i / (D / 2)][channel];
            *reinterpret_cast<uint32_t*>(page_of(r) + f.offset(r.position % page_tokens, to, word)) = f32_to_bf16(v[0]) | f32_to_bf16(v[1]) << 16;
        }
    } else {
        if constexpr (d == 2) search_pairs(shared);
        else search_tiles(shared, side, head);

        if (f.token_scale) {
            const float* codebook = side.codebook(head, 0);
            for (int i = warp; i < count; i += warps) {
                float product = 0, norm = 0;
                for (int k = 0; k < N; ++k) {
                    const int channel = lane * N + k;
                    const float w = codebook[static_cast<int>(shared.codes[i * n + channel / d]) * d + channel % d];
                    product = fmaf(shared.scaled[i][channel], w, product);
                    norm = fmaf(w, w, norm);
                }
                product = warp_sum(product) * shared.rms[i];
                norm = warp_sum(norm);
                const QuantizeRow r = shared.rows[i];
                if (lane == 0 && r.page >= 0) {
                    const int token = r.position % page_tokens;
                    page_of(r)[f.scale_offset(token)] = scale_code(product, norm);
                }
            }
        }

        const int pieces = value ? 8 : 4, own = n / pieces, step = value ? 8 : 1;
        const bool apart = own * f.b % 8 == 0;
        for (int i = threadIdx.x; i < count * pieces; i += threads) {
            const QuantizeRow r = shared.rows[i / pieces];
            if (r.page < 0) continue;
            const int sub = value ? i % pieces : i % pieces * own;
            (apart ? write_piece : write_shared)(f, page_of(r), value, r.position % page_tokens, sub, step, own, shared.codes + i / pieces * n);
        }
    }
}

// Both sides of a KV head, and after the KV heads blocks that rotate 8 query heads each. Codewords and matrices are no kernel's work: they are read before the
// kernel ahead of this one has ended.
template <int D, int Rows>
__global__ void __launch_bounds__(threads) quantize_many_kernel(const __grid_constant__ Cache c, const float* keys, const float* values, const int32_t* slots,
                                                                const int32_t* positions, const __grid_constant__ Rope rope, int rows, int stride) {
    extern __shared__ __align__(16) uint8_t memory[];
    constexpr int N = D / 32, own = Rows / warps; // rows of a warp: warp, warp + 8, ...
    auto& shared = *reinterpret_cast<SharedRows<D, Rows>*>(memory);
    const int first = blockIdx.x * Rows, head = blockIdx.y / 2, warp = threadIdx.x / 32, lane = threadIdx.x % 32, count = min(Rows, rows - first);
    const bool value = blockIdx.y % 2, vectors = static_cast<int>(blockIdx.y) < 2 * c.kv_heads;
    const Side& side = value ? c.values : c.keys;
    auto with_format = [&](auto run) { // run(the shared memory of the side's format)
        switch (side.format.d) {
            case 1: run(*reinterpret_cast<Shared<D, 1, Rows>*>(memory)); break;
            case 2: run(*reinterpret_cast<Shared<D, 2, Rows>*>(memory)); break;
            case 4: run(*reinterpret_cast<Shared<D, 4, Rows>*>(memory)); break;
            case 8: run(*reinterpret_cast<Shared<D, 8, Rows>*>(memory)); break;
        }
    };
    const bool fitted = vectors && side.transform.matrices;
    if (fitted) prefetch(side.transform.matrix(VI_TRANSFORM_FORWARD, head, D), D * D, threadIdx.x, threads);
    if (vectors) with_format([&](auto& all) { fill_words(all, side, head, 0); });
    wait_for_previous();
    let_next_start();
    if (!vectors) {
        const int first_head = (blockIdx.y - 2 * c.kv_heads) * 8, last_head = min(first_head + 8, rope.heads);
        for (int i = warp; i < count; i += warps) {
            const Turn<D> turn(rope.frequencies, positions[first + i]);
            for (int h = first_head; h < last_head; ++h) {
                float* q = rope.queries + static_cast<int64_t>(first + i) * stride + h * D + lane * N;
                float x[N];
                for (int k = 0; k < N; ++k) x[k] = q[k];
                turn.rotate(x);
                for (int k = 0; k < N; ++k) q[k] = x[k];
            }
        }
        return;
    }
    if (threadIdx.x < count) shared.rows[threadIdx.x] = QuantizeRow(c, slots, positions, first + threadIdx.x);
    float v[own][N] = {};
#pragma unroll
    for (int j = 0; j < own; ++j)
        if (const int i = warp + j * warps; i < count)
            for (int k = 0; k < N; ++k) v[j][k] = (value ? values : keys)[static_cast<int64_t>(first + i) * stride + head * D + lane * N + k];
    if (!value && rope.frequencies)
#pragma unroll
        for (int j = 0; j < own; ++j)
            if (const int i = warp + j * warps; i < count) Turn<D>(rope.frequencies, positions[first + i]).rotate(v[j]);
    if (fitted) {
#pragma unroll
        for (int j = 0; j < own; ++j)
            for (int k = 0; k < N; ++k) shared.scaled[warp + j * warps][chunked(warp + j * warps, lane * N + k)] = v[j][k];
        __syncthreads();
        multiply(shared.scaled, side.transform.matrix(VI_TRANSFORM_FORWARD, head, D));
#pragma unroll
        for (int j = 0; j < own; ++j)
            for (int k = 0; k < N; ++k) v[j][k] = shared.scaled[warp + j * warps][lane * N + k];
    } else {
        __syncthreads();
        const float* factors = side.transform.smooth ? side.transform.smooth + head * D + lane * N : nullptr;
#pragma unroll
        for (int j = 0; j < own; ++j) {
            for (int k = 0; factors && k < N; ++k) v[j][k] /= factors[k];
            if (side.transform.hadamard) hadamard<D>(v[j]);
        }
    }
    write_rows(shared, v, c, side, head, warp, warps, count);
    __syncthreads();
    with_format([&](auto& all) { encode(all, c, side, value, head, count); });
}

// Layers that keep bf16 alone, of any head dimension that is a multiple of 8: a warp a vector (row, KV head, side), and the same of the queries, which are rotated.
// A lane has the channels 2 l, 2 l + 1, 2 l + 64, .. A layer with a sliding window has its ring alone.
__global__ void __launch_bounds__(threads) store_kernel(const __grid_constant__ Cache c, const float* keys, const float* values, const int32_t* slots,
                                                        const int32_t* positions, const __grid_constant__ Rope rope, int rows, int stride) {
    wait_for_previous();
    let_next_start();
    constexpr int pairs = 256 / 64;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
    const int of_row = 2 * c.kv_heads + rope.heads, row = static_cast<int>(i / of_row), vector = static_cast<int>(i % of_row), lane = threadIdx.x % 32, D = c.head_dim;
    if (row >= rows) return;
    const bool query = vector >= 2 * c.kv_heads, value = !query && vector % 2;
    const int head = query ? vector - 2 * c.kv_heads : vector / 2, position = positions[row], slot = slots[row];
    const float* x = (query ? rope.queries : value ? values : keys) + static_cast<int64_t>(row) * stride + head * D;
    float2 v[pairs];
    const bool turned = !value && rope.frequencies;
#pragma unroll
    for (int j = 0; j < pairs; ++j) {
        const int channel = j * 64 + lane * 2, half = D / 2;
        if (channel >= D) break;
        v[j] = make_float2(x[channel], x[channel + 1]);
        if (!turned) continue;
        const bool first = channel < half; // D is a multiple of 8: both channels are of one half
        const int other = first ? channel + half : channel - half;
        float sine[2], cosine[2];
        for (int k = 0; k < 2; ++k) turn_of(position, rope.frequencies[(first ? channel : other) + k], sine[k], cosine[k]);
        const float2 y = make_float2(x[other], x[other + 1]);
        v[j] = first ? make_float2(v[j].x * cosine[0] - y.x * sine[0], v[j].y * cosine[1] - y.y * sine[1])
                     : make_float2(v[j].x * cosine[0] + y.x * sine[0], v[j].y * cosine[1] + y.y * sine[1]);
    }
    if (query) {
        __syncwarp(); // the other half's channels are read
        float* to = rope.queries + static_cast<int64_t>(row) * stride + head * D;
#pragma unroll
        for (int j = 0; j < pairs; ++j)
            if (const int channel = j * 64 + lane * 2; channel < D) to[channel] = v[j].x, to[channel + 1] = v[j].y;
        return;
    }
    if (position < 0 || !c.valid(slot, position)) return;
    const Side& side = value ? c.values : c.keys;
    const int page = c.sliding() ? -1 : c.page_index(slot, position / page_tokens), token = position % page_tokens;
    if (!c.sliding() && (page < 0 || page >= c.page_count)) return;
    vi_bf16* const sink = position < c.sinks ? side.sinks + c.sink_row(slot, head, position) : nullptr;
    vi_bf16* const recent = c.recent > 0 && position >= c.exact_from[slot] ? side.recent + c.recent_row(slot, head, position) : nullptr;
#pragma unroll
    for (int j = 0; j < pairs; ++j) {
        const int channel = j * 64 + lane * 2;
        if (channel >= D) break;
        const uint32_t pair = f32_to_bf16(v[j].x) | f32_to_bf16(v[j].y) << 16;
        if (sink) *reinterpret_cast<uint32_t*>(sink + channel) = pair;
        if (recent) *reinterpret_cast<uint32_t*>(recent + channel) = pair;
        if (page < 0) continue;
        int word, bit, to;
        side.format.locate(value, token, channel, word, bit, to);
        *reinterpret_cast<uint32_t*>(side.page(page, head, c.kv_heads) + side.format.offset(token, to, word)) = pair;
    }
}

template <int D, int Rows>
int32_t launch(vi_context* context, const char* name, const Cache& c, const float* keys, const float* values, const int32_t* slots,
               const int32_t* positions, const Rope& rope, int32_t rows, int32_t stride) {
    constexpr size_t bytes = shared_bytes<D, Rows>;
    VI_SHARED(context, name, (quantize_many_kernel<D, Rows>), bytes);
    VI_CUDA(context, name, launch_early(context, (quantize_many_kernel<D, Rows>), dim3(ceil_div(rows, Rows), 2 * c.kv_heads + ceil_div(rope.heads, 8)), threads,
                                        bytes, c, keys, values, slots, positions, rope, rows, stride));
    return VI_OK;
}

} // namespace

int32_t quantize_many(vi_context* context, const char* name, const Cache& c, const float* keys, const float* values, const int32_t* slots,
                      const int32_t* positions, const Rope& rope, int32_t rows, int32_t stride) {
    if (c.keys.format.b == 16 && c.values.format.b == 16) {
        const int64_t vectors = static_cast<int64_t>(rows) * (2 * c.kv_heads + rope.heads);
        VI_CUDA(context, name, launch_early(context, store_kernel, dim3(static_cast<unsigned>(ceil_div<int64_t>(vectors, warps))), threads, 0, c, keys, values, slots,
                                            positions, rope, rows, stride));
        return VI_OK;
    }
    // More rows read the matrix and the codebook less often, fewer leave no multiprocessor without work.
    const bool large = static_cast<int64_t>(rows) * c.kv_heads > 12 * context->multiprocessors;
    const auto launcher = c.head_dim == 64 ? (large ? launch<64, 32> : launch<64, 8>)
                        : c.head_dim == 128 ? (large ? launch<128, 32> : launch<128, 8>) : launch<256, 32>;
    return launcher(context, name, c, keys, values, slots, positions, rope, rows, stride);
}
