// One kernel: decode attention over sinks, coded pages and ring in one launch (the layout of pages: page.cuh; the products: attention_tile.cuh).
//
// The work of a launch is a line: KV heads (and their groups of 4 query heads), in them rows, in them the row's coded pages and then
// its exact tokens in tiles of 16. The blocks of a fixed grid cut the line into equal parts, at places that each block computes from the
// positions in device memory; so mixed lengths balance, a short cache is read by few blocks, and a recorded launch stays right as the
// sequences grow. A block's warps take its pages in turn, with their own maximum m, sum l and output (softmax by powers of 2), and are put together by
// log-sum-exp. A row and head that ends inside one block is finished there; otherwise its blocks leave partial results, and the last of them to
// arrive puts them together in the order of blocks, so that the same input gives the same bits.
//
// A token of scale s_v and score a has the weight 2^(a + log2 s_v - m) in the output, and 2^(a - m) in l; m is the maximum of a + log2 s_v.
#pragma once
#include "attention_exact.cuh"
#include "attention_plan.cuh"
#include "attention_score.cuh"

// Wide: one block a multiprocessor, whose 16 warps share tables of 10-bit codes with a copy for each bank, or half as many; two blocks of 8 leave room for fewer.
// It takes the 227 KB of shared memory that multiprocessors have from 9.0 on. Other formats have all copies as they are. With 256 channels a head a block has a
// multiprocessor's registers to itself.
template <class K, class V, bool Wide> struct AttentionShape {
    static constexpr bool coded = K::coded && V::coded;
    static constexpr int warps = Wide ? 16 : coded ? 8 : 4;
    static constexpr int blocks = Wide || K::D == 256 ? 1 : attention_blocks; // of a multiprocessor
    static constexpr int setup = coded ? 20 : 4;               // of a row, in pages
    // Halves of a page in flight: as many as registers hold.
    static constexpr int halves = coded && K::words + V::words <= (K::D == 256 ? 32 : 16) ? 2 : 1;
    // 10 bits: copies that fit.
    template <class F, class Other> static constexpr int copies() {
        if (!F::coded) return 0;
        if (F::b == 12) return 1;
        if (F::b == 10 && Wide) return Other::b == 10 || (Other::b == 12 && Other::d == 8) ? 16 : 32;
        if (F::b == 10) return Other::b == 6 || !Other::coded || (Other::b == 12 && Other::d == 4) ? 16 : 8;
        return 128 / F::entry_bytes;
    }
    static constexpr bool interleaved = K::b == 8 && V::b == 8;
    using KeyTable = Table<K, copies<K, V>(), interleaved ? 256 : copies<K, V>() * K::entry_bytes>;
    using ValueTable = Table<V, copies<V, K>(), interleaved ? 256 : copies<V, K>() * V::entry_bytes>;
};

// Pairs that have a wide shape besides the other, and whether this target has code for it.
template <class K, class V> constexpr bool attention_wide = K::coded && V::coded && (K::b == 10 || V::b == 10) && K::D < 256;
template <bool Wide> __device__ constexpr bool attention_code() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    return !Wide;
#else
    return true;
#endif
}

// Shared memory of a block, after the two tables.
template <int D, int Warps> struct AttentionShared {
    float queries[attention_heads][D]; // transformed, times scale * log2 e
    float steps[attention_heads];
    float out[Warps][attention_heads][D];
    float m[Warps][attention_heads], l[Warps][attention_heads];
    float key_scale, value_scale;      // of the tables
    AttentionPlan plan;
    int last;
    AttentionSegment segments[2];      // the one in work, and the next or the one before
};

__device__ inline float* attention_out(const AttentionArguments& a, const AttentionSegment& s) {
    return a.out + (static_cast<int64_t>(s.index) * a.heads + s.first_head) * a.cache.head_dim;
}

template <int N> __device__ inline void load_partial(float (&x)[N], const float* from) {
    if constexpr (N >= 4) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const float4 y = __ldcg(reinterpret_cast<const float4*>(from + i));
            x[i] = y.x, x[i + 1] = y.y, x[i + 2] = y.z, x[i + 3] = y.w;
        }
    } else {
        const float2 y = __ldcg(reinterpret_cast<const float2*>(from));
        x[0] = y.x, x[1] = y.y;
    }
}

