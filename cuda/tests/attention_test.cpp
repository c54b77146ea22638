// The cache against float64: quantize (nearest codewords, token scale), dequantize, and attention over random shapes, ragged lengths, poisoned padding
// and recorded graphs; and against the CPU library on the same codebooks.
#include "stored.h"

namespace {

// Every format of keys with every one of values, or with `few` each with itself, the mixes that presets have and some of the any-pair kernel; odd shapes and lengths, some
// with sink logits and soft caps.
std::vector<CacheCase> attention_cases(Test& t, int D, bool few) {
    std::vector<CacheCase> all;
    for (int i = 0; i < format_count; ++i)
        for (int j = 0; j < format_count; ++j)
            for (int scaled = 0; scaled < 2; ++scaled) {
                if (few && i != j && !(i == format_d4b10 && (j == format_d4b6 || j == format_d8b12)) && !(i == format_d8b12 && j == format_d8b8)) continue;
                const int kv_heads = t.integer(1, 3), groups[] = {4, 1, 3, 7, 2, 8, 16, 5};
                auto side = [&](FormatSize f) {
                    if (f.bits == 16) return Side{1, 16, 1, 0, 0, 0};
                    return Side{f.sub_dim, f.bits, scaled ? kv_heads : 1, t.integer(0, 1), t.integer(0, 1), scaled, 1, t.integer(0, 1)};
                };
                CacheCase c{side(formats[i]), side(formats[j]), D, kv_heads, groups[t.integer(0, 7)], 0, 0, 0, {}, static_cast<unsigned>(t.random())};
                const int sinks[] = {4, 0, 1, 70, 17}, windows[] = {128, 0, 5, 64, 33};
                c.sinks = sinks[t.integer(0, 4)], c.window = windows[t.integer(0, 4)];
                c.recent = c.window ? c.window + t.integer(0, 8) : (scaled ? 0 : 16);
                c.sink_logits = t.integer(0, 3) == 0;
                c.soft_cap = t.integer(0, 3) == 0 ? t.real(0.3f, 3) : 0;
                c.lengths = {t.integer(200, 800), t.integer(1, 70), 64 * t.integer(1, 3), 1, t.integer(130, 1000)};
                all.push_back(c);
            }
    return all;
}

} // namespace

