// What every file of the CPU library shares: the context, status and recording macros, bf16.
#pragma once
#include "vecinfer.h"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

struct vi_graph {
    std::vector<std::function<int32_t()>> calls;
};

struct vi_context {
    int threads = 1;
    std::string error;
    std::unordered_map<void*, int64_t> allocations; // address -> bytes
    int64_t allocated = 0, peak = 0;
    double events[64] = {};       // seconds
    vi_graph* recording = nullptr; // not null between vi_graph_begin and vi_graph_end
    int32_t recording_status = VI_OK; // of the first call that failed in between, and what it said
    std::string recording_error;
    std::vector<float> scratch_; // of the call that is running; it only grows

    // Threads for about so many multiply-adds: starting a team costs as much as some 50 000 of them.
    int threads_for(int64_t operations) const { return static_cast<int>(std::clamp<int64_t>(operations / 65536, 1, threads)); }

    // Memory for `count` floats, valid until the next call of it.
    float* scratch(size_t count) {
        if (scratch_.size() < count) scratch_.resize(count);
        return scratch_.data();
    }

    // Sets the message and returns the status, so that `return context->fail(...)` is one line.
    int32_t fail(int32_t status, const char* format, ...) __attribute__((format(printf, 3, 4))) {
        char text[512];
        va_list args;
        va_start(args, format);
        std::vsnprintf(text, sizeof text, format, args);
        va_end(args);
        error = text;
        if (recording && recording_status == VI_OK) recording_status = status, recording_error = error;
        return status;
    }
};

// Refuses an argument by name: VI_REQUIRE(context, rows >= 0, "vi_rope: rows is %d", rows)
#define VI_REQUIRE(context, condition, ...) \
    do { if (!(condition)) return (context)->fail(VI_INVALID_ARGUMENT, __VA_ARGS__); } while (0)

// Refuses NULL by name. Bun's FFI passes a missing argument as 0, so the context is asked too.
#define VI_CONTEXT(context) \
    do { if (!(context)) return VI_INVALID_ARGUMENT; } while (0)
#define VI_POINTER(context, name, pointer) VI_REQUIRE(context, (pointer) != nullptr, name ": " #pointer " is NULL")

// Stands after the checks of the arguments in every function that may be part of a recorded step.
// Inside a recording the call is kept with its arguments.
#define VI_RECORD(context, call)                                              \
    do {                                                                      \
        VI_CONTEXT(context);                                                  \
        if ((context)->recording) {                                           \
            vi_graph* graph_ = (context)->recording;                          \
            graph_->calls.push_back([=]() -> int32_t { return call; });       \
            return VI_OK;                                                     \
        }                                                                     \
    } while (0)

// First line of every function that may not be.
#define VI_NOT_RECORDED(context, name) \
    do { VI_CONTEXT(context); if ((context)->recording) return (context)->fail(VI_INVALID_ARGUMENT, name " can't be part of a graph"); } while (0)

// No exception crosses the ABI: the body of every exported function stands between these two.
#define VI_TRY try
#define VI_CATCH(context, name)                                                                                        \
    catch (const std::bad_alloc&) { return (context)->fail(VI_OUT_OF_MEMORY, name ": out of memory"); }                \
    catch (const std::exception& e) { return (context)->fail(VI_INTERNAL_ERROR, name ": %s", e.what()); }              \
    catch (...) { return (context)->fail(VI_INTERNAL_ERROR, name ": unknown exception"); }

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
