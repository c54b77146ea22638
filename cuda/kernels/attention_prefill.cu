// Attention of a prompt (flash attention, arXiv 2205.14135): exact and causal over fresh keys and values, after what the cache already holds. One thing: a prompt's
// chunks, and the kernel that takes them on most cards.
//
// Keys and values become f16 in scratch memory, `chunk_tokens` at a time: those of the past read back from sinks, pages and ring, then the fresh
// ones. Each chunk is one launch; from the second on it goes on from the output and log-sum-exp that the one before left. Fresh rows that are f16
// already are read where they are, all in one launch: a prompt of T tokens that comes in pieces would else be converted T / piece times. Tokens before the first that
// a sliding window of the first row shows are left out; where chunks begin does not depend on it, so that a row's bits don't.
// The past stays in the transformed space, as in decoding: transformed queries meet it, and the output turns back once before the fresh tokens. That is rows times
// heads transforms in place of past times KV heads.
//
// f16 in place of bf16: as fast, and its rounding an eighth of the error. Its range is enough: queries are scaled before they are rounded, weights lie between 2^-24
// and 2^15, and a key or value beyond 65504 becomes that.
//
// A chunk is attended to by the kernel of attention_prefill_wgmma.cu or by this file's (attention_prefill.h says when). This one: a block has 128 queries of one
// head, 16 a warp, and goes through the keys 64 at a time (256 channels: 32), two tiles of keys and values in shared memory while the next arrive. q, k, v and the
// probabilities are f16, sums f32. D is 64, 128 or 256; the channels between the head dimension and D are zeros in shared memory.
#include "attention_prefill.h"
#include "attention_tile.cuh"
#include "quantize.cuh"
#include <algorithm>
#include <numbers>

namespace {

constexpr int warps = 8, threads = warps * 32, queries = warps * 16;
constexpr int chunk_tokens = 32768, step_most = 128; // step_most: keys of a kernel's step, or a multiple of them
constexpr float first_weight = 8;                    // log2 of a maximum's weight: so many bits more for small ones in f16
constexpr float unseen = -1e30f;                     // where scores are counted from while a row has seen nothing

// Two numbers as f16, the first in the lower half; not beyond the largest.
__device__ inline uint32_t pack_f16(float low, float high) {
    uint32_t y;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ inline uint32_t pack_f16(uint32_t pair_of_bf16) { return pack_f16(__uint_as_float(pair_of_bf16 << 16), __uint_as_float(pair_of_bf16 & 0xffff0000)); }

__device__ inline float f32_of(float x) { return x; }
__device__ inline float f32_of(vi_bf16 x) { return bf16_to_f32(x); }

// One warp a vector (token, KV head, side): keys and values [kv_heads, count, D] as f16. T: float or vi_bf16.
template <class T>
__global__ void convert_fresh_kernel(__half* keys_out, __half* values_out, const T* keys, const T* values, int first, int count, int kv_heads, int D,
                                     int64_t stride) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (i >= static_cast<int64_t>(count) * kv_heads) return;
    const int head = static_cast<int>(i % kv_heads), token = static_cast<int>(i / kv_heads);
    const T* from = (blockIdx.y ? values : keys) + (first + token) * stride + head * D;
    __half* to = (blockIdx.y ? values_out : keys_out) + (static_cast<int64_t>(head) * count + token) * D;
    for (int c = threadIdx.x % 32 * 2; c < D; c += 64) *reinterpret_cast<uint32_t*>(to + c) = pack_f16(f32_of(from[c]), f32_of(from[c + 1]));
}

// The same for tokens of the cache, in the transformed space; the last `window` of the past and the sinks from their exact rows. A layer with a sliding window has
// these alone: zeros where there is none, and no row sees them. D: 0 where the side keeps bf16, of any head dimension.
template <int D>
__global__ void convert_past_kernel(__half* out, const __grid_constant__ Cache c, bool value, int slot, int past, int first, int count) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (i >= static_cast<int64_t>(count) * c.kv_heads) return;
    const int lane = threadIdx.x % 32, head = static_cast<int>(i % c.kv_heads), token = static_cast<int>(i / c.kv_heads), position = first + token;
    const Side& side = value ? c.values : c.keys;
    const bool sink = position < c.sinks;
    const bool recent = !sink && (c.sliding() ? past - position < c.window : past - position <= c.window) && position >= c.exact_from[slot] && past - position <= c.recent;
    __half* to = out + (static_cast<int64_t>(head) * count + token) * c.head_dim;
    if (sink || recent || c.sliding()) {
        const vi_bf16* from = sink ? side.sinks + c.sink_row(slot, head, position) : side.recent + c.recent_row(slot, head, position);
        for (int k = lane * 2; k < c.head_dim; k += 64)
            *reinterpret_cast<uint32_t*>(to + k) = sink || recent ? pack_f16(*reinterpret_cast<const uint32_t*>(from + k)) : 0;
        return;
    }
    if constexpr (D == 0) {
        const PageFormat f = side.format;
        const int index = c.page_index(slot, position / page_tokens);
        const bool there = index >= 0 && index < c.page_count;
        for (int k = lane * 2; k < c.head_dim; k += 64) {
            int word, bit, at;
            f.locate(value, position % page_tokens, k, word, bit, at);
            const uint8_t* page = side.page(there ? index : 0, head, c.kv_heads);
            *reinterpret_cast<uint32_t*>(to + k) = there ? pack_f16(*reinterpret_cast<const uint32_t*>(page + f.offset(position % page_tokens, at, word))) : 0x7fff7fff;
        }
    } else {
        constexpr int N = D / 32;
        float x[N];
        read_vector<D>(x, c, side, value, slot, position, head);
        for (int k = 0; k < N; k += 2) *reinterpret_cast<uint32_t*>(to + lane * N + k) = pack_f16(x[k], x[k + 1]);
    }
}

