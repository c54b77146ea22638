// vi_linear on both of its ways.
#include "test.h"
#include <algorithm>

namespace {

const vi_bf16* const no_bf16 = nullptr;
const float* const no_norm = nullptr;

// in_features that vectors of 8 fit and that they don't; outputs that tiles fit and that they don't.
struct Shape {
    int32_t out_features, in_features;
};
std::vector<Shape> shapes(bool small) {
    std::vector<Shape> all = {{1, 1}, {16, 8}, {17, 24}, {5, 131}, {300, 64}, {576, 1536}, {100, 1001}, {64, 1024}, {33, 4096}, {9000,
        576}, {40000, 200}};
    if (!small) all.insert(all.end(), {{4096, 4096}, {6200, 512}, {1024, 14336}, {35000, 130}});
    return all;
}

} // namespace

TEST(linear_few_rows) {
    for (const Shape shape : shapes(t.small))
        for (const int32_t rows : {1, 2, 3, 5, 8}) {
            const size_t outs = shape.out_features, ins = shape.in_features;
            Array<float> x(t, t.normal(rows * ins)), out(t, rows * outs);
            Array<vi_bf16> weight(t, t.normal_bf16(outs * ins, 1 / std::sqrt(float(ins)))), bias(t, t.normal_bf16(outs));
            t.call(&Functions::vi_linear, out, x, weight, bias, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, rows, shape.out_features, shape.in_features);
            t.close("with bias", out, 2e-6);
            t.call(&Functions::vi_linear, out, x, weight, no_bf16, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, rows, shape.out_features, shape.in_features);
            t.close("without bias", out, 2e-6);
        }
}

// A row's bits do not depend on what it is in a batch with.
TEST(linear_rows_are_equal) {
    for (const Shape shape : shapes(t.small)) {
        const size_t outs = shape.out_features, ins = shape.in_features;
        const std::vector<float> values = t.normal(8 * ins);
        Array<vi_bf16> weight(t, t.normal_bf16(outs * ins));
        std::vector<float> wanted;
        for (int32_t rows = 8; rows >= 1; --rows) {
            Array<float> x(t, std::vector<float>(values.begin(), values.begin() + rows * ins)), out(t, rows * outs);
            t.call_one(t.cuda, &Functions::vi_linear, out, x, weight, no_bf16, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, rows, shape.out_features,
                shape.in_features);
            const std::vector<float> found = out.read(t.cuda);
            if (rows == 8) wanted = found;
            CHECK(std::equal(found.begin(), found.end(), wanted.begin()), "%d rows differ from the same among 8, %d x %d", rows,
                shape.out_features, shape.in_features);
        }
        // The last row alone.
        Array<float> x(t, std::vector<float>(values.end() - ins, values.end())), out(t, outs);
        t.call_one(t.cuda, &Functions::vi_linear, out, x, weight, no_bf16, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, 1, shape.out_features, shape.in_features);
        const std::vector<float> found = out.read(t.cuda);
        CHECK(std::equal(found.begin(), found.end(), wanted.end() - outs), "row 7 alone differs, %d x %d", shape.out_features, shape.in_features);
    }
}

// Activations that are bf16 already, so that only the order of sums differs.
TEST(linear_many_rows) {
    for (const Shape shape : shapes(t.small))
        for (const int32_t rows : {9, 16, 77, t.small ? 20 : 300}) {
            const size_t outs = shape.out_features, ins = shape.in_features;
            if (outs * ins * rows > size_t(3) << 30) continue; // the CPU takes long
            std::vector<float> values = t.normal(rows * ins);
            for (float& value : values) value = f32(bf16(value));
            Array<float> x(t, values), out(t, rows * outs);
            Array<vi_bf16> weight(t, t.normal_bf16(outs * ins, 1 / std::sqrt(float(ins)))), bias(t, t.normal_bf16(outs));
            t.call(&Functions::vi_linear, out, x, weight, bias, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, rows, shape.out_features, shape.in_features);
            t.close("with bias", out, 3e-5); // sums of tensor cores are cut, not rounded
            t.call(&Functions::vi_linear, out, x, weight, no_bf16, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, rows, shape.out_features, shape.in_features);
            t.close("without bias", out, 3e-5);
        }
}

