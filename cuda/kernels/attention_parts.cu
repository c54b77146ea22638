// Decode attention where a head has a codebook for each sub-vector (MILLION, arXiv 2504.03661; CQ, arXiv 2405.03917), any formats. Such
// codebooks do not fit the shared memory (d4b8 at D = 128: 32 codebooks of 1 KiB as int8, a side and head), so they are read through L2. Straight from
// the codes, split along the sequence, all query heads of a KV head in one block; not tuned beyond that.
//
// A block has a row, a KV head and 512 positions, whose tokens its warps take in turn: a token's key and value as a warp's vectors, scores by sums
// over the warp, softmax by powers of 2 with a warp's own maximum m, sum l and output. Warps and then blocks are put together in order
// by log-sum-exp, so that the same input gives the same bits.
#include "attention_exact.cuh"
#include "attention_plan.cuh"
#include "quantize.cuh"

namespace {

constexpr int warps = 4, split_tokens = 512, most_heads = 16;
constexpr size_t partial_bytes = size_t(64) << 20; // of scratch memory, unless one row needs more

// A token's vector in the transformed space.
template <int D> __device__ inline void read_token(float (&x)[D / 32], const Cache& c, const Side& side, bool value, const AttentionRow& r, int position, int head) {
    constexpr int N = D / 32;
    if (position >= r.coded_begin && position < r.coded_end) return read_vector<D>(x, c, side, value, r.slot, position, head);
    const vi_bf16* from = position < r.coded_begin ? side.sinks + c.sink_row(r.slot, head, position) : side.recent + c.recent_row(r.slot, head, position);
    for (int i = 0; i < N; ++i) x[i] = bf16_to_f32(from[threadIdx.x % 32 * N + i]);
}

// partials [rows, kv_heads, splits, group, D + 2]: the output before its division by l, m, l.
template <int D> __global__ void __launch_bounds__(warps * 32) parts_kernel(const __grid_constant__ AttentionArguments a, int splits) {
    constexpr int N = D / 32;
    constexpr float infinity = __builtin_huge_valf();
    __shared__ float results[warps][most_heads][D], maxima[warps][most_heads], sums[warps][most_heads];
    const Cache& c = a.cache;
    const int split = blockIdx.x, head = blockIdx.y, index = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const AttentionRow r(a, index);
    const int begin = split * split_tokens, end = min(r.tokens, begin + split_tokens);
    if (r.pages < 0 || begin >= end) return;

    float q[most_heads][N], out[most_heads][N], m[most_heads], l[most_heads];
#pragma unroll
    for (int h = 0; h < most_heads; ++h) {
        m[h] = -infinity, l[h] = 0;
        for (int i = 0; i < N; ++i) q[h][i] = out[h][i] = 0;
        if (h >= a.group) continue;
        const int64_t at = static_cast<int64_t>(index) * a.stride + (head * a.group + h) * D + lane * N;
        for (int i = 0; i < N; ++i) q[h][i] = a.q[at + i] * a.scale;
        transform_vector<D, VI_TRANSFORM_QUERY>(q[h], c.keys.transform, head);
    }
    for (int position = begin + warp; position < end; position += warps) {
        float key[N], value[N];
        read_token<D>(key, c, c.keys, false, r, position, head);
        read_token<D>(value, c, c.values, true, r, position, head);
#pragma unroll
        for (int h = 0; h < most_heads; ++h) {
            if (h >= a.group) break;
            float score = 0;
            for (int i = 0; i < N; ++i) score = fmaf(q[h][i], key[i], score);
            score = warp_sum(score);
            const float most = fmaxf(m[h], score), factor = most == -infinity ? 1.0f : exp2f(m[h] - most), weight = exp2f(score - most);
            m[h] = most;
            l[h] = l[h] * factor + weight;
            for (int i = 0; i < N; ++i) out[h][i] = out[h][i] * factor + weight * value[i];
        }
    }
#pragma unroll
    for (int h = 0; h < most_heads; ++h) {
        if (h >= a.group) break;
        for (int i = 0; i < N; ++i) results[warp][h][lane * N + i] = out[h][i];
        if (lane == 0) maxima[warp][h] = m[h], sums[warp][h] = l[h];
    }
    __syncthreads();
    float* partials = a.partials + ((static_cast<int64_t>(index) * c.kv_heads + head) * splits + split) * a.group * (D + 2);
    for (int h = warp; h < a.group; h += warps) {
        float most = -infinity, total = 0, x[N] = {};
        for (int w = 0; w < warps; ++w) most = fmaxf(most, maxima[w][h]);
        for (int w = 0; w < warps; ++w) {
            if (sums[w][h] == 0) continue; // no token
            const float factor = exp2f(maxima[w][h] - most);
            total += factor * sums[w][h];
            for (int i = 0; i < N; ++i) x[i] += factor * results[w][h][lane * N + i];
        }
        float* to = partials + h * (D + 2);
        for (int i = 0; i < N; ++i) to[lane * N + i] = x[i];
        if (lane == 0) to[D] = most, to[D + 1] = total;
    }
}

// One warp an output vector: puts the splits together.
template <int D> __global__ void merge_kernel(const __grid_constant__ AttentionArguments a, int splits) {
    constexpr int N = D / 32;
    const int index = blockIdx.y, query_head = blockIdx.x, head = query_head / a.group, lane = threadIdx.x;
    float* out = a.out + (static_cast<int64_t>(index) * a.heads + query_head) * D;
    const AttentionRow r(a, index);
    if (r.pages < 0) { // padding, or a place that is none
        for (int i = 0; i < N; ++i) out[lane * N + i] = r.tokens < 1 ? 0.0f : __int_as_float(0x7fffffff);
        return;
    }
    const int count = (r.tokens + split_tokens - 1) / split_tokens;
    const float* partials = a.partials + ((static_cast<int64_t>(index) * a.cache.kv_heads + head) * splits * a.group + query_head % a.group) * (D + 2);
    const int64_t step = static_cast<int64_t>(a.group) * (D + 2);
    float most = -__builtin_huge_valf(), total = 0, x[N] = {};
    for (int s = 0; s < count; ++s) most = fmaxf(most, partials[s * step + D]);
    for (int s = 0; s < count; ++s) {
        const float factor = exp2f(partials[s * step + D] - most);
        total += factor * partials[s * step + D + 1];
        for (int i = 0; i < N; ++i) x[i] += factor * partials[s * step + lane * N + i];
    }
    for (int i = 0; i < N; ++i) x[i] /= total;
    transform_vector<D, VI_TRANSFORM_INVERSE>(x, a.cache.values.transform, head);
    for (int i = 0; i < N; ++i) out[lane * N + i] = x[i];
}

} // namespace

