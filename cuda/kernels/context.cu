// The library, the context, its errors and its scratch memory.
#include "context.h"
#include "attention.h"
#include "attention_prefill.h"
#include "common/text.h"
#include "linear.h"
#include <algorithm>

namespace {

__global__ void probe_kernel() {}

// The smallest compute capability that the library is built for: sm_80.
constexpr int oldest = 8;

std::string no_device(cudaError_t code) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    cudaGetLastError();
    if (code == cudaErrorInsufficientDriver && driver == 0) return "no CUDA device: no NVIDIA driver was found";
    std::string text = std::string("no CUDA device: ") + cudaGetErrorString(code);
    if (code == cudaErrorInsufficientDriver)
        text += " (driver for CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) + ", library built with " +
                std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10) + ")";
    return text;
}

std::string too_old(const cudaDeviceProp& properties) {
    return std::string(properties.name) + " has compute capability " + std::to_string(properties.major) + "." + std::to_string(properties.minor) +
           ", which this build has no code for: it needs 8.0 or later";
}

// Takes the device into use. On an error `unusable` says why.
int32_t open(vi_context* context, const char* name, int32_t device) {
    int count = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code != cudaSuccess || count == 0) {
        context->unusable = code != cudaSuccess ? no_device(code) : "no CUDA device";
        return context->fail(VI_NO_DEVICE, "%s: %s", name, context->unusable.c_str());
    }
    if (device < 0 || device >= count) {
        context->unusable = "device is " + std::to_string(device) + ", there are " + std::to_string(count);
        return context->fail(VI_NO_DEVICE, "%s: %s", name, context->unusable.c_str());
    }
    context->unusable = "the context could not be made";
    VI_CUDA(context, name, cudaGetDeviceProperties(&context->properties, device));
    if (context->properties.major < oldest) {
        context->unusable = too_old(context->properties);
        return context->fail(VI_NO_DEVICE, "%s: %s", name, context->unusable.c_str());
    }
    VI_CUDA(context, name, cudaSetDevice(device));
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, probe_kernel) != cudaSuccess) {
        cudaGetLastError();
        context->unusable = too_old(context->properties);
        return context->fail(VI_NO_DEVICE, "%s: %s", name, context->unusable.c_str());
    }
    VI_CUDA(context, name, cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking));
    for (cudaEvent_t& event : context->events) VI_CUDA(context, name, cudaEventCreate(&event));
    context->multiprocessors = context->properties.multiProcessorCount;
    context->shared_limit = context->properties.sharedMemPerBlockOptin;
    const int32_t status = wgmma_open(context, name);
    if (status != VI_OK) {
        context->unusable = context->error;
        return status;
    }
    context->device = device;
    return VI_OK;
}

} // namespace

int32_t vi_context::fail_cuda(cudaError_t code, const char* name) {
    cudaGetLastError(); // the next operation must not find this error again
    switch (code) {
        case cudaErrorMemoryAllocation: return fail(VI_OUT_OF_MEMORY, "%s: out of device memory", name);
        case cudaErrorNoDevice:
        case cudaErrorInsufficientDriver:
        case cudaErrorInvalidDevice:
        case cudaErrorDevicesUnavailable: return fail(VI_NO_DEVICE, "%s: %s", name, cudaGetErrorString(code));
        case cudaErrorNoKernelImageForDevice:
        case cudaErrorInvalidPtx:
        case cudaErrorUnsupportedPtxVersion:
            return fail(VI_NO_DEVICE, "%s: %s (compute capability %d.%d)", name, cudaGetErrorString(code), properties.major, properties.minor);
        default: {
            const std::string lost = wgmma ? wgmma->lost_wait() : ""; // why, where a kernel ended itself
            return fail(VI_DEVICE_ERROR, "%s: %s (%s)%s", name, cudaGetErrorString(code), cudaGetErrorName(code), lost.c_str());
        }
    }
}

