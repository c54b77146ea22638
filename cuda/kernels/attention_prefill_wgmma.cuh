// One kernel, whose roles read as one: attention of a prompt on Hopper (compute capability 9.0), what attention_prefill.cu's kernel does, by the copy engine and
// warpgroup products.
//
// A block a multiprocessor takes tiles of 64 x `consumers` queries of one head, longest first, by a counter in global memory, until none is left. Its first
// warpgroup produces: warp 0 keys and values, 128 tokens a step (256 channels: 64), by the copy engine (tensor maps, 128-byte swizzle, zeros behind the last token and channel); warps 1 to 3
// the queries of the NEXT tile, f32 -> f16 times the scale, into the other of two buffers (256 channels: as soon as the one buffer is free). The other warpgroups have 64 queries each and do both products:
// scores S = Q K^T from shared memory, out += P V with the weights P in registers.
//
// A consumer begins step j's scores together with the product of step j - 1's weights and values, so that the softmax of step j runs under the latter. The
// consumers take turns: while one's products run, another does its softmax (arXiv 2407.08608). Sums are f32. The output is scaled down only where a row's maximum
// has grown by more than 2^8 since the last time (flash attention, arXiv 2205.14135): the maximum's weight begins at 2^7, and none is above 2^15, so that f16 holds
// weights down to 2^-31 of it.
//
// `Rare` is a kernel for soft caps and for head dimensions below D, whose missing channels are zeros in shared memory.
//
// Nothing hangs: producers' waits, of which one is for the consumers' end, take `patience` at most. One that takes longer is written to the host's memory, for the
// message (vi_context::fail_cuda), and ends the kernel with an error.
#pragma once
#include "attention_prefill.h"
#include "mma.h"
#include <cuda.h>
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "wgmma.cuh"
#endif
namespace {

constexpr float first_weight = 7, most_weight = 15; // log2 of a maximum's weight, and of the largest a weight may become
constexpr uint64_t patience = 10'000'000'000;     // ns that a wait may take
constexpr uint32_t columns = 64, row_bytes = 128; // a row of a swizzled matrix in shared memory: 64 f16

struct Schedule {
    int32_t* counters;          // [2], vi_wgmma's
    volatile int32_t* lost;     // [4], vi_wgmma's
    int group;                  // query heads of a KV head
    int tiles, blocks, section; // blocks of queries a head; section: KV heads whose tiles are worked on together
    bool heads_inner;           // the tensor maps' dimensions: channel, head, token; else channel, token, head
};

template <int D> struct Shape {
    static constexpr int N = D == 256 ? 64 : 128; // keys of a step
    static constexpr int consumers = D == 64 ? 3 : 2, M = 64 * consumers, threads = 128 * (consumers + 1);
    static constexpr int stages = D == 64 ? 4 : 2, query_buffers = D == 256 ? 1 : 2; // stages: buffers of keys, and of values
    static constexpr int together = D == 256 ? 1 : 128 / D;                          // rows of queries a warp reads at a time
    // A multiprocessor has 65536 registers; ptxas gives every thread 65536 / threads at the start.
    static constexpr int producer_registers = D == 64 ? 32 : 56, consumer_registers = D == 64 ? 160 : 224;
    static constexpr uint32_t query_bytes = M * D * 2, stage_bytes = N * D * 2;
    static constexpr uint32_t keys_at = query_buffers * query_bytes, values_at = keys_at + stages * stage_bytes, barriers_at = values_at + stages * stage_bytes;
    static constexpr uint32_t barriers = 7 + 4 * stages, words_at = barriers_at + barriers * 8;
    static constexpr size_t bytes = words_at + 16 + 1024; // and room to begin at a multiple of 1024, as the swizzle needs
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A block's shared memory: the buffers of queries, the stages of keys and of values, and for each of these a barrier "full" and one "empty"; two numbers of tiles,
// those of the queries' buffers, with a barrier "full"; and a barrier for the consumers' end.
template <int D> struct Memory {
    using S = Shape<D>;
    uint32_t base, queries_full, queries_empty, tile_full, keys_full, keys_empty, values_full, values_empty, finished;
    volatile int* tile; // [2]

    __device__ __forceinline__ explicit Memory(uint8_t* memory) {
        base = (shared_address(memory) + 1023) & ~1023u;
        queries_full = base + S::barriers_at, queries_empty = queries_full + 16, tile_full = queries_full + 32;
        keys_full = queries_full + 48, keys_empty = keys_full + 8 * S::stages, values_full = keys_full + 16 * S::stages, values_empty = keys_full + 24 * S::stages;
        finished = keys_full + 32 * S::stages;
        tile = reinterpret_cast<volatile int*>(memory + (base - shared_address(memory)) + S::words_at);
    }
    // By one thread, before any other looks at the barriers.
    __device__ __forceinline__ void init() const {
        constexpr int consumer_warps = 4 * S::consumers;
        for (int i = 0; i < 2; ++i) barrier_init(queries_full + 8 * i, 3), barrier_init(queries_empty + 8 * i, consumer_warps), barrier_init(tile_full + 8 * i, 1);
        for (int i = 0; i < S::stages; ++i) {
            barrier_init(keys_full + 8 * i, 1), barrier_init(values_full + 8 * i, 1);
            barrier_init(keys_empty + 8 * i, consumer_warps), barrier_init(values_empty + 8 * i, consumer_warps);
        }
        barrier_init(finished, consumer_warps);
        fence_barriers();
        fence_async();
    }
    // A producer's wait. A trap in consumers' code, or any other code that both roles share, makes ptxas leave the consumers the registers of the start: spills.
    __device__ __forceinline__ void wait_bounded(uint32_t barrier, uint32_t parity, volatile int32_t* lost) const {
        if (ended(barrier, parity)) return;
        const uint64_t start = nanoseconds();
        while (!ended(barrier, parity))
            if (nanoseconds() - start > patience) {
                lost[0] = (barrier - queries_full) / 8 + 1, lost[1] = parity, lost[2] = blockIdx.x, lost[3] = threadIdx.x;
                __threadfence_system();
                __trap();
            }
    }
    // A consumer's.
    __device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) const {
        while (!ended(barrier, parity)) {}
    }
    __device__ __forceinline__ uint32_t queries(int buffer) const { return base + buffer * S::query_bytes; }
    __device__ __forceinline__ uint32_t keys(uint32_t stage) const { return base + S::keys_at + stage * S::stage_bytes; }
    __device__ __forceinline__ uint32_t values(uint32_t stage) const { return base + S::values_at + stage * S::stage_bytes; }
};

// Tiles in the order in which they are worked on: the heads of a section, from the last rows, which see most, to the first; then the next section.
struct Tile {
    int head, first, begin, steps; // query head, first row, first step's number among the N keys each, number of steps (at least 1)
    __device__ Tile(const Prompt& a, const Schedule& plan, int number, int M, int N) {
        const int of_section = plan.section * plan.group * plan.blocks, s = number / of_section, rest = number - s * of_section;
        const int heads = min(plan.section, a.kv_heads - s * plan.section) * plan.group, block = rest / heads;
        head = s * plan.section * plan.group + rest - block * heads;
        first = (plan.blocks - 1 - block) * M;
        const int seen = min(a.count, a.diagonal + min(first + M, a.rows));
        begin = a.window ? max(0, a.diagonal + first - a.window + 1) / N : 0;
        steps = max(1, (seen + N - 1) / N - begin);
    }
};

// Queries of rows from .. to - 1 of a tile, every `step` warps' worth, times the scale, as f16 into a buffer of [D / 64][M] swizzled rows; zeros behind the last.
template <int D, bool Rare> __device__ __forceinline__ void fill_queries(uint32_t buffer, const Prompt& a, const Tile& tile, int from, int to, int step) {
    constexpr int M = Shape<D>::M, together = Shape<D>::together, lanes = 32 / together, batch = D == 64 ? 4 : 8; // lanes a row, loads in flight a thread
    const int lane = threadIdx.x % 32, own = lane / lanes, head_dim = Rare ? a.head_dim : D;
#pragma unroll 1
    for (int channel = lane % lanes * 4; channel < D; channel += lanes * 4) {
        const bool there = !Rare || channel < head_dim;
        const float* q = a.q + static_cast<int64_t>(tile.head) * head_dim + channel;
        const uint32_t column = buffer + channel / columns * (M * row_bytes) + channel % 8 / 4 * 8;
        const int chunk = channel % columns / 8;
        for (int row = from + own; row < to; row += step * together * batch) {
            float4 x[batch];
#pragma unroll
            for (int i = 0; i < batch; ++i) {
                const int r = row + i * step * together;
                x[i] = make_float4(0, 0, 0, 0);
                if (there && r < to && tile.first + r < a.rows) x[i] = __ldg(reinterpret_cast<const float4*>(q + (tile.first + r) * a.q_stride));
            }
#pragma unroll
            for (int i = 0; i < batch; ++i) {
                const int r = row + i * step * together;
                if (r < to)
                    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(column + r * row_bytes + ((chunk ^ (r & 7)) << 4)),
                                 "r"(round_pair(x[i].x * a.scale, x[i].y * a.scale)), "r"(round_pair(x[i].z * a.scale, x[i].w * a.scale))
                                 : "memory");
            }
        }
    }
    fence_async();
}

