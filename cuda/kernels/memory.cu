// Memory of the device.
#include "context.h"
#include <algorithm>

int32_t vi_context::allocate(void** out, size_t bytes, const char* name) {
    void* address = nullptr;
    const cudaError_t code = cudaMalloc(&address, bytes);
    if (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        size_t free = 0, total = 0;
        cudaMemGetInfo(&free, &total);
        return fail(VI_OUT_OF_MEMORY, "%s: no memory for %zu bytes; %zu of %zu are free on the device", name, bytes, free, total);
    }
    VI_CUDA(this, name, code);
    try {
        allocations.emplace(address, static_cast<int64_t>(bytes));
    } catch (...) {
        cudaFree(address);
        throw;
    }
    allocated += static_cast<int64_t>(bytes);
    peak = std::max(peak, allocated);
    *out = address;
    return VI_OK;
}

int32_t vi_context::release(void* address, const char* name) {
    if (!address) return VI_OK;
    const auto found = allocations.find(address);
    VI_REQUIRE(this, found != allocations.end(), "%s: address %p is not one of this context's, or was freed before", name, address);
    allocated -= found->second;
    allocations.erase(found);
    VI_CUDA(this, name, cudaStreamSynchronize(stream));
    VI_CUDA(this, name, cudaFree(address));
    return VI_OK;
}

extern "C" {

VI_API int32_t vi_allocate(vi_context* context, uint8_t* out, int64_t bytes) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_allocate(context, __func__, out, bytes));
    void* address = nullptr;
    const int32_t status = context->allocate(&address, bytes, __func__);
    if (status == VI_OK) std::memcpy(out, &address, sizeof address);
    return status;
} VI_CATCH(context)

VI_API int32_t vi_free(vi_context* context, void* address) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    return context->release(address, __func__);
} VI_CATCH(context)

VI_API int32_t vi_memory_info(vi_context* context, uint8_t* out) VI_TRY {
    VI_OPEN(context);
    VI_POINTER(context, __func__, out);
    size_t free = 0, total = 0;
    VI_CUDA(context, __func__, cudaMemGetInfo(&free, &total));
    const int64_t info[4] = {context->allocated, context->peak, static_cast<int64_t>(free), static_cast<int64_t>(total)};
    std::memcpy(out, info, sizeof info);
    return VI_OK;
} VI_CATCH(context)

// Not captured: a replay would need the caller's buffer, which may be gone by then.
VI_API int32_t vi_copy_to_device(vi_context* context, void* out, const uint8_t* in, int64_t bytes) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_transfer(context, __func__, out, in, bytes));
    if (bytes == 0) return VI_OK;
    // From pageable memory the call returns once the buffer has been staged (CUDA runtime API, "API synchronization behavior").
    VI_CUDA(context, __func__, cudaMemcpyAsync(out, in, bytes, cudaMemcpyHostToDevice, context->stream));
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_copy_to_host(vi_context* context, uint8_t* out, const void* in, int64_t bytes) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_transfer(context, __func__, out, in, bytes));
    if (bytes == 0) return VI_OK;
    VI_CUDA(context, __func__, cudaMemcpyAsync(out, in, bytes, cudaMemcpyDeviceToHost, context->stream));
    VI_CUDA(context, __func__, cudaStreamSynchronize(context->stream));
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_copy(vi_context* context, void* out, const void* in, int64_t bytes) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_copy(context, __func__, out, in, bytes));
    if (bytes == 0) return VI_OK;
    VI_CUDA(context, __func__, cudaMemcpyAsync(out, in, bytes, cudaMemcpyDeviceToDevice, context->stream));
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_fill(vi_context* context, void* out, int32_t value, int64_t bytes) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_fill(context, __func__, out, value, bytes));
    if (bytes == 0) return VI_OK;
    VI_CUDA(context, __func__, cudaMemsetAsync(out, value, bytes, context->stream));
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