__device__ inline void mma_f16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Byte offset of 8 channels of a row of a tile: 16-byte chunks are exchanged so that 8 rows at the same chunk lie in different banks.
template <int D> __device__ inline uint32_t swizzle(int row, int chunk) { return row * (D * 2) + ((chunk ^ (row & 7)) * 16); }

__device__ inline void load_matrices(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address));
}
__device__ inline void load_matrices_transposed(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address));
}

template <int D> constexpr int tile = D == 256 ? 32 : 64;                                                     // keys of a step
template <int D> constexpr size_t shared_bytes = 4 * tile<D> * D * 2 + (D == 256 ? queries * D * 2 : 0); // two tiles of keys, two of values; of 256 channels the queries too

// A tile of rows into shared memory, in the background; zeros behind `count` and behind the head's last channel.
template <int D> __device__ inline void copy_tile(uint32_t shared, const __half* from, int64_t stride, int start, int count, int head_dim) {
    constexpr int chunks = D / 8;
#pragma unroll
    for (int i = threadIdx.x; i < tile<D> * chunks; i += threads) {
        const int row = i / chunks, chunk = i % chunks;
        const bool inside = start + row < count && chunk * 8 < head_dim;
        const __half* source = inside ? from + (start + row) * stride + chunk * 8 : from;
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared + swizzle<D>(row, chunk)), "l"(source), "r"(inside ? 16 : 0));
    }
}

