// Mixtures of experts: vi_route, vi_expert_linear on both of its ways, vi_expert_sum.
#include "test.h"
#include <algorithm>
#include <numeric>

namespace {

const vi_bf16* const no_bf16 = nullptr;

struct Shape {
    int32_t expert_count, top, out_features, in_features;
};
std::vector<Shape> shapes(bool small) {
    std::vector<Shape> all = {{4, 1, 1, 1}, {8, 2, 16, 8}, {4, 4, 17, 24}, {5, 3, 33, 131}, {16, 5, 300, 64}, {128, 8, 96, 256}, {32, 4, 130, 1001}, {9, 6, 64, 1024}, {40, 7, 200, 72}};
    if (!small) all.insert(all.end(), {{24, 8, 1536, 2048}, {24, 8, 2048, 768}, {8, 2, 1792, 512}, {32, 32, 64, 64}});
    return all;
}

enum class Choice { distinct, one, few, missing };

// Ids of a step: different ones in each row, all the last, the first or the last, or some that don't exist.
std::vector<int32_t> choose(Test& t, int32_t rows, const Shape& s, Choice choice) {
    std::vector<int32_t> out, all(s.expert_count);
    std::iota(all.begin(), all.end(), 0);
    for (int32_t r = 0; r < rows; ++r) {
        std::shuffle(all.begin(), all.end(), t.random);
        for (int32_t k = 0; k < s.top; ++k)
            out.push_back(choice == Choice::distinct ? all[k] : choice == Choice::one ? s.expert_count - 1 : choice == Choice::few ? t.integer(0, 1) * (s.expert_count - 1)
                                                                                                       : t.integer(-1, s.expert_count));
    }
    return out;
}

} // namespace

TEST(route) {
    for (const auto& [expert_count, top] : {std::pair{1, 1}, {4, 4}, {8, 2}, {33, 5}, {128, 8}, {512, 10}, {1024, 32}})
        for (const int32_t rows : {1, 3, 70})
            for (const int32_t method : {VI_ROUTE_SOFTMAX, VI_ROUTE_NORMALIZED, VI_ROUTE_TOP_SOFTMAX})
                for (const bool equals : {false, true}) {
                    std::vector<float> values = t.normal(size_t(rows) * expert_count, 3);
                    if (equals) for (float& value : values) value = std::round(value); // -0 among them
                    if (rows == 3) values[0] = -INFINITY, values.back() = INFINITY;
                    if (rows == 70) for (int32_t i = 0; i < 9; ++i) values[t.integer(0, int32_t(values.size()) - 1)] = i % 2 ? NAN : -INFINITY;
                    Array<float> logits(t, values), weights(t, size_t(rows) * top);
                    Array<int32_t> experts(t, size_t(rows) * top);
                    t.call(&Functions::vi_route, experts, weights, logits, method, rows, expert_count, top);
                    t.equal("experts", experts);
                    t.close("weights", weights, 2e-6);
                }
    Array<float> x(t, 8);
    Array<int32_t> ids(t, 8);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_route, ids, x, x, 3, 1, 4, 2);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_route, ids, x, x, VI_ROUTE_SOFTMAX, 1, 4, 5);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_route, ids, x, x, VI_ROUTE_SOFTMAX, 1, 1025, 2);
}

TEST(expert_linear) {
    for (const Shape& s : shapes(t.small)) {
        const size_t outs = s.out_features, ins = s.in_features;
        Array<vi_bf16> weight(t, t.normal_bf16(s.expert_count * outs * ins, 1 / std::sqrt(float(ins)))), bias(t, t.normal_bf16(s.expert_count * outs));
        for (const int32_t rows : {1, 2, 5, 8, 9, 70, t.small ? 20 : 700})
            for (const Choice choice : {Choice::distinct, Choice::one, Choice::few, Choice::missing}) {
                const size_t pairs = size_t(rows) * s.top;
                if (pairs * outs * ins > size_t(1) << (choice == Choice::distinct ? 35 : 31)) continue; // the CPU takes long
                for (const int32_t x_top : {1, s.top}) {
                    std::vector<float> values = t.normal(size_t(rows) * x_top * ins);
                    if (rows > 8) for (float& value : values) value = f32(bf16(value)); // so that only the order of sums differs
                    Array<float> x(t, values), out(t, pairs * outs);
                    Array<int32_t> experts(t, choose(t, rows, s, choice));
                    const double tolerance = rows > 8 ? 3e-5 : 2e-6;
                    t.call(&Functions::vi_expert_linear, out, x, weight, bias, experts, VI_BF16, rows, s.top, s.expert_count, s.out_features, s.in_features, x_top);
                    t.close("with bias", out, tolerance);
                    t.call(&Functions::vi_expert_linear, out, x, weight, no_bf16, experts, VI_BF16, rows, s.top, s.expert_count, s.out_features, s.in_features, x_top);
                    t.close("without bias", out, tolerance);
                }
            }
    }
}