TEST(linear_rounds_many_rows) {
    const int32_t rows = 24, outs = 200, ins = 512;
    Array<float> x(t, t.normal(rows * ins)), out(t, rows * outs);
    Array<vi_bf16> weight(t, t.normal_bf16(outs * ins));
    t.call(&Functions::vi_linear, out, x, weight, no_bf16, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, rows, outs, ins);
    t.close("out", out, 5e-3);
}

static std::vector<float> floats(const std::vector<vi_bf16>& from) {
    std::vector<float> out(from.size());
    std::transform(from.begin(), from.end(), out.begin(), [](vi_bf16 x) { return f32(x); });
    return out;
}

// Inputs and outputs in bf16, which the CUDA library alone takes, of any number of rows, against the CPU library's f32.
TEST(linear_of_bf16) {
    for (const Shape shape : {Shape{64, 4096}, {100, 1001}, {18, 26}, {3072, 576}})
        for (const int32_t rows : {1, 8, 9, 77}) {
            const size_t outs = shape.out_features, ins = shape.in_features;
            std::vector<vi_bf16> halves = t.normal_bf16(rows * ins);
            Array<float> x(t, floats(halves)), out(t, t.normal(rows * outs)), gates(t, rows * outs / 2);
            Array<vi_bf16> half(t, halves), rounded(t, rows * outs), gated(t, rows * outs / 2);
            Array<vi_bf16> weight(t, t.normal_bf16(outs * ins, 1 / std::sqrt(float(ins)))), bias(t, t.normal_bf16(outs));
            Array<float> norm(t, t.normal(ins, 1, 1));
            auto call = [&](Library& library, auto& to, auto& from, const auto& scales, int32_t output, int32_t x_dtype, int32_t out_dtype) {
                t.call_one(library, &Functions::vi_linear, to, from, weight, bias, scales, 1e-5f, VI_BF16, output, x_dtype, out_dtype, rows, shape.out_features,
                    shape.in_features);
            };
            call(t.cpu, out, x, no_norm, VI_OUTPUT_SUM, VI_F32, VI_F32);
            call(t.cuda, out, half, no_norm, VI_OUTPUT_SUM, VI_BF16, VI_F32);
            t.close("sums of bf16", out, 3e-5);
            call(t.cpu, out, x, no_norm, VI_OUTPUT_VALUES, VI_F32, VI_F32);
            call(t.cuda, rounded, half, no_norm, VI_OUTPUT_VALUES, VI_BF16, VI_BF16);
            close("bf16 of bf16", floats(rounded.read(t.cuda)), out.read(t.cpu), 3e-3);
            call(t.cpu, gates, x, norm, VI_OUTPUT_SILU, VI_F32, VI_F32);
            call(t.cuda, gated, x, norm, VI_OUTPUT_SILU, VI_F32, VI_BF16);
            close("gated bf16", floats(gated.read(t.cuda)), gates.read(t.cpu), 1e-2);
        }
    Array<float> x(t, 64);
    Array<vi_bf16> half(t, 64);
    const auto refused = [&](Library& library, int32_t code, const float* norm, int32_t output, int32_t x_dtype, int32_t out_dtype) {
        const int32_t found = t.status(library, &Functions::vi_linear, x, x, half, no_bf16, norm, 0.0f, VI_BF16, output, x_dtype, out_dtype, 1, 2, 2);
        CHECK(found == code, "status %d in place of %d", found, code);
    };
    refused(t.cpu, VI_UNSUPPORTED, nullptr, VI_OUTPUT_VALUES, VI_BF16, VI_F32);
    refused(t.cpu, VI_UNSUPPORTED, nullptr, VI_OUTPUT_VALUES, VI_F32, VI_BF16);
    refused(t.cuda, VI_INVALID_ARGUMENT, nullptr, VI_OUTPUT_SUM, VI_F32, VI_BF16);
    refused(t.cuda, VI_INVALID_ARGUMENT, x.at(t.cuda), VI_OUTPUT_VALUES, VI_BF16, VI_F32);
    refused(t.cuda, VI_INVALID_ARGUMENT, nullptr, VI_OUTPUT_VALUES, VI_F16, VI_F32);
}

