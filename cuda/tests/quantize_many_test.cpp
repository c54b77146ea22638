// vi_quantize and vi_rope_quantize of many rows where other tests don't come: codewords far from 0, and layers that keep bf16 alone, of any head dimension.
#include "cache.h"

namespace {

// So many rows of 4 KV heads are many.
constexpr int many = 600, heads = 4;

std::vector<float> shifted(std::vector<float> x, float by) {
    for (float& v : x) v += by;
    return x;
}

} // namespace

// Where no codeword has a product with x that is not below 0, the search for many rows finds nothing and goes through all codewords.
TEST(quantize_far) {
    for (const auto& [d, b] : {FormatSize{4, 8}, {4, 12}, {8, 8}, {8, 12}}) {
        const Side side{d, b, heads, 0, 0, 0};
        const CacheCase c{side, side, 128, heads, 1, 0, 0, 0, {many}, static_cast<unsigned>(t.random())};
        std::mt19937 random(c.seed);
        const std::vector<float> codebooks[2] = {shifted(normal(random, size_t(heads) * d << b), 6), shifted(normal(random, size_t(heads) * d << b), -3)}, none[2];
        const std::vector<float> k = normal(random, size_t(many) * heads * c.D), v = normal(random, k.size());
        const Layer l(c, t.cuda, codebooks, none, random);
        std::vector<uint8_t> pages[2];
        for (const int rows : {5, many}) {
            for (auto* memory : l.pages) OK(t.cuda, vi_fill, memory->data, 0, static_cast<int64_t>(memory->size));
            l.store(0, k, v, 0, many, rows);
            for (int side = 0; side < 2; ++side) {
                const std::vector<uint8_t> written = l.pages[side]->get();
                size_t differences = 0;
                for (size_t i = 0; rows == many && i < written.size(); ++i) differences += written[i] != pages[side][i];
                CHECK(differences <= written.size() / 1000, "%s: %zu of %zu bytes of %s differ from those of few rows at once, more than near ties", c.name().c_str(), differences,
                      written.size(), side ? "values" : "keys");
                pages[side] = written;
            }
        }
    }
}

// Ring and pages hold the rows rounded to bf16; turned keys are those of few rows at once, and queries too.
TEST(quantize_bf16) {
    for (const int D : {64, 80, 96, 112, 128, 192, 256})
        for (const bool sliding : {true, false}) {
            const Side side{1, 16, 1, 0, 0, 0};
            const CacheCase c{side, side, D, heads, 2, 0, 500, 512, {many}, static_cast<unsigned>(t.random()), sliding};
            std::mt19937 random(c.seed);
            const std::vector<float> none[2];
            const Layer l(c, t.cuda, none, none, random);
            const int width = heads * D, stride = 4 * width, from = l.exact_from[0], rows = many - from; // queries are two heads a KV head
            const std::vector<float> k = normal(random, size_t(many) * width), v = normal(random, k.size());
            l.store(0, k, v, from, rows, rows);
            for (int side = 0; side < 2; ++side) {
                const std::vector<vi_bf16> ring = l.recent[side]->get();
                for (int p = from; p < many; ++p)
                    for (int i = 0; i < width; ++i)
                        CHECK(ring[(size_t(i / D) * c.recent + p % c.recent) * D + i % D] == bf16((side ? v : k)[size_t(p) * width + i]), "%s: %s of position %d, channel %d",
                              c.name().c_str(), side ? "values" : "keys", p, i);
            }
            if (!sliding) {
                Memory<float> dk(t.cuda, k.size()), dv(t.cuda, v.size());
                OK(t.cuda, vi_dequantize, dk.data, dv.data, l.layer, 0, from, rows);
                const std::vector<float> found[2] = {dk.get(), dv.get()};
                for (int side = 0; side < 2; ++side)
                    for (size_t i = 0; i < size_t(rows) * width; ++i)
                        CHECK(found[side][i] == f32(bf16((side ? v : k)[size_t(from) * width + i])), "%s: element %zu of the pages' %s", c.name().c_str(), i, side ? "values" : "keys");
            }
            std::vector<float> frequencies(D / 2);
            for (int i = 0; i < D / 2; ++i) frequencies[i] = std::pow(10000.0f, -2.0f * i / D);
            const std::vector<float> all = normal(random, size_t(rows) * stride);
            std::vector<int32_t> slots(rows, 0), positions(rows);
            for (int r = 0; r < rows; ++r) positions[r] = from + r;
            Memory<float> df(t.cuda, frequencies);
            Memory<int32_t> ds(t.cuda, slots), dp(t.cuda, positions);
            std::vector<float> queries[2];
            std::vector<vi_bf16> keys[2];
            for (int pass = 0; pass < 2; ++pass) {
                Memory<float> x(t.cuda, all);
                const int step = pass ? rows : 3;
                for (int first = 0; first < rows; first += step) {
                    float* row = x.data + size_t(first) * stride;
                    OK(t.cuda, vi_rope_quantize, l.layer, row, row + 2 * width, row + 3 * width, ds.data, dp.data + first, df.data, std::min(step, rows - first), 2 * heads, stride);
                }
                keys[pass] = l.recent[0]->get(), queries[pass] = x.get();
            }
            for (int r = 0; r < rows; ++r)
                for (int i = 0; i < 2 * width; ++i)
                    CHECK(std::abs(queries[1][size_t(r) * stride + i] - queries[0][size_t(r) * stride + i]) <= 2e-6, "%s: query %d of row %d", c.name().c_str(), i, r);
            for (size_t i = 0; i < keys[0].size(); ++i)
                CHECK(keys[0][i] == keys[1][i] || std::abs(f32(keys[0][i]) - f32(keys[1][i])) <= std::abs(f32(keys[0][i])) / 100 + 1e-6, "%s: element %zu of the ring's keys is %g, of few rows %g",
                      c.name().c_str(), i, f32(keys[1][i]), f32(keys[0][i]));
        }
}
