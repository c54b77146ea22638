// The orthonormal Walsh-Hadamard transform of a vector of D = 64, 128 or 256 floats held by one warp, lane l with elements l D/32 .. :
// log2(D) steps of (a, b) -> (a + b, a - b), the first inside the lane, the others between lanes. H is its own inverse.
#pragma once

template <int D> __device__ inline void hadamard(float (&x)[D / 32]) {
    constexpr int N = D / 32;
#pragma unroll
    for (int h = 1; h < N; h *= 2) {
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (!(i & h)) {
                const float a = x[i], b = x[i | h];
                x[i] = a + b;
                x[i | h] = a - b;
            }
    }
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 1; h < 32; h *= 2) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float other = __shfl_xor_sync(0xffffffffu, x[i], h);
            x[i] = lane & h ? other - x[i] : x[i] + other;
        }
    }
    constexpr float norm = D == 256 ? 0.0625f : D == 128 ? 0.08838834764831845f : 0.125f; // 1 / sqrt(D)
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] *= norm;
}
