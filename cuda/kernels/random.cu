// Normal deviates by Box and Muller (1958): elements 2j and 2j + 1 are r cos and r sin of one draw x = splitmix(splitmix(seed) + j),
// r = sqrt(-2 ln u), u = ((x >> 40) + 1) 2^-24 in (0, 1], angle = 2 pi (x mod 2^24) 2^-24.
#include "context.h"
#include "common/splitmix.h"
#include <algorithm>

namespace {

template <typename Out>
__global__ void random_normal_kernel(Out* __restrict__ out, uint64_t start, float mean, float deviation, int64_t count) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t pair = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; pair < (count + 1) / 2; pair += step) {
        const uint64_t x = splitmix(start + static_cast<uint64_t>(pair));
        const double radius = sqrt(-2 * log((static_cast<double>(x >> 40) + 1) * 0x1p-24));
        double sine, cosine;
        sincospi(2 * static_cast<double>(x & 0xffffff) * 0x1p-24, &sine, &cosine);
        const float values[2] = {static_cast<float>(mean + deviation * (radius * cosine)),
            static_cast<float>(mean + deviation * (radius * sine))};
        for (int64_t i = 2 * pair; i < min(count, 2 * pair + 2); ++i) {
            if constexpr (sizeof(Out) == 4) out[i] = values[i & 1];
            else out[i] = f32_to_bf16(values[i & 1]);
        }
    }
}

} // namespace

extern "C" VI_API int32_t vi_random_normal(vi_context* context, void* out, int32_t dtype, int32_t seed, float mean, float deviation,
    int64_t count) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_random_normal(context, __func__, out, dtype, count));
    if (count == 0) return VI_OK;
    const uint64_t start = splitmix(static_cast<uint32_t>(seed));
    const int32_t blocks = static_cast<int32_t>(std::min<int64_t>(ceil_div<int64_t>(ceil_div<int64_t>(count, 2), 256),
        context->multiprocessors * 8));
    if (dtype == VI_F32) random_normal_kernel<<<blocks, 256, 0, context->stream>>>(static_cast<float*>(out), start, mean, deviation, count);
    else random_normal_kernel<<<blocks, 256, 0, context->stream>>>(static_cast<vi_bf16*>(out), start, mean, deviation, count);
    VI_LAUNCHED(context, __func__);
    context->constants_written = true;
    return VI_OK;
} VI_CATCH(context)