// ---- producers ----

// One thread: keys and values of every tile, keys a step ahead, as the consumers need them.
template <int D>
__device__ __forceinline__ void produce_keys_and_values(const Memory<D>& memory, const CUtensorMap* keys, const CUtensorMap* values, const Prompt& a,
                                                        const Schedule& plan) {
    using S = Shape<D>;
    prefetch_map(keys);
    prefetch_map(values);
    uint32_t k = 0, v = 0; // so many were asked for
    for (int i = 0;; ++i) {
        const int b = i % S::query_buffers, phase = i / S::query_buffers;
        memory.wait_bounded(memory.tile_full + b * 8, phase & 1, plan.lost);
        const int number = memory.tile[b];
        if (number >= plan.tiles) break;
        const Tile tile(a, plan, number, S::M, S::N);
        const int head = tile.head / plan.group;
        auto load = [&](const CUtensorMap* map, uint32_t to, uint32_t full, uint32_t empty, uint32_t& n, int step) {
            const uint32_t s = n % S::stages;
            const int token = (tile.begin + step) * S::N;
            memory.wait_bounded(empty + 8 * s, (n / S::stages & 1) ^ 1, plan.lost);
            arrive_expect(full + 8 * s, S::stage_bytes);
#pragma unroll
            for (int b = 0; b < D / static_cast<int>(columns); ++b)
                copy_box(to + s * S::stage_bytes + b * (S::N * row_bytes), map, b * columns, plan.heads_inner ? head : token, plan.heads_inner ? token : head, full + 8 * s);
            ++n;
        };
        for (int step = 0; step < tile.steps; ++step) {
            load(keys, memory.keys(0), memory.keys_full, memory.keys_empty, k, step);
            if (step > 0) load(values, memory.values(0), memory.values_full, memory.values_empty, v, step - 1);
        }
        load(values, memory.values(0), memory.values_full, memory.values_empty, v, tile.steps - 1);
    }
}

