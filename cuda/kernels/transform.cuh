// The transform of a head's vector held by one warp, lane l with channels l D/32 .. : smooth factors and Hadamard, or a fitted matrix.
#pragma once
#include "hadamard.cuh"
#include "quantizer.h"
#include <type_traits>

// Asks L2 for memory that no kernel writes, such as matrices: so a step's loads of it need not begin when the kernel ahead has ended.
__device__ inline void prefetch(const float* from, int64_t count, int64_t thread, int64_t threads) {
    for (int64_t i = thread * 32; i < count; i += threads * 32) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
}

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
    for (int v = 0; v < count; ++v) {
        const float* factors = transform.smooth ? transform.smooth + head * D + threadIdx.x % 32 * N : nullptr;
        if (factors && direction != VI_TRANSFORM_INVERSE)
            for (int i = 0; i < N; ++i) x[v][i] = direction == VI_TRANSFORM_FORWARD ? x[v][i] / factors[i] : x[v][i] * factors[i];
        if (transform.hadamard) hadamard<D>(x[v]);
        if (factors && direction == VI_TRANSFORM_INVERSE)
            for (int i = 0; i < N; ++i) x[v][i] *= factors[i];
    }
}
template <int D, int direction> __device__ inline void transform_vector(float (&x)[D / 32], const Transform& transform, int head) {
    transform_vectors<D, direction>(reinterpret_cast<float(&)[1][D / 32]>(x), transform, head);
}

// Of `count` vectors x [count, D] in shared memory, vector v of which only warp v wrote: vector v, transformed, to warp v. For a decode step, which would otherwise
// wait for a warp to read a whole matrix. Where there are matrices it passes two barriers, of all warps; partial may be read until the next.
template <int D, int direction, int warps, int count>
__device__ inline void transform_by_block(float (&out)[D / 32], float (&x)[count][D], float (&partial)[warps][count][D], const Transform& transform, int head) {
    constexpr int N = D / 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (transform.matrices) { // each warp adds up its share of the matrix's rows for all vectors, so that the matrix is read once, in one round of loads
        static_assert(count <= warps);
        __syncthreads();
        float all[count][N], sum[count][N] = {};
#pragma unroll
        for (int v = 0; v < count; ++v)
#pragma unroll
            for (int i = 0; i < N; ++i) all[v][i] = x[v][lane * N + i];
        add_rows<D, 32 / warps>(sum, all, transform.matrix(direction, head, D), warp * (32 / warps));
#pragma unroll
        for (int v = 0; v < count; ++v)
#pragma unroll
            for (int i = 0; i < N; ++i) partial[warp][v][lane * N + i] = sum[v][i];
        __syncthreads();
        if (warp >= count) return;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            out[i] = 0;
            for (int w = 0; w < warps; ++w) out[i] += partial[w][warp][lane * N + i];
        }
    } else if (warp < count) {
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = x[warp][lane * N + i];
        transform_vector<D, direction>(out, transform, head);
    }
}

// A matrix [D, D] that a block of `warps` warps holds in registers, for many vectors: warp w has the rows w D / warps .., its lane l the columns l D/32 ..
template <int D, int warps> struct HeldMatrix {
    static constexpr int N = D / 32, own = D / warps, together = 4; // vectors multiplied at a time
    using Row = std::conditional_t<N == 2, float2, float4>;
    using Partial = float[warps][together][D];
    static_assert(own % 4 == 0);
    Row rows[own];

    __device__ void load(const float* matrix) {
        const Row* from = reinterpret_cast<const Row*>(matrix) + threadIdx.x / 32 * own * 32 + threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < own; ++i) rows[i] = __ldg(from + i * 32);
    }
    // x M of the first `count` vectors of x, a multiple of 4 of them, in shared memory; out(vector, column, y0, y1) takes two columns at a time, and may write them over
    // x. For all warps of the block, after a barrier; partials may be read until the next.
    template <typename Out> __device__ void multiply(const float (*x)[D], int count, Partial (&partials)[2], Out&& out) const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (int first = 0; first < count; first += together) {
            auto& partial = partials[first / together % 2];
#pragma unroll
            for (int v = 0; v < together; ++v) {
                float sum[N] = {};
#pragma unroll
                for (int i = 0; i < own; i += 4) {
                    const float4 four = *reinterpret_cast<const float4*>(&x[first + v][warp * own + i]);
                    const float factors[] = {four.x, four.y, four.z, four.w};
#pragma unroll
                    for (int j = 0; j < 4; ++j)
#pragma unroll
                        for (int k = 0; k < N; ++k) sum[k] = fmaf(factors[j], reinterpret_cast<const float*>(&rows[i + j])[k], sum[k]);
                }
                if constexpr (N == 4) *reinterpret_cast<float4*>(&partial[warp][v][lane * N]) = make_float4(sum[0], sum[1], sum[2], sum[3]);
                else *reinterpret_cast<float2*>(&partial[warp][v][lane * N]) = make_float2(sum[0], sum[1]);
            }
            __syncthreads();
            for (int i = threadIdx.x * 2; i < together * D; i += warps * 64) {
                float2 y = {};
#pragma unroll
                for (int w = 0; w < warps; ++w) {
                    const float2 part = *reinterpret_cast<const float2*>(&partial[w][i / D][i % D]);
                    y.x += part.x, y.y += part.y;
                }
                out(first + i / D, i % D, y.x, y.y);
            }
        }
    }
};