TEST(attention_128) {
    for (const CacheCase& c : attention_cases(t, 128, t.small)) run(c, t.cuda, &t.cpu);
}
TEST(attention_64) {
    for (const CacheCase& c : attention_cases(t, 64, t.small)) run(c, t.cuda, &t.cpu);
}
// What no pair has a kernel for: 256 channels a head, and bf16 of other head dimensions.
TEST(attention_256) {
    for (const CacheCase& c : attention_cases(t, 256, true)) run(c, t.cuda, &t.cpu);
}
TEST(attention_bf16_head_dims) {
    const Side exact{1, 16, 1, 0, 0, 0};
    for (const int D : {80, 96, 112, 192, 256})
        for (const int group : {1, 3, 16}) {
            CacheCase c{exact, exact, D, t.integer(1, 3), group, t.integer(0, 5), 30, 40, {t.integer(203, 900), t.integer(1, 70), 128, 1}, static_cast<unsigned>(t.random())};
            c.sink_logits = group == 3, c.soft_cap = group == 16 ? 2.0f : 0.0f;
            run(c, t.cuda, &t.cpu);
        }
}
// A codebook a sub-vector, on one side or both.
TEST(attention_parts) {
    for (const int D : {128, 64, 256})
        for (const auto& [d, b] : formats)
            for (int sides = 1; sides < 4 && b < 16; ++sides) {
                const int kv_heads = t.integer(1, 3), scaled = t.integer(0, 1);
                const Side part{d, b, scaled ? kv_heads : 1, t.integer(0, 1), t.integer(0, 1), scaled, D / d, t.integer(0, 1)}, whole{4, 8, 1, 1, 1, 1};
                CacheCase c{sides & 1 ? part : whole, sides & 2 ? part : whole, D, kv_heads, t.integer(1, 16), 4, 32, 40, {}, static_cast<unsigned>(t.random())};
                c.lengths = {t.integer(500, 1300), t.integer(1, 70), 64 * t.integer(1, 3), 1};
                run(c, t.cuda, &t.cpu);
            }
}
// Many blocks share a row, and maxima grow along it.
TEST(attention_long) {
    run({{4, 8, 1, 1, 1, 1}, {4, 8, 1, 0, 0, 1}, 128, 2, 4, 4, 128, 128, {t.small ? 3000 : 20000, 777}, static_cast<unsigned>(t.random())}, t.cuda, nullptr);
}
// More rows than blocks, and than a launch takes. Formats of 10 bits have another shape of blocks there than for few rows.
TEST(attention_batch) {
    const std::pair<Side, Side> pairs[] = {{{4, 8, 1, 1, 1, 1}, {4, 8, 1, 0, 0, 1}}, {{4, 10, 2, 0, 1, 0, 1, 1}, {8, 8, 2, 1, 0, 0, 1, 1}},
                                           {{4, 10, 1, 0, 1, 0}, {4, 10, 2, 0, 0, 1}}};
    for (const auto& [keys, values] : pairs)
        for (const int D : {128, 64}) {
            CacheCase c{keys, values, D, 2, 4, 4, 32, 32, {}, static_cast<unsigned>(t.random())};
            for (int i = 0; i < (t.small ? 50 : 150); ++i) c.lengths.push_back(t.integer(1, i % 9 ? 150 : 900));
            run(c, t.cuda, nullptr);
        }
}
// The kernels for few rows, for more and for very many write the same bytes, and these are the nearest codewords.
TEST(quantize_rows) {
    for (const int D : {128, 64, 256})
        for (int i = 0; i < format_count; ++i) {
            if (t.small && i != format_d2b8 && i != format_d4b8) continue; // 2, 4 and 8 channels
            const int kv_heads = 4, count = t.small ? 450 : 2000, scaled = t.integer(0, 1), matrices = t.integer(0, 1);
            auto side = [&](FormatSize f) {
                if (f.bits == 16) return Side{1, 16, 1, 0, 0, 0};
                return Side{f.sub_dim, f.bits, scaled ? kv_heads : 1, matrices, 1, scaled, 1, matrices};
            };
            const CacheCase c{side(formats[i]), side(formats[(i + 3) % format_count]), D, kv_heads, 2, 4, 32, 40, {count}, static_cast<unsigned>(t.random())};
            std::mt19937 random(c.seed);
            std::vector<float> codebooks[2], smooths[2], tokens[2];
            for (int j = 0; j < 2; ++j) {
                const Side& s = j ? c.values : c.keys;
                if (s.coded()) codebooks[j] = normal(random, size_t(s.codebook_heads) * s.d << s.b);
                if (s.smooth) smooths[j] = std::vector<float>(size_t(kv_heads) * D, 1.5f);
                tokens[j] = normal(random, size_t(count) * kv_heads * D);
            }
            Layer l(c, t.cuda, codebooks, smooths, random);
            std::vector<uint8_t> first[2];
            for (const int rows : {3, 200, count}) {
                for (auto* pages : l.pages) OK(t.cuda, vi_fill, pages->data, 0, static_cast<int64_t>(pages->size));
                l.store(0, tokens[0], tokens[1], 0, count - 40, rows);
                l.store(0, tokens[0], tokens[1], count - 40, 40, std::min(rows, 40));
                for (int j = 0; j < 2; ++j) {
                    const std::vector<uint8_t> written = l.pages[j]->get();
                    if (first[j].empty()) first[j] = written;
                    size_t differences = 0;
                    for (size_t k = 0; k < written.size(); ++k) differences += written[k] != first[j][k];
                    CHECK(differences <= 4 + written.size() / 20000, "%s: %s of %d rows at once differ from those of 3 in %zu of %zu bytes, more than near ties",
                          c.name().c_str(), j ? "values" : "keys", rows, differences, written.size());
                }
                Memory<float> k(t.cuda, tokens[0].size()), v(t.cuda, tokens[1].size());
                OK(t.cuda, vi_dequantize, k.data, v.data, l.layer, 0, 0, count);
                const std::vector<float> decoded[2] = {k.get(), v.get()};
                for (int j = 0; j < 2; ++j) check_codes(l, j, 0, tokens[j], decoded[j], random);
            }
        }
}
