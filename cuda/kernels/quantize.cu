// vi_quantize for few rows, and vi_dequantize. Many rows: quantize_many.cu.
#include "quantize.h"
#include "quantize.cuh"
#include <cooperative_groups.h>

namespace {

constexpr int threads = 256;
constexpr int parts_most = 8;     // blocks of a cluster that share a vector's codewords
constexpr int words_most = 4096;  // floats of codewords that a block holds in shared memory
constexpr int halves_most = 1024; // codewords in them

// Sets the code of a sub-vector.
__device__ void write_code(const PageFormat& f, uint8_t* page, bool value, int token, int sub, uint32_t code) {
    int word, bit, lane;
    f.locate(value, token, sub, word, bit, lane);
    if (f.b == 8) page[f.offset(token, lane, word) + bit / 8] = static_cast<uint8_t>(code);
    else write_bits(f, page, token, lane, word, bit, code);
}

template <int d> __device__ __forceinline__ void load_word(float (&word)[d], const float* from) {
#pragma unroll
    for (int i = 0; i < d; i += d == 2 ? 2 : 4) {
        if constexpr (d == 2) {
            const float2 x = *reinterpret_cast<const float2*>(from);
            word[0] = x.x, word[1] = x.y;
        } else {
            const float4 x = *reinterpret_cast<const float4*>(from + i);
            word[i] = x.x, word[i + 1] = x.y, word[i + 2] = x.z, word[i + 3] = x.w;
        }
    }
}

// The nearest to x of codewords first, first + step, ... of `count`, the first of which is number `base` of its codebook: by |x - c|^2, or, with halves[c] = |c|^2 / 2,
// by that less x . c, which takes half the operations. In one call the codewords are all in shared or all in global memory, so that loads are of one kind.
template <int d, bool Halved> __device__ __forceinline__ void search(float& least, int& code, const float* x, const float* codewords, const float* halves, int first,
                                                                     int count, int step, int base) {
    float own[d];
#pragma unroll
    for (int i = 0; i < d; ++i) own[i] = x[i];
#pragma unroll 8
    for (int w = first; w < count; w += step) {
        float word[d], distance = Halved ? halves[w] : 0.0f;
        load_word<d>(word, codewords + w * d);
#pragma unroll
        for (int i = 0; i < d; ++i) {
            const float difference = own[i] - word[i];
            distance = Halved ? fmaf(-own[i], word[i], distance) : fmaf(difference, difference, distance);
        }
        if (distance < least) least = distance, code = base + w;
    }
}

// A cluster of blocks a vector: (row, KV head, side), after them blocks that rotate 8 query heads each. The blocks of a cluster share the codewords of each
// sub-vector, and so do a block's threads. A codebook is no kernel's work: it is read before the kernel ahead of this one has ended.
template <int D>
__global__ void __launch_bounds__(threads) quantize_kernel(const __grid_constant__ Cache c, const float* keys, const float* values, const int32_t* slots,
                                                           const int32_t* positions, const __grid_constant__ Rope rope, int stride, int parts) {
    __shared__ __align__(16) float vector[1][D], partial[threads / 32][1][D];
    __shared__ float scaled[D], best[threads], sums[32];
    __shared__ int best_code[threads];
    __shared__ __align__(16) float words[words_most];
    __shared__ float halves[halves_most];
    constexpr int N = D / 32;
    const int part = blockIdx.x % parts, row = blockIdx.x / parts, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int head = blockIdx.y / 2;
    const bool value = blockIdx.y % 2, vectors = static_cast<int>(blockIdx.y) < 2 * c.kv_heads;
    const Side& side = value ? c.values : c.keys;
    const PageFormat f = side.format;
    const int n = f.n(), d = f.d, codewords = 1 << f.b, own = codewords / parts; // of this block: from part * own on
    const bool held = vectors && f.b < 16 && side.codebook_parts == 1 && own * d <= words_most && own <= halves_most;
    if (held) {
        const float4* from = reinterpret_cast<const float4*>(side.codebook(head, 0) + part * own * d);
        for (int i = threadIdx.x; i < own * d / 4; i += threads) reinterpret_cast<float4*>(words)[i] = from[i];
        __syncthreads();
        for (int w = threadIdx.x; w < own; w += threads) {
            float squares = 0;
            for (int i = 0; i < d; ++i) squares = fmaf(words[w * d + i], words[w * d + i], squares);
            halves[w] = squares / 2;
        }
    }
    if (vectors && side.transform.matrices) prefetch(side.transform.matrix(VI_TRANSFORM_FORWARD, head, D), D * D, threadIdx.x, threads);
    wait_for_previous();
    let_next_start();
    if (!vectors) {
        const int head = (blockIdx.y - 2 * c.kv_heads) * (threads / 32) + warp, position = positions[row];
        if (part > 0 || head >= rope.heads) return;
        float* q = rope.queries + static_cast<int64_t>(row) * stride + head * D + lane * N;
        float x[N];
        for (int i = 0; i < N; ++i) x[i] = q[i];
        Turn<D>(rope.frequencies, position).rotate(x);
        for (int i = 0; i < N; ++i) q[i] = x[i];
        return;
    }
    const QuantizeRow r(c, slots, positions, row);
    if (r.page < 0) return; // all blocks of the cluster
    uint8_t* page = side.page(r.page, head, c.kv_heads);
    const int token = r.position % page_tokens;

    float x[N];
    if (warp == 0) {
        for (int i = 0; i < N; ++i) x[i] = (value ? values : keys)[static_cast<int64_t>(row) * stride + head * D + lane * N + i];
        if (!value && rope.frequencies) Turn<D>(rope.frequencies, r.position).rotate(x);
        for (int i = 0; i < N; ++i) vector[0][lane * N + i] = x[i];
    }
    transform_by_block<D>(x, vector, partial, side.transform, VI_TRANSFORM_FORWARD, head);
    if (warp == 0) {
        float squares = 0;
        if (part == 0) write_exact<D>(x, c, side, r, head);
        for (int i = 0; i < N; ++i) squares += x[i] * x[i];
        const float rms = f.token_scale ? sqrtf(warp_sum(squares) / D) : 1.0f;
        for (int i = 0; i < N; ++i) {
            vector[0][lane * N + i] = x[i];
            scaled[lane * N + i] = rms > 0 ? x[i] / rms : 0.0f;
        }
    }
    __syncthreads();
    if (f.b == 16) {
        if (part == 0)
            for (int i = threadIdx.x; i < D; i += threads) {
                int word, bit, to;
                f.locate(value, token, i, word, bit, to);
                reinterpret_cast<vi_bf16*>(page + f.offset(token, to, word))[bit / 16] = f32_to_bf16(vector[0][i]);
            }
        return;
    }
    const int splits = threads / n, sub = threadIdx.x % n;
    const float* codebook = side.codebook(head, sub);
    float least = __builtin_huge_valf();
    int code = 0;
    auto find = [&]<int size>() {
        const float* x = scaled + sub * size;
        if (held) search<size, true>(least, code, x, words, halves, threadIdx.x / n, own, splits, part * own);
        else search<size, false>(least, code, x, codebook + part * own * size, nullptr, threadIdx.x / n, own, splits, part * own);
    };
    if (d == 2) find.template operator()<2>();
    else if (d == 4) find.template operator()<4>();
    else find.template operator()<8>();
    best[threadIdx.x] = least;
    best_code[threadIdx.x] = code;
    __syncthreads();
    auto take = [&](float other, int other_code) {
        if (other < least || (other == least && other_code < code)) least = other, code = other_code;
    };
    if (static_cast<int>(threadIdx.x) < n)
        for (int i = 1; i < splits; ++i) take(best[i * n + sub], best_code[i * n + sub]);
#if __CUDA_ARCH__ >= 900
    if (parts > 1) {
        const auto cluster = cooperative_groups::this_cluster();
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < n) best[sub] = least, best_code[sub] = code;
        cluster.sync();
        if (part == 0 && static_cast<int>(threadIdx.x) < n)
            for (int i = 1; i < parts; ++i) take(cluster.map_shared_rank(best, i)[sub], cluster.map_shared_rank(best_code, i)[sub]);
        cluster.sync(); // the others' memory is theirs until here
        if (part > 0) return;
    }
#endif
    float product = 0, norm = 0;
    if (static_cast<int>(threadIdx.x) < n) {
        for (int i = 0; i < d; ++i) {
            const float w = codebook[code * d + i];
            product = fmaf(vector[0][sub * d + i], w, product);
            norm = fmaf(w, w, norm);
        }
        write_code(f, page, value, token, sub, code);
    }
    if (!f.token_scale) return;
    product = block_sum(product, sums);
    norm = block_sum(norm, sums);
    if (threadIdx.x == 0) page[f.scale_offset(token)] = scale_code(product, norm);
}