// The norm before the product and what becomes of it; rows on both ways.
TEST(linear_norm_and_outputs) {
    for (const Shape shape : {Shape{18, 24}, {100, 132}, {576, 1536}, {3072, 576}})
        for (const int32_t rows : {1, 3, 8, 20})
            for (const bool with_norm : {false, true})
                for (const int32_t output : {VI_OUTPUT_VALUES, VI_OUTPUT_SUM, VI_OUTPUT_SILU}) {
                    const size_t outs = shape.out_features, ins = shape.in_features;
                    Array<float> x(t, t.normal(rows * ins, 3)), norm(t, t.normal(ins, 1, 1)), out(t, t.normal(rows * (output == VI_OUTPUT_SILU ? outs / 2 : outs)));
                    Array<vi_bf16> weight(t, t.normal_bf16(outs * ins, 1 / std::sqrt(float(ins)))), bias(t, t.normal_bf16(outs));
                    for (int32_t repeat = 0; repeat < 2; ++repeat) {
                        if (with_norm) t.call(&Functions::vi_linear, out, x, weight, bias, norm, 1e-5f, VI_BF16, output, VI_F32, VI_F32, rows, shape.out_features, shape.in_features);
                        else t.call(&Functions::vi_linear, out, x, weight, bias, no_norm, 0.0f, VI_BF16, output, VI_F32, VI_F32, rows, shape.out_features, shape.in_features);
                        t.close(output == VI_OUTPUT_SILU ? "gated" : output == VI_OUTPUT_SUM ? "sums" : "values", out, rows > 8 ? 8e-3 : 3e-6);
                    }
                }
}

// A norm before the product of many rows gives the bits of vi_rmsnorm and then the product, also where neither vectors nor cuBLAS fit.
TEST(linear_norm_of_many_rows) {
    for (const Shape shape : {Shape{64, 4096}, {100, 1001}, {33, 8}, {18, 26}})
        for (const int32_t rows : {9, 300}) {
            const size_t outs = shape.out_features, ins = shape.in_features;
            Array<float> x(t, t.normal(rows * ins, 3)), norm(t, t.normal(ins, 1, 1)), normed(t, rows * ins), out(t, rows * outs), wanted(t, rows * outs);
            Array<vi_bf16> weight(t, t.normal_bf16(outs * ins, 1 / std::sqrt(float(ins))));
            t.call_one(t.cuda, &Functions::vi_rmsnorm, normed, static_cast<float*>(nullptr), x, norm, 1e-5f, rows, shape.in_features);
            t.call_one(t.cuda, &Functions::vi_linear, wanted, normed, weight, no_bf16, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, rows, shape.out_features, shape.in_features);
            t.call_one(t.cuda, &Functions::vi_linear, out, x, weight, no_bf16, norm, 1e-5f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, rows, shape.out_features, shape.in_features);
            CHECK(out.read(t.cuda) == wanted.read(t.cuda), "%d rows of %d inputs: other bits than of rows normed before", rows, shape.in_features);
        }
}

