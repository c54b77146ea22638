// Embedding, normalization, rotation, gate, sums and scales. All but the first are compared with float64 too.
#include "test.h"
#include <algorithm>
#include <limits>

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), nan_value = std::numeric_limits<float>::quiet_NaN();

// Both libraries against float64: NaN and infinity at the same places, |difference| <= absolute + relative |wanted|.
void exact(Test& t, const char* name, const Array<float>& array, const std::vector<double>& wanted, double absolute, double relative) {
    for (Library* library : {&t.cpu, &t.cuda}) {
        const std::vector<float> found = array.read(*library);
        CHECK(found.size() == wanted.size(), "%s has %zu elements instead of %zu", name, found.size(), wanted.size());
        for (size_t i = 0; i < wanted.size(); ++i) {
            const bool close = std::isnan(wanted[i]) ? std::isnan(found[i]) : double(found[i]) == wanted[i] ||
                                                                                  std::fabs(found[i] - wanted[i]) <= absolute + relative * std::fabs(wanted[i]);
            CHECK(close, "%s: %s[%zu] of %zu is %.9g, in float64 %.9g", library->path.c_str(), name, i, wanted.size(), double(found[i]), wanted[i]);
        }
    }
}

// x / sqrt(mean(x^2) + epsilon) weight, as the header has it: 0 where the sum of squares passes f32.
std::vector<double> normed(const float* x, const std::vector<float>& weight, double epsilon) {
    double squares = 0;
    for (size_t i = 0; i < weight.size(); ++i) squares += double(x[i]) * x[i];
    if (squares > std::numeric_limits<float>::max()) squares = infinity;
    std::vector<double> out(weight.size());
    for (size_t i = 0; i < weight.size(); ++i) out[i] = x[i] * (1 / std::sqrt(squares / weight.size() + epsilon)) * weight[i];
    return out;
}

double gated(int32_t activation, double gate, double up) {
    const auto times_sigmoid = [](double x, double z) { return x == -infinity ? 0 : x / (1 + std::exp(-z)); };
    if (activation == VI_SILU) return times_sigmoid(gate, gate) * up;
    if (activation == VI_GELU) return times_sigmoid(gate, 2 * std::sqrt(2 / 3.14159265358979323846) * (gate + 0.044715 * gate * gate * gate)) * up;
    gate = gate > 7 ? 7 : gate, up = up > 7 ? 7 : up < -7 ? -7 : up;
    return times_sigmoid(gate, 1.702 * gate) * (up + 1);
}

} // namespace

TEST(embedding) {
    for (const int32_t width : {8, 36, 129, 576, 4096}) {
        const int32_t rows = t.integer(1, 40), vocabulary = t.integer(2, 500);
        std::vector<int32_t> ids = t.integers(rows, 0, vocabulary - 1);
        ids[0] = vocabulary - 1;
        if (rows > 3) ids[1] = -1, ids[2] = vocabulary, ids[3] = 2147483647;
        Array<float> out(t, size_t(rows) * width);
        Array<int32_t> in(t, ids);
        Array<vi_bf16> table(t, t.normal_bf16(size_t(vocabulary) * width));
        t.call(&Functions::vi_embedding, out, in, table, rows, width, vocabulary);
        t.close("out", out, 0);
    }
}

TEST(rmsnorm) {
    for (const int32_t width : {1, 4, 37, 576, 1000, 4096, 8191, 16384}) {
        const int32_t rows = t.integer(1, 9);
        const size_t count = size_t(rows) * width;
        const std::vector<float> values = t.normal(count, 2), scales = t.normal(width, 0.2f, 1);
        Array<float> x(t, values), out(t, count), residual(t, t.normal(count)), weight(t, scales);
        t.call(&Functions::vi_rmsnorm, out, static_cast<float*>(nullptr), x, weight, 1e-5f, rows, width);
        t.close("without residual", out, 1e-6);
        std::vector<double> wanted;
        for (int32_t r = 0; r < rows; ++r)
            for (const double y : normed(&values[size_t(r) * width], scales, 1e-5f)) wanted.push_back(y);
        exact(t, "without residual", out, wanted, 1e-6, 3e-6);
        t.call(&Functions::vi_rmsnorm, out, residual, x, weight, 1e-6f, rows, width);
        t.close("with residual", out, 1e-6);
        t.equal("residual", residual);
        t.call(&Functions::vi_rmsnorm, x, static_cast<float*>(nullptr), x, weight, 1e-5f, rows, width);
        t.close("in place", x, 1e-6);
    }
}