constexpr int ahead = 4; // vectors of a warp, for which it reads a matrix once

// A KV head and side a block, `ahead` positions a warp.
template <int D, bool Padded> __global__ void dequantize_kernel(float* keys, float* values, const __grid_constant__ Cache c, int slot, int first, int count) {
    constexpr int N = D / 32;
    const Channels<D, Padded> own(c.head_dim);
    const int head = blockIdx.z, begin = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * ahead;
    if (begin >= count) return;
    const bool value = blockIdx.y;
    const Side& side = value ? c.values : c.keys;
    float x[ahead][N];
#pragma unroll
    for (int j = 0; j < ahead; ++j) read_vector<D, Padded>(x[j], c, side, value, slot, first + min(begin + j, count - 1), head);
    if constexpr (!Padded) transform_vectors<D, VI_TRANSFORM_INVERSE>(x, side.transform, head);
#pragma unroll
    for (int j = 0; j < ahead; ++j) {
        if (begin + j >= count) break;
        float* out = (value ? values : keys) + (static_cast<int64_t>(begin + j) * c.kv_heads + head) * c.head_dim + own.first;
        for (int k = 0; k < N; ++k)
            if (own.has(k)) out[k] = x[j][k];
    }
}

// Whether quantize_many is faster, by the blocks that quantize_few would have. It keeps one codebook a head in shared memory, and has all code for bf16 but in pages of 64
// and 128 channels a head.
bool are_many(const vi_context* context, const Cache& c, int32_t rows) {
    const bool bf16 = c.keys.format.b == 16 && c.values.format.b == 16;
    if (bf16 && (c.sliding() || (c.head_dim != 64 && c.head_dim != 128))) return true;
    if (c.keys.codebook_parts > 1 || c.values.codebook_parts > 1) return false;
    const int64_t blocks = static_cast<int64_t>(rows) * c.kv_heads * 2, sixteenths = c.keys.format.b == 12 || c.values.format.b == 12 ? 14 : 48;
    return 16 * blocks >= sixteenths * context->multiprocessors;
}

