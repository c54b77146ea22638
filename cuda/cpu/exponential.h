// Sums and maxima over a row of logits in float64, eight at a time.
#pragma once
#include "context.h"
#include <limits>
#include <numbers>

typedef double Vec8 __attribute__((vector_size(64)));
typedef int64_t Vec8Int __attribute__((vector_size(64)));
typedef float Vec8Float __attribute__((vector_size(32)));

inline Vec8 load8(const double* p) {
    Vec8 x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline Vec8 load8(const float* p) {
    Vec8Float x;
    std::memcpy(&x, p, sizeof x);
    return __builtin_convertvector(x, Vec8);
}

// The first count elements, then minus infinity, which neither a maximum nor a sum of exponentials sees.
template <class T> inline Vec8 load8_part(const T* p, int count) {
    T part[8];
    std::fill(part, part + 8, -std::numeric_limits<T>::infinity());
    std::memcpy(part, p, count * sizeof(T));
    return load8(part);
}

// e^x for x <= 0, within 1e-15 relative; 0 below -700. NaN stays NaN.
// x = (i + f) ln 2, |f| <= 1/2; 2^f by its Taylor series, whose first dropped term is (ln 2 / 2)^14 / 14! < 1e-17; 2^i as exponent bits.
inline Vec8 exponential(Vec8 x) {
    const Vec8 magic = Vec8{} + 0x1.8p52; // adding it rounds to an integer
    const Vec8Int zero = x < -700.0;
    x = zero ? Vec8{} : x;
    const Vec8 shifted = x * std::numbers::log2e + magic, i = shifted - magic;
    const Vec8 f = (x - i * 0x1.62e42fefa38p-1) - i * 0x1.ef35793c7673p-45; // ln 2 in two parts: i times the first is exact
    Vec8 y = Vec8{} + 1.0 / 6227020800;
    constexpr double inverse_factorials[13] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320,
                                               1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600};
    for (int n = 12; n >= 0; n--) y = y * f + inverse_factorials[n];
    const Vec8Int exponent = (reinterpret_cast<Vec8Int>(shifted) - reinterpret_cast<Vec8Int>(magic) + 1023) << 52;
    return zero ? Vec8{} : y * reinterpret_cast<Vec8>(exponent);
}

// NaN is passed over.
template <class T> inline double maximum(const T* x, int n) {
    Vec8 most = Vec8{} - std::numeric_limits<double>::infinity();
    for (int i = 0; i < n; i += 8) {
        const Vec8 value = n - i < 8 ? load8_part(x + i, n - i) : load8(x + i);
        most = value > most ? value : most;
    }
    double out = most[0];
    for (int i = 1; i < 8; i++) out = std::max(out, most[i]);
    return out;
}

inline double sum(Vec8 x) { return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }

// sum_i e^(scale (x_i - shift)), shift the maximum; the terms go to `terms` unless it is NULL, which has room for n rounded up to 8.
template <class T> inline double sum_exponentials(const T* x, int n, double shift, double scale = 1, double* terms = nullptr) {
    Vec8 total = {};
    for (int i = 0; i < n; i += 8) {
        const Vec8 term = exponential(((n - i < 8 ? load8_part(x + i, n - i) : load8(x + i)) - shift) * scale);
        if (terms) std::memcpy(terms + i, &term, sizeof term);
        total += term;
    }
    return sum(total);
}