// Weight i of a GGUF block, as vi_pack describes it.
static double block_weight(int32_t format, const uint8_t* block, int i) {
    const auto half = [&](int at) { // normal numbers alone
        const int bits = block[at] | block[at + 1] << 8;
        return (bits >> 15 ? -1.0 : 1.0) * std::ldexp(1024 + (bits & 1023), (bits >> 10 & 31) - 25);
    };
    const double d = half(0);
    if (format == VI_Q8_0) return d * static_cast<int8_t>(block[2 + i]);
    const int q = block[(format == VI_Q4_1 ? 4 : 2) + i % 16] >> i / 16 * 4 & 15;
    return format == VI_Q4_0 ? d * (q - 8) : d * q + half(2);
}

// Packed weights. The CPU library rounds x to 8 bits, so that inputs are whole numbers up to 127 that hold one, which both take as they are.
TEST(linear_packed) {
    const struct { int32_t format, bytes; } formats[] = {{VI_Q8_0, 34}, {VI_Q4_0, 18}, {VI_Q4_1, 20}};
    for (const auto [format, bytes] : formats)
        for (const Shape shape : {Shape{1, 32}, {16, 64}, {17, 96}, {50, 576}, {300, 4096}})
            for (const int32_t rows : {1, 3, 8, 20}) {
                const size_t outs = shape.out_features, ins = shape.in_features, blocks = outs * ins / 32, padded = (outs + 15) / 16 * 16 * ins / 32;
                std::vector<uint8_t> raw(blocks * bytes);
                for (uint8_t& byte : raw) byte = static_cast<uint8_t>(t.integer(0, 255));
                for (size_t b = 0; b < blocks; ++b) { // f16 scales 2^-7 .. 2^-5, of either sign
                    for (int32_t k = 0; k < (format == VI_Q4_1 ? 2 : 1); ++k) {
                        const uint16_t scale = static_cast<uint16_t>((t.integer(0, 1) << 15) | (t.integer(8, 9) << 10) | t.integer(0, 1023));
                        std::memcpy(&raw[b * bytes + 2 * k], &scale, 2);
                    }
                }
                std::vector<float> values(rows * ins);
                for (float& value : values) value = static_cast<float>(t.integer(-126, 126));
                for (size_t i = 0; i < values.size(); i += 32) values[i] = 127;
                Array<uint8_t> from(t, raw), weight(t, padded * bytes);
                Array<float> x(t, values), out(t, t.normal(rows * outs));
                Array<vi_bf16> bias(t, t.normal_bf16(outs));
                t.call(&Functions::vi_pack, weight, from, format, shape.out_features, shape.in_features);
                for (const int32_t output : {VI_OUTPUT_SUM, VI_OUTPUT_VALUES}) {
                    t.call(&Functions::vi_linear, out, x, weight, bias, no_norm, 0.0f, format, output, VI_F32, VI_F32, rows, shape.out_features, shape.in_features);
                    t.close(output == VI_OUTPUT_SUM ? "sums" : "values", out, rows > 8 ? 4e-3 : 2e-6); // many rows: weights in bf16
                }
                if (outs % 2 || rows > 8) continue;
                // Normed rows meet the CPU library's rounding, so gates are compared with float64.
                Array<float> norm(t, t.normal(ins, 0.1f, 1)), gated(t, rows * outs / 2);
                t.call(&Functions::vi_linear, gated, x, weight, bias, norm, 1e-5f, format, VI_OUTPUT_SILU, VI_F32, VI_F32, rows, shape.out_features, shape.in_features);
                const std::vector<float> scales = norm.read(t.cpu);
                const std::vector<vi_bf16> offsets = bias.read(t.cpu);
                std::vector<float> gates(rows * outs / 2);
                for (int32_t r = 0; r < rows; ++r) {
                    std::vector<double> y(outs);
                    double squares = 0;
                    for (size_t i = 0; i < ins; ++i) squares += double(values[r * ins + i]) * values[r * ins + i];
                    for (size_t o = 0; o < outs; ++o) {
                        y[o] = f32(offsets[o]);
                        for (size_t i = 0; i < ins; ++i)
                            y[o] += values[r * ins + i] / std::sqrt(squares / ins + 1e-5) * scales[i] *
                                block_weight(format, &raw[(o * ins / 32 + i / 32) * bytes], int(i % 32));
                    }
                    for (size_t o = 0; o < outs / 2; ++o) gates[r * outs / 2 + o] = float(y[o] / (1 + std::exp(-y[o])) * y[outs / 2 + o]);
                }
                close("gates", gated.read(t.cuda), gates, 2e-5);
                // The last row alone has the same bits.
                Array<float> alone_x(t, std::vector<float>(values.end() - ins, values.end())), alone(t, outs);
                t.call_one(t.cuda, &Functions::vi_linear, alone, alone_x, weight, bias, no_norm, 0.0f, format, VI_OUTPUT_VALUES, VI_F32, VI_F32, 1, shape.out_features,
                    shape.in_features);
                const std::vector<float> wanted = out.read(t.cuda), found = alone.read(t.cuda);
                CHECK(std::equal(found.begin(), found.end(), wanted.end() - outs), "the last of %d rows alone differs", rows);
            }
    Array<uint8_t> some(t, 64);
    Array<float> x(t, 64);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_pack, some, some, VI_BF16, 1, 32);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_pack, some, some, VI_Q8_0, 1, 33);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_linear, x, x, some, no_bf16, no_norm, 0.0f, VI_Q4_0, VI_OUTPUT_VALUES, VI_F32, VI_F32, 1, 1, 40);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_linear, x, x, some, no_bf16, no_norm, 0.0f, 99, VI_OUTPUT_VALUES, VI_F32, VI_F32, 1, 1, 32);
}