int32_t quantize_few(vi_context* context, const char* name, const Cache& c, const float* keys, const float* values, const int32_t* slots,
                     const int32_t* positions, const Rope& rope, int32_t rows, int32_t stride) {
    // 12 bits are 16 times the work of 8: few vectors leave room for more blocks each, but not for more than there are multiprocessors.
    const bool large = (c.keys.format.b % 16 > 8 || c.values.format.b % 16 > 8) && context->properties.major >= 9;
    int parts = 1;
    while (large && parts < parts_most && 2 * rows * c.kv_heads * 2 * parts <= context->multiprocessors) parts *= 2;
    const dim3 blocks(rows * parts, 2 * c.kv_heads + ceil_div(rope.heads, threads / 32));
    auto kernel = c.head_dim == 64 ? quantize_kernel<64> : c.head_dim == 128 ? quantize_kernel<128> : quantize_kernel<256>;
    VI_CUDA(context, name, launch_clusters(context, kernel, blocks, threads, 0, parts, c, keys, values, slots, positions, rope, stride, parts));
    return VI_OK;
}

} // namespace

extern "C" {

VI_API int32_t vi_quantize(vi_context* context, vi_kv_layer* layer, const float* keys, const float* values, const int32_t* slots,
                           const int32_t* positions, int32_t rows, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_quantize(context, __func__, shape_of(layer), keys, values, slots, positions, rows, stride));
    if (rows == 0) return VI_OK;
    const Cache& c = layer->cache;
    const Rope none = {};
    return (are_many(context, c, rows) ? quantize_many : quantize_few)(context, __func__, c, keys, values, slots, positions, none, rows, stride);
} VI_CATCH(context)

VI_API int32_t vi_rope_quantize(vi_context* context, vi_kv_layer* layer, float* queries, float* keys, const float* values, const int32_t* slots,
                                const int32_t* positions, const float* frequencies, int32_t rows, int32_t heads, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_rope_quantize(context, __func__, shape_of(layer), queries, keys, values, slots, positions, frequencies, rows, heads, stride));
    if (rows == 0) return VI_OK;
    const Cache& c = layer->cache;
    return (are_many(context, c, rows) ? quantize_many : quantize_few)(context, __func__, c, keys, values, slots, positions, {queries, frequencies, heads}, rows, stride);
} VI_CATCH(context)

VI_API int32_t vi_dequantize(vi_context* context, float* keys, float* values, const vi_kv_layer* layer, int32_t slot, int32_t first,
                             int32_t count) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_dequantize(context, __func__, keys, values, shape_of(layer), slot, first, count));
    if (count == 0) return VI_OK;
    const Cache& c = layer->cache;
    for_head_dim(c.head_dim, [&]<int D, bool Padded>() {
        dequantize_kernel<D, Padded><<<dim3(ceil_div(count, threads / 32 * ahead), 2, c.kv_heads), threads, 0, context->stream>>>(keys, values, c, slot, first, count);
    });
    VI_LAUNCHED(context, __func__);
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