// Heads of a warp and of a block, with and without vectors; one head as wide as a row; gaps between rows and addresses that vectors don't fit stay as they are.
TEST(head_norm) {
    struct Shape {
        int32_t heads, head_dim, gap, offset;
    };
    for (const Shape s : {Shape{1, 1, 0, 0}, {3, 5, 2, 1}, {40, 64, 128, 0}, {8, 80, 4, 0}, {7, 128, 1, 0}, {4, 256, 0, 3}, {2, 512, 8, 4}, {3, 513, 0, 0},
                          {2, 1024, 12, 0}, {1, 2048, 0, 0}, {1, 16384, 0, 0}, {1, 16383, 2, 1}, {t.integer(1, 9), t.integer(1, 700), t.integer(0, 5), t.integer(0, 3)}}) {
        const int32_t rows = s.head_dim > 4096 ? 3 : t.integer(1, t.small ? 9 : 300), stride = s.heads * s.head_dim + s.gap;
        std::vector<float> values = t.normal(size_t(rows) * stride + s.offset, 3);
        for (int32_t i = 0; i < s.head_dim; ++i) values[s.offset + i] *= 1e15f;
        const std::vector<float> scales = t.normal(s.head_dim, 1, 1);
        std::vector<double> wanted(values.begin(), values.end());
        for (int32_t r = 0; r < rows; ++r)
            for (int32_t h = 0; h < s.heads; ++h) {
                const size_t begin = s.offset + size_t(r) * stride + size_t(h) * s.head_dim;
                const std::vector<double> head = normed(&values[begin], scales, 1e-6f);
                std::copy(head.begin(), head.end(), wanted.begin() + begin);
            }
        Array<float> x(t, values), weight(t, scales);
        for (Library* library : {&t.cpu, &t.cuda})
            t.call_one(*library, &Functions::vi_head_norm, x.at(*library) + s.offset, weight.at(*library), 1e-6f, rows, s.heads, s.head_dim, stride);
        exact(t, "x", x, wanted, 1e-6, 4e-6);
    }
    // NaN, infinity, squares beyond f32 and zeros, each in a head of its own.
    for (const int32_t head_dim : {4, 65, 1000}) {
        std::vector<float> values = t.normal(size_t(5) * head_dim);
        values[1] = nan_value;
        values[head_dim + 2] = -infinity;
        for (int32_t i = 0; i < head_dim; ++i) values[2 * head_dim + i] = 1e30f, values[3 * head_dim + i] = 0;
        const std::vector<float> scales = t.normal(head_dim);
        std::vector<double> wanted;
        for (int32_t h = 0; h < 5; ++h)
            for (const double y : normed(&values[size_t(h) * head_dim], scales, 1e-6f)) wanted.push_back(y);
        Array<float> x(t, values), weight(t, scales);
        t.call(&Functions::vi_head_norm, x, weight, 1e-6f, 1, 5, head_dim, 5 * head_dim);
        exact(t, "ends of f32", x, wanted, 1e-6, 4e-6);
    }
    Array<float> x(t, 64);
    t.call(&Functions::vi_head_norm, x, x, 0.0f, 0, 1, 4, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_head_norm, x, x, 0.0f, 1, 3, 4, 11);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_head_norm, x, x, -1.0f, 1, 1, 4, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_head_norm, x, x, 0.0f, 1, 1, 16385, 16385);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_head_norm, x, static_cast<const float*>(nullptr), 0.0f, 1, 1, 4, 4);
}