// A row's bits do not depend on what it is in a batch with, nor on how many share its experts.
TEST(expert_linear_rows_are_equal) {
    for (const Shape& s : shapes(t.small))
        for (const Choice choice : {Choice::distinct, Choice::one, Choice::few}) {
            const size_t outs = s.out_features, ins = s.in_features, width = s.top * outs;
            const std::vector<float> values = t.normal(8 * ins);
            const std::vector<int32_t> ids = choose(t, 8, s, choice);
            Array<vi_bf16> weight(t, t.normal_bf16(s.expert_count * outs * ins));
            std::vector<float> wanted;
            for (const auto& [first, rows] : {std::pair{0, 8}, {0, 1}, {7, 1}, {2, 5}}) {
                Array<float> x(t, std::vector<float>(values.begin() + first * ins, values.begin() + (first + rows) * ins)), out(t, rows * width);
                Array<int32_t> experts(t, std::vector<int32_t>(ids.begin() + first * s.top, ids.begin() + (first + rows) * s.top));
                t.call_one(t.cuda, &Functions::vi_expert_linear, out, x, weight, no_bf16, experts, VI_BF16, rows, s.top, s.expert_count, s.out_features, s.in_features, 1);
                const std::vector<float> found = out.read(t.cuda);
                if (rows == 8) wanted = found;
                CHECK(std::equal(found.begin(), found.end(), wanted.begin() + first * width), "rows %d to %d differ from the same among 8, %d x %d of %d", first,
                    first + rows - 1, s.out_features, s.in_features, s.expert_count);
            }
        }
}

// Packed weights. The CPU library rounds x to 8 bits, so that inputs are whole numbers up to 127 that hold one, which both take as they are.
TEST(expert_linear_packed) {
    const struct { int32_t format, bytes; } formats[] = {{VI_Q8_0, 34}, {VI_Q4_0, 18}, {VI_Q4_1, 20}};
    for (const auto [format, bytes] : formats)
        for (const Shape& s : {Shape{4, 1, 16, 32}, {8, 2, 48, 96}, {16, 4, 144, 64}, {5, 3, 272, 576}, {64, 8, 64, 2048}})
            for (const int32_t rows : {1, 3, 8, 20, 300})
                for (const Choice choice : {Choice::distinct, Choice::few, Choice::missing}) {
                    const size_t outs = s.out_features, ins = s.in_features, pairs = size_t(rows) * s.top, blocks = s.expert_count * outs * ins / 32;
                    std::vector<uint8_t> raw(blocks * bytes);
                    for (uint8_t& byte : raw) byte = static_cast<uint8_t>(t.integer(0, 255));
                    for (size_t b = 0; b < blocks; ++b) // f16 scales 2^-7 .. 2^-5, of either sign
                        for (int32_t k = 0; k < (format == VI_Q4_1 ? 2 : 1); ++k) {
                            const uint16_t scale = static_cast<uint16_t>((t.integer(0, 1) << 15) | (t.integer(8, 9) << 10) | t.integer(0, 1023));
                            std::memcpy(&raw[b * bytes + 2 * k], &scale, 2);
                        }
                    const int32_t x_top = t.integer(0, 1) ? 1 : s.top;
                    std::vector<float> values(size_t(rows) * x_top * ins);
                    for (float& value : values) value = static_cast<float>(t.integer(-126, 126));
                    for (size_t i = 0; i < values.size(); i += 32) values[i] = 127;
                    Array<uint8_t> from(t, raw), weight(t, raw.size());
                    Array<float> x(t, values), out(t, pairs * outs);
                    Array<vi_bf16> bias(t, t.normal_bf16(s.expert_count * outs));
                    Array<int32_t> experts(t, choose(t, rows, s, choice));
                    t.call(&Functions::vi_pack, weight, from, format, s.expert_count * s.out_features, s.in_features);
                    t.call(&Functions::vi_expert_linear, out, x, weight, bias, experts, format, rows, s.top, s.expert_count, s.out_features, s.in_features, x_top);
                    t.close("packed", out, rows > 8 ? 4e-3 : 2e-6); // many rows: weights in bf16
                }
    Array<uint8_t> some(t, 4096);
    Array<float> x(t, 4096);
    Array<int32_t> ids(t, std::vector<int32_t>(8, 0));
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_expert_linear, x, x, some, no_bf16, ids, VI_Q4_0, 1, 2, 4, 20, 32, 1);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_expert_linear, x, x, some, no_bf16, ids, VI_Q4_0, 1, 2, 4, 16, 40, 1);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_expert_linear, x, x, some, no_bf16, ids, VI_F32, 1, 2, 4, 16, 32, 1);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_expert_linear, x, x, some, no_bf16, ids, VI_BF16, 1, 3, 4, 16, 32, 2);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_expert_linear, x, x, some, no_bf16, ids, VI_BF16, 1, 3, 2, 16, 32, 1);
}

