// Attention of a prompt (flash attention, arXiv 2205.14135): exact and causal over fresh keys and values, after what the cache already holds.
//
// Keys and values become bf16 in scratch memory, `chunk_tokens` at a time: those of the past read back from sinks, pages and ring, then the fresh
// ones. Each chunk is one launch; from the second on it goes on from the output and log-sum-exp that the one before left. Fresh rows that are bf16
// already are read where they are, all in one launch: a prompt of T tokens that comes in pieces would else be converted T / piece times.
// The past stays in the transformed space, as in decoding: transformed queries meet it, and the output turns back once before the fresh tokens. That is rows times
// heads transforms in place of past times KV heads.
//
// A chunk is attended to by the kernel of attention_prefill_wgmma.cu or by this file's (attention_prefill.h says when). This one: a block has 128 queries of one
// head, 16 a warp, and goes through the keys 64 at a time, two tiles of keys and values in shared memory while the next arrive. q, k, v and the
// probabilities are bf16, sums f32.
#include "attention_prefill.h"
#include "attention_tile.cuh"
#include "quantize.cuh"
#include <numbers>

namespace {

constexpr int warps = 8, threads = warps * 32, queries = warps * 16, tile = 64;
constexpr int chunk_tokens = 32768;

// One warp a vector (token, KV head, side): keys and values [kv_heads, count, D] as bf16.
template <int D>
__global__ void convert_fresh_kernel(vi_bf16* keys_out, vi_bf16* values_out, const float* keys, const float* values, int first, int count, int kv_heads,
                                     int64_t stride) {
    constexpr int N = D / 32;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (i >= static_cast<int64_t>(count) * kv_heads) return;
    const int lane = threadIdx.x % 32, head = static_cast<int>(i % kv_heads), token = static_cast<int>(i / kv_heads);
    const float* from = (blockIdx.y ? values : keys) + (first + token) * stride + head * D + lane * N;
    vi_bf16* to = (blockIdx.y ? values_out : keys_out) + (static_cast<int64_t>(head) * count + token) * D + lane * N;
    for (int k = 0; k < N; k += 2) *reinterpret_cast<uint32_t*>(to + k) = pack_bf16(from[k], from[k + 1]);
}

// The same for tokens of the cache, in the transformed space; the last `window` of the past and the sinks from their exact rows.
template <int D>
__global__ void convert_past_kernel(vi_bf16* keys_out, vi_bf16* values_out, const __grid_constant__ Cache c, int slot, int past, int first, int count) {
    constexpr int N = D / 32;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (i >= static_cast<int64_t>(count) * c.kv_heads) return;
    const int lane = threadIdx.x % 32, head = static_cast<int>(i % c.kv_heads), token = static_cast<int>(i / c.kv_heads), position = first + token;
    const bool value = blockIdx.y;
    const Side& side = value ? c.values : c.keys;
    const bool sink = position < c.sinks, recent = !sink && past - position <= c.window && position >= c.exact_from[slot];
    vi_bf16* to = (value ? values_out : keys_out) + (static_cast<int64_t>(head) * count + token) * D + lane * N;
    if (sink || recent) {
        const vi_bf16* from = sink ? side.sinks + c.sink_row(slot, head, position) : side.recent + c.recent_row(slot, head, position);
        for (int k = 0; k < N; k += 2) *reinterpret_cast<uint32_t*>(to + k) = *reinterpret_cast<const uint32_t*>(from + lane * N + k);
        return;
    }
    float x[N];
    read_vector<D>(x, c, side, value, slot, position, head);
    for (int k = 0; k < N; k += 2) *reinterpret_cast<uint32_t*>(to + k) = pack_bf16(x[k], x[k + 1]);
}

// Byte offset of 8 channels of a row of a tile: 16-byte chunks are exchanged so that 8 rows at the same chunk lie in different banks.
template <int D> __device__ inline uint32_t swizzle(int row, int chunk) { return row * (D * 2) + ((chunk ^ (row & 7)) * 16); }

__device__ inline void load_matrices(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address));
}
__device__ inline void load_matrices_transposed(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address));
}

