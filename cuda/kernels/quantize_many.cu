// vi_quantize for the rows of a prompt: a block takes 64 rows of one KV head and side, transforms them into shared memory, finds the codes of
// their sub-vectors, and writes them into the pages.
#include "quantize.h"
#include "quantize.cuh"

namespace {

constexpr int threads = 256, warps = threads / 32, rows_of_block = 64;
constexpr int together = 8; // the search keeps the best group of so many codewords (products, with tensor cores), and then finds the best in it

template <int D, int d> struct Shared {
    static constexpr int chunk = d == 2 ? 256 : 1024; // codewords here at a time
    float scaled[rows_of_block * D];                  // x~ / rms
    uint32_t words[chunk * d / (d == 2 ? 1 : 2)];     // f32 (2 channels) or integers as f16
    float bias[chunk];                                // -|c|^2 / 2: nearest is the largest x . c + bias
    float rms[rows_of_block];
    QuantizeRow rows[rows_of_block];
    uint16_t codes[rows_of_block * (D / (d == 1 ? D : d))];
};

// Codewords of 2 channels, by f32 arithmetic: 256 of them.
template <int D> __device__ void search_pairs(Shared<D, 2>& shared, const float* codebook) {
    constexpr int own = rows_of_block * D / 2 / threads; // sub-vectors of a thread: threadIdx + p threads
    float2 x[own];
    float best[own];
    int group[own];
    const float2 c = reinterpret_cast<const float2*>(codebook)[threadIdx.x];
    float2* words = reinterpret_cast<float2*>(shared.words);
    words[threadIdx.x] = c;
    shared.bias[threadIdx.x] = -0.5f * fmaf(c.y, c.y, c.x * c.x);
    auto score = [&](float2 v, int w) { return fmaf(v.x, words[w].x, fmaf(v.y, words[w].y, shared.bias[w])); };
#pragma unroll
    for (int p = 0; p < own; ++p) {
        x[p] = reinterpret_cast<const float2*>(shared.scaled)[threadIdx.x + p * threads];
        best[p] = -__builtin_huge_valf(), group[p] = 0;
    }
    __syncthreads();
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
template <int d> __device__ __forceinline__ void products(float (&c)[4], const uint32_t (&a)[d / 2], uint32_t b, float bias0, float bias1) {
    if constexpr (d == 8)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %8}, {%9, %10, %9, %10};"
            : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "f"(bias0), "f"(bias1));
    else
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %7, %8};"
            : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(b), "f"(bias0), "f"(bias1));
}