TEST(add) {
    const float* none = nullptr;
    for (const int32_t width : {1, 4, 37, 576, 1001, 4096, 16384})
        for (const int32_t offset : {0, 1}) {
            const int32_t rows = t.integer(1, width > 4096 ? 3 : 70);
            const size_t count = size_t(rows) * width;
            const float factor = offset ? t.real(-3, 3) : 1;
            std::vector<float> values = t.normal(count + offset, 2), before = t.normal(count + offset);
            const std::vector<float> scales = t.normal(width, 0.2f, 1);
            if (rows > 2) values[offset] = nan_value, values[offset + width] = infinity;
            for (const bool with_norm : {false, true}) {
                std::vector<double> wanted(before.begin(), before.end());
                for (int32_t r = 0; r < rows; ++r) {
                    const float* row = &values[offset + size_t(r) * width];
                    const std::vector<double> y = with_norm ? normed(row, scales, 1e-3f) : std::vector<double>(row, row + width);
                    for (int32_t i = 0; i < width; ++i) wanted[offset + size_t(r) * width + i] += double(factor) * y[i];
                }
                Array<float> residual(t, before), x(t, values), norm(t, scales);
                for (Library* library : {&t.cpu, &t.cuda})
                    t.call_one(*library, &Functions::vi_add, residual.at(*library) + offset, x.at(*library) + offset, with_norm ? norm.at(*library) : none,
                        1e-3f, factor, rows, width);
                exact(t, with_norm ? "normed" : "plain", residual, wanted, 2e-6, 4e-6);
            }
        }
    Array<float> x(t, 64), y(t, 64);
    t.call(&Functions::vi_add, x, x, none, 0.0f, 1.0f, 0, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_add, x, x, none, 0.0f, 1.0f, 1, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_add, x, y, none, 0.0f, infinity, 1, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_add, x, y, none, nan_value, 1.0f, 1, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_add, x, none, none, 0.0f, 1.0f, 1, 4);
}

TEST(scale) {
    for (const int64_t count : {1, 3, 64, 1001, 262144, 1000003})
        for (const float cap : {0.0f, 1.0f, 30.0f}) {
            if (t.small && count > 10000) continue;
            const float factor = t.real(-4, 4);
            const int32_t offset = t.integer(0, 1);
            std::vector<float> values = t.normal(count + offset, 10);
            const float ends[] = {nan_value, infinity, -infinity, 3e38f, -3e38f, 1e-30f, 0.0f};
            if (count > 20) std::copy(std::begin(ends), std::end(ends), values.begin() + offset + 5);
            std::vector<double> wanted(values.begin(), values.end());
            for (int64_t i = offset; i < count + offset; ++i) {
                const double y = wanted[i] * factor;
                wanted[i] = cap > 0 ? cap * std::tanh(y / cap) : std::fabs(y) > std::numeric_limits<float>::max() ? std::copysign(infinity, y) : y;
            }
            Array<float> x(t, values);
            for (Library* library : {&t.cpu, &t.cuda}) t.call_one(*library, &Functions::vi_scale, x.at(*library) + offset, factor, cap, count);
            exact(t, "x", x, wanted, 1e-30, 1e-6);
        }
    Array<float> x(t, 4);
    t.call(&Functions::vi_scale, x, 1.0f, 0.0f, int64_t(0));
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_scale, x, nan_value, 0.0f, int64_t(4));
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_scale, x, 1.0f, -1.0f, int64_t(4));
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_scale, x, 1.0f, infinity, int64_t(4));
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_scale, x, 1.0f, 0.0f, int64_t(-1));
}

TEST(rope) {
    struct Shape {
        int32_t head_dim, rotary_dim;
    };
    for (const Shape s : {Shape{2, 2}, {6, 6}, {64, 64}, {128, 128}, {256, 256}, {128, 96}, {64, 16}, {81, 80}, {256, 64}, {128, 2}})
        for (const int32_t interleaved : {0, 1}) {
            const int32_t rows = t.integer(1, 30), heads = t.integer(1, 40), stride = heads * s.head_dim + t.integer(0, 50), half = s.rotary_dim / 2;
            const float factor = t.integer(0, 1) ? 1.0f : t.real(0.5f, 2);
            std::vector<int32_t> positions = t.integers(rows, 0, 200000);
            positions[0] = 1000000;
            std::vector<float> frequencies(half);
            for (int32_t i = 0; i < half; ++i) frequencies[i] = std::pow(10000.0f, -2.0f * i / s.rotary_dim);
            const std::vector<float> values = t.normal(size_t(rows) * stride);
            std::vector<double> wanted(values.begin(), values.end());
            for (int32_t r = 0; r < rows; ++r)
                for (int32_t h = 0; h < heads; ++h)
                    for (int32_t i = 0; i < half; ++i) {
                        const size_t begin = size_t(r) * stride + size_t(h) * s.head_dim, a = begin + (interleaved ? 2 * i : i), b = a + (interleaved ? 1 : half);
                        const double angle = double(positions[r]) * frequencies[i], c = factor * std::cos(angle), d = factor * std::sin(angle);
                        wanted[a] = values[a] * c - values[b] * d, wanted[b] = values[b] * c + values[a] * d;
                    }
            Array<float> x(t, values), table(t, frequencies);
            Array<int32_t> at(t, positions);
            t.call(&Functions::vi_rope, x, at, table, factor, rows, heads, s.head_dim, s.rotary_dim, interleaved, stride);
            t.close("x", x, 1e-6);
            exact(t, "x", x, wanted, 4e-6, 0);
        }
}

