// Normal deviates by Box and Muller (1958): elements 2j and 2j + 1 are r cos and r sin of one draw x = splitmix(splitmix(seed) + j),
// r = sqrt(-2 ln u), u = ((x >> 40) + 1) 2^-24 in (0, 1], angle = 2 pi (x mod 2^24) 2^-24.
#include "context.h"
#include "common/splitmix.h"
#include <cmath>

extern "C" int32_t vi_random_normal(vi_context* context, void* out, int32_t dtype, int32_t seed, float mean, float deviation, int64_t count) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_random_normal(context, __func__, out, dtype, count));
    if (count == 0) return VI_OK;
    VI_RECORD(context, vi_random_normal(context, out, dtype, seed, mean, deviation, count));
    const uint64_t start = splitmix(static_cast<uint32_t>(seed));
#pragma omp parallel for schedule(static) num_threads(context->threads_for(count * 16))
    for (int64_t pair = 0; pair < (count + 1) / 2; pair++) {
        const uint64_t x = splitmix(start + static_cast<uint64_t>(pair));
        const double radius = std::sqrt(-2 * std::log((static_cast<double>(x >> 40) + 1) * 0x1p-24));
        const double angle = 2 * M_PI * static_cast<double>(x & 0xffffff) * 0x1p-24;
        const double normals[2] = {radius * std::cos(angle), radius * std::sin(angle)};
        for (int64_t i = 2 * pair; i < std::min(count, 2 * pair + 2); i++) {
            const float value = static_cast<float>(mean + deviation * normals[i & 1]);
            if (dtype == VI_F32) static_cast<float*>(out)[i] = value;
            else static_cast<vi_bf16*>(out)[i] = f32_to_bf16(value);
        }
    }
    return VI_OK;
} VI_CATCH(context)
