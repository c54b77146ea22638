// The counter-based generator of vi_sample, vi_random_normal and k-means: splitmix64 (Steele, Lea and Flood 2014).
#pragma once
#include <cstdint>

inline uint64_t splitmix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

// Uniform in [0, 1), a multiple of 2^-24.
inline double uniform(int32_t seed, int32_t position) {
    const uint64_t x = splitmix(static_cast<uint64_t>(static_cast<uint32_t>(seed)) << 32 | static_cast<uint32_t>(position));
    return static_cast<double>(x >> 40) * 0x1p-24;
}