void* vi_context::workspace(size_t bytes, const char* name) {
    workspace_status = VI_OK;
    if (bytes <= workspace_bytes) return workspace_address;
    if (recording) {
        workspace_status = fail(VI_INVALID_ARGUMENT,
            "%s: needs %zu bytes of scratch memory and has %zu: run the same call once before it is part of a graph",
                                name, bytes, workspace_bytes);
        return nullptr;
    }
    // Doubling keeps the number of times small; 32 MiB cover a decode step. Graphs hold the old address: it stays until they are gone.
    const size_t least = size_t(32) << 20;
    size_t grown = align_256(std::max({bytes, workspace_bytes * 2, least}));
    void* address = nullptr;
    cudaError_t code = cudaMalloc(&address, grown);
    if (code == cudaErrorMemoryAllocation && grown > align_256(bytes)) {
        cudaGetLastError();
        grown = align_256(bytes);
        code = cudaMalloc(&address, grown);
    }
    if (code != cudaSuccess) {
        cudaGetLastError();
        size_t free = 0, total = 0;
        cudaMemGetInfo(&free, &total);
        workspace_status = code == cudaErrorMemoryAllocation
            ? fail(VI_OUT_OF_MEMORY, "%s: no memory for %zu bytes of scratch; %zu of %zu are free on the device", name, bytes, free, total)
            : fail_cuda(code, name);
        return nullptr;
    }
    if (workspace_address) {
        if (graphs > 0) workspaces_retired.push_back(workspace_address);
        else cudaFree(workspace_address); // waits for what still uses it
    }
    workspace_address = address;
    workspace_bytes = grown;
    return workspace_address;
}

extern "C" {

VI_API int32_t vi_abi_hash(uint8_t* out, int32_t capacity) {
    if (!out || capacity < 65) return VI_INVALID_ARGUMENT;
    std::memcpy(out, VI_ABI_HASH, 65);
    return VI_OK;
}

VI_API int32_t vi_device_count(uint8_t* out, uint8_t* reason, int32_t capacity) {
    if (!out) return VI_INVALID_ARGUMENT;
    int32_t usable = 0;
    std::memcpy(out, &usable, sizeof usable);
    if (reason && capacity > 0) reason[0] = 0;
    try {
        int count = 0;
        const cudaError_t code = cudaGetDeviceCount(&count);
        std::string text = code != cudaSuccess ? no_device(code) : "no CUDA device";
        for (int device = 0; code == cudaSuccess && device < count; ++device) {
            cudaDeviceProp properties;
            if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) cudaGetLastError();
            else if (properties.major < oldest) text = too_old(properties);
            else ++usable;
        }
        std::memcpy(out, &usable, sizeof usable);
        if (usable == 0 && reason && capacity > 0) write_text(reason, capacity, text);
        return VI_OK;
    } catch (...) {
        return VI_INTERNAL_ERROR;
    }
}

VI_API int32_t vi_context_create(uint8_t* out, int32_t device, int32_t) {
    if (!out) return VI_INVALID_ARGUMENT;
    vi_context* context = new (std::nothrow) vi_context;
    std::memcpy(out, &context, sizeof context);
    if (!context) return VI_OUT_OF_MEMORY;
    VI_TRY {
        return open(context, __func__, device);
    } VI_CATCH(context)
}

VI_API int32_t vi_context_destroy(vi_context* context) {
    if (!context) return VI_INVALID_ARGUMENT;
    if (context->stream) {
        if (context->device >= 0) cudaSetDevice(context->device);
        if (context->recording) {
            cudaGraph_t graph = nullptr;
            cudaStreamEndCapture(context->stream, &graph);
            if (graph) cudaGraphDestroy(graph);
        }
        cudaStreamSynchronize(context->stream);
        for (const auto& [address, bytes] : context->allocations) cudaFree(address);
        for (void* address : context->workspaces_retired) cudaFree(address);
        cudaFree(context->workspace_address);
        for (cudaEvent_t event : context->events)
            if (event) cudaEventDestroy(event);
        context->cublas.reset();
        context->wgmma.reset();
        cudaStreamDestroy(context->stream);
        cudaGetLastError();
    }
    delete context;
    return VI_OK;
}

VI_API int32_t vi_last_error(vi_context* context, uint8_t* out, int32_t capacity) {
    if (!context || !out || capacity < 1) return VI_INVALID_ARGUMENT;
    write_text(out, capacity, context->error);
    return VI_OK;
}

VI_API int32_t vi_device_info(vi_context* context, uint8_t* out, int32_t capacity) VI_TRY {
    VI_OPEN(context);
    VI_POINTER(context, __func__, out);
    const cudaDeviceProp& properties = context->properties;
    const std::string text = "{\"library\":\"vecinfer_cuda\",\"device\":" + quoted(properties.name) + ",\"compute\":\"" + std::to_string(properties.major) + "." +
                             std::to_string(properties.minor) + "\",\"threads\":" + std::to_string(context->multiprocessors) + ",\"instructions\":\"" +
                             linear_large_library(context) + (context->wgmma ? ", prompts by wgmma" : "") + "\",\"attention\":" + attention_kernels() + "}";
    VI_REQUIRE(context, capacity > static_cast<int64_t>(text.size()), "%s: capacity is %d, needs %zu", __func__, capacity, text.size() + 1);
    write_text(out, capacity, text);
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_synchronize(vi_context* context) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CUDA(context, __func__, cudaStreamSynchronize(context->stream));
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
