// Embedding, normalization, rotation and gate.
#include "test.h"

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
        Array<vi_bf16> weight(t, t.normal_bf16(width, 0.2f, 1));
        Array<float> x(t, t.normal(count, 2)), out(t, count), residual(t, t.normal(count));
        t.call(&Functions::vi_rmsnorm, out, static_cast<float*>(nullptr), x, weight, 1e-5f, rows, width);
        t.close("without residual", out, 1e-6);
        t.call(&Functions::vi_rmsnorm, out, residual, x, weight, 1e-6f, rows, width);
        t.close("with residual", out, 1e-6);
        t.equal("residual", residual);
        t.call(&Functions::vi_rmsnorm, x, static_cast<float*>(nullptr), x, weight, 1e-5f, rows, width);
        t.close("in place", x, 1e-6);
    }
}

TEST(rope) {
    for (const int32_t head_dim : {2, 6, 64, 128, 256}) {
        const int32_t rows = t.integer(1, 30), heads = t.integer(1, 40), stride = heads * head_dim + t.integer(0, 50);
        std::vector<int32_t> positions = t.integers(rows, 0, 200000);
        positions[0] = 1000000;
        std::vector<float> frequencies(head_dim / 2);
        for (int32_t i = 0; i < head_dim / 2; ++i) frequencies[i] = std::pow(10000.0f, -2.0f * i / head_dim);
        Array<float> x(t, t.normal(size_t(rows) * stride)), table(t, frequencies);
        Array<int32_t> at(t, positions);
        t.call(&Functions::vi_rope, x, at, table, rows, heads, head_dim, stride);
        t.close("x", x, 1e-6);
    }
}

// Queries as vi_rope leaves them, keys and values rounded, what lies between rows untouched.
TEST(rope_round) {
    for (const int32_t head_dim : {6, 64, 128}) {
        const int32_t rows = t.integer(1, 300), heads = t.integer(1, 40), kv_heads = t.integer(1, 9), q = heads * head_dim, kv = kv_heads * head_dim;
        const int32_t stride = q + 2 * kv + t.integer(0, 9), out_stride = 2 * kv + t.integer(0, 9);
        std::vector<float> frequencies(head_dim / 2);
        for (int32_t i = 0; i < head_dim / 2; ++i) frequencies[i] = std::pow(10000.0f, -2.0f * i / head_dim);
        Array<float> x(t, t.normal(size_t(rows) * stride)), table(t, frequencies);
        Array<int32_t> at(t, t.integers(rows, 0, 200000));
        Array<vi_bf16> out(t, size_t(rows) * out_stride);
        for (Library* library : {&t.cpu, &t.cuda}) {
            float* queries = x.at(*library);
            vi_bf16* keys = out.at(*library);
            t.call_one(*library, &Functions::vi_rope_round, queries, queries + q, queries + q + kv, keys, keys + kv, at, table, rows, heads, kv_heads, head_dim, stride,
                       out_stride);
        }
        t.close("x", x, 1e-6);
        const std::vector<vi_bf16> found = out.read(t.cuda), wanted = out.read(t.cpu);
        for (int32_t r = 0; r < rows; ++r)
            for (int32_t i = 0; i < out_stride; ++i) {
                const size_t k = size_t(r) * out_stride + i;
                if (i >= kv) CHECK(found[k] == wanted[k], "row %d: value %d differs", r, i - kv);
                else CHECK(std::abs(f32(found[k]) - f32(wanted[k])) <= std::abs(f32(wanted[k])) / 120 + 1e-5, "row %d: key %d is %g, not %g", r, i, f32(found[k]), f32(wanted[k]));
            }
    }
    float* const none = nullptr;
    vi_bf16* const no_bf16 = nullptr;
    const int32_t* const no_ids = nullptr;
    t.call(&Functions::vi_rope_round, none, none, none, no_bf16, no_bf16, no_ids, none, 0, 1, 1, 4, 4, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope_round, none, none, none, no_bf16, no_bf16, no_ids, none, 0, 1, 2, 4, 4, 8);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope_round, none, none, none, no_bf16, no_bf16, no_ids, none, 0, 1, 2, 4, 8, 4);
}

TEST(silu_mul) {
    for (const int32_t width : {1, 7, 64, 1536, 14336}) {
        const int32_t rows = t.integer(2, 12); // the first gives nearly 0
        std::vector<float> values = t.normal(size_t(rows) * 2 * width, 4);
        values[0] = -200;
        values[width] = 3;
        Array<float> in(t, values), out(t, size_t(rows) * width);
        t.call(&Functions::vi_silu_mul, out, in, rows, width);
        t.close("out", out, 1e-6);
    }
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
    t.call(&Functions::vi_rmsnorm, x, static_cast<float*>(nullptr), x, weight, 1e-5f, 0, 4);
    t.call(&Functions::vi_linear, x, x, weight, no_bf16, no_bf16, 0.0f, VI_BF16, VI_OUTPUT_VALUES, VI_F32, VI_F32, 0, 1, 4);
    t.call(&Functions::vi_silu_mul, x, x, 0, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_silu_mul, x, x, -1, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_silu_mul, x, none, 1, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_rope, x, ids, x, 1, 1, 3, 4);
}