// From 256 rows on a row's bits are the same for all numbers of rows: prompts that are read together are what they are alone.
TEST(linear_whole_sums) {
    const std::vector<Shape> some = t.small ? std::vector<Shape>{{576, 1536}, {1024, 512}} : std::vector<Shape>{{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}, {960, 576}, {576, 1536}};
    const int32_t counts[] = {256, 257, 300, 512, 777, 1024, 2048, 3001, 4096}, most = t.small ? 512 : 4096;
    for (const Shape shape : some)
        for (const int32_t x_dtype : {VI_F32, VI_BF16})
            for (const int32_t out_dtype : {VI_F32, VI_BF16}) {
                const int64_t outs = shape.out_features, ins = shape.in_features;
                uint8_t *x = nullptr, *weight = nullptr, *out = nullptr;
                auto call = [&](auto function, auto... arguments) { t.call_one(t.cuda, function, arguments...); };
                call(&Functions::vi_allocate, reinterpret_cast<uint8_t*>(&x), most * ins * 4);
                call(&Functions::vi_allocate, reinterpret_cast<uint8_t*>(&weight), outs * ins * 2);
                call(&Functions::vi_allocate, reinterpret_cast<uint8_t*>(&out), most * outs * 4);
                call(&Functions::vi_random_normal, x, x_dtype, t.integer(0, 1 << 30), 0.0f, 1.0f, most * ins);
                call(&Functions::vi_random_normal, weight, int32_t(VI_BF16), t.integer(0, 1 << 30), 0.0f, 1.0f, outs * ins);
                std::vector<uint8_t> wanted;
                for (const int32_t rows : counts) {
                    if (rows > most) continue;
                    call(&Functions::vi_linear, out, x, weight, no_bf16, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, x_dtype, out_dtype, rows, shape.out_features, shape.in_features);
                    std::vector<uint8_t> found(256 * outs * (out_dtype == VI_F32 ? 4 : 2));
                    call(&Functions::vi_copy_to_host, found.data(), out, static_cast<int64_t>(found.size()));
                    if (wanted.empty()) wanted = found;
                    CHECK(found == wanted, "%d x %d, x %d, out %d: rows of %d at once have other bits than of %d", shape.out_features, shape.in_features, x_dtype, out_dtype, rows,
                          counts[0]);
                }
                for (uint8_t* memory : {x, weight, out}) call(&Functions::vi_free, memory);
            }
}
