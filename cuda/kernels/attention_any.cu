// Decode attention for any pair of formats, at run time: pairs without a kernel of their own (attention.h), head dimensions that those have not, and a codebook for each
// sub-vector of a head (MILLION, arXiv 2504.03661; CQ, arXiv 2405.03917), which does not fit the shared memory (d4b8 at D = 128: 32 codebooks of 1 KiB as int8, a side
// and head). Straight from the codes, codebooks read through L2, in f32, split along the sequence; not tuned beyond that.
//
// A block has a row, a KV head and some of its query heads, and 256 positions, whose tokens its warps take in turn: a token's key and value as a warp's vectors, scores by
// sums over the warp, softmax by powers of 2 with a warp's own maximum m, sum l and output. Warps and then blocks are put together in order
// by log-sum-exp, so that the same input gives the same bits.
#include "attention_exact.cuh"
#include "attention_plan.cuh"
#include "quantize.cuh"

namespace {

constexpr int warps = 8, split_tokens = 256, together = 2; // tokens that a warp reads before it uses the first
constexpr size_t partial_bytes = size_t(64) << 20;         // of scratch memory, unless one row needs more
template <int D> constexpr int block_heads = 512 / D;      // query heads of a block

// A token's vector in the transformed space.
template <int D, bool Padded>
__device__ inline void read_token(float (&x)[D / 32], const Cache& c, const Side& side, bool value, const AttentionRow& r, int position, int head) {
    if (position >= r.coded_begin && position < r.coded_end) return read_vector<D, Padded>(x, c, side, value, r.slot, position, head);
    const vi_bf16* from = position < r.coded_begin ? side.sinks + c.sink_row(r.slot, head, position) : side.recent + c.recent_row(r.slot, head, position);
    constexpr int N = D / 32;
    const Channels<D, Padded> own(c.head_dim);
    if constexpr (Padded) {
        for (int i = 0; i < N; ++i) x[i] = own.has(i) ? bf16_to_f32(from[own.first + i]) : 0.0f;
    } else { // of 4, 8 or 16 bytes
        uint32_t words[N / 2];
        load_channels<N>(words, from + own.first);
        for (int i = 0; i < N; ++i) x[i] = __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    }
}

// partials [rows, heads, splits, head_dim + 2]: the output before its division by l, m, l.
__device__ inline float* partial_of(const AttentionArguments& a, int row, int query_head, int splits, int split) {
    return a.partials + ((static_cast<int64_t>(row) * a.heads + query_head) * splits + split) * (a.cache.head_dim + 2);
}

template <int D, bool Padded> __global__ void __launch_bounds__(warps * 32) any_kernel(const __grid_constant__ AttentionArguments a, int splits) {
    constexpr int N = D / 32, Heads = block_heads<D>;
    constexpr float infinity = __builtin_huge_valf();
    __shared__ float results[warps][Heads][D], maxima[warps][Heads], sums[warps][Heads];
    const Cache& c = a.cache;
    const int split = blockIdx.x, head = blockIdx.y / a.parts, part = blockIdx.y % a.parts, index = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int heads = min(Heads, a.group - part * Heads), first_head = head * a.group + part * Heads;
    const AttentionRow r(a, index);
    const int begin = r.first(c) + split * split_tokens, end = min(r.tokens, begin + split_tokens);
    if (r.pages < 0 || begin >= end) return;
    const Channels<D, Padded> own(c.head_dim);

    for (int h = warp; h < Heads; h += warps) { // to results, for all warps
        float x[N] = {};
        if (h < heads) {
            const float* from = a.q + static_cast<int64_t>(index) * a.stride + static_cast<int64_t>(first_head + h) * c.head_dim + own.first;
            for (int i = 0; i < N; ++i) x[i] = own.has(i) ? from[i] * a.scale : 0.0f;
            if constexpr (!Padded) transform_vector<D, VI_TRANSFORM_QUERY>(x, c.keys.transform, head);
        }
        for (int i = 0; i < N; ++i) results[0][h][lane * N + i] = x[i];
    }
    __syncthreads();
    float q[Heads][N], out[Heads][N], m[Heads], l[Heads];
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
        m[h] = -infinity, l[h] = 0;
        for (int i = 0; i < N; ++i) q[h][i] = results[0][h][lane * N + i], out[h][i] = 0;
    }
    __syncthreads();
    for (int position = begin + warp; position < end; position += warps * together) {
        float key[together][N], value[together][N];
#pragma unroll
        for (int i = 0; i < together; ++i) { // the last one once more where there is none
            const int at = min(position + i * warps, end - 1);
            read_token<D, Padded>(key[i], c, c.keys, false, r, at, head);
            read_token<D, Padded>(value[i], c, c.values, true, r, at, head);
        }
#pragma unroll
        for (int i = 0; i < together; ++i) {
            if (position + i * warps >= end) break;
#pragma unroll
            for (int h = 0; h < Heads; ++h) {
                if (h >= heads) break;
                float score = 0;
                for (int k = 0; k < N; ++k) score = fmaf(q[h][k], key[i][k], score);
                score = warp_sum(score);
                if (a.soft_cap > 0) score = soft_capped(score, a.soft_cap, a.cap_rate);
                const float most = fmaxf(m[h], score), factor = most == -infinity ? 1.0f : exp2f(m[h] - most), weight = exp2f(score - most);
                m[h] = most;
                l[h] = l[h] * factor + weight;
                for (int k = 0; k < N; ++k) out[h][k] = out[h][k] * factor + weight * value[i][k];
            }
        }
    }
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
        if (h >= heads) break;
        for (int i = 0; i < N; ++i) results[warp][h][lane * N + i] = out[h][i];
        if (lane == 0) maxima[warp][h] = m[h], sums[warp][h] = l[h];
    }
    __syncthreads();
    for (int h = warp; h < heads; h += warps) {
        float most = -infinity, total = 0, x[N] = {};
        for (int w = 0; w < warps; ++w) most = fmaxf(most, maxima[w][h]);
        for (int w = 0; w < warps; ++w) {
            if (sums[w][h] == 0) continue; // no token
            const float factor = exp2f(maxima[w][h] - most);
            total += factor * sums[w][h];
            for (int i = 0; i < N; ++i) x[i] += factor * results[w][h][lane * N + i];
        }
        float* to = partial_of(a, index, first_head + h, splits, split);
        for (int i = 0; i < N; ++i)
            if (own.has(i)) to[own.first + i] = x[i];
        if (lane == 0) to[c.head_dim] = most, to[c.head_dim + 1] = total;
    }
}