template <int D> __global__ void __launch_bounds__(threads, 1) prefill_kernel(const __grid_constant__ Prompt a) {
    extern __shared__ __align__(128) uint8_t memory[];
    constexpr int tile = ::tile<D>;
    constexpr uint32_t tile_bytes = tile * D * 2;
    constexpr bool held = D < 256; // queries in registers
    const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * queries; // the longest rows begin first
    const int head = blockIdx.y, row = first + warp * 16 + g;              // this lane: row and row + 8
    const int kv_head = head / (a.heads / a.kv_heads), head_dim = a.head_dim;
    const __half *keys = a.keys + kv_head * a.head_stride, *values = a.values + kv_head * a.head_stride;
    const int seen = static_cast<int>(min(static_cast<int64_t>(a.count), static_cast<int64_t>(a.diagonal) + min(first + queries, a.rows)));
    const int begin = a.window ? static_cast<int>(max(int64_t(0), static_cast<int64_t>(a.diagonal) + first - a.window + 1) / tile) : 0, tiles = (seen + tile - 1) / tile;
    if (tiles <= begin && a.resume) return; // nothing of this chunk

    if (tiles > begin) copy_tile<D>(shared, keys, a.token_stride, begin * tile, a.count, head_dim);
    asm volatile("cp.async.commit_group;");
    if (tiles > begin) copy_tile<D>(shared + 2 * tile_bytes, values, a.token_stride, begin * tile, a.count, head_dim);
    asm volatile("cp.async.commit_group;");

    uint32_t q[held ? D / 16 : 1][4];
    const uint32_t query_tile = shared + 4 * tile_bytes;
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int r = row + k % 2 * 8, channel = i * 16 + t * 2 + k / 2 * 8;
            float2 x = make_float2(0, 0);
            if (r < a.rows && channel < head_dim) {
                const float* from = a.q + r * a.q_stride + static_cast<int64_t>(head) * head_dim + channel;
                x = make_float2(from[0] * a.scale, from[1] * a.scale);
            }
            const uint32_t pair = pack_f16(x.x, x.y);
            if constexpr (held) q[i][k] = pair;
            else asm volatile("st.shared.b32 [%0], %1;" ::"r"(query_tile + swizzle<D>(r - first, channel / 8) + t * 4), "r"(pair) : "memory");
        }
    __syncwarp(); // a warp reads its own queries
    // out: sums of weights 2^(s - m) times values; m: what the row's scores are counted from; l: this lane's part of the sum of weights.
    float out[D / 8][4] = {}, m[2] = {unseen, unseen}, l[2] = {0, 0};
    if (a.resume)
#pragma unroll
        for (int h = 0; h < 2; ++h)
            if (row + 8 * h < a.rows) {
                const int64_t at = static_cast<int64_t>(row + 8 * h) * a.heads + head;
                m[h] = a.lse[at];
                l[h] = t == 0 && m[h] > unseen; // of the four lanes of a row
#pragma unroll
                for (int i = 0; i < D / 8; ++i)
                    if (i * 8 < head_dim) out[i][2 * h] = a.out[at * head_dim + i * 8 + t * 2], out[i][2 * h + 1] = a.out[at * head_dim + i * 8 + t * 2 + 1];
            }

    for (int step = begin; step < tiles; ++step) {
        const int start = step * tile, even = (step - begin) % 2;
        const uint32_t key_tile = shared + even * tile_bytes, value_tile = shared + (2 + even) * tile_bytes;
        asm volatile("cp.async.wait_group 1;"); // the keys are here
        __syncthreads();
        if (step + 1 < tiles) copy_tile<D>(shared + (even ^ 1) * tile_bytes, keys, a.token_stride, start + tile, a.count, head_dim);
        asm volatile("cp.async.commit_group;");

        float s[tile / 8][4] = {};
#pragma unroll
        for (int i = 0; i < D / 32; ++i) {
            uint32_t own[2][4];
#pragma unroll
            for (int k = 0; k < 2; ++k)
                if constexpr (held) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) own[k][j] = q[2 * i + k][j];
                } else load_matrices(own[k], query_tile + swizzle<D>(warp * 16 + lane % 16, (2 * i + k) * 2 + lane / 16));
#pragma unroll
            for (int n = 0; n < tile / 8; ++n) {
                uint32_t k[4];
                load_matrices(k, key_tile + swizzle<D>(n * 8 + lane % 8, i * 4 + lane / 8));
                mma_f16(s[n], own[0][0], own[0][1], own[0][2], own[0][3], k[0], k[1]);
                mma_f16(s[n], own[1][0], own[1][1], own[1][2], own[1][3], k[2], k[3]);
            }
        }
        if (a.cap > 0) { // cap tanh(s / cap), by e^2x; cap is in units of log2, as scores are
            const float factor = 2 * std::numbers::log2e_v<float> / a.cap;
#pragma unroll
            for (int n = 0; n < tile / 8; ++n)
#pragma unroll
                for (int c = 0; c < 4; ++c) s[n][c] = fmaf(-2 * a.cap, __fdividef(1, 1 + exp2_fast(s[n][c] * factor)), a.cap);
        }
        const int64_t diagonal = static_cast<int64_t>(a.diagonal) + first + warp * 16; // the key of the warp's first row's own token
        if (start + tile > a.count || start + tile > diagonal + 1 || (a.window && start <= diagonal + 15 - a.window))
