// What every file of the CPU library shares: the context, recording, bf16.
#pragma once
#include "common/rules.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

struct vi_graph {
    std::vector<std::function<int32_t()>> calls;
};

struct vi_context : Context {
    int threads = 1;
    std::unordered_map<void*, int64_t> allocations; // address -> bytes
    int64_t allocated = 0, peak = 0;
    double events[event_count] = {};   // seconds
    std::unique_ptr<vi_graph> recorded; // not null while recording
    std::vector<float> scratch_; // of the call that is running; it only grows

    // Threads for about so many multiply-adds: starting a team costs as much as some 50 000 of them.
    int threads_for(int64_t operations) const { return static_cast<int>(std::clamp<int64_t>(operations / 65536, 1, threads)); }

    // Memory for `count` floats, valid until the next call of it.
    float* scratch(size_t count) {
        if (scratch_.size() < count) scratch_.resize(count);
        return scratch_.data();
    }
};

// First line of every exported function. Bun's FFI passes a missing argument as 0, so the context is asked too.
#define VI_OPEN(context) \
    do { if (!(context)) return VI_INVALID_ARGUMENT; } while (0)

// Stands after the checks of the arguments in every function that may be part of a recorded step.
// Inside a recording the call is kept with its arguments.
#define VI_RECORD(context, call)                                                              \
    do {                                                                                      \
        if ((context)->recording) {                                                           \
            (context)->recorded->calls.push_back([=]() -> int32_t { return call; });          \
            return VI_OK;                                                                     \
        }                                                                                     \
    } while (0)

// Refuses NaN and infinity among the host's copies of an argument's numbers.
inline int32_t check_finite(Context* context, const char* name, const char* argument, const float* x, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        VI_REQUIRE(context, std::isfinite(x[i]), "%s: %s hold NaN or infinity at element %lld", name, argument, static_cast<long long>(i));
    return VI_OK;
}

inline float bf16_to_f32(vi_bf16 x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline vi_bf16 f32_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<vi_bf16>(bits >> 16 | 64); // keep NaN a NaN
    return static_cast<vi_bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