// Warps 1 to 3: which tile is next, and its queries. Those of the first the consumers fill in themselves, who have nothing else to do then.
template <int D, bool Rare> __device__ __forceinline__ void produce_queries(const Memory<D>& memory, const Prompt& a, const Schedule& plan, int warp, int lane) {
    using S = Shape<D>;
    for (int i = 0;; ++i) {
        const int b = i % S::query_buffers, phase = i / S::query_buffers;
        if (warp == 1) {
            memory.wait_bounded(memory.queries_empty + 8 * b, (phase & 1) ^ 1, plan.lost);
            if (lane == 0) {
                memory.tile[b] = i == 0 ? blockIdx.x : gridDim.x + atomicAdd(plan.counters, 1);
                arrive(memory.tile_full + 8 * b);
            }
            __syncwarp();
        }
        memory.wait_bounded(memory.tile_full + 8 * b, phase & 1, plan.lost);
        const int number = memory.tile[b];
        if (i > 0 && number < plan.tiles) fill_queries<D, Rare>(memory.queries(b), a, Tile(a, plan, number, S::M, S::N), (warp - 1) * S::together, S::M, 3);
        __syncwarp();
        if (lane == 0) arrive(memory.queries_full + 8 * b);
        if (number >= plan.tiles) break;
    }
    if (warp == 1 && lane == 0) { // the last block to end sets the counters back
        __threadfence();
        if (atomicAdd(plan.counters + 1, 1) == static_cast<int>(gridDim.x) - 1) {
            plan.counters[0] = 0;
            plan.counters[1] = 0;
        }
        memory.wait_bounded(memory.finished, 0, plan.lost);
    }
}