#pragma unroll
            for (int n = 0; n < tile / 8; ++n)
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    const int key = start + n * 8 + t * 2 + c % 2;
                    const int64_t own = diagonal + g + c / 2 * 8;
                    if (key >= a.count || key > own || (a.window && key <= own - a.window)) s[n][c] = -__builtin_huge_valf();
                }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float most = -__builtin_huge_valf();
#pragma unroll
            for (int n = 0; n < tile / 8; ++n) most = fmaxf(most, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            most = fmaxf(m[h], most - first_weight);
            const float factor = exp2_fast(m[h] - most);
            m[h] = most;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < tile / 8; ++n) {
                s[n][2 * h] = exp2_fast(s[n][2 * h] - most);
                s[n][2 * h + 1] = exp2_fast(s[n][2 * h + 1] - most);
                sum += s[n][2 * h] + s[n][2 * h + 1];
            }
            l[h] = l[h] * factor + sum;
#pragma unroll
            for (int i = 0; i < D / 8; ++i) out[i][2 * h] *= factor, out[i][2 * h + 1] *= factor;
        }

        asm volatile("cp.async.wait_group 1;"); // the values are here
        __syncthreads();
        if (step + 1 < tiles) copy_tile<D>(shared + (2 + (even ^ 1)) * tile_bytes, values, a.token_stride, start + tile, a.count, head_dim);
        asm volatile("cp.async.commit_group;");
#pragma unroll
        for (int j = 0; j < tile / 16; ++j) {
            const uint32_t p0 = pack_f16(s[2 * j][0], s[2 * j][1]), p1 = pack_f16(s[2 * j][2], s[2 * j][3]);
            const uint32_t p2 = pack_f16(s[2 * j + 1][0], s[2 * j + 1][1]), p3 = pack_f16(s[2 * j + 1][2], s[2 * j + 1][3]);
#pragma unroll
            for (int i = 0; i < D / 16; ++i) {
                uint32_t v[4]; // tokens 0..7 and 8..15 of channels 0..7, then of 8..15
                load_matrices_transposed(v, value_tile + swizzle<D>(j * 16 + lane % 16, i * 2 + lane / 16));
                mma_f16(out[2 * i], p0, p1, p2, p3, v[0], v[1]);
                mma_f16(out[2 * i + 1], p0, p1, p2, p3, v[2], v[3]);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        l[h] += __shfl_xor_sync(0xffffffffu, l[h], 1);
        l[h] += __shfl_xor_sync(0xffffffffu, l[h], 2);
        if (row + 8 * h >= a.rows) continue;
        const int64_t at = static_cast<int64_t>(row + 8 * h) * a.heads + head, own = static_cast<int64_t>(a.diagonal) + row + 8 * h;
        // Not above 2^100 times the others' weights: out is 0 then, and lse stays finite.
        if (a.sink_logits && own >= 0 && own < a.count) l[h] += exp2_fast(fminf(fmaf(a.sink_logits[head], std::numbers::log2e_v<float>, -m[h]), 100.0f));
        const float inverse = l[h] > 0 ? 1 / l[h] : 0.0f;
#pragma unroll
        for (int i = 0; i < D / 8; ++i) {
            if (i * 8 >= head_dim) break;
            const float x = out[i][2 * h] * inverse, y = out[i][2 * h + 1] * inverse;
            if (a.rounded) *reinterpret_cast<uint32_t*>(a.rounded + at * head_dim + i * 8 + t * 2) = pack_bf16(x, y);
            else *reinterpret_cast<float2*>(a.out + at * head_dim + i * 8 + t * 2) = make_float2(x, y);
        }
        if (t == 0) a.lse[at] = l[h] > 0 ? m[h] + log2f(l[h]) : unseen;
    }
}