// Codewords of 4 or 8 channels, by tensor cores: the codebook is integers (exact in f16) times a scale, x is split into two f16, so that
// x . c / scale comes out to about 22 bits. A warp goes through all codewords for `tiles` times 16 sub-vectors; each lane keeps, for its rows, the group of
// 8 products whose best is the largest. Of the 16 codewords that a lane has in a group the best is found by f32 arithmetic.
template <int D, int d> __device__ void search_tiles(Shared<D, d>& shared, const int8_t* table, float scale, int codewords) {
    constexpr int subs = rows_of_block * D / d, of_warp = subs / 16 / warps, tiles = of_warp < 8 ? of_warp : 8, chunk = Shared<D, d>::chunk;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    auto bias_of = [&](const int8_t* c) {
        int squares = 0;
#pragma unroll
        for (int i = 0; i < d; ++i) squares += c[i] * c[i];
        return -0.5f * scale * squares;
    };
    for (int pass = 0; pass < of_warp; pass += tiles) {
        const int first = (warp * of_warp + pass) * 16;
        uint32_t a[tiles][d / 2];
        float best[tiles][2];
        int group[tiles][2];
#pragma unroll
        for (int i = 0; i < tiles; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                best[i][h] = -__builtin_huge_valf(), group[i][h] = 0;
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
            if (codewords > chunk || pass == 0) {
                __syncthreads();
                for (int w = threadIdx.x; w < count; w += threads) {
                    const int8_t* c = table + static_cast<int64_t>(begin + w) * d;
#pragma unroll
                    for (int i = 0; i < d / 2; ++i) {
                        const __half2 pair = __floats2half2_rn(c[2 * i], c[2 * i + 1]);
                        shared.words[w * (d / 2) + i] = *reinterpret_cast<const uint32_t*>(&pair);
                    }
                    shared.bias[w] = bias_of(c);
                }
                __syncthreads();
            }
            for (int w = 0; w < count; w += together * 8) {
                float most[tiles][2];
#pragma unroll
                for (int j = 0; j < together; ++j) {
                    const uint32_t b = shared.words[(w + j * 8 + g) * (d / 2) + t % (d / 2)];
                    const float2 bias = *reinterpret_cast<const float2*>(&shared.bias[w + j * 8 + 2 * t]);
#pragma unroll
                    for (int i = 0; i < tiles; ++i) {
                        float c[4];
                        products<d>(c, a[i], b, bias.x, bias.y);
#pragma unroll
                        for (int h = 0; h < 2; ++h) most[i][h] = fmaxf(j ? fmaxf(most[i][h], c[2 * h]) : c[2 * h], c[2 * h + 1]);
                    }
                }
#pragma unroll
                for (int i = 0; i < tiles; ++i)
#pragma unroll
                    for (int h = 0; h < 2; ++h)
                        if (most[i][h] > best[i][h]) best[i][h] = most[i][h], group[i][h] = begin + w + 2 * t;
            }
        }
#pragma unroll
        for (int i = 0; i < tiles; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
#pragma unroll
                for (int offset = 1; offset < 4; offset *= 2) {
                    const float other = __shfl_xor_sync(0xffffffffu, best[i][h], offset);
                    const int other_group = __shfl_xor_sync(0xffffffffu, group[i][h], offset);
                    if (other > best[i][h] || (other == best[i][h] && other_group < group[i][h])) best[i][h] = other, group[i][h] = other_group;
                }
                if (t == 0) shared.codes[first + i * 16 + g + 8 * h] = static_cast<uint16_t>(group[i][h]);
            }
    }
    __syncthreads();
    for (int s = threadIdx.x; s < subs; s += threads) {
        const int group = shared.codes[s]; // first codeword of the lane's in it
        float x[d], most = -__builtin_huge_valf();
        int code = group;
#pragma unroll
        for (int i = 0; i < d; ++i) x[i] = shared.scaled[s * d + i];
#pragma unroll
        for (int j = 0; j < together; ++j) {
            alignas(16) int8_t c[2 * d]; // two codewords
            if constexpr (d == 8) *reinterpret_cast<uint4*>(c) = *reinterpret_cast<const uint4*>(table + static_cast<int64_t>(group + j * 8) * d);
            else *reinterpret_cast<uint2*>(c) = *reinterpret_cast<const uint2*>(table + static_cast<int64_t>(group + j * 8) * d);
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                float value = bias_of(c + k * d);
#pragma unroll
                for (int i = 0; i < d; ++i) value = fmaf(x[i], c[k * d + i], value);
                if (value > most) most = value, code = group + j * 8 + k;
            }
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
        const uint32_t mask = (1u << f.b) - 1, code = codes[sub + i * step];
        uint32_t* low = reinterpret_cast<uint32_t*>(page + f.offset(token, lane, word));
        atomicAnd(low, ~(mask << bit));
        atomicOr(low, code << bit);
        if (bit + f.b > 32) {
            uint32_t* high = reinterpret_cast<uint32_t*>(page + f.offset(token, lane, word + 1));
            atomicAnd(high, ~(mask >> (32 - bit)));
            atomicOr(high, code >> (32 - bit));
        }
    }
}

