// vi_linear on both of its ways.
#include "test.h"
#include <algorithm>

namespace {

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
            t.call(&Functions::vi_linear, out, x, weight, bias, rows, shape.out_features, shape.in_features);
            t.close("with bias", out, 2e-6);
            t.call(&Functions::vi_linear, out, x, weight, static_cast<const vi_bf16*>(nullptr), rows, shape.out_features, shape.in_features);
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
            t.call_one(t.cuda, &Functions::vi_linear, out, x, weight, static_cast<const vi_bf16*>(nullptr), rows, shape.out_features,
                shape.in_features);
            const std::vector<float> found = out.read(t.cuda);
            if (rows == 8) wanted = found;
            CHECK(std::equal(found.begin(), found.end(), wanted.begin()), "%d rows differ from the same among 8, %d x %d", rows,
                shape.out_features, shape.in_features);
        }
        // The last row alone.
        Array<float> x(t, std::vector<float>(values.end() - ins, values.end())), out(t, outs);
        t.call_one(t.cuda, &Functions::vi_linear, out, x, weight, static_cast<const vi_bf16*>(nullptr), 1, shape.out_features, shape.in_features);
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
            t.call(&Functions::vi_linear, out, x, weight, bias, rows, shape.out_features, shape.in_features);
            t.close("with bias", out, 3e-5); // sums of tensor cores are cut, not rounded
            t.call(&Functions::vi_linear, out, x, weight, static_cast<const vi_bf16*>(nullptr), rows, shape.out_features, shape.in_features);
            t.close("without bias", out, 3e-5);
        }
}

TEST(linear_rounds_many_rows) {
    const int32_t rows = 24, outs = 200, ins = 512;
    Array<float> x(t, t.normal(rows * ins)), out(t, rows * outs);
    Array<vi_bf16> weight(t, t.normal_bf16(outs * ins));
    t.call(&Functions::vi_linear, out, x, weight, static_cast<const vi_bf16*>(nullptr), rows, outs, ins);
    t.close("out", out, 5e-3);
}
