// The counter-based generator of vi_sample, vi_random_normal and k-means: splitmix64 (Steele, Lea and Flood 2014).
#pragma once
#include "context.h"
#include <cstdint>

VI_BOTH inline uint64_t splitmix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

// u of vi_sample, times 2^24.
VI_BOTH inline uint64_t uniform24(int32_t seed, int32_t position) {
    return splitmix(static_cast<uint64_t>(static_cast<uint32_t>(seed)) << 32 | static_cast<uint32_t>(position)) >> 40;
}

// Uniform in [0, 1), a multiple of 2^-53: for k-means.
VI_BOTH inline double uniform53(uint64_t seed, uint64_t counter) { return static_cast<double>(splitmix(splitmix(seed) + counter) >> 11) * 0x1p-53; }