// One warp an output vector: puts the splits together.
template <int D, bool Padded> __global__ void merge_kernel(const __grid_constant__ AttentionArguments a, int splits) {
    constexpr int N = D / 32;
    const int index = blockIdx.y, query_head = blockIdx.x, dim = a.cache.head_dim;
    const Channels<D, Padded> own(dim);
    float* out = a.out + (static_cast<int64_t>(index) * a.heads + query_head) * dim + own.first;
    const AttentionRow r(a, index);
    if (r.pages < 0) { // padding, or a place that is none
        for (int i = 0; i < N; ++i)
            if (own.has(i)) out[i] = r.tokens < 1 ? 0.0f : __int_as_float(0x7fffffff);
        return;
    }
    const int count = (r.tokens - r.first(a.cache) + split_tokens - 1) / split_tokens, step = dim + 2;
    const float* partials = partial_of(a, index, query_head, splits, 0);
    float most = -__builtin_huge_valf(), total = 0, x[N] = {};
    for (int s = 0; s < count; ++s) most = fmaxf(most, partials[static_cast<int64_t>(s) * step + dim]);
    for (int s = 0; s < count; ++s) {
        const float* partial = partials + static_cast<int64_t>(s) * step;
        const float factor = exp2f(partial[dim] - most);
        total += factor * partial[dim + 1];
        for (int i = 0; i < N; ++i)
            if (own.has(i)) x[i] += factor * partial[own.first + i];
    }
    if (a.sink_logits) total += sink_weight(a.sink_logits[query_head], most);
    for (int i = 0; i < N; ++i) x[i] /= total;
    if constexpr (!Padded) transform_vector<D, VI_TRANSFORM_INVERSE>(x, a.cache.values.transform, query_head / a.group);
    for (int i = 0; i < N; ++i)
        if (own.has(i)) out[i] = x[i];
}

template <int D, bool Padded> int32_t launch(vi_context* context, const char* name, const AttentionArguments& all) {
    AttentionArguments a = all;
    const Cache& c = a.cache;
    a.parts = ceil_div(a.group, block_heads<D>);
    // Positions are in device memory: as many splits as a slot may have, those behind a row's end are left at once.
    const int64_t tokens = c.sliding() ? c.window : c.capacity();
    const int splits = static_cast<int>(ceil_div(tokens, static_cast<int64_t>(split_tokens)));
    VI_REQUIRE(context, static_cast<int64_t>(c.kv_heads) * a.parts <= 65535, "%s: %d KV heads of %d query heads each are more than one launch counts", name, c.kv_heads,
               a.group);
    const size_t row_bytes = static_cast<size_t>(splits) * a.heads * (c.head_dim + 2) * sizeof(float);
    const size_t fitting = partial_bytes / row_bytes;
    const int most = fitting < 1 ? 1 : fitting < 65535 ? static_cast<int>(fitting) : 65535;
    VI_WORKSPACE(context, float, partials, row_bytes * (all.rows < most ? all.rows : most), name);
    a.partials = partials;
    for (int first = 0; first < all.rows; first += most) {
        a.rows = all.rows - first < most ? all.rows - first : most;
        a.out = all.out + static_cast<int64_t>(first) * a.heads * c.head_dim;
        a.q = all.q + static_cast<int64_t>(first) * a.stride;
        a.slots = all.slots + first;
        a.positions = all.positions + first;
        any_kernel<D, Padded><<<dim3(splits, c.kv_heads * a.parts, a.rows), warps * 32, 0, context->stream>>>(a, splits);
        VI_LAUNCHED(context, name);
        merge_kernel<D, Padded><<<dim3(a.heads, a.rows), 32, 0, context->stream>>>(a, splits);
        VI_LAUNCHED(context, name);
    }
    return VI_OK;
}

} // namespace

int32_t attention_any(vi_context* context, const char* name, const AttentionArguments& a) {
    return for_head_dim(a.cache.head_dim, [&]<int D, bool Padded>() { return launch<D, Padded>(context, name, a); });
}