// Queries as vi_rope leaves them, keys and values rounded, what lies between rows untouched.
TEST(rope_round) {
    struct Shape {
        int32_t head_dim, rotary_dim, interleaved;
    };
    for (const Shape s : {Shape{6, 6, 0}, {64, 64, 0}, {128, 128, 0}, {128, 96, 0}, {81, 32, 1}, {128, 64, 1}, {64, 64, 1}, {64, 0, 0}, {7, 0, 0}}) {
        const int32_t head_dim = s.head_dim, half = s.rotary_dim / 2;
        const float factor = t.integer(0, 1) ? 1.0f : t.real(0.5f, 2);
        const int32_t rows = t.integer(1, 300), heads = t.integer(1, 40), kv_heads = t.integer(1, 9), q = heads * head_dim, kv = kv_heads * head_dim;
        const int32_t stride = q + 2 * kv + t.integer(0, 9), out_stride = 2 * kv + t.integer(0, 9);
        std::vector<float> frequencies(std::max(half, 1));
        for (int32_t i = 0; i < half; ++i) frequencies[i] = std::pow(10000.0f, -1.0f * i / half);
        Array<float> x(t, t.normal(size_t(rows) * stride)), table(t, frequencies);
        Array<int32_t> at(t, t.integers(rows, 0, 200000));
        Array<vi_f16> out(t, size_t(rows) * out_stride);
        for (Library* library : {&t.cpu, &t.cuda}) {
            float* queries = x.at(*library);
            vi_f16* keys = out.at(*library);
            t.call_one(*library, &Functions::vi_rope_round, queries, queries + q, queries + q + kv, keys, keys + kv, at, table, factor, rows, heads, kv_heads, head_dim,
                       s.rotary_dim, s.interleaved, stride, out_stride);
        }
        t.close("x", x, 1e-6);
        const std::vector<vi_f16> found = out.read(t.cuda), wanted = out.read(t.cpu);
        for (int32_t r = 0; r < rows; ++r)
            for (int32_t i = 0; i < out_stride; ++i) {
                const size_t k = size_t(r) * out_stride + i;
                if (i >= kv || i % head_dim >= s.rotary_dim) CHECK(found[k] == wanted[k], "row %d: %d differs", r, i);
                else CHECK(std::abs(from_half(found[k]) - from_half(wanted[k])) <= std::abs(from_half(wanted[k])) / 1000 + 1e-5, "row %d: key %d is %g, not %g", r, i, from_half(found[k]), from_half(wanted[k]));
            }
    }
    float* const none = nullptr;
    vi_f16* const no_f16 = nullptr;
    const int32_t* const no_ids = nullptr;
    Array<float> x(t, std::vector<float>{0, 0, 1e6f, -3e38f, 65519, -infinity}); // beyond f16: its ends
    Array<vi_f16> out(t, 4);
    for (Library* library : {&t.cpu, &t.cuda}) {
        float* queries = x.at(*library);
        t.call_one(*library, &Functions::vi_rope_round, queries, queries + 2, queries + 4, out.at(*library), out.at(*library) + 2, no_ids, none, 1.0f, 1, 1, 1, 2, 0, 0, 6, 4);
        const std::vector<vi_f16> ends = out.read(*library);
        CHECK((ends == std::vector<vi_f16>{0x7bff, 0xfbff, 0x7bff, 0xfbff}), "%s: the ends of f16 are %x %x %x %x", library->path.c_str(), ends[0], ends[1], ends[2], ends[3]);
    }
    t.call(&Functions::vi_rope_round, none, none, none, no_f16, no_f16, no_ids, none, 1.0f, 0, 1, 1, 4, 4, 0, 4, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope_round, none, none, none, no_f16, no_f16, no_ids, none, 1.0f, 0, 1, 2, 4, 4, 0, 4, 8);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope_round, none, none, none, no_f16, no_f16, no_ids, none, 1.0f, 0, 1, 2, 4, 4, 0, 8, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope_round, none, none, none, no_f16, no_f16, no_ids, none, 1.0f, 0, 2, 1, 4, 0, 0, 4, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope_round, none, none, none, no_f16, no_f16, no_ids, none, 1.0f, 0, 1, 1, 4, -2, 0, 4, 4);
}

