// One register of floats in GCC's portable notation, so that one source serves AVX-512, AVX2 and the baseline.
#pragma once
#include "context.h"
#if defined(__AVX512F__)
#pragma GCC diagnostic push // GCC 12 warns of its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#else
constexpr int kWidth = 8;
#endif
typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t VecInt __attribute__((vector_size(kWidth * 4)));

inline Vec load(const float* p) {
    Vec x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
inline Vec splat(float x) { return x - Vec{}; }

inline Vec load_bf16(const vi_bf16* p) {
#if defined(__AVX512F__) // two instructions, where GCC 12 makes nine of the portable form; the mask keeps it from a false warning
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return reinterpret_cast<Vec>(reinterpret_cast<VecInt>(_mm512_cvtepu16_epi32(half)) << 16);
#else
    typedef uint16_t Half __attribute__((vector_size(kWidth * 2)));
    typedef uint32_t Bits __attribute__((vector_size(kWidth * 4)));
    Half x;
    std::memcpy(&x, p, sizeof x);
    return reinterpret_cast<Vec>(__builtin_convertvector(x, Bits) << 16);
#endif
}

// x in a register, where GCC 12 would rather load it again for every use.
template <class T> inline T kept(T x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#endif
    return x;
}

// 2^x = 2^i (1 + f slope) of x = i + f, |f| <= 1/2, i >= -127: (2^f - 1) / f by the Taylor series of 2^f, whose first dropped term is
// (f ln 2)^8 / 8! < 6e-9; 2^i as exponent bits, which are 0 for i = -127.
struct Power {
    Vec f, slope, scale;

    explicit Power(Vec x) {
        const Vec lowest = splat(-127.0f), magic = splat(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
        x = x <= lowest ? lowest : x;
        const Vec shifted = x + magic;
        f = x - (shifted - magic);
        scale = reinterpret_cast<Vec>((reinterpret_cast<VecInt>(shifted) - reinterpret_cast<VecInt>(magic) + 127) << 23);
        Vec y = splat(1.5252734e-5f);
        y = y * f + 1.5403530e-4f;
        y = y * f + 1.3333558e-3f;
        y = y * f + 9.6181291e-3f;
        y = y * f + 5.5504109e-2f;
        y = y * f + 2.4022651e-1f;
        slope = y * f + 6.9314718e-1f;
    }
};

// 2^x for x <= 127, within 1e-7 relative; exactly 0 from x <= -127 down, minus infinity included.
inline Vec exp2_vec(Vec x) {
    const Power power(x);
    return (power.slope * power.f + 1.0f) * power.scale;
}

// tanh x within 4e-7 relative: with m = e^(-2 |x|) - 1, which loses no digits near 0, it is -m / (2 + m), and x's sign.
inline Vec tanh_vec(Vec x) {
    const VecInt sign = reinterpret_cast<VecInt>(x) & INT32_MIN;
    const Vec size = reinterpret_cast<Vec>(reinterpret_cast<VecInt>(x) & INT32_MAX);
    const Power power(size * -2.8853901f); // 2 log2 e
    const Vec m = power.slope * power.f * power.scale + (power.scale - 1.0f);
    return reinterpret_cast<Vec>(reinterpret_cast<VecInt>(-m / (m + 2.0f)) | sign);
}

// In a fixed order: halves are added until one lane is left.
inline float sum(Vec x) {
    float part[kWidth];
    store(part, x);
    for (int h = kWidth / 2; h > 0; h /= 2)
        for (int i = 0; i < h; i++) part[i] += part[i + h];
    return part[0];
}

inline float maximum(Vec x) {
    float part[kWidth];
    store(part, x);
    for (int h = kWidth / 2; h > 0; h /= 2)
        for (int i = 0; i < h; i++) part[i] = part[i] > part[i + h] ? part[i] : part[i + h];
    return part[0];
}

// sum_i x_i^2 in a fixed order.
inline float sum_of_squares(const float* x, int width) {
    Vec squares = {};
    int i = 0;
    for (; i + kWidth <= width; i += kWidth) {
        const Vec value = load(x + i);
        squares += value * value;
    }
    float total = sum(squares);
    for (; i < width; i++) total += x[i] * x[i];
    return total;
}

// The factor of RMSNorm: 1 / sqrt(mean(x^2) + epsilon).
inline float norm_scale(const float* x, int width, float epsilon) { return 1 / std::sqrt(sum_of_squares(x, width) / static_cast<float>(width) + epsilon); }
