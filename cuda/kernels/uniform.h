// Counter-based random numbers: splitmix64 (Steele, Lea and Flood 2014) of a seed and a counter, as vecinfer.h defines it.
#pragma once
#include <cstdint>

__host__ __device__ inline uint64_t splitmix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

__host__ __device__ inline uint64_t counter(int32_t seed, int32_t position) {
    return splitmix64(static_cast<uint64_t>(static_cast<uint32_t>(seed)) << 32 | static_cast<uint32_t>(position));
}

// In [0, 1), with 24 bits.
__host__ __device__ inline float uniform(int32_t seed, int32_t position) { return static_cast<float>(counter(seed, position) >> 40) * 0x1p-24f; }