TEST(gate) {
    for (const int32_t activation : {VI_SILU, VI_GELU, VI_SWIGLU_CLAMPED})
        for (const int32_t width : {1, 7, 64, 1536, 14336}) {
            const int32_t rows = t.integer(2, 12); // the first gives nearly 0
            std::vector<float> values = t.normal(size_t(rows) * 2 * width, 4);
            const float gates[] = {-200, -infinity, infinity, nan_value, -3e38f, 3e38f, -1e30f, 1e13f, -20, 0, 1e-30f};
            for (int32_t i = 0; i < std::min(width, 11); ++i) values[i] = gates[i], values[width + i] = 3;
            std::vector<double> wanted(size_t(rows) * width);
            for (int32_t r = 0; r < rows; ++r)
                for (int32_t i = 0; i < width; ++i) {
                    const float* row = &values[size_t(r) * 2 * width];
                    const double y = gated(activation, row[i], row[width + i]);
                    wanted[size_t(r) * width + i] = std::fabs(y) > std::numeric_limits<float>::max() ? std::copysign(infinity, y) : y;
                }
            Array<float> in(t, values), out(t, size_t(rows) * width);
            t.call(&Functions::vi_gate, out, in, activation, rows, width);
            exact(t, "out", out, wanted, 1e-6, 3e-6);
        }
    // An address that vectors don't fit.
    const std::vector<float> values = t.normal(1 + 2 * 64);
    std::vector<double> wanted(65, 0);
    for (int32_t i = 0; i < 64; ++i) wanted[1 + i] = gated(VI_GELU, values[1 + i], values[65 + i]);
    Array<float> in(t, values), out(t, std::vector<float>(65, 0));
    for (Library* library : {&t.cpu, &t.cuda}) t.call_one(*library, &Functions::vi_gate, out.at(*library) + 1, in.at(*library) + 1, VI_GELU, 1, 64);
    exact(t, "apart", out, wanted, 1e-6, 3e-6);
}

TEST(advance) {
    Array<int32_t> positions(t, t.integers(1000, -5, 100000));
    t.call(&Functions::vi_advance, positions, 999);
    t.equal("positions", positions);
}

TEST(empty) {
    Array<float> x(t, 4);
    Array<int32_t> ids(t, 4);
    Array<vi_bf16> weight(t, 4);
    const float* none = nullptr;
    const vi_bf16* no_bf16 = nullptr;
    t.call(&Functions::vi_embedding, x, ids, weight, 0, 4, 1);
    t.call(&Functions::vi_rmsnorm, x, static_cast<float*>(nullptr), x, x, 1e-5f, 0, 4);
    t.call(&Functions::vi_linear, x, x, weight, no_bf16, none, 0.0f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, 0, 1, 4);
    t.call(&Functions::vi_gate, x, x, VI_GELU, 0, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_gate, x, x, VI_SILU, -1, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_gate, x, x, 3, 1, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_gate, x, none, VI_SILU, 1, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope, x, ids, x, 1.0f, 1, 1, 3, 3, 0, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope, x, ids, x, 1.0f, 1, 1, 2, 4, 0, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope, x, ids, x, 1.0f, 1, 1, 4, 4, 2, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope, x, ids, x, infinity, 1, 1, 4, 4, 0, 4);
}
