// What every file of the CUDA library shares: the context, launch macros, scratch memory, bf16.
//
// After its checks an exported function launches:
//
//         x_kernel<<<blocks, threads, 0, context->stream>>>(...);
//         VI_LAUNCHED(context, __func__);
//         return VI_OK;
//
// Nothing in it allocates device memory or waits, so that it can be part of a graph; functions that do say VI_NOT_RECORDED.
#pragma once
#include "common/rules.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

struct vi_cublas; // linear_large.cu
struct vi_wgmma;  // attention_prefill_wgmma.cu

struct vi_graph {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
};

struct vi_context : Context {
    int32_t device = -1;             // -1: unusable, `unusable` says why
    std::string unusable;
    cudaStream_t stream = nullptr;   // never the legacy stream, which can't be captured
    cudaDeviceProp properties = {};
    int32_t multiprocessors = 0;
    size_t shared_limit = 0;         // bytes of shared memory that a block can opt in to
    std::unordered_map<void*, int64_t> allocations; // address -> bytes; the workspace is not among them
    int64_t allocated = 0, peak = 0;
    cudaEvent_t events[event_count] = {};
    bool event_recorded[event_count] = {};
    bool constants_written = false;  // by the kernel launched last: the next one must not begin early, see launch_early
    bool experts_written = false;    // by the kernel launched last: vi_expert_linear must not read them early
    int32_t graphs = 0;              // alive; a graph keeps the addresses of the workspace it was recorded with
    void* workspace_address = nullptr;
    size_t workspace_bytes = 0;
    std::vector<void*> workspaces_retired;
    std::shared_ptr<vi_cublas> cublas;
    std::shared_ptr<vi_wgmma> wgmma; // empty where that kernel is not used

    // fail() for a CUDA error: out of memory and missing code get their own status. Clears the error.
    int32_t fail_cuda(cudaError_t code, const char* name);
    // Device memory that vi_memory_info counts, aligned to 256. name is the function's, for messages.
    int32_t allocate(void** out, size_t bytes, const char* name);
    int32_t release(void* address, const char* name);
    // Scratch memory, aligned to 256, valid until the next call of it on this context: one per operation. It only grows, and not while
    // recording. nullptr after a failure; then `return context->workspace_status`.
    void* workspace(size_t bytes, const char* name);
    int32_t workspace_status = VI_OK;
};

// First line of every function but those that make, destroy or question a context.
#define VI_OPEN(context)                                                                                                      \
    do {                                                                                                                      \
        if (!(context)) return VI_INVALID_ARGUMENT;                                                                           \
        if ((context)->device < 0) return (context)->fail(VI_NO_DEVICE, "%s: %s", __func__, (context)->unusable.c_str());     \
        VI_CUDA(context, __func__, cudaSetDevice((context)->device));                                                         \
    } while (0)

// Runs a call of the CUDA runtime and returns its error as a status with the operation's name.
#define VI_CUDA(context, name, call)                                                   \
    do {                                                                               \
        cudaError_t code_ = (call);                                                    \
        if (code_ != cudaSuccess) return (context)->fail_cuda(code_, name);            \
    } while (0)

// After every launch.
#define VI_LAUNCHED(context, name) VI_CUDA(context, name, cudaGetLastError())

// Declares a typed pointer to scratch memory, or returns from the function.
#define VI_WORKSPACE(context, type, pointer, bytes, name)                       \
    type* pointer = static_cast<type*>((context)->workspace((bytes), name));    \
    if (!pointer) return (context)->workspace_status

// Raises the limit of dynamic shared memory of a kernel above 48 KiB; cheap enough to call before every launch.
#define VI_SHARED(context, name, kernel, bytes) \
    VI_CUDA(context, name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)))

// Programmatic dependent launch (compute capability 9.0 on): a kernel started by launch_early may begin while the one before it still runs.
// Before wait_for_previous(), which every thread of it calls, also where it returns early, it reads nothing but constants: weights and codebooks, and ids of experts that
// the kernel ahead has not written (experts_written). The ops
// that write those (vi_convert, vi_random_normal, vi_transform_create, vi_quantizer_create; copies wait anyway) say so, and the next kernel does not begin early. let_next_start()
// lets the kernel after it begin; called after wait_for_previous() it leaves no more than two kernels at work.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_clusters(vi_context* context, void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared, int cluster,
    Arguments... arguments) {
    cudaLaunchAttribute attributes[2] = {};
    int count = 0;
    if (context->properties.major >= 9 && !context->constants_written) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    }
    context->constants_written = false;
    context->experts_written = false;
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared;
    config.stream = context->stream;
    config.attrs = attributes;
    config.numAttrs = count;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_early(vi_context* context, void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared,
    Arguments... arguments) {
    return launch_clusters(context, kernel, blocks, threads, shared, 1, arguments...);
}

template <typename T> __host__ __device__ constexpr T ceil_div(T a, T b) { return (a + b - 1) / b; }
constexpr size_t align_256(size_t bytes) { return (bytes + 255) / 256 * 256; }
inline bool aligned_16(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// vi_bf16 <-> float on either side. Device code may as well cast a vi_bf16* to __nv_bfloat16*: the bits are the same.
__host__ __device__ inline float bf16_to_f32(vi_bf16 x) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(static_cast<uint32_t>(x) << 16);
#else
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
#endif
}

__device__ inline vi_bf16 f32_to_bf16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

// Sums and maxima over a warp by halving: the order does not depend on anything but the lane.
template <typename T> __device__ inline T warp_sum(T x) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

// Sum over a block of up to 1024 threads, known to all of them. `shared` holds 32 T and may be reused after the next __syncthreads.
template <typename T> __device__ inline T block_sum(T x, T* shared) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = T(0);
    for (unsigned warp = 0; warp < (blockDim.x + 31) / 32; ++warp) sum += shared[warp];
    return sum;
}