// A tile of rows into shared memory, in the background; zeros behind `count`.
template <int D> __device__ inline void copy_tile(uint32_t shared, const vi_bf16* from, int64_t stride, int start, int count) {
    constexpr int chunks = D / 8;
#pragma unroll
    for (int i = threadIdx.x; i < tile * chunks; i += threads) {
        const int row = i / chunks, chunk = i % chunks;
        const bool inside = start + row < count;
        const vi_bf16* source = from + (inside ? start + row : 0) * stride + chunk * 8;
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared + swizzle<D>(row, chunk)), "l"(source), "r"(inside ? 16 : 0));
    }
}

template <int D> __global__ void __launch_bounds__(threads, 1) prefill_kernel(const __grid_constant__ Prompt a) {
    extern __shared__ __align__(128) uint8_t memory[];
    constexpr uint32_t tile_bytes = tile * D * 2;
    const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * queries; // the longest rows begin first
    const int head = blockIdx.y, row = first + warp * 16 + g;              // this lane: row and row + 8
    const int kv_head = head / (a.heads / a.kv_heads);
    const vi_bf16 *keys = a.keys + kv_head * a.head_stride, *values = a.values + kv_head * a.head_stride;
    const int seen = static_cast<int>(min(static_cast<int64_t>(a.count), static_cast<int64_t>(a.diagonal) + min(first + queries, a.rows)));
    const int tiles = (seen + tile - 1) / tile;
    if (tiles <= 0) return; // nothing of this chunk; never so for the first one

    copy_tile<D>(shared, keys, a.token_stride, 0, a.count);
    asm volatile("cp.async.commit_group;");
    copy_tile<D>(shared + 2 * tile_bytes, values, a.token_stride, 0, a.count);
    asm volatile("cp.async.commit_group;");

    uint32_t q[D / 16][4];
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int r = row + k % 2 * 8;
            float2 x = make_float2(0, 0);
            if (r < a.rows) {
                const float* from = a.q + r * a.q_stride + static_cast<int64_t>(head) * D + i * 16 + t * 2 + k / 2 * 8;
                x = make_float2(from[0] * a.scale, from[1] * a.scale);
            }
            q[i][k] = pack_bf16(x.x, x.y);
        }
    float out[D / 8][4] = {}, m[2] = {-1e30f, -1e30f}, l[2] = {0, 0};
    if (a.resume)
#pragma unroll
        for (int h = 0; h < 2; ++h)
            if (row + 8 * h < a.rows) {
                const int64_t at = static_cast<int64_t>(row + 8 * h) * a.heads + head;
                m[h] = a.lse[at];
                l[h] = t == 0; // of the four lanes of a row
#pragma unroll
                for (int i = 0; i < D / 8; ++i) out[i][2 * h] = a.out[at * D + i * 8 + t * 2], out[i][2 * h + 1] = a.out[at * D + i * 8 + t * 2 + 1];
            }

    for (int step = 0; step < tiles; ++step) {
        const int start = step * tile;
        const uint32_t key_tile = shared + step % 2 * tile_bytes, value_tile = shared + (2 + step % 2) * tile_bytes;
        asm volatile("cp.async.wait_group 1;"); // the keys are here
        __syncthreads();
        if (step + 1 < tiles) copy_tile<D>(shared + (step + 1) % 2 * tile_bytes, keys, a.token_stride, start + tile, a.count);
        asm volatile("cp.async.commit_group;");

        float s[tile / 8][4] = {};
#pragma unroll
        for (int i = 0; i < D / 32; ++i)
#pragma unroll
            for (int n = 0; n < tile / 8; ++n) {
                uint32_t k[4];
                load_matrices(k, key_tile + swizzle<D>(n * 8 + lane % 8, i * 4 + lane / 8));
                mma_bf16(s[n], q[2 * i][0], q[2 * i][1], q[2 * i][2], q[2 * i][3], k[0], k[1]);
                mma_bf16(s[n], q[2 * i + 1][0], q[2 * i + 1][1], q[2 * i + 1][2], q[2 * i + 1][3], k[2], k[3]);
            }
        if (start + tile > a.count || start + tile > static_cast<int64_t>(a.diagonal) + first + warp * 16 + 1)
#pragma unroll
            for (int n = 0; n < tile / 8; ++n)
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    const int key = start + n * 8 + t * 2 + c % 2;
                    if (key >= a.count || key > static_cast<int64_t>(a.diagonal) + row + c / 2 * 8) s[n][c] = -__builtin_huge_valf();
                }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float most = m[h];
