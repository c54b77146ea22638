// Conversions and random numbers.
#include "test.h"
#include <limits>

TEST(convert) {
    const float infinity = std::numeric_limits<float>::infinity();
    for (const int32_t count : {1, 7, 256, 4099}) {
        std::vector<float> values = t.normal(count, 3);
        const float special[] = {0.0f, -0.0f, infinity, -infinity, 65504.0f, 65520.0f, 1e-8f, 6e-8f, -3e-6f, 1e38f, 3.4e38f, 1.00390625f,
            1.01171875f, 2049.0f, 1e-40f};
        for (size_t i = 0; i < std::size(special) && int32_t(i) < count; ++i) values[i] = special[i];
        Array<float> in(t, values), back(t, count);
        for (const int32_t dtype : {VI_BF16, VI_F16}) {
            Array<uint16_t> half(t, count), other(t, count);
            t.call(&Functions::vi_convert, half, in, dtype, VI_F32, int64_t(count));
            t.equal("half", half);
            t.call(&Functions::vi_convert, other, half, dtype == VI_BF16 ? VI_F16 : VI_BF16, dtype, int64_t(count));
            t.equal("other half", other);
            t.call(&Functions::vi_convert, back, half, VI_F32, dtype, int64_t(count));
            t.equal("back", back);
        }
        t.call(&Functions::vi_convert, back, in, VI_F32, VI_F32, int64_t(count));
        t.equal("copy", back);
    }
    Array<float> in(t, t.normal(4));
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_convert, in, in, VI_I32, VI_F32, int64_t(4));
}

TEST(convert_nan) {
    Array<float> in(t, std::vector<float>(5, NAN)), out(t, 5);
    Array<uint16_t> half(t, 5);
    for (const int32_t dtype : {VI_BF16, VI_F16}) {
        t.call(&Functions::vi_convert, half, in, dtype, VI_F32, int64_t(5));
        t.call(&Functions::vi_convert, out, half, VI_F32, dtype, int64_t(5));
        t.close("out", out, 0);
    }
}

TEST(random_normal) {
    for (const int64_t count : {int64_t(1), int64_t(1001), int64_t(t.small ? 4096 : 1000003)}) {
        const int32_t seed = t.integer(-1000000, 1000000);
        Array<float> out(t, count);
        t.call(&Functions::vi_random_normal, out, VI_F32, seed, 1.5f, 0.25f, count);
        t.close("f32", out, 1e-6);
        Array<vi_bf16> half(t, count);
        t.call(&Functions::vi_random_normal, half, VI_BF16, seed, 0.0f, 2.0f, count);
        const std::vector<vi_bf16> wanted = half.read(t.cpu), found = half.read(t.cuda);
        for (int64_t i = 0; i < count; ++i)
            // Where the cosine is zero but for rounding, each library has a rounding of its own.
            CHECK(std::fabs(f32(wanted[i]) - f32(found[i])) <= 0.008 * std::fabs(f32(wanted[i])) + 1e-6, "bf16[%lld] is %g, on the CPU %g",
                static_cast<long long>(i), f32(found[i]), f32(wanted[i]));
    }
}