// What was written before is seen by whoever adds later; what others wrote before they added is seen here.
__device__ inline int add_acquire_release(int* address, int value) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(before) : "l"(address), "r"(value) : "memory");
    return before;
}

// Transforms the heads' vectors, at `address` of shared memory, in place: vector v was written by warp v alone and is read by it again. A function of its own, which both
// ends of a row call: it is a fifth of a kernel's code and no part of its loop. Barriers and partial as in transform_by_block.
template <int D, int warps> __device__ __noinline__ void transform_heads(uint32_t address, uint32_t partial, Transform transform, int direction, int head) {
    auto& x = *static_cast<float (*)[attention_heads][D]>(__cvta_shared_to_generic(address));
    float out[D / 32];
    transform_by_block<D>(out, x, *static_cast<float (*)[warps][attention_heads][D]>(__cvta_shared_to_generic(partial)), transform, direction, head);
    if (threadIdx.x / 32 < attention_heads) store_lane(x[threadIdx.x / 32], out);
}

template <class K, class V, bool Wide>
__global__ void __launch_bounds__(AttentionShape<K, V, Wide>::warps * 32, AttentionShape<K, V, Wide>::blocks)
attention_kernel(const __grid_constant__ AttentionArguments a) {
    if constexpr (!attention_code<Wide>()) return;
    using Shape = AttentionShape<K, V, Wide>;
    using KeyTile = Keys<K, typename Shape::KeyTable>;
    using ValueTile = Values<V, typename Shape::ValueTable>;
    constexpr int D = K::D, N = D / 32, warps = Shape::warps, threads = warps * 32, halves = Shape::halves;
    constexpr float infinity = __builtin_huge_valf();
    extern __shared__ __align__(1024) uint8_t memory[];
    uint8_t *const key_table = memory, *const value_table = memory + (Shape::interleaved ? 128 : Shape::KeyTable::bytes);
    auto& shared = *reinterpret_cast<AttentionShared<D, warps>*>(memory + Shape::KeyTable::bytes + Shape::ValueTable::bytes);
    const Cache& cache = a.cache;
    auto shared_address = [](const void* object) { return static_cast<uint32_t>(__cvta_generic_to_shared(object)); };
    auto uniform = [](int x) { return __shfl_sync(0xffffffffu, x, 0); }; // tells the compiler that it is
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool first = t < 2; // the half of the lanes that keeps tokens 0..7 of a tile
    const int own = first ? g : g + 8; // the lane's token of a tile

    auto fill_tables = [&](int head, int thread, int count) {
        const int key_book = cache.keys.codebook_head(head), value_book = cache.values.codebook_head(head);
        if (thread == 0) {
            shared.key_scale = K::coded ? cache.keys.table_scales[key_book] : 1;
            shared.value_scale = V::coded ? cache.values.table_scales[value_book] : 1;
        }
        Shape::KeyTable::fill(key_table, cache.keys.table + key_book * (K::codewords * K::entry_bytes), thread, count);
        Shape::ValueTable::fill(value_table, cache.values.table + value_book * (V::codewords * V::entry_bytes), thread, count);
    };
    const bool head_tables = cache.keys.codebook_heads > 1 || cache.values.codebook_heads > 1;
    int table_head = head_tables ? -1 : 0;
    if (warp > 0 && !head_tables) fill_tables(0, threadIdx.x - 32, threads - 32);
    const Transform &key_transform = cache.keys.transform, &value_transform = cache.values.transform;
    auto prefetch_matrices = [&](const Transform& transform, int direction) { // of all heads, by all blocks together
        const int64_t thread = blockIdx.x * threads + threadIdx.x, all = static_cast<int64_t>(gridDim.x) * threads;
        if (transform.matrices) prefetch(transform.matrix(direction, 0, D), static_cast<int64_t>(cache.kv_heads) * D * D, thread, all);
    };
    prefetch_matrices(key_transform, 1);
    prefetch_matrices(value_transform, 2);
    wait_for_previous();
    if (warp == 0) shared.plan.make(a, warps, Shape::setup);
    int at = 0; // of warp 0
    for (int turn = 0;; turn ^= 1) {
        if (warp == 0) shared.plan.next(shared.segments[turn], at, a);
        __syncthreads();
        const AttentionSegment& segment = shared.segments[turn];
        if (segment.heads == 0) return;
        const AttentionRow& r = segment.row;
        if (r.pages < 0) {
            float* out = attention_out(a, segment);
            for (int i = threadIdx.x; i < segment.heads * D; i += threads) out[i] = r.tokens < 1 ? 0.0f : __int_as_float(0x7fffffff);
            continue;
        }
        const int kv_head = uniform(segment.kv_head);
        const int page_end = uniform(min(segment.to, r.pages)), coded_begin = uniform(r.coded_begin), coded_end = uniform(r.coded_end);
        int page = uniform(segment.from) + warp;
        // Lane i holds the index of the warp's i-th page from here on; again after every 32 pages.
        auto load_indices = [&](int from) {
            const int number = from + lane * warps;
            return number < page_end ? cache.page_index(r.slot, coded_begin / page_tokens + number) : 0;
        };
        int indices = load_indices(page);

        // q~; the tables, where they are another head's
        {
            float x[N] = {};
            if (warp < segment.heads) {
                const float* q = a.q + static_cast<int64_t>(segment.index) * a.stride + static_cast<int64_t>(segment.first_head + warp) * D + lane * N;
                for (int i = 0; i < N; ++i) x[i] = q[i];
            }
            if (warp < attention_heads)
                for (int i = 0; i < N; ++i) shared.queries[warp][lane * N + i] = x[i];
            if (K::coded) {
                transform_heads<D, warps>(shared_address(shared.queries), shared_address(shared.out), key_transform, VI_TRANSFORM_QUERY, kv_head);
                if (warp < attention_heads) load_lane(x, shared.queries[warp]);
            }
            float most = 0;
            for (int i = 0; i < N; ++i) {
                x[i] *= a.scale;
                most = fmaxf(most, fabsf(x[i]));
            }
            most = warp_max(most);
            if (warp < attention_heads) {
                for (int i = 0; i < N; ++i) shared.queries[warp][lane * N + i] = x[i];
                if (lane == 0) shared.steps[warp] = KeyTile::step(most > 0 ? most : 1);
            }
        }
        if (head_tables && table_head != kv_head) fill_tables(table_head = kv_head, threadIdx.x, threads);
        float m[2] = {-1e30f, -1e30f}, l[2] = {0, 0}; // of the heads 2 (t % 2) and the next
        const int key_bytes = cache.keys.format.head_bytes(), value_bytes = cache.values.format.head_bytes();
        const bool key_scaled = K::coded && cache.keys.format.token_scale, value_scaled = V::coded && cache.values.format.token_scale;
        uint32_t k[halves][K::words], key_scales = no_scales, value_scales = no_scales;
        const uint8_t *keys = nullptr, *values = nullptr; // of the page, + 16 lane
        auto load_keys = [&](int number, int delay) { // and both sides' scales: of the warp's page of this number; an index outside the pages spoils l
            int index = __shfl_sync(0xffffffffu, indices, number);
            if (static_cast<unsigned>(index) >= static_cast<unsigned>(cache.page_count)) index = 0, l[0] = l[1] = __int_as_float(0x7fffffff);
            const int64_t block = static_cast<int64_t>(index) * cache.kv_heads + kv_head;
            keys = cache.keys.pages + block * key_bytes + lane * 16 + delay;
            values = cache.values.pages + block * value_bytes + lane * 16 + delay;
#pragma unroll
            for (int i = 0; i < halves; ++i) load_half<halves == 1>(k[i], keys + i * K::code_bytes / 2, lane);
            key_scales = key_scaled ? *reinterpret_cast<const uint32_t*>(keys + K::code_bytes - lane * 16 + own * 4) : no_scales;
            value_scales = value_scaled ? *reinterpret_cast<const uint32_t*>(values + V::code_bytes - lane * 16 + own * 4) : no_scales;
        };
        if (page < page_end) load_keys(0, 0);
        __syncthreads();

        float sum[D / 16][4];
        {
            typename ValueTile::Accumulator acc[D / 16][4] = {};
            if (page < page_end) {
                uint32_t q[KeyTile::query_words];
                KeyTile::query(q, shared.queries[0], 1 / shared.steps[g % 4], lane);
                float weight[4]; // of the kept and the received part, for each head
                for (int i = 0; i < 2; ++i) {
                    const float w = shared.steps[t % 2 * 2 + i] * shared.key_scale;
                    weight[2 * i] = first ? w : w * (1 / KeyTile::low_steps);
                    weight[2 * i + 1] = first ? w * (1 / KeyTile::low_steps) : w;
                }
                const uint32_t key_lane = Shape::KeyTable::lane_offset(lane), value_lane = Shape::ValueTable::lane_offset(lane);
                // All loads of a warp are waited for together, whichever are needed. So those of the values begin when the keys' have come, and those of
                // the next keys when the values' have: `delay` is a 0 that is computed from what was waited for.
                const int zero = a.rows >> 30;
                // int32 holds 65536 tokens of weight 1 and codewords of 127: then all weights are halved, by a maximum that is 1 higher.
                for (int pages_done = 1; page < page_end; page += warps, ++pages_done) {
                    const bool full = V::integer && pages_done % 1024 == 0;
                    const int start = (coded_begin / page_tokens + page) * page_tokens;
                    const bool partial = start < coded_begin || start + page_tokens > coded_end;
#pragma unroll 1
                    for (int half = 0; half < 2; half += halves) {
                        constexpr int tiles = 2 * halves;
                        float s[tiles][2];
                        uint32_t v[halves][V::words];
                        const uint8_t* from = values + half * (V::code_bytes / 2) + (k[0][0] & zero);
#pragma unroll
                        for (int i = 0; i < halves; ++i) load_half<halves == 1>(v[i], from + i * V::code_bytes / 2, lane);
#pragma unroll
                        for (int i = 0; i < halves; ++i) {
                            Score<K::integer> score[2];
                            KeyTile::score(score, k[i], key_table, key_lane, q);
#pragma unroll
                            for (int tile = 0; tile < 2; ++tile) score[tile].scores(s[2 * i + tile][0], s[2 * i + tile][1], weight, first);
                        }
#pragma unroll
                        for (int tile = 0; tile < tiles; ++tile) {
                            const float factor = K::coded ? exp2_fast(log_scale(key_scales, tile)) : 1.0f;
                            const float summand = V::coded ? log_scale(value_scales, tile) : 0.0f;
                            s[tile][0] = fmaf(s[tile][0], factor, summand);
                            s[tile][1] = fmaf(s[tile][1], factor, summand);
                        }
                        if (partial || a.soft_cap > 0) {
                            if (a.soft_cap > 0) {
#pragma unroll
                                for (int tile = 0; tile < tiles; ++tile) {
                                    const float summand = V::coded ? log_scale(value_scales, tile) : 0.0f;
                                    s[tile][0] = soft_capped(s[tile][0] - summand, a.soft_cap, a.cap_rate) + summand;
                                    s[tile][1] = soft_capped(s[tile][1] - summand, a.soft_cap, a.cap_rate) + summand;
                                }
                            }
#pragma unroll
                            for (int tile = 0; tile < tiles; ++tile) {
                                const int token = start + half * 32 + tile * 16 + own;
                                if (token < coded_begin || token >= coded_end) s[tile][0] = s[tile][1] = -infinity;
                            }
                            if constexpr (!V::coded) { // what stands where no token is may be NaN
#pragma unroll
                                for (int i = 0; i < V::words; ++i) {
                                    const int place = i / (D / 16) % 4, token = start + half * 32 + i / (D / 4) * 16 + 2 * t + place % 2 * 8 + place / 2;
                                    if (token < coded_begin || token >= coded_end) v[0][i] = 0;
                                }
                            }
                        }

                        float n0 = s[0][0], n1 = s[0][1];
#pragma unroll
                        for (int tile = 1; tile < tiles; ++tile) n0 = fmaxf(n0, s[tile][0]), n1 = fmaxf(n1, s[tile][1]);
                        if (full || __any_sync(0xffffffffu, n0 > m[0] + ValueTile::headroom || n1 > m[1] + ValueTile::headroom)) {
#pragma unroll
                            for (int offset = 2; offset < 32; offset *= 2) {
                                n0 = fmaxf(n0, __shfl_xor_sync(0xffffffffu, n0, offset));
                                n1 = fmaxf(n1, __shfl_xor_sync(0xffffffffu, n1, offset));
                            }
                            n0 = fmaxf(m[0], n0 - ValueTile::headroom) + (full ? 1.0f : 0.0f);
                            n1 = fmaxf(m[1], n1 - ValueTile::headroom) + (full ? 1.0f : 0.0f);
                            const float f0 = exp2_fast(m[0] - n0), f1 = exp2_fast(m[1] - n1);
                            m[0] = n0, m[1] = n1;
                            l[0] *= f0, l[1] *= f1;
#pragma unroll
                            for (int i = 0; i < D / 16; ++i)
#pragma unroll
                                for (int c = 0; c < 4; ++c) {
                                    if constexpr (V::integer) acc[i][c] = __float2int_rn(acc[i][c] * (c % 2 ? f1 : f0));
                                    else acc[i][c] *= c % 2 ? f1 : f0;
                                }
                        }
                        typename ValueTile::Weight p[tiles];
#pragma unroll
                        for (int tile = 0; tile < tiles; ++tile) {
                            const float p0 = exp2_fast(s[tile][0] - m[0]), p1 = exp2_fast(s[tile][1] - m[1]);
                            const float inverse = V::coded ? exp2_fast(-log_scale(value_scales, tile)) : 1.0f;
                            l[0] = fmaf(p0, inverse, l[0]);
                            l[1] = fmaf(p1, inverse, l[1]);
                            p[tile].set(p0, p1, first);
                        }
                        const int delay = static_cast<int>(v[0][0]) & zero;
                        const bool more = page + warps < page_end;
                        if (halves == 1 && half == 0) {
                            load_half<halves == 1>(k[0], keys + K::code_bytes / 2 + delay, lane);
                            key_scales >>= 16;
                            value_scales >>= 16;
                        } else if (halves == 2 || more) { // not behind a condition where registers allow: such loads are waited for where the branch ends
                            if (more && pages_done % 32 == 0) indices = load_indices(page + warps);
                            load_keys((pages_done - !more) % 32, delay); // the last page once more
                        }
                        if constexpr (halves == 2) __syncwarp();
#pragma unroll
                        for (int i = 0; i < halves; ++i) ValueTile::accumulate(acc, v[i], value_table, value_lane, p[2 * i], p[2 * i + 1]);
                    }
                }
            }
            // The high and low columns are added at the end.
            float unit_weight = shared.value_scale;
            if constexpr (V::integer) unit_weight *= (first ? 256 : 1) * (1 / 65280.0f);
#pragma unroll
            for (int i = 0; i < D / 16; ++i)
#pragma unroll
                for (int c = 0; c < 4; ++c) sum[i][c] = acc[i][c] * unit_weight;
        }
        attention_exact<D, V::value_d>(sum, m, l, ValueTile::headroom, cache, r, kv_head, shared.queries[0], a.soft_cap, a.cap_rate, page - r.pages, segment.to - r.pages, warps);

        let_next_start(); // not before: its blocks would take shared memory and bandwidth from this one's

        // This block's warps together
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int offset = 2; offset < 32; offset *= 2) l[i] += __shfl_xor_sync(0xffffffffu, l[i], offset);
        if (lane < 2)
            for (int i = 0; i < 2; ++i) {
                shared.m[warp][2 * lane + i] = m[i];
                shared.l[warp][2 * lane + i] = l[i];
            }
        constexpr int d = V::value_d;
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
            float x[4];
#pragma unroll
            for (int c = 0; c < 4; ++c) x[c] = sum[i][c] + __shfl_xor_sync(0xffffffffu, sum[i][c], 2);
            const int channel = d * (g + 8 * (i / (d / 2))) + i % (d / 2) * 2;
            *reinterpret_cast<float2*>(&shared.out[warp][t % 2 * 2 + !first][channel]) = first ? make_float2(x[0], x[2]) : make_float2(x[1], x[3]);
        }
        __syncthreads();
        constexpr int partial_row = attention_partial(D), partial_size = attention_heads * partial_row;
        float x[N] = {}, most = -1e30f, total_l = 0; // of head `warp`
        if (warp < segment.heads) {
            most = shared.m[0][warp];
            for (int w = 1; w < warps; ++w) most = fmaxf(most, shared.m[w][warp]);
            for (int w = 0; w < warps; ++w) {
                const float f = exp2_fast(shared.m[w][warp] - most);
                total_l += f * shared.l[w][warp];
                for (int i = 0; i < N; ++i) x[i] = fmaf(f, shared.out[w][warp][lane * N + i], x[i]);
            }
            if (!segment.whole) { // what began before this block goes to its first place, else to the second
                float* partial = a.partials + static_cast<int64_t>(blockIdx.x * 2 + segment.begins) * partial_size + warp * partial_row;
                for (int i = 0; i < N; ++i) partial[lane * N + i] = x[i];
                if (lane == 0) *reinterpret_cast<float2*>(partial + D) = make_float2(most, total_l);
            }
        }

        if (!segment.whole) { // all blocks of this row together, by the last of them
            const int first_block = segment.first_block, last_block = segment.last_block;
            __syncthreads();
            if (threadIdx.x == 0) {
                shared.last = add_acquire_release(a.counters + first_block, 1) == last_block - first_block;
                if (shared.last) a.counters[first_block] = 0;
            }
            __syncthreads();
            if (!shared.last) continue;
            // A head's partials are shared by `step` warps, which read `batch` of them before they wait.
            constexpr int step = warps / attention_heads, batch = step < 2 ? 16 : 32 / step;
            const int h = warp % attention_heads, count = last_block - first_block + 1;
            auto place = [&](int i) { // of the i-th block; what began before a block is in its first place
                return a.partials + static_cast<int64_t>((first_block + i) * 2 + (i == 0)) * partial_size + h * partial_row;
            };
            most = -1e30f;
            total_l = 0;
            for (int k = 0; k < N; ++k) x[k] = 0;
            if (h < segment.heads && warp < step * attention_heads) {
                for (int base = 0; base < count; base += batch * step) {
                    const int some = min(batch * step, count - base);
                    const float2 ml = lane < some ? __ldcg(reinterpret_cast<const float2*>(place(base + lane) + D)) : make_float2(-1e30f, 0);
                    float part[batch][N];
#pragma unroll
                    for (int i = 0; i < batch; ++i) {
                        const int block = i * step + warp / attention_heads;
#pragma unroll
                        for (int k = 0; k < N; ++k) part[i][k] = 0;
                        if (block < some) load_partial(part[i], place(base + block) + lane * N);
                    }
                    const float next = fmaxf(most, warp_max(ml.x)), f = exp2_fast(ml.x - next), old = exp2_fast(most - next);
                    most = next;
                    total_l = total_l * old + warp_sum(f * ml.y);
#pragma unroll
                    for (int k = 0; k < N; ++k) x[k] *= old;
#pragma unroll
                    for (int i = 0; i < batch; ++i) {
                        const float factor = __shfl_sync(0xffffffffu, f, i * step + warp / attention_heads);
#pragma unroll
                        for (int k = 0; k < N; ++k) x[k] = fmaf(factor, part[i][k], x[k]);
                    }
                }
            }
            for (int k = 0; k < N; ++k) shared.out[warp][0][lane * N + k] = x[k];
            __syncthreads();
            if (warp < segment.heads)
                for (int w = warp + attention_heads; w < step * attention_heads; w += attention_heads)
                    for (int k = 0; k < N; ++k) x[k] += shared.out[w][0][lane * N + k];
        }
        if (a.sink_logits && warp < segment.heads) total_l += sink_weight(a.sink_logits[segment.first_head + warp], most);
        if (warp < attention_heads)
            for (int i = 0; i < N; ++i) shared.queries[warp][lane * N + i] = warp < segment.heads ? x[i] / total_l : 0.0f;
        if (V::coded) transform_heads<D, warps>(shared_address(shared.queries), shared_address(shared.out), value_transform, VI_TRANSFORM_INVERSE, kv_head);
        if (warp < segment.heads)
            for (int i = 0; i < N; ++i) attention_out(a, segment)[warp * D + lane * N + i] = shared.queries[warp][lane * N + i];
    }
}