template <int D> int32_t launch(vi_context* context, const char* name, const Prompt& a) {
    VI_SHARED(context, name, prefill_kernel<D>, shared_bytes<D>);
    prefill_kernel<D><<<dim3(ceil_div(a.rows, queries), a.heads), threads, shared_bytes<D>, context->stream>>>(a);
    VI_LAUNCHED(context, name);
    return VI_OK;
}

template <class T> void convert_fresh(vi_context* context, const Prompt& a, __half* keys_out, __half* values_out, const void* keys, const void* values, int first,
                                      int64_t stride) {
    const dim3 blocks(static_cast<unsigned>(ceil_div<int64_t>(static_cast<int64_t>(a.count) * a.kv_heads, 8)), 2);
    convert_fresh_kernel<T><<<blocks, 256, 0, context->stream>>>(keys_out, values_out, static_cast<const T*>(keys), static_cast<const T*>(values), first, a.count, a.kv_heads,
                                                                 a.head_dim, stride);
}

// Keys or values of the cache; see convert_past_kernel.
void convert_past(vi_context* context, __half* out, const Cache& c, bool value, int slot, int past, int first, int count) {
    const bool coded = (value ? c.values : c.keys).format.b < 16;
    const auto kernel = !coded ? convert_past_kernel<0> : c.head_dim == 64 ? convert_past_kernel<64> : c.head_dim == 128 ? convert_past_kernel<128> : convert_past_kernel<256>;
    kernel<<<static_cast<unsigned>(ceil_div<int64_t>(static_cast<int64_t>(count) * c.kv_heads, 8)), 256, 0, context->stream>>>(out, c, value, slot, past, first, count);
}

bool transformed(const Side& side) { return side.transform.matrices || side.transform.smooth || side.transform.hadamard; }

// What a call has beside the Prompt of its chunks.
struct Call {
    __half *keys_held, *values_held; // scratch memory
    float* past_queries;             // [rows, heads, head_dim], of transformed queries
    const void *keys, *values;       // the fresh ones
    int64_t kv_stride;
    const Cache* cache;
    int slot, past, first;
    int32_t kv_dtype;

    bool converted() const { return kv_dtype == VI_F16; }
};

// The first token of the first chunk: chunks of the past begin at multiples of chunk_tokens, fresh ones at such distances from the first fresh token.
int first_token(const Prompt& a, const Call& c) {
    const int lowest = a.window ? std::max<int64_t>(0, int64_t(c.past) + c.first - a.window + 1) : 0; // that a row sees
    if (lowest < c.past) return lowest / step_most * step_most;
    return c.converted() ? c.past : c.past + (lowest - c.past) / chunk_tokens * chunk_tokens;
}

