// Rows of a table.
#include "context.h"

namespace {

// One block a row. 16-byte loads where width and addresses allow it.
template <bool VECTOR>
__global__ void embedding_kernel(float* __restrict__ out, const int32_t* __restrict__ ids, const vi_bf16* __restrict__ table,
    int32_t width, int32_t vocabulary) {
    wait_for_previous();
    let_next_start();
    const int64_t row = blockIdx.x;
    const int32_t id = ids[row];
    const bool known = id >= 0 && id < vocabulary;
    const float nan = __int_as_float(0x7fffffff);
    float* to = out + row * width;
    const vi_bf16* from = table + static_cast<int64_t>(known ? id : 0) * width;
    if constexpr (VECTOR) {
        for (int32_t i = threadIdx.x; i < width / 8; i += blockDim.x) {
            uint4 packed = make_uint4(0, 0, 0, 0);
            if (known) packed = reinterpret_cast<const uint4*>(from)[i];
            const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
            float values[8];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                values[2 * j] = known ? __uint_as_float(words[j] << 16) : nan;
                values[2 * j + 1] = known ? __uint_as_float(words[j] & 0xffff0000u) : nan;
            }
            reinterpret_cast<float4*>(to)[2 * i] = make_float4(values[0], values[1], values[2], values[3]);
            reinterpret_cast<float4*>(to)[2 * i + 1] = make_float4(values[4], values[5], values[6], values[7]);
        }
    } else {
        for (int32_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = known ? bf16_to_f32(from[i]) : nan;
    }
}

} // namespace

extern "C" VI_API int32_t vi_embedding(vi_context* context, float* out, const int32_t* ids, const vi_bf16* table, int32_t rows,
    int32_t width, int32_t vocabulary) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_embedding(context, __func__, out, ids, table, rows, width, vocabulary));
    if (rows == 0) return VI_OK;
    const bool vector = width % 8 == 0 && aligned_16(out) && aligned_16(table);
    VI_CUDA(context, __func__, launch_early(context, vector ? embedding_kernel<true> : embedding_kernel<false>, rows, 256, 0, out,
        ids, table, width, vocabulary));
    return VI_OK;
} VI_CATCH(context)