// ---- consumers ----

// A lane's part of 64 queries: two rows, warp_row + g and 8 more, of which its quad's four lanes have the keys (channels of out) 8 n + 2 t and 8 n + 2 t + 1.
// m is not the maximum but what scores are counted from, l the sum of weights of the lane's own keys.
template <int D, bool Rare> struct Rows {
    static constexpr int N = Shape<D>::N;
    float out[D / 2], s[N / 2], m[2], l[2], factor[2];
    uint32_t p[N / 16][4];

    __device__ __forceinline__ void begin() {
        m[0] = m[1] = -1e30f;
        l[0] = l[1] = 0;
#pragma unroll
        for (int c = 0; c < D / 2; ++c) out[c] = 0;
    }
    __device__ __forceinline__ void begin_scores(uint64_t queries, uint64_t keys) {
        products_begin();
#pragma unroll
        for (int c = 0; c < D / 16; ++c)
            multiply(s, queries + (c / 4 * (Shape<D>::M * row_bytes) + c % 4 * 32) / 16, keys + (c / 4 * (N * row_bytes) + c % 4 * 32) / 16, c > 0);
        products_commit();
    }
    __device__ __forceinline__ void begin_out(uint64_t values) {
        products_begin();
#pragma unroll
        for (int c = 0; c < N / 16; ++c) multiply(out, p[c], values + c * 16 * row_bytes / 16);
        products_commit();
    }
    // Soft cap: cap tanh(s / cap), by e^2x: 1 - 2 / (1 + e^2x) is off by 1e-7 of the cap.
    __device__ __forceinline__ void bend(float cap) {
        if (!Rare || cap == 0) return;
        const float factor = 2.8853900817779268f / cap; // 2 log2 e: cap is in units of log2, as scores are
#pragma unroll
        for (int i = 0; i < N / 2; ++i) s[i] = fmaf(-2 * cap, reciprocal_approximate(1 + exp2_approximate(s[i] * factor)), cap);
    }
    // Scores of keys that are not seen become -infinity. start: the step's first key; first: the key of the warp's first row's own token.
    __device__ __forceinline__ void mask(int start, int first, int count, int window, int g, int t) {
        if (start + N - 1 > min(count - 1, first) || (window && start <= first + 15 - window))
#pragma unroll
            for (int h = 0; h < 2; ++h) { // keys least + 1 .. high of the step are seen, both counted from this lane's first
                const int key = first + g + 8 * h;
                const int high = min(count - 1, key) - start - 2 * t, least = window ? key - window - start - 2 * t : -2 * N;
#pragma unroll
                for (int n = 0; n < N / 8; ++n)
#pragma unroll
                    for (int c = 0; c < 2; ++c)
                        if (n * 8 + c > high || n * 8 + c <= least) s[4 * n + 2 * h + c] = -__builtin_huge_valf();
            }
    }
    // s: scores -> weights 2^(s - m). Whether some row of the warp has a new m: then out is to be scaled by `factor`, as l has been. A row's m depends on that row
    // alone, so that its bits do.
    __device__ __forceinline__ bool weigh() {
        float most[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float x = fmaxf(s[2 * h], s[2 * h + 1]), y = fmaxf(s[4 + 2 * h], s[5 + 2 * h]);
#pragma unroll
            for (int n = 2; n < N / 8; n += 2) {
                x = fmaxf(x, fmaxf(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]));
                y = fmaxf(y, fmaxf(s[4 * n + 4 + 2 * h], s[4 * n + 5 + 2 * h]));
            }
            x = fmaxf(x, y);
            x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
            most[h] = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
        }
        const bool grown = __any_sync(0xffffffffu, most[0] > m[0] + most_weight || most[1] > m[1] + most_weight);
        if (grown)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float higher = most[h] > m[h] + most_weight ? most[h] - first_weight : m[h];
                factor[h] = exp2_approximate(m[h] - higher);
                m[h] = higher;
                l[h] *= factor[h];
            }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float x = 0, y = 0;
