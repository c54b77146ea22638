// The Walsh-Hadamard transform of a head's vector.
#pragma once
#include "simd.h"
#include <cmath>

// x <- x H, H the orthonormal Walsh-Hadamard matrix in natural order: log2(n) steps of (a, b) -> (a + b, a - b). n is a power of two from 16 on.
inline void hadamard(float* x, int n) {
    for (int h = n / 2; h >= kWidth; h /= 2)
        for (int i = 0; i < n; i += 2 * h)
            for (int j = i; j < i + h; j += kWidth) {
                const Vec a = load(x + j), b = load(x + j + h);
                store(x + j, a + b);
                store(x + j + h, a - b);
            }
    const float norm = 1.0f / std::sqrt(static_cast<float>(n));
    for (int j = 0; j < n; j += kWidth) {
        Vec v = load(x + j);
        for (int h = kWidth / 2; h > 0; h /= 2) { // partners h lanes apart inside a register
            VecInt partner;
            Vec sign;
            for (int i = 0; i < kWidth; i++) {
                partner[i] = i ^ h;
                sign[i] = i & h ? -1.0f : 1.0f;
            }
            v = __builtin_shuffle(v, partner) + sign * v;
        }
        store(x + j, v * norm);
    }
}
