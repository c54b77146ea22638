// What the contexts of both libraries have, and the macros that their exported functions begin and end with. The shape of every one of them:
//
//     VI_API int32_t vi_x(vi_context* context, float* out, ..., int32_t rows) VI_TRY {
//         VI_OPEN(context);                                        // of the library
//         VI_CHECK(check_x(context, __func__, out, ..., rows));    // rules.h, cache_rules.h
//         if (rows == 0) return VI_OK;
//         ...
//     } VI_CATCH(context)
//
// Messages begin with the name of the function that was called: __func__ in an exported one, which passes it on as `name`.
#pragma once
#include "vecinfer.h"
#include <cstdarg>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#if defined(__CUDACC__)
#define VI_BOTH __host__ __device__ // for the host and for kernels
#else
#define VI_BOTH
#endif

struct Context {
    std::string error;                // of the last call that failed
    bool recording = false;           // between vi_graph_begin and vi_graph_end
    int32_t recording_status = VI_OK; // of the first call that failed in between, and what it said
    std::string recording_error;

    // Sets the message and returns the status, so that `return context->fail(...)` is one line.
    int32_t fail(int32_t status, const char* format, ...) __attribute__((format(printf, 3, 4))) {
        char text[1024];
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        error = text;
        if (recording && recording_status == VI_OK) recording_status = status, recording_error = error;
        return status;
    }
};

// No exception crosses the ABI.
#define VI_TRY try
#define VI_CATCH(context)                                                                                              \
    catch (const std::bad_alloc&) { return (context)->fail(VI_OUT_OF_MEMORY, "%s: out of host memory", __func__); }    \
    catch (const std::exception& e) { return (context)->fail(VI_INTERNAL_ERROR, "%s: %s", __func__, e.what()); }       \
    catch (...) { return (context)->fail(VI_INTERNAL_ERROR, "%s: unknown exception", __func__); }

// Returns from the function where a check or a step of it fails.
#define VI_CHECK(call) \
    do { if (const int32_t status_ = (call); status_ != VI_OK) return status_; } while (0)

// Refuses an argument: VI_REQUIRE(context, heads % 2 == 0, "%s: heads is %d, not even", name, heads)
#define VI_REQUIRE(context, condition, ...) \
    do { if (!(condition)) return (context)->fail(VI_INVALID_ARGUMENT, __VA_ARGS__); } while (0)

// Refuses an argument by its parameter's name: NULL, or a number out of its range.
#define VI_POINTER(context, name, pointer) VI_REQUIRE(context, (pointer) != nullptr, "%s: " #pointer " is NULL", name)
#define VI_AT_LEAST(context, name, number, least) \
    VI_REQUIRE(context, (number) >= (least), "%s: " #number " is %lld, not at least %d", name, static_cast<long long>(number), least)
#define VI_WITHIN(context, name, number, least, most)                                                                        \
    VI_REQUIRE(context, (number) >= (least) && (number) <= (most), "%s: " #number " is %lld, not in %d..%lld", name,         \
               static_cast<long long>(number), least, static_cast<long long>(most))

// In every function that waits, allocates or frees.
#define VI_NOT_RECORDED(context, name) VI_REQUIRE(context, !(context)->recording, "%s can't be part of a graph", name)