#pragma unroll
            for (int n = 0; n < N / 8; ++n) {
                s[4 * n + 2 * h] = exp2_approximate(s[4 * n + 2 * h] - m[h]);
                s[4 * n + 2 * h + 1] = exp2_approximate(s[4 * n + 2 * h + 1] - m[h]);
                x += s[4 * n + 2 * h];
                y += s[4 * n + 2 * h + 1];
            }
            l[h] += x + y;
        }
        return grown;
    }
    // Weights as the next product's operand.
    __device__ __forceinline__ void pack() {
#pragma unroll
        for (int c = 0; c < N / 16; ++c)
#pragma unroll
            for (int k = 0; k < 4; ++k) p[c][k] = round_pair(s[8 * c + 2 * k], s[8 * c + 2 * k + 1]);
    }
    // out and lse of the chunk, or with `resume` of it and those before: sums of weights 2^lse apart.
    __device__ __forceinline__ void write(const Prompt& a, int head, int first_row, int g, int t) {
        const int head_dim = Rare ? a.head_dim : D;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            l[h] += __shfl_xor_sync(0xffffffffu, l[h], 1);
            l[h] += __shfl_xor_sync(0xffffffffu, l[h], 2);
            const int row = first_row + g + 8 * h, own = a.diagonal + row;
            const bool inside = row < a.rows;
            if (a.sink_logits && own >= 0 && own < a.count) l[h] += exp2_approximate(fminf(fmaf(a.sink_logits[head], 1.4426950408889634f, -m[h]), 100.0f));
            const int64_t at = static_cast<int64_t>(row) * a.heads + head;
            const float old = inside && a.resume ? a.lse[at] : 0.0f;
            __syncwarp(); // the row's lanes have read lse
            if (!inside) continue;
            float weight = l[h] > 0 ? 1 / l[h] : 0.0f, weight_before = 0, sum = l[h] > 0 ? m[h] + log2f(l[h]) : -__builtin_huge_valf();
            float2* to = reinterpret_cast<float2*>(a.out + at * head_dim + 2 * t);
            auto put = [&](int n, float x, float y) {
                if (a.rounded) reinterpret_cast<uint32_t*>(a.rounded + at * head_dim + 2 * t)[4 * n] = pack_bf16(x, y);
                else to[4 * n] = make_float2(x, y);
            };
            if (a.resume) {
                const float higher = fmaxf(fmaxf(old, sum), -1e30f), x = exp2_approximate(old - higher), y = exp2_approximate(sum - higher);
                sum = higher + log2f(x + y);
                weight_before = x + y > 0 ? x / (x + y) : 0.0f;
                weight *= x + y > 0 ? y / (x + y) : 0.0f;
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    if (Rare && n * 8 >= head_dim) break;
                    const float2 x = to[4 * n];
                    put(n, fmaf(x.x, weight_before, out[4 * n + 2 * h] * weight), fmaf(x.y, weight_before, out[4 * n + 2 * h + 1] * weight));
                }
            } else {
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    if (Rare && n * 8 >= head_dim) break;
                    put(n, out[4 * n + 2 * h] * weight, out[4 * n + 2 * h + 1] * weight);
                }
            }
            if (t == 0) a.lse[at] = sum;
        }
    }
};

