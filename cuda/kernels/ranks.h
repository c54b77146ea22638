// What sampling and log-probabilities share: one block of 1024 threads works on the logits of one row.
//
// The order of a row is x descending, then id ascending: entries compare by one 64-bit key. Sums of probabilities are integers, of
// 2^-40 of the largest one, so that they are exact, whatever the order.
#pragma once
#include "context.h"
#include "common/splitmix.h"

namespace ranks {

constexpr int threads = 1024;
constexpr int bins = 4096;        // of x, counted from the maximum
constexpr float bins_a_unit = 128;
constexpr int list_entries = threads;

// The bits of a float, ordered as its value is. -0 and 0 are equal, as they are to the comparison operators.
__device__ inline uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline uint64_t key_of(float x,
    int32_t id) { return static_cast<uint64_t>(ordered(x)) << 32 | (0xffffffffu - static_cast<uint32_t>(id)); }
__device__ inline int32_t id_of(uint64_t key) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)); }

__device__ inline int bin_of(float x, float maximum) { return min(bins - 1, __float2int_rd((maximum - x) * bins_a_unit)); }

struct Shared {
    uint32_t count[bins];
    unsigned long long mass[bins];
    uint64_t key[list_entries];
    unsigned long long key_mass[list_entries];
    unsigned long long warp[32];
    double sum[32];
    uint64_t found;
    unsigned long long before;
    uint32_t listed;
    int bin;
};

constexpr int32_t most_entries = 1 << 30;

inline int32_t check_vocabulary(Context* context, const char* name, int32_t vocabulary) {
    VI_WITHIN(context, name, vocabulary, 1, most_entries);
    return VI_OK;
}

// use(i, x[i]) for i = first, first + step, ... below end <= most_entries, with eight reads under way at a time: stores and atomics in between
// would hold the next ones up.
template <typename Use> __device__ inline void each(const float* x, int32_t first, int32_t step, int32_t end, Use use) {
    constexpr int batch = 8;
    int32_t i = first;
    for (; i < end - (batch - 1) * step; i += batch * step) {
        float value[batch];
#pragma unroll
        for (int j = 0; j < batch; ++j) value[j] = x[i + j * step];
#pragma unroll
        for (int j = 0; j < batch; ++j) use(i + j * step, value[j]);
    }
    for (; i < end; i += step) use(i, x[i]);
}

// The sum of the values of this thread and those before it.
__device__ inline unsigned long long inclusive_scan(unsigned long long value, Shared& s) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const unsigned long long other = __shfl_up_sync(0xffffffffu, value, offset);
        if (lane >= offset) value += other;
    }
    __syncthreads();
    if (lane == 31) s.warp[warp] = value;
    __syncthreads();
    for (int w = 0; w < warp; ++w) value += s.warp[w];
    return value;
}

__device__ inline unsigned long long sum(unsigned long long value, Shared& s) { return block_sum(value, s.warp); }

// The largest key of the block, known to all threads.
__device__ inline uint64_t largest(uint64_t key, Shared& s) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) key = max(key, __shfl_xor_sync(0xffffffffu, key, offset));
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.warp[threadIdx.x / 32] = key;
    __syncthreads();
    for (int w = 0; w < threads / 32; ++w) key = max(key, static_cast<uint64_t>(s.warp[w]));
    return key;
}

// Counts the bins; with masses, sums them too. mass(x) is the integer mass of an entry.
template <typename Mass> __device__ void histogram(Shared& s, const float* x, int32_t n, float maximum, bool masses, Mass mass) {
    for (int b = threadIdx.x; b < bins; b += threads) s.count[b] = 0, s.mass[b] = 0;
    __syncthreads();
    each(x, threadIdx.x, threads, n, [&](int32_t, float value) {
        const int b = bin_of(value, maximum);
        atomicAdd(&s.count[b], 1u);
        if (masses) {
            const unsigned long long m = mass(value);
            if (m) atomicAdd(&s.mass[b], m);
        }
    });
    __syncthreads();
}

// The key of the last entry of the smallest set of largest whose measure reaches `need` >= 1: its count, or its mass where by_mass.
// 0 where all entries together do not reach it. After histogram().
template <typename Mass>
__device__ uint64_t threshold(Shared& s, const float* x, int32_t n, float maximum, unsigned long long need, bool by_mass, Mass mass) {
    constexpr int own = bins / threads;
    unsigned long long part[own], total = 0;
#pragma unroll
    for (int j = 0; j < own; ++j) {
        const int b = threadIdx.x * own + j;
        part[j] = by_mass ? s.mass[b] : s.count[b];
        total += part[j];
    }
    unsigned long long before = inclusive_scan(total, s) - total;
    if (threadIdx.x == 0) s.bin = -1, s.listed = 0, s.found = 0;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < own; ++j) {
        if (before < need && need <= before + part[j]) s.bin = threadIdx.x * own + j, s.before = before;
        before += part[j];
    }
    __syncthreads();
    const int bin = s.bin;
    if (bin < 0) return 0;
    const unsigned long long rest = need - s.before;
    if (s.count[bin] <= list_entries) {
        each(x, threadIdx.x, threads, n, [&](int32_t i, float value) {
            if (bin_of(value, maximum) != bin) return;
            const uint32_t place = atomicAdd(&s.listed, 1u);
            s.key[place] = key_of(value, i);
            s.key_mass[place] = by_mass ? mass(value) : 1;
        });
        __syncthreads();
        if (threadIdx.x < s.listed) {
            const uint64_t key = s.key[threadIdx.x];
            const unsigned long long measure = s.key_mass[threadIdx.x];
            unsigned long long larger = 0;
            for (uint32_t j = 0; j < s.listed; ++j) larger += s.key[j] > key ? s.key_mass[j] : 0;
            if (larger < rest && rest <= larger + measure) s.found = key;
        }
        __syncthreads();
        return s.found;
    }
    // Many entries in one bin (equal ones, say): the key is built from its highest bit, each the highest that still reaches the need.
    uint64_t key = 0;
    for (int bit = 63; bit >= 0; --bit) {
        const uint64_t candidate = key | uint64_t(1) << bit;
        unsigned long long measure = 0;
        each(x, threadIdx.x, threads, n, [&](int32_t i, float value) {
            if (bin_of(value, maximum) == bin && key_of(value, i) >= candidate) measure += by_mass ? mass(value) : 1;
        });
        if (sum(measure, s) >= rest) key = candidate;
    }
    return key;
}

} // namespace ranks
