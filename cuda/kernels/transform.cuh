// The transform of a head's vector held by one warp, lane l with channels l D/32 .. : smooth factors and Hadamard, or a fitted matrix.
#pragma once
#include "hadamard.cuh"
#include "quantizer.h"

// x <- x M of row vectors, M [D, D]: rows of M are added up. Each is loaded once for all `count` vectors.
template <int D, int count> __device__ inline void multiply(float (&x)[count][D / 32], const float* matrix) {
    constexpr int N = D / 32;
    static_assert(N == 2 || N == 4);
    using Row = std::conditional_t<N == 2, float2, float4>;
    float sum[count][N] = {};
    const Row* rows = reinterpret_cast<const Row*>(matrix) + threadIdx.x % 32;
#pragma unroll 4
    for (int lane = 0; lane < 32; ++lane) {
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
#pragma unroll
    for (int v = 0; v < count; ++v)
#pragma unroll
        for (int i = 0; i < N; ++i) x[v][i] = sum[v][i];
}

// direction as in vi_transform: 0 for keys and values, 1 for queries, 2 the inverse.
template <int D, int direction, int count> __device__ inline void transform_vectors(float (&x)[count][D / 32], const Transform& transform, int head) {
    constexpr int N = D / 32;
    if (transform.matrices) {
        multiply<D>(x, transform.matrices + (static_cast<int64_t>(direction) * transform.kv_heads + head) * D * D);
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
