// Nearest codewords, as k-means uses them too.
#pragma once
#include "context.h"

// codes[n] and, unless NULL, distances[n] = |points[n] - codebook[codes[n]]|^2.
int32_t codebook_assign(vi_context* context, int32_t* codes, float* distances, const float* points, const float* codebook, int32_t count,
    int32_t dim,
                        int32_t codewords, const char* name);

// Reads a point into DIM floats, zeros past dim. VECTOR: dim is DIM, a multiple of 4, and the address is aligned to 16.
template <int DIM, bool VECTOR> __device__ inline void load_point(float (&out)[DIM], const float* points, int64_t index, int32_t dim) {
    if constexpr (VECTOR) {
#pragma unroll
        for (int i = 0; i < DIM / 4; ++i) {
            const float4 value = __ldg(reinterpret_cast<const float4*>(points + index * DIM) + i);
            out[4 * i] = value.x, out[4 * i + 1] = value.y, out[4 * i + 2] = value.z, out[4 * i + 3] = value.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < DIM; ++i) out[i] = i < dim ? points[index * dim + i] : 0.0f;
    }
}

template <int DIM> __device__ inline float squared_distance(const float (&a)[DIM], const float* b) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < DIM; ++i) sum = fmaf(a[i] - b[i], a[i] - b[i], sum);
    return sum;
}

// Calls run.template operator()<DIM, VECTOR>() with the smallest DIM of 1, 2, 4, 8, 16 that holds dim.
template <typename Run> void for_dim(int32_t dim, const float* points, Run run) {
    const bool vector = aligned_16(points);
    if (dim == 1) run.template operator()<1, false>();
    else if (dim == 2) run.template operator()<2, false>();
    else if (dim == 4 && vector) run.template operator()<4, true>();
    else if (dim <= 4) run.template operator()<4, false>();
    else if (dim == 8 && vector) run.template operator()<8, true>();
    else if (dim <= 8) run.template operator()<8, false>();
    else run.template operator()<16, false>();
}