int32_t attention_parts(vi_context* context, const char* name, const AttentionArguments& all) {
    AttentionArguments a = all;
    const Cache& c = a.cache;
    // Positions are in device memory: as many splits as a slot may have, those behind a row's end are left at once.
    const int splits = ceil_div(c.max_pages * static_cast<int64_t>(page_tokens), static_cast<int64_t>(split_tokens));
    const size_t row_bytes = static_cast<size_t>(splits) * a.heads * (c.head_dim + 2) * sizeof(float);
    const size_t fitting = partial_bytes / row_bytes;
    const int most = fitting < 1 ? 1 : fitting < 65535 ? static_cast<int>(fitting) : 65535;
    VI_WORKSPACE(context, float, partials, row_bytes * (all.rows < most ? all.rows : most), name);
    a.partials = partials;
    auto parts = c.head_dim == 64 ? parts_kernel<64> : parts_kernel<128>;
    auto merge = c.head_dim == 64 ? merge_kernel<64> : merge_kernel<128>;
    for (int first = 0; first < all.rows; first += most) {
        a.rows = all.rows - first < most ? all.rows - first : most;
        a.out = all.out + static_cast<int64_t>(first) * a.heads * c.head_dim;
        a.q = all.q + static_cast<int64_t>(first) * a.stride;
        a.slots = all.slots + first;
        a.positions = all.positions + first;
        parts<<<dim3(splits, c.kv_heads, a.rows), warps * 32, 0, context->stream>>>(a, splits);
        VI_LAUNCHED(context, name);
        merge<<<dim3(a.heads, a.rows), 32, 0, context->stream>>>(a, splits);
        VI_LAUNCHED(context, name);
    }
    return VI_OK;
}
