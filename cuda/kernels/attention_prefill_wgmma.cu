// The wgmma kernel and its launch: where it runs, tensor maps, and what is said of a wait that took too long. What its warps do: attention_prefill_wgmma.cuh.
#include "attention_prefill_wgmma.cuh"
#include <algorithm>
#include <cstdlib>

namespace {

constexpr int64_t l2_bytes = int64_t(32) << 20; // of keys and values that are worked on together, so that they stay in L2

template <int D, bool Rare>
__global__ void __launch_bounds__(Shape<D>::threads, 1)
prefill_kernel(const __grid_constant__ CUtensorMap keys, const __grid_constant__ CUtensorMap values, const __grid_constant__ Prompt a,
               const __grid_constant__ Schedule plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ uint8_t shared[];
    const Memory<D> memory(shared);
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32; // warp: the same for all of its lanes, as ptxas must know
    if (threadIdx.x == 0) memory.init();
    __syncthreads();
    if (warp < 4) {
        fewer_registers<Shape<D>::producer_registers>();
        if (warp > 0) produce_queries<D, Rare>(memory, a, plan, warp, lane);
        else if (lane == 0) produce_keys_and_values<D>(memory, &keys, &values, a, plan);
    } else {
        more_registers<Shape<D>::consumer_registers>();
        consume<D, Rare>(memory, a, plan, warp, lane);
    }
#endif
}

// Whether this card runs code in which the kernel is not empty.
__global__ void probe_kernel(volatile int32_t* found) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    *found = 1;
#else
    *found = 0;
#endif
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// Keys or values, in boxes of 64 channels of N tokens of a head.
CUresult tensor_map(CUtensorMap& map, const vi_context* context, const Prompt& a, const __half* from, cuuint32_t N, bool heads_inner) {
    const cuuint64_t tokens = a.count, heads = a.kv_heads, of_token = static_cast<cuuint64_t>(a.token_stride) * 2;
    const cuuint64_t of_head = a.kv_heads > 1 ? static_cast<cuuint64_t>(a.head_stride) * 2 : of_token * tokens; // one head: any distance that is valid
    const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(a.head_dim), heads_inner ? heads : tokens, heads_inner ? tokens : heads};
    const cuuint64_t strides[2] = {heads_inner ? of_head : of_token, heads_inner ? of_token : of_head};
    const cuuint32_t box[3] = {columns, heads_inner ? 1u : N, heads_inner ? N : 1u}, steps[3] = {1, 1, 1};
    return reinterpret_cast<Encode>(context->wgmma->encode)(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, const_cast<__half*>(from), sizes, strides, box, steps,
                                                            CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

template <int D, bool Rare> int32_t launch(vi_context* context, const char* name, const Prompt& a) {
    using S = Shape<D>;
    VI_SHARED(context, name, (prefill_kernel<D, Rare>), S::bytes);
    Schedule plan = {context->wgmma->counters, context->wgmma->lost, a.heads / a.kv_heads, 0, ceil_div(a.rows, S::M), 0, false};
    plan.tiles = plan.blocks * a.heads;
    plan.section = static_cast<int>(std::clamp<int64_t>(l2_bytes / (static_cast<int64_t>(a.count) * D * 4), 1, a.kv_heads));
    plan.heads_inner = a.kv_heads > 1 && a.head_stride < a.token_stride;
    CUtensorMap maps[2];
    for (int side = 0; side < 2; ++side) {
        const CUresult code = tensor_map(maps[side], context, a, side ? a.values : a.keys, S::N, plan.heads_inner);
        if (code != CUDA_SUCCESS)
            return context->fail(VI_DEVICE_ERROR, "%s: cuTensorMapEncodeTiled answers %d for %d tokens of %d KV heads of %d, strides %lld and %lld", name,
                                 static_cast<int>(code), a.count, a.kv_heads, a.head_dim, static_cast<long long>(a.token_stride), static_cast<long long>(a.head_stride));
    }
    prefill_kernel<D, Rare><<<std::min(context->multiprocessors, plan.tiles), S::threads, S::bytes, context->stream>>>(maps[0], maps[1], a, plan);
    VI_LAUNCHED(context, name);
    return VI_OK;
}

} // namespace

vi_wgmma::~vi_wgmma() {
    cudaFree(counters);
    cudaFreeHost(const_cast<int32_t*>(lost));
}

int32_t wgmma_open(vi_context* context, const char* name) {
    const char* chosen = std::getenv("VECINFER_WGMMA");
    if (context->properties.major != 9 || context->properties.minor != 0 || (chosen && std::strcmp(chosen, "off") == 0)) return VI_OK;
    auto made = std::make_shared<vi_wgmma>();
    void* shared = nullptr;
    VI_CUDA(context, name, cudaHostAlloc(&shared, 4 * sizeof(int32_t), cudaHostAllocMapped));
    made->lost = static_cast<int32_t*>(shared);
    probe_kernel<<<1, 1, 0, context->stream>>>(made->lost);
    VI_LAUNCHED(context, name);
    VI_CUDA(context, name, cudaStreamSynchronize(context->stream));
    if (made->lost[0] == 0) return VI_OK; // a build without sm_90a
    std::memset(shared, 0, 4 * sizeof(int32_t));
    VI_CUDA(context, name, cudaMalloc(&made->counters, 2 * sizeof(int32_t)));
    VI_CUDA(context, name, cudaMemsetAsync(made->counters, 0, 2 * sizeof(int32_t), context->stream));
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    VI_CUDA(context, name, cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &made->encode, 12000, cudaEnableDefault, &found));
#else
    VI_CUDA(context, name, cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &made->encode, cudaEnableDefault, &found));
#endif
    if (found != cudaDriverEntryPointSuccess || !made->encode)
        return context->fail(VI_NO_DEVICE, "%s: the driver has no cuTensorMapEncodeTiled: install one for CUDA 12 or later, or set VECINFER_WGMMA=off", name);
    context->wgmma = made;
    return VI_OK;
}

bool wgmma_takes(const vi_context* context, const float* q, int64_t q_stride) { return context->wgmma && aligned_16(q) && q_stride % 4 == 0; }

int32_t prefill_wgmma(vi_context* context, const char* name, const Prompt& prompt) {
    const int D = prompt.head_dim;
    if (prompt.cap > 0 || (D != 64 && D != 128 && D != 256)) return D <= 128 ? launch<128, true>(context, name, prompt) : launch<256, true>(context, name, prompt);
    return D == 64 ? launch<64, false>(context, name, prompt) : D == 128 ? launch<128, false>(context, name, prompt) : launch<256, false>(context, name, prompt);
}

std::string vi_wgmma::lost_wait() const {
    if (!lost || lost[0] == 0) return "";
    return "; vi_attention_prefill's block " + std::to_string(lost[2]) + " waited longer than " + std::to_string(patience / 1'000'000'000) + " s for barrier " +
           std::to_string(lost[0] - 1) + " (parity " + std::to_string(lost[1]) + ", thread " + std::to_string(lost[3]) + ")";
}
