// The transform of a head's vector held by one warp, lane l with channels l D/32 .. : smooth factors and Hadamard, or a fitted matrix.
#pragma once
#include "hadamard.cuh"
#include "quantizer.h"
#include <type_traits>

// Asks L2 for memory that no kernel writes, such as matrices: so a step's loads of it need not begin when the kernel ahead has ended.
__device__ inline void prefetch(const float* from, int64_t count, int64_t thread, int64_t threads) {
    for (int64_t i = thread * 32; i < count; i += threads * 32) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
}

// A lane's channels of a vector that is aligned to 16 bytes, in loads and stores of up to 16.
template <int N> __device__ inline void load_lane(float (&x)[N], const float* vector) {
    using Own = std::conditional_t<N == 2, float2, float4>;
    constexpr int size = sizeof(Own) / sizeof(float);
    const Own* from = reinterpret_cast<const Own*>(vector + threadIdx.x % 32 * N);
#pragma unroll
    for (int i = 0; i < N; i += size) {
        const Own own = from[i / size];
#pragma unroll
        for (int k = 0; k < size; ++k) x[i + k] = reinterpret_cast<const float*>(&own)[k];
    }
}
template <int N> __device__ inline void store_lane(float* vector, const float (&x)[N]) {
    using Own = std::conditional_t<N == 2, float2, float4>;
    constexpr int size = sizeof(Own) / sizeof(float);
    Own* to = reinterpret_cast<Own*>(vector + threadIdx.x % 32 * N);
#pragma unroll
    for (int i = 0; i < N; i += size) {
        Own own;
#pragma unroll
        for (int k = 0; k < size; ++k) reinterpret_cast<float*>(&own)[k] = x[i + k];
        to[i / size] = own;
    }
}

// sum += x M of row vectors, M [D, D], of the channels that `lanes` lanes from `first` on hold: rows of M are added up, each loaded once for all `count` vectors.
template <int D, int lanes, int count>
__device__ inline void add_rows(float (&sum)[count][D / 32], const float (&x)[count][D / 32], const float* matrix, int first) {
    constexpr int N = D / 32;
    static_assert(N == 2 || N == 4 || N == 8);
    using Row = std::conditional_t<N == 2, float2, float4>; // or half of the lane's part of a row
    constexpr int size = sizeof(Row) / sizeof(float), pieces = N / size;
    const Row* rows = reinterpret_cast<const Row*>(matrix) + threadIdx.x % 32 * pieces;
#pragma unroll(N == 8 ? 2 : 4)
    for (int lane = first; lane < first + lanes; ++lane) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
            float m[N];
#pragma unroll
            for (int piece = 0; piece < pieces; ++piece) {
                const Row row = __ldg(rows + (lane * N + k) * 32 * pieces + piece);
#pragma unroll
                for (int i = 0; i < size; ++i) m[piece * size + i] = reinterpret_cast<const float*>(&row)[i];
            }
#pragma unroll
            for (int v = 0; v < count; ++v) {
                const float factor = __shfl_sync(0xffffffffu, x[v][k], lane);
#pragma unroll
                for (int i = 0; i < N; ++i) sum[v][i] = fmaf(factor, m[i], sum[v][i]);
            }
        }
    }
}

// A warp's vector in a direction VI_TRANSFORM_*, where there are no matrices.
template <int D> __device__ inline void smooth_hadamard(float (&x)[D / 32], const Transform& transform, int direction, int head) {
    constexpr int N = D / 32;
    const float* factors = transform.smooth ? transform.smooth + head * D + threadIdx.x % 32 * N : nullptr;
    if (factors && direction != VI_TRANSFORM_INVERSE)
        for (int i = 0; i < N; ++i) x[i] = direction == VI_TRANSFORM_FORWARD ? x[i] / factors[i] : x[i] * factors[i];
    if (transform.hadamard) hadamard<D>(x);
    if (factors && direction == VI_TRANSFORM_INVERSE)
        for (int i = 0; i < N; ++i) x[i] *= factors[i];
}

// direction: VI_TRANSFORM_*.
template <int D, int direction, int count> __device__ inline void transform_vectors(float (&x)[count][D / 32], const Transform& transform, int head) {
    constexpr int N = D / 32;
    if (transform.matrices) {
        float sum[count][N] = {};
        add_rows<D, 32>(sum, x, transform.matrix(direction, head, D), 0);
#pragma unroll
        for (int v = 0; v < count; ++v)
#pragma unroll
            for (int i = 0; i < N; ++i) x[v][i] = sum[v][i];
        return;
    }
#pragma unroll
    for (int v = 0; v < count; ++v) smooth_hadamard<D>(x[v], transform, direction, head);
}
template <int D, int direction> __device__ inline void transform_vector(float (&x)[D / 32], const Transform& transform, int head) {
    transform_vectors<D, direction>(reinterpret_cast<float(&)[1][D / 32]>(x), transform, head);
}

// Of `count` vectors x [count, D] in shared memory, which like partial is aligned to 16 bytes, vector v of which only warp v wrote: vector v, transformed, to warp v. For a decode step, which would otherwise
// wait for a warp to read a whole matrix. Where there are matrices it passes two barriers, of all warps; partial may be read until the next.
template <int D, int warps, int count>
__device__ inline void transform_by_block(float (&out)[D / 32], float (&x)[count][D], float (&partial)[warps][count][D], const Transform& transform, int direction,
                                          int head) {
    constexpr int N = D / 32;
    const int warp = threadIdx.x / 32;
    if (transform.matrices) { // each warp adds up its share of the matrix's rows for all vectors, so that the matrix is read once, in one round of loads
        static_assert(count <= warps);
        __syncthreads();
        float all[count][N], sum[count][N] = {};
#pragma unroll
        for (int v = 0; v < count; ++v) load_lane(all[v], x[v]);
        add_rows<D, 32 / warps>(sum, all, transform.matrix(direction, head, D), warp * (32 / warps));
#pragma unroll
        for (int v = 0; v < count; ++v) store_lane(partial[warp][v], sum[v]);
        __syncthreads();
        if (warp >= count) return;
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w) {
            float part[N];
            load_lane(part, partial[w][warp]);
#pragma unroll
            for (int i = 0; i < N; ++i) out[i] += part[i];
        }
    } else if (warp < count) {
        load_lane(out, x[warp]);
        smooth_hadamard<D>(out, transform, direction, head);
    }
}