// d = 1: bf16, which has no codes.
template <int D, int d>
__global__ void __launch_bounds__(threads) quantize_many_kernel(const __grid_constant__ Cache c, const float* x, bool value, const int32_t* slots,
                                                                const int32_t* positions, int rows, int stride) {
    extern __shared__ __align__(16) uint8_t memory[];
    auto& shared = *reinterpret_cast<Shared<D, d>*>(memory);
    constexpr int N = D / 32, n = D / d;
    const int first = blockIdx.x * rows_of_block, head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Side& side = value ? c.values : c.keys;
    const PageFormat f = side.format;
    const int count = min(rows_of_block, rows - first);
    auto page_of = [&](const QuantizeRow& r) { return side.page(r.page, head, c.kv_heads); };

    constexpr int ahead = 4; // rows of a warp whose loads are under way
    for (int i = threadIdx.x; i < count; i += threads) shared.rows[i] = QuantizeRow(c, slots, positions, first + i);
    __syncthreads();
    for (int first_row = warp; first_row < rows_of_block; first_row += warps * ahead) {
        float v[ahead][N] = {};
#pragma unroll
        for (int j = 0; j < ahead; ++j)
            if (const int i = first_row + j * warps; i < count) {
                const float* from = x + static_cast<int64_t>(first + i) * stride + head * D + lane * N;
                for (int k = 0; k < N; ++k) v[j][k] = from[k];
            }
        transform_vectors<D, 0>(v, side.transform, head);
#pragma unroll
        for (int j = 0; j < ahead; ++j) {
            const int i = first_row + j * warps;
            float squares = 0;
            if (i < count) {
                const QuantizeRow r = shared.rows[i];
                if (r.page >= 0) write_exact<D>(v[j], c, side, r, head);
            }
            for (int k = 0; k < N; ++k) squares += v[j][k] * v[j][k];
            const float rms = f.token_scale ? sqrtf(warp_sum(squares) / D) : 1.0f, inverse = rms > 0 ? 1 / rms : 0.0f;
            for (int k = 0; k < N; ++k) shared.scaled[i * D + lane * N + k] = v[j][k] * inverse;
            if (lane == 0) shared.rms[i] = rms;
        }
    }
    __syncthreads();

    if constexpr (d == 1) {
        for (int i = threadIdx.x; i < count * (D / 2); i += threads) {
            const QuantizeRow r = shared.rows[i / (D / 2)];
            if (r.page < 0) continue;
            const int channel = i % (D / 2) * 2;
            int word, bit, to;
            f.locate(value, r.position % VI_PAGE_TOKENS, channel, word, bit, to);
            const float* v = &shared.scaled[i / (D / 2) * D + channel];
            *reinterpret_cast<uint32_t*>(page_of(r) + f.offset(r.position % VI_PAGE_TOKENS, to, word)) = f32_to_bf16(v[0]) | f32_to_bf16(v[1]) << 16;
        }
    } else {
        const float* codebook = side.codebooks + (static_cast<int64_t>(side.codebook_head(head)) * d << f.b);
        if constexpr (d == 2) search_pairs<D>(shared, codebook);
        else search_tiles<D, d>(shared, reinterpret_cast<const int8_t*>(side.table) + (static_cast<int64_t>(side.codebook_head(head)) * d << f.b),
                                side.table_scales[side.codebook_head(head)], 1 << f.b);

        if (f.token_scale)
            for (int i = warp; i < count; i += warps) {
                float product = 0, norm = 0;
                for (int k = 0; k < N; ++k) {
                    const int channel = lane * N + k;
                    const float w = codebook[static_cast<int>(shared.codes[i * n + channel / d]) * d + channel % d];
                    product = fmaf(shared.scaled[i * D + channel], w, product);
                    norm = fmaf(w, w, norm);
                }
                product = warp_sum(product) * shared.rms[i];
                norm = warp_sum(norm);
                const QuantizeRow r = shared.rows[i];
                if (lane == 0 && r.page >= 0) {
                    const int token = r.position % VI_PAGE_TOKENS;
                    page_of(r)[f.scale_offset(token)] = scale_code(product, norm);
                }
            }

        const int pieces = value ? 8 : 4, own = n / pieces, step = value ? 8 : 1;
        const bool apart = own * f.b % 8 == 0;
        for (int i = threadIdx.x; i < count * pieces; i += threads) {
            const QuantizeRow r = shared.rows[i / pieces];
            if (r.page < 0) continue;
            const int sub = value ? i % pieces : i % pieces * own;
            (apart ? write_piece : write_shared)(f, page_of(r), value, r.position % VI_PAGE_TOKENS, sub, step, own, shared.codes + i / pieces * n);
        }
    }
}

template <int D, int d>
int32_t launch(vi_context* context, const Cache& c, const float* x, bool value, const int32_t* slots, const int32_t* positions, int rows, int stride) {
    VI_SHARED(context, "vi_quantize", (quantize_many_kernel<D, d>), sizeof(Shared<D, d>));
    const dim3 blocks(ceil_div(rows, rows_of_block), c.kv_heads);
    quantize_many_kernel<D, d><<<blocks, threads, sizeof(Shared<D, d>), context->stream>>>(c, x, value, slots, positions, rows, stride);
    VI_LAUNCHED(context, "vi_quantize");
    return VI_OK;
}

} // namespace

int32_t quantize_many(vi_context* context, const Cache& cache, const float* keys, const float* values, const int32_t* slots, const int32_t* positions,
                      int32_t rows, int32_t stride) {
    for (const bool value : {false, true}) {
        const float* x = value ? values : keys;
        int32_t status = VI_INTERNAL_ERROR;
        switch ((value ? cache.values : cache.keys).format.d + (cache.head_dim == 64 ? 100 : 0)) {
            case 1: status = launch<128, 1>(context, cache, x, value, slots, positions, rows, stride); break;
            case 2: status = launch<128, 2>(context, cache, x, value, slots, positions, rows, stride); break;
            case 4: status = launch<128, 4>(context, cache, x, value, slots, positions, rows, stride); break;
            case 8: status = launch<128, 8>(context, cache, x, value, slots, positions, rows, stride); break;
            case 101: status = launch<64, 1>(context, cache, x, value, slots, positions, rows, stride); break;
            case 102: status = launch<64, 2>(context, cache, x, value, slots, positions, rows, stride); break;
            case 104: status = launch<64, 4>(context, cache, x, value, slots, positions, rows, stride); break;
            case 108: status = launch<64, 8>(context, cache, x, value, slots, positions, rows, stride); break;
        }
        if (status != VI_OK) return status;
    }
    return VI_OK;
}
