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

int32_t vi_allocate(vi_context* context, uint8_t* out, int64_t bytes) {
    VI_NOT_RECORDED(context, "vi_allocate");
    VI_TRY {
        VI_POINTER(context, "vi_allocate", out);
        VI_REQUIRE(context, bytes >= 1, "vi_allocate: bytes is %lld, not at least 1", static_cast<long long>(bytes));
        // Linux grants more than there is and kills the process once it is touched, so more than the machine has is refused here.
        void* address = nullptr;
        if (bytes > memory_total() || posix_memalign(&address, 256, bytes) != 0)
            return context->fail(VI_OUT_OF_MEMORY, "vi_allocate: no memory for %lld bytes; %lld of %lld are free", static_cast<long long>(bytes),
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
    }
    VI_CATCH(context, "vi_allocate")
}

int32_t vi_free(vi_context* context, void* address) {
    VI_NOT_RECORDED(context, "vi_free");
    VI_TRY {
        if (!address) return VI_OK;
        const auto found = context->allocations.find(address);
        VI_REQUIRE(context, found != context->allocations.end(), "vi_free: address %p is not one of vi_allocate, or was freed before", address);
        context->allocated -= found->second;
        context->allocations.erase(found);
        std::free(address);
        return VI_OK;
    }
    VI_CATCH(context, "vi_free")
}

int32_t vi_memory_info(vi_context* context, uint8_t* out) {
    VI_CONTEXT(context);
    VI_TRY {
        VI_POINTER(context, "vi_memory_info", out);
        const int64_t info[4] = {context->allocated, context->peak, memory_free(), memory_total()};
        std::memcpy(out, info, sizeof info);
        return VI_OK;
    }
    VI_CATCH(context, "vi_memory_info")
}

// Not recorded: a replay would need the caller's buffer, which may be gone by then.
int32_t vi_copy_to_device(vi_context* context, void* out, const uint8_t* in, int64_t bytes) {
    VI_NOT_RECORDED(context, "vi_copy_to_device");
    VI_TRY {
        VI_REQUIRE(context, bytes >= 0, "vi_copy_to_device: bytes is %lld, not at least 0", static_cast<long long>(bytes));
        if (bytes == 0) return VI_OK;
        VI_POINTER(context, "vi_copy_to_device", out);
        VI_POINTER(context, "vi_copy_to_device", in);
        std::memcpy(out, in, bytes);
        return VI_OK;
    }
    VI_CATCH(context, "vi_copy_to_device")
}

int32_t vi_copy_to_host(vi_context* context, uint8_t* out, const void* in, int64_t bytes) {
    VI_NOT_RECORDED(context, "vi_copy_to_host");
    VI_TRY {
        VI_REQUIRE(context, bytes >= 0, "vi_copy_to_host: bytes is %lld, not at least 0", static_cast<long long>(bytes));
        if (bytes == 0) return VI_OK;
        VI_POINTER(context, "vi_copy_to_host", out);
        VI_POINTER(context, "vi_copy_to_host", in);
        std::memcpy(out, in, bytes);
        return VI_OK;
    }
    VI_CATCH(context, "vi_copy_to_host")
}

int32_t vi_copy(vi_context* context, void* out, const void* in, int64_t bytes) {
    VI_CONTEXT(context);
    VI_TRY {
        VI_REQUIRE(context, bytes >= 0, "vi_copy: bytes is %lld, not at least 0", static_cast<long long>(bytes));
        if (bytes == 0) return VI_OK;
        VI_POINTER(context, "vi_copy", out);
        VI_POINTER(context, "vi_copy", in);
        const uintptr_t to = reinterpret_cast<uintptr_t>(out), from = reinterpret_cast<uintptr_t>(in);
        VI_REQUIRE(context, to + bytes <= from || from + bytes <= to, "vi_copy: %lld bytes from %p to %p overlap", static_cast<long long>(bytes), in, out);
        VI_RECORD(context, vi_copy(context, out, in, bytes));
        std::memcpy(out, in, bytes);
        return VI_OK;
    }
    VI_CATCH(context, "vi_copy")
}

int32_t vi_fill(vi_context* context, void* out, int32_t value, int64_t bytes) {
    VI_CONTEXT(context);
    VI_TRY {
        VI_REQUIRE(context, bytes >= 0, "vi_fill: bytes is %lld, not at least 0", static_cast<long long>(bytes));
        VI_REQUIRE(context, value >= 0 && value <= 255, "vi_fill: value is %d, not in 0..255", value);
        if (bytes == 0) return VI_OK;
        VI_POINTER(context, "vi_fill", out);
        VI_RECORD(context, vi_fill(context, out, value, bytes));
        std::memset(out, value, bytes);
        return VI_OK;
    }
    VI_CATCH(context, "vi_fill")
}

} // extern "C"