int32_t prefill(vi_context* context, const char* name, Prompt a, const Call& c) {
    const int past = c.past, total = past + c.first + a.rows, D = a.head_dim, kv_heads = a.kv_heads, start = first_token(a, c);
    const float* const fresh_queries = a.q;
    const int64_t fresh_stride = a.q_stride, width = static_cast<int64_t>(a.heads) * D;
    const bool wgmma = wgmma_takes(context, a.q, a.q_stride); // of the fresh queries, for all chunks
    vi_bf16* const rounded = a.rounded;
    const bool turned = start < past && transformed(c.cache->keys), turned_back = start < past && transformed(c.cache->values);
    if (turned) {
        launch_transform(context->stream, c.past_queries, a.q, c.cache->keys.transform, VI_TRANSFORM_QUERY, a.rows, a.heads, kv_heads, D, width, a.q_stride);
        VI_LAUNCHED(context, name);
    }
    for (int begin = start; begin < total;) {
        const bool fresh = begin >= past, in_place = fresh && c.converted();
        const int64_t next = fresh ? int64_t(begin) + chunk_tokens : int64_t(begin / chunk_tokens + 1) * chunk_tokens;
        const int end = in_place ? total : static_cast<int>(std::min<int64_t>(fresh ? total : past, next));
        a.count = end - begin;
        a.keys = in_place ? static_cast<const __half*>(c.keys) : c.keys_held;
        a.values = in_place ? static_cast<const __half*>(c.values) : c.values_held;
        a.head_stride = in_place ? D : static_cast<int64_t>(a.count) * D;
        a.token_stride = in_place ? c.kv_stride : D;
        a.diagonal = past + c.first - begin;
        a.resume = begin > start;
        a.rounded = end == total ? rounded : nullptr;
        a.q = fresh || !turned ? fresh_queries : c.past_queries;
        a.q_stride = fresh || !turned ? fresh_stride : width;
        if (!fresh)
            for (const bool value : {false, true}) convert_past(context, value ? c.values_held : c.keys_held, *c.cache, value, c.slot, past, begin, a.count);
        else if (!c.converted())
            (c.kv_dtype == VI_F32 ? convert_fresh<float> : convert_fresh<vi_bf16>)(context, a, c.keys_held, c.values_held, c.keys, c.values, begin - past, c.kv_stride);
        VI_LAUNCHED(context, name);
        const auto run = wgmma ? prefill_wgmma : D <= 64 ? launch<64> : D <= 128 ? launch<128> : launch<256>;
        VI_CHECK(run(context, name, a));
        begin = end;
        if (begin == past && turned_back) {
            launch_transform(context->stream, a.out, a.out, c.cache->values.transform, VI_TRANSFORM_INVERSE, a.rows, a.heads, kv_heads, D, width, width);
            VI_LAUNCHED(context, name);
        }
    }
    return VI_OK;
}

} // namespace

extern "C" VI_API int32_t vi_attention_prefill(vi_context* context, void* out, const float* q, const void* keys, const void* values,
                                               const vi_kv_layer* layer, const float* sink_logits, float scale, float soft_cap, int32_t slot, int32_t past,
                                               int32_t first, int32_t rows, int32_t sliding_window, int32_t heads, int32_t kv_heads, int32_t head_dim,
                                               int32_t q_stride, int32_t kv_stride, int32_t kv_dtype, int32_t out_dtype) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_attention_prefill(context, __func__, out, q, keys, values, shape_of(layer), soft_cap, slot, past, first, rows, sliding_window, heads, kv_heads, head_dim, q_stride,
                                     kv_stride, kv_dtype, out_dtype));
    if (rows == 0) return VI_OK;
    const bool converted = kv_dtype == VI_F16, to_bf16 = out_dtype == VI_BF16;
    const int longest = converted || past > first + rows ? past : first + rows, held = longest < chunk_tokens ? longest : chunk_tokens;
    const size_t side_bytes = align_256(static_cast<size_t>(held) * kv_heads * head_dim * 2);
    const size_t lse_bytes = align_256(static_cast<size_t>(rows) * heads * 4), query_bytes = past ? static_cast<size_t>(rows) * heads * head_dim * 4 : 0;
    VI_WORKSPACE(context, uint8_t, scratch, 2 * side_bytes + lse_bytes + (to_bf16 ? 2 : 1) * query_bytes, __func__);
    float* const past_queries = reinterpret_cast<float*>(scratch + 2 * side_bytes + lse_bytes);
    Prompt a = {};
    a.out = to_bf16 ? past_queries + query_bytes / 4 : static_cast<float*>(out); // with bf16 that of the past, before the fresh tokens
    a.rounded = to_bf16 ? static_cast<vi_bf16*>(out) : nullptr;
    a.lse = reinterpret_cast<float*>(scratch + 2 * side_bytes);
    a.q = q, a.q_stride = q_stride;
    a.sink_logits = sink_logits;
    a.scale = scale * std::numbers::log2e_v<float>, a.cap = soft_cap * std::numbers::log2e_v<float>;
    a.rows = rows, a.heads = heads, a.kv_heads = kv_heads, a.head_dim = head_dim;
    a.window = sliding_window;
    return prefill(context, __func__, a,
                   {reinterpret_cast<__half*>(scratch), reinterpret_cast<__half*>(scratch + side_bytes), past_queries, keys, values, kv_stride,
                    past ? &layer->cache : nullptr, slot, past, first, kv_dtype});
} VI_CATCH(context)
