// The fitted transform of many rows, of quantize_many.cu: products with a matrix on tensor cores.
#pragma once
#include "quantize_search.cuh"

// The rows x[0 .. Rows - 1] of shared memory times a matrix [D, D], in place, by tensor cores: x and M are each split into two numbers of 11 bits (tf32), of
// whose four products the three larger are added up, so that 22 bits count. A warp has D / 8 columns of all rows. Rows lie in `x` with chunks of 16 channels
// exchanged where the row's number is odd (`chunked`), so that a quarter of a warp reads different banks. All threads, after a barrier; ends with one.
__device__ __forceinline__ int chunked(int row, int channel) { return channel ^ (row & 1) * 16; }
__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void split(float x, uint32_t& high, uint32_t& low) {
    high = (__float_as_uint(x) + 0x1000) & 0xffffe000;
    low = __float_as_uint(x - __uint_as_float(high));
}
template <int D, int Rows> __device__ void multiply(float (&x)[Rows][D], const float* matrix) {
    constexpr int columns = D / warps, n = columns / 8, m = (Rows + 15) / 16;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const float* from = matrix + warp * columns + g;
    float sum[m][n][4] = {}, rest[m][n][4] = {};
#pragma unroll 2
    for (int k = 0; k < D; k += 16) { // lane t has the channels 4 t .. 4 t + 3 of 16: two of them a product
        float4 four[m][2];
#pragma unroll
        for (int i = 0; i < m; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = i * 16 + h * 8 + g;
                four[i][h] = i * 16 + h * 8 < Rows ? *reinterpret_cast<const float4*>(&x[row][chunked(row, k) + 4 * t]) : make_float4(0, 0, 0, 0);
            }
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint32_t high[m][4], low[m][4];
#pragma unroll
            for (int i = 0; i < m; ++i)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    split(step ? four[i][h].z : four[i][h].x, high[i][h], low[i][h]);
                    split(step ? four[i][h].w : four[i][h].y, high[i][2 + h], low[i][2 + h]);
                }
#pragma unroll
            for (int j = 0; j < n; ++j) {
                const float* b = from + (k + 4 * t + 2 * step) * D + j * 8;
                uint32_t high0, low0, high1, low1;
                split(__ldg(b), high0, low0);
                split(__ldg(b + D), high1, low1);
#pragma unroll
                for (int i = 0; i < m; ++i) {
                    mma_tf32(rest[i][j], high[i], low0, low1);
                    mma_tf32(rest[i][j], low[i], high0, high1);
                    mma_tf32(sum[i][j], high[i], high0, high1);
                }
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < m; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h)
            if (i * 16 + h * 8 < Rows)
#pragma unroll
                for (int j = 0; j < n; ++j)
                    *reinterpret_cast<float2*>(&x[i * 16 + h * 8 + g][warp * columns + j * 8 + 2 * t]) =
                        make_float2(sum[i][j][2 * h] + rest[i][j][2 * h], sum[i][j][2 * h + 1] + rest[i][j][2 * h + 1]);
    __syncthreads();
}