// A warpgroup: 64 queries of every tile.
template <int D, bool Rare> __device__ __forceinline__ void consume(const Memory<D>& memory, const Prompt& a, const Schedule& plan, int warp, int lane) {
    using S = Shape<D>;
    constexpr int turns = 1, filled = 1 + S::consumers; // named barriers: one a consumer each
    const int consumer = warp / 4 - 1, next = consumer + 1 == S::consumers ? 0 : consumer + 1, g = lane / 4, t = lane % 4;
    if (consumer == S::consumers - 1) named_arrive(turns + next, 256); // the first one's first turn
    uint32_t kv = 0;                                                   // steps so far; keys of step kv are in stage kv % stages
    Rows<D, Rare> rows;
    for (int i = 0;; ++i) {
        const int b = i % S::query_buffers, phase = i / S::query_buffers;
        if (i == 0) {
            fill_queries<D, Rare>(memory.queries(b), a, Tile(a, plan, blockIdx.x, S::M, S::N), consumer * 64 + warp % 4 * S::together, consumer * 64 + 64, 4);
            __syncwarp();
            named_wait(filled + consumer, 128);
        }
        memory.wait(memory.queries_full + 8 * b, phase & 1);
        const int number = memory.tile[b];
        if (number >= plan.tiles) break;
        const Tile tile(a, plan, number, S::M, S::N);
        const int warp_row = tile.first + consumer * 64 + warp % 4 * 16;
        const uint64_t queries = descriptor(memory.queries(b) + consumer * 64 * row_bytes, 16);
        auto keys = [&] { return descriptor(memory.keys(kv % S::stages), 16); };
        auto values = [&](uint32_t n) { return descriptor(memory.values(n % S::stages), S::N * row_bytes); };
        auto mask = [&](int step) { rows.bend(a.cap), rows.mask((tile.begin + step) * S::N, a.diagonal + warp_row, a.count, a.window, g, t); };

        rows.begin();
        memory.wait(memory.keys_full + kv % S::stages * 8, kv / S::stages & 1);
        rows.begin_scores(queries, keys());
        products_wait<0>();
        hold(rows.s);
        if (lane == 0) arrive(memory.keys_empty + kv % S::stages * 8);
        mask(0);
        rows.weigh(); // out is 0
        rows.pack();
        ++kv;
#pragma unroll 1
        for (int step = 1; step < tile.steps; ++step, ++kv) {
            const uint32_t before = kv - 1;
            memory.wait(memory.keys_full + kv % S::stages * 8, kv / S::stages & 1);
            named_wait(turns + consumer, 256);
            rows.begin_scores(queries, keys());
            memory.wait(memory.values_full + before % S::stages * 8, before / S::stages & 1);
            rows.begin_out(values(before));
            named_arrive(turns + next, 256);
            products_wait<1>(); // the scores
            hold(rows.s);
            if (lane == 0) arrive(memory.keys_empty + kv % S::stages * 8);
            mask(step);
            const bool grown = rows.weigh();
            products_wait_behind<0>(plan.tiles < 0); // the weights are made meanwhile
            hold(rows.out);
            if (grown)
#pragma unroll
                for (int c = 0; c < D / 2; ++c) rows.out[c] *= rows.factor[c / 2 % 2];
            if (lane == 0) arrive(memory.values_empty + before % S::stages * 8);
            rows.pack();
        }
        if (lane == 0) arrive(memory.queries_empty + 8 * b);
        memory.wait(memory.values_full + (kv - 1) % S::stages * 8, (kv - 1) / S::stages & 1);
        rows.begin_out(values(kv - 1));
        products_wait<0>();
        hold(rows.out);
        if (lane == 0) arrive(memory.values_empty + (kv - 1) % S::stages * 8);
        rows.write(a, tile.head, warp_row, g, t);
        __syncwarp(); // the next tile's products take whole warps
    }
    if (lane == 0) arrive(memory.finished);
}

#endif // __CUDA_ARCH_FEAT_SM90_ALL

} // namespace
