// Memory of the device, which here is the host's.
#include "context.h"
#include <cstdlib>
#include <fstream>
#include <unistd.h>

namespace {

int64_t memory_total() { return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE); }

// What the kernel could still hand out, its caches included; without /proc the free pages.
int64_t memory_free() {
    std::ifstream file("/proc/meminfo");
    int64_t kilobytes = 0;
    for (std::string word; file >> word;)
        if (word == "MemAvailable:" && file >> kilobytes) return kilobytes * 1024;
    return static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
}

} // namespace

extern "C" {

int32_t vi_allocate(vi_context* context, uint8_t* out, int64_t bytes) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_allocate(context, __func__, out, bytes));
    // Linux grants more than there is and kills the process once it is touched, so more than the machine has is refused here.
    void* address = nullptr;
    if (bytes > memory_total() || posix_memalign(&address, 256, bytes) != 0)
        return context->fail(VI_OUT_OF_MEMORY, "%s: no memory for %lld bytes; %lld of %lld are free", __func__, static_cast<long long>(bytes),
                             static_cast<long long>(memory_free()), static_cast<long long>(memory_total()));
    try {
        context->allocations.emplace(address, bytes);
    } catch (...) {
        std::free(address);
        throw;
    }
    context->allocated += bytes;
    context->peak = std::max(context->peak, context->allocated);
    std::memcpy(out, &address, sizeof address);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_free(vi_context* context, void* address) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    if (!address) return VI_OK;
    const auto found = context->allocations.find(address);
    VI_REQUIRE(context, found != context->allocations.end(), "%s: address %p is not one of vi_allocate, or was freed before", __func__, address);
    context->allocated -= found->second;
    context->allocations.erase(found);
    std::free(address);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_memory_info(vi_context* context, uint8_t* out) VI_TRY {
    VI_OPEN(context);
    VI_POINTER(context, __func__, out);
    const int64_t info[4] = {context->allocated, context->peak, memory_free(), memory_total()};
    std::memcpy(out, info, sizeof info);
    return VI_OK;
} VI_CATCH(context)

// Not recorded: a replay would need the caller's buffer, which may be gone by then.
int32_t vi_copy_to_device(vi_context* context, void* out, const uint8_t* in, int64_t bytes) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_transfer(context, __func__, out, in, bytes));
    if (bytes == 0) return VI_OK;
    std::memcpy(out, in, bytes);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_copy_to_host(vi_context* context, uint8_t* out, const void* in, int64_t bytes) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_transfer(context, __func__, out, in, bytes));
    if (bytes == 0) return VI_OK;
    std::memcpy(out, in, bytes);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_copy(vi_context* context, void* out, const void* in, int64_t bytes) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_copy(context, __func__, out, in, bytes));
    if (bytes == 0) return VI_OK;
    VI_RECORD(context, vi_copy(context, out, in, bytes));
    std::memcpy(out, in, bytes);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_fill(vi_context* context, void* out, int32_t value, int64_t bytes) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_fill(context, __func__, out, value, bytes));
    if (bytes == 0) return VI_OK;
    VI_RECORD(context, vi_fill(context, out, value, bytes));
    std::memset(out, value, bytes);
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