#pragma unroll
            for (int n = 0; n < tile / 8; ++n) most = fmaxf(most, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
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
        if (step + 1 < tiles) copy_tile<D>(shared + (2 + (step + 1) % 2) * tile_bytes, values, a.token_stride, start + tile, a.count);
        asm volatile("cp.async.commit_group;");
#pragma unroll
        for (int j = 0; j < tile / 16; ++j) {
            const uint32_t p0 = pack_bf16(s[2 * j][0], s[2 * j][1]), p1 = pack_bf16(s[2 * j][2], s[2 * j][3]);
            const uint32_t p2 = pack_bf16(s[2 * j + 1][0], s[2 * j + 1][1]), p3 = pack_bf16(s[2 * j + 1][2], s[2 * j + 1][3]);
#pragma unroll
            for (int i = 0; i < D / 16; ++i) {
                uint32_t v[4]; // tokens 0..7 and 8..15 of channels 0..7, then of 8..15
                load_matrices_transposed(v, value_tile + swizzle<D>(j * 16 + lane % 16, i * 2 + lane / 16));
                mma_bf16(out[2 * i], p0, p1, p2, p3, v[0], v[1]);
                mma_bf16(out[2 * i + 1], p0, p1, p2, p3, v[2], v[3]);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        l[h] += __shfl_xor_sync(0xffffffffu, l[h], 1);
        l[h] += __shfl_xor_sync(0xffffffffu, l[h], 2);
        if (row + 8 * h >= a.rows) continue;
        const int64_t at = static_cast<int64_t>(row + 8 * h) * a.heads + head;
        const float inverse = 1 / l[h];
#pragma unroll
        for (int i = 0; i < D / 8; ++i) {
            const float x = out[i][2 * h] * inverse, y = out[i][2 * h + 1] * inverse;
            if (a.rounded) *reinterpret_cast<uint32_t*>(a.rounded + at * D + i * 8 + t * 2) = pack_bf16(x, y);
            else *reinterpret_cast<float2*>(a.out + at * D + i * 8 + t * 2) = make_float2(x, y);
        }
        if (t == 0) a.lse[at] = m[h] + log2f(l[h]);
    }
}

template <int D>
int32_t prefill(vi_context* context, const char* name, Prompt a, vi_bf16* keys_out, vi_bf16* values_out, float* past_queries, const void* keys, const void* values,
                const Cache* cache, int slot, int past, int first, int64_t kv_stride, bool converted) {
    constexpr size_t bytes = 4 * tile * D * 2;
    VI_SHARED(context, name, prefill_kernel<D>, bytes);
    const int total = past + first + a.rows, kv_heads = a.kv_heads;
    const float* const fresh_queries = a.q;
    const int64_t fresh_stride = a.q_stride, width = static_cast<int64_t>(a.heads) * D;
    const bool wgmma = wgmma_takes(context, a.q, a.q_stride); // of the fresh queries, for all chunks
    vi_bf16* const rounded = a.rounded;
    if (past) {
        launch_transform(context->stream, past_queries, a.q, cache->keys.transform, VI_TRANSFORM_QUERY, a.rows, a.heads, kv_heads, D, width, a.q_stride);
        VI_LAUNCHED(context, name);
    }
    for (int begin = 0; begin < total;) {
        const bool fresh = begin >= past, in_place = fresh && converted;
        const int end = in_place ? total : min(fresh ? total : past, begin + chunk_tokens);
        a.count = end - begin;
        a.keys = in_place ? static_cast<const vi_bf16*>(keys) : keys_out;
        a.values = in_place ? static_cast<const vi_bf16*>(values) : values_out;
        a.head_stride = in_place ? D : static_cast<int64_t>(a.count) * D;
        a.token_stride = in_place ? kv_stride : D;
        a.diagonal = past + first - begin;
        a.resume = begin > 0;
        a.rounded = end == total ? rounded : nullptr;
        a.q = fresh ? fresh_queries : past_queries;
        a.q_stride = fresh ? fresh_stride : width;
        const dim3 blocks(static_cast<unsigned>(ceil_div<int64_t>(static_cast<int64_t>(a.count) * kv_heads, 8)), 2);
        if (fresh && !converted)
            convert_fresh_kernel<D><<<blocks, 256, 0, context->stream>>>(keys_out, values_out, static_cast<const float*>(keys), static_cast<const float*>(values),
                                                                         begin - past, a.count, kv_heads, kv_stride);
        if (!fresh) convert_past_kernel<D><<<blocks, 256, 0, context->stream>>>(keys_out, values_out, *cache, slot, past, begin, a.count);
        VI_LAUNCHED(context, name);
        if (wgmma) {
            const int32_t status = prefill_wgmma(context, name, a, D);
            if (status != VI_OK) return status;
        } else {
            prefill_kernel<D><<<dim3(ceil_div(a.rows, queries), a.heads), threads, bytes, context->stream>>>(a);
            VI_LAUNCHED(context, name);
        }
        begin = end;
        if (begin == past) {
            launch_transform(context->stream, a.out, a.out, cache->values.transform, VI_TRANSFORM_INVERSE, a.rows, a.heads, kv_heads, D, width, width);
            VI_LAUNCHED(context, name);
        }
    }
    return VI_OK;
}

} // namespace