TEST(expert_sum) {
    for (const int32_t rows : {1, 8, 77})
        for (const int32_t top : {1, 2, 8, 11})
            for (const int32_t width : {1, 33, 256, 2048}) {
                Array<float> residual(t, t.normal(size_t(rows) * width)), x(t, t.normal(size_t(rows) * top * width)), weights(t, t.normal(size_t(rows) * top));
                t.call(&Functions::vi_expert_sum, residual, x, weights, rows, top, width);
                t.close("residual", residual, 1e-6);
            }
}

// The choice and two products after it, layer after layer in the same memory, as a decode step has them: the second product reads its ids before the first has ended, and
// never those of the layer before.
TEST(experts_one_after_another) {
    const Shape s = {128, 8, 512, 256};
    const int32_t rows = t.integer(1, 8), width = s.in_features, layers = 4;
    const size_t pairs = size_t(rows) * s.top, logit_count = size_t(rows) * s.expert_count;
    Array<vi_bf16> up(t, t.normal_bf16(size_t(s.expert_count) * s.out_features * width, 1.0f / 16)),
        down(t, t.normal_bf16(size_t(s.expert_count) * width * s.out_features, 1.0f / 23));
    Array<float> x(t, size_t(rows) * width), logits(t, logit_count * layers), weights(t, pairs), products(t, pairs * s.out_features), back(t, pairs * width);
    Array<float> residual(t, t.normal(size_t(rows) * width));
    Array<int32_t> experts(t, pairs);
    const auto step = [&](Library& library, int32_t layer) {
        t.call_one(library, &Functions::vi_route, experts, weights, static_cast<const float*>(logits.at(library) + layer * logit_count), VI_ROUTE_NORMALIZED, rows,
            s.expert_count, s.top);
        t.call_one(library, &Functions::vi_expert_linear, products, x, up, no_bf16, experts, VI_BF16, rows, s.top, s.expert_count, s.out_features, width, 1);
        t.call_one(library, &Functions::vi_expert_linear, back, products, down, no_bf16, experts, VI_BF16, rows, s.top, s.expert_count, width, s.out_features, s.top);
        t.call_one(library, &Functions::vi_expert_sum, residual, back, weights, rows, s.top, width);
    };
    vi_graph* graph = nullptr;
    t.call_one(t.cuda, &Functions::vi_graph_begin);
    for (int32_t layer = 0; layer < layers; ++layer) step(t.cuda, layer);
    t.call_one(t.cuda, &Functions::vi_graph_end, reinterpret_cast<uint8_t*>(&graph));
    for (int32_t round = 0; round < (t.small ? 4 : 40); ++round) {
        x.write(t.normal(size_t(rows) * width));
        logits.write(t.normal(logit_count * layers));
        residual.write(t.normal(size_t(rows) * width));
        for (int32_t layer = 0; layer < layers; ++layer) {
            step(t.cpu, layer);
            if (round % 2) step(t.cuda, layer);
        }
        if (round % 2 == 0) t.call_one(t.cuda, &Functions::vi_graph_launch, graph);
        t.equal("experts", experts);
        t.close("residual", residual, 1e-5);
    }
    t.call_one(t.cuda, &Functions::vi_graph_destroy, graph);
}
