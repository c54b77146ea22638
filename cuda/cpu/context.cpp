// The library, the context and its errors.
#include "context.h"
#include "common/text.h"
#include <cstdlib>
#include <fstream>
#include <omp.h>

namespace {

std::string processor() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const size_t colon = line.find(": ");
        if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
    }
    return "unknown processor";
}

#if defined(__x86_64__)
constexpr const char* architecture = "x86-64";
#elif defined(__aarch64__)
constexpr const char* architecture = "aarch64";
#else
constexpr const char* architecture = "other";
#endif

#if defined(__AVX512F__)
constexpr const char* instructions = "avx512";
#elif defined(__AVX2__)
constexpr const char* instructions = "avx2";
#else
constexpr const char* instructions = "baseline";
#endif

} // namespace

extern "C" {

int32_t vi_abi_hash(uint8_t* out, int32_t capacity) {
    if (!out || capacity < 65) return VI_INVALID_ARGUMENT;
    std::memcpy(out, VI_ABI_HASH, 65);
    return VI_OK;
}

int32_t vi_device_count(uint8_t* out, uint8_t* reason, int32_t capacity) {
    if (!out) return VI_INVALID_ARGUMENT;
    const int32_t count = 1;
    std::memcpy(out, &count, sizeof count);
    if (reason && capacity > 0) reason[0] = 0;
    return VI_OK;
}

int32_t vi_context_create(uint8_t* out, int32_t device, int32_t threads) {
    if (!out) return VI_INVALID_ARGUMENT;
    vi_context* context = new (std::nothrow) vi_context;
    std::memcpy(out, &context, sizeof context);
    if (!context) return VI_OUT_OF_MEMORY;
    if (device != 0) return context->fail(VI_NO_DEVICE, "%s: device is %d, vecinfer_cpu has device 0 only", __func__, device);
    VI_WITHIN(context, __func__, threads, 0, 1024);
    context->threads = threads ? threads : std::max(1, omp_get_num_procs()); // those the affinity mask allows
    return VI_OK;
}

int32_t vi_context_destroy(vi_context* context) {
    VI_OPEN(context);
    for (const auto& [address, bytes] : context->allocations) std::free(address);
    delete context;
    return VI_OK;
}

int32_t vi_last_error(vi_context* context, uint8_t* out, int32_t capacity) {
    if (!context || !out || capacity < 1) return VI_INVALID_ARGUMENT;
    write_text(out, capacity, context->error);
    return VI_OK;
}

int32_t vi_device_info(vi_context* context, uint8_t* out, int32_t capacity) VI_TRY {
    VI_OPEN(context);
    VI_POINTER(context, __func__, out);
    const std::string text = "{\"library\":\"vecinfer_cpu\",\"device\":" + quoted(processor()) + ",\"compute\":\"" + architecture +
                             "\",\"threads\":" + std::to_string(context->threads) + ",\"instructions\":\"" + instructions + "\"}";
    VI_REQUIRE(context, capacity > static_cast<int64_t>(text.size()), "%s: capacity is %d, needs %zu", __func__, capacity, text.size() + 1);
    write_text(out, capacity, text);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_synchronize(vi_context* context) {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    return VI_OK;
}

} // extern "C"
