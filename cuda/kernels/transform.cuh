// The transform of a head's vector held by one warp, lane l with channels l D/32 .. : smooth factors and Hadamard, or a fitted matrix.
#pragma once
#include "hadamard.cuh"
#include "quantizer.h"
#include <type_traits>

// sum += x M of row vectors, M [D, D], of the channels that `lanes` lanes from `first` on hold: rows of M are added up, each loaded once for all `count` vectors.
template <int D, int lanes, int count>
__device__ inline void add_rows(float (&sum)[count][D / 32], const float (&x)[count][D / 32], const float* matrix, int first) {
    constexpr int N = D / 32;
    static_assert(N == 2 || N == 4);
    using Row = std::conditional_t<N == 2, float2, float4>;
    const Row* rows = reinterpret_cast<const Row*>(matrix) + threadIdx.x % 32;
#pragma unroll 4
    for (int lane = first; lane < first + lanes; ++lane) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const Row row = __ldg(rows + (lane * N + k) * 32);
            const float* m = reinterpret_cast<const float*>(&row);
#pragma unroll
            for (int v = 0; v < count; ++v) {
                const float factor = __shfl_sync(0xffffffffu, x[v][k], lane);
#pragma unroll
                for (int i = 0; i < N; ++i) sum[v][i] = fmaf(factor, m[i], sum[v][i]);
            }
        }
    }
}

// direction as in vi_transform: 0 for keys and values, 1 for queries, 2 the inverse.
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
    for (int v = 0; v < count; ++v) {
        const float* factors = transform.smooth ? transform.smooth + head * D + threadIdx.x % 32 * N : nullptr;
        if (factors && direction != 2)
            for (int i = 0; i < N; ++i) x[v][i] = direction == 0 ? x[v][i] / factors[i] : x[v][i] * factors[i];
        if (transform.hadamard) hadamard<D>(x[v]);
        if (factors && direction == 2)
            for (int i = 0; i < N; ++i) x[v][i] *= factors[i];
    }
}
template <int D, int direction> __device__ inline void transform_vector(float (&x)[D / 32], const Transform& transform, int head) {
    transform_vectors<D, direction>(reinterpret_cast<float(&)[1][D / 32]>(x), transform, head);
}

// The same of one vector that all `warps` warps of a block hold: each reads its share of the matrix, so that a decode step waits for one round of loads. Warp 0
// has the result; all have passed a barrier where there are matrices.
template <int D, int direction, int warps>
__device__ inline void transform_by_block(float (&x)[D / 32], float (&partial)[warps][D], const Transform& transform, int head) {
    constexpr int N = D / 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (!transform.matrices) {
        if (warp == 0) transform_vector<D, direction>(x, transform, head);
        return;
    }
    float sum[1][N] = {};
    add_rows<D, 32 / warps>(sum, reinterpret_cast<const float(&)[1][N]>(x), transform.matrix(direction, head, D), warp * (32 / warps));
#pragma unroll
    for (int i = 0; i < N; ++i) partial[warp][lane * N + i] = sum[0][i];
    __syncthreads();
    if (warp != 0) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        x[i] = 0;
        for (int w = 0; w < warps; ++w) x[i] += partial[w][lane * N + i];
    }
}