extern "C" VI_API int32_t vi_attention_prefill(vi_context* context, void* out, const float* q, const void* keys, const void* values,
                                               const vi_kv_layer* layer, float scale, int32_t slot, int32_t past, int32_t first, int32_t rows,
                                               int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t q_stride, int32_t kv_stride,
                                               int32_t kv_dtype, int32_t out_dtype) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_attention_prefill(context, __func__, out, q, keys, values, shape_of(layer), slot, past, first, rows, heads, kv_heads, head_dim, q_stride,
                                     kv_stride, kv_dtype, out_dtype));
    if (rows == 0) return VI_OK;
    const Cache* cache = past ? &layer->cache : nullptr;
    const bool converted = kv_dtype == VI_BF16, to_bf16 = out_dtype == VI_BF16;
    const int longest = converted || past > first + rows ? past : first + rows, held = longest < chunk_tokens ? longest : chunk_tokens;
    const size_t side_bytes = align_256(static_cast<size_t>(held) * kv_heads * head_dim * 2);
    const size_t lse_bytes = align_256(static_cast<size_t>(rows) * heads * 4), query_bytes = past ? static_cast<size_t>(rows) * heads * head_dim * 4 : 0;
    VI_WORKSPACE(context, uint8_t, scratch, 2 * side_bytes + lse_bytes + (to_bf16 ? 2 : 1) * query_bytes, __func__);
    float* const sums = to_bf16 ? reinterpret_cast<float*>(scratch + 2 * side_bytes + lse_bytes + query_bytes) : static_cast<float*>(out); // of the past, before the fresh tokens
    Prompt a = {sums, to_bf16 ? static_cast<vi_bf16*>(out) : nullptr, reinterpret_cast<float*>(scratch + 2 * side_bytes), q, nullptr, nullptr, 0, 0, scale * std::numbers::log2e_v<float>, 0, rows, heads,
                kv_heads, 0, q_stride, false};
    auto run = head_dim == 64 ? prefill<64> : prefill<128>;
    return run(context, __func__, a, reinterpret_cast<vi_bf16*>(scratch), reinterpret_cast<vi_bf16*>(scratch + side_bytes),
               reinterpret_cast<float*>(scratch + 2 * side_bytes + lse_bytes), keys, values, cache, slot, past, first, kv_stride, converted);
} VI_CATCH(context)
