// Sampling, log-probabilities and comparison.
#include "test.h"
#include <algorithm>

namespace {

std::vector<float> logits_of(Test& t, int32_t rows, int32_t vocabulary) {
    std::vector<float> out;
    for (int32_t r = 0; r < rows; ++r) {
        std::vector<float> row = t.normal(vocabulary, t.real(0.5f, 4), t.real(-20, 20));
        if (r % 5 == 1)
            for (float& x : row) x = std::round(x); // many equal ones
        if (r % 5 == 2)
            for (int32_t i = 0; i < vocabulary / 2; ++i) row[i] = -INFINITY;
        if (r % 5 == 3) std::fill(row.begin(), row.end(), row[0]); // all equal
        out.insert(out.end(), row.begin(), row.end());
    }
    return out;
}

struct Settings {
    const char* name;
    float temperature, top_k, top_p, min_p, repetition, presence, frequency;
};
constexpr Settings kinds[] = {
    {"greedy", 0, 0, 1, 0, 1, 0, 0},           {"plain", 1, 0, 1, 0, 1, 0, 0},         {"top_k", 0.8f, 40, 1, 0, 1, 0, 0},
    {"top_k 1", 1.5f, 1, 1, 0, 1, 0, 0},       {"top_p", 0.9f, 0, 0.9f, 0, 1, 0, 0},   {"top_p small", 1, 0, 0.05f, 0, 1, 0, 0},
    {"top_p 0", 1, 0, 0, 0, 1, 0, 0},          {"min_p", 1.2f, 0, 1, 0.05f, 1, 0, 0},  {"all", 0.7f, 50, 0.95f, 0.02f, 1.2f, 0.5f, 0.25f},
    {"penalties", 0, 0, 1, 0, 1.3f, 0.7f, 0.3f}, {"cold", 0.05f, 0, 0.99f, 0, 1, 0, 0}, {"hot", 5, 2000, 0.999f, 0, 1, 0, 0}};

} // namespace

TEST(sample) {
    int64_t drawn = 0, different = 0;
    for (const int32_t vocabulary : {1, 2, 100, 1024, 5003, t.small ? 3000 : 128256}) {
        const int32_t rows = t.small || vocabulary > 100000 ? 6 : 20;
        for (const Settings& kind : kinds) {
            const std::vector<float> values = logits_of(t, rows, vocabulary);
            std::vector<float> all;
            for (int32_t r = 0; r < rows; ++r)
                all.insert(all.end(), {kind.temperature, kind.top_k, kind.top_p, kind.min_p, kind.repetition, kind.presence, kind.frequency, 0});
            std::vector<int32_t> seen(size_t(rows) * vocabulary);
            for (int32_t& x : seen) x = t.integer(0, 9) ? 0 : t.integer(0, 7);
            std::vector<float> offsets = t.normal(size_t(rows) * vocabulary);
            for (float& x : offsets) x = x > 1.5f ? -INFINITY : 0;
            for (int32_t r = 0; r < rows; ++r)
                if (vocabulary < 3) std::fill_n(offsets.begin() + r * vocabulary, vocabulary, 0.0f);
            Array<float> logits(t, values), settings(t, all), bias(t, offsets), logprobs(t, rows);
            Array<int32_t> ids(t, rows), counts(t, seen), seeds(t, t.integers(rows, -2000000000, 2000000000)), positions(t,
                t.integers(rows, 0, 100000));
            const bool penalized = kind.repetition != 1;
            for (Library* library : {&t.cpu, &t.cuda})
                t.call_one(*library, &Functions::vi_sample, ids, logprobs, logits,
                    penalized ? counts.at(*library) : static_cast<int32_t*>(nullptr),
                           penalized && vocabulary > 2 ? static_cast<const float*>(bias.at(*library)) : static_cast<const float*>(nullptr), settings, seeds, positions, rows, vocabulary);
            const std::vector<int32_t> wanted = ids.read(t.cpu), found = ids.read(t.cuda);
            const std::vector<float> wanted_log = logprobs.read(t.cpu), found_log = logprobs.read(t.cuda);
            const std::vector<int32_t> after = counts.read(t.cuda);
            for (int32_t r = 0; r < rows; ++r) {
                CHECK(found[r] >= 0 && found[r] < vocabulary, "%s: id %d of %d", kind.name, found[r], vocabulary);
                ++drawn;
                if (penalized) seen[size_t(r) * vocabulary + found[r]] += 2;
                if (found[r] != wanted[r]) {
                    CHECK(kind.temperature > 0 || penalized, "greedy: row %d of %d draws %d instead of %d", r, rows, found[r], wanted[r]);
                    ++different;
                    std::printf("        %s: row %d of %d, vocabulary %d: %d instead of %d\n", kind.name, r, rows, vocabulary, found[r],
                        wanted[r]);
                    continue;
                }
                CHECK(std::fabs(found_log[r] - wanted_log[r]) <= 1e-5 * (1 + std::fabs(wanted_log[r])),
                    "%s: log-probability %g instead of %g", kind.name, found_log[r], wanted_log[r]);
            }
            if (penalized) CHECK(after == seen, "%s: counts", kind.name);
        }
    }
    // A draw on the edge between two ids may fall to either side by rounding.
    CHECK(different * 500 <= drawn, "%lld of %lld draws differ", static_cast<long long>(different), static_cast<long long>(drawn));
}

TEST(sample_without_order) {
    const int32_t vocabulary = 2000;
    std::vector<float> values = t.normal(4 * vocabulary), all;
    values[5] = NAN;
    std::fill_n(values.begin() + vocabulary, vocabulary, -INFINITY);
    values[2 * vocabulary + 7] = INFINITY;
    for (int32_t r = 0; r < 4; ++r) all.insert(all.end(), {1, 0, 0.9f, 0, 1, 0, 0, 0});
    Array<float> logits(t, values), settings(t, all), logprobs(t, 4);
    Array<int32_t> ids(t, 4), seeds(t, t.integers(4, 0, 100)), positions(t, t.integers(4, 0, 100));
    const float* none = nullptr;
    t.call_one(t.cuda, &Functions::vi_sample, ids, logprobs, logits, static_cast<int32_t*>(nullptr), none, settings, seeds, positions, 4,
        vocabulary);
    const std::vector<int32_t> found = ids.read(t.cuda);
    CHECK(found[0] == -1 && found[1] == -1 && found[2] == -1 && found[3] >= 0, "%d %d %d %d", found[0], found[1], found[2], found[3]);
}

TEST(log_probabilities) {
    for (const int32_t vocabulary : {1, 30, 4096, t.small ? 2500 : 128256})
        for (const int32_t top : {0, 1, 20, 1500}) {
            if (top > vocabulary) continue;
            const int32_t rows = 6;
            std::vector<float> values = logits_of(t, rows, vocabulary);
            if (vocabulary > 1) values[5 * size_t(vocabulary) + 1] = NAN;
            std::vector<int32_t> wanted = t.integers(rows, 0, vocabulary - 1);
            wanted[0] = -1;
            Array<float> logits(t, values), out(t, rows), top_values(t, size_t(rows) * std::max(1, top));
            Array<int32_t> targets(t, wanted), ids(t, size_t(rows) * std::max(1, top));
            for (Library* library : {&t.cpu, &t.cuda})
                t.call_one(*library, &Functions::vi_log_probabilities, out, top ? top_values.at(*library) : nullptr,
                    top ? ids.at(*library) : nullptr, logits, targets, rows, vocabulary, top);
            t.close("targets", out, 1e-6);
            if (!top) continue;
            t.equal("ids", ids);
            t.close("values", top_values, 1e-6);
        }
}

TEST(compare) {
    for (const int32_t vocabulary : {1, 50, 4096, t.small ? 2500 : 128256}) {
        const int32_t rows = 8;
        const std::vector<float> p = logits_of(t, rows, vocabulary);
        std::vector<float> q = p;
        for (float& x : q) x += 0.05f * (t.real(0, 1) - 0.5f);
        Array<float> reference(t, p), logits(t, q), out(t, rows * 3);
        Array<int32_t> targets(t, t.integers(rows, 0, vocabulary - 1));
        t.call(&Functions::vi_compare, out, logits, reference, targets, rows, vocabulary);
        const std::vector<float> found = out.read(t.cuda), wanted = out.read(t.cpu);
        for (int32_t r = 0; r < rows; ++r) {
            CHECK(std::fabs(found[r * 3] - wanted[r * 3]) <= 1e-4 * std::fabs(wanted[r * 3]) + 3e-8, "divergence %.9g, on the CPU %.9g",
                found[r * 3], wanted[r * 3]);
            CHECK(found[r * 3 + 1] == wanted[r * 3 + 1], "agreement");
            const float a = found[r * 3 + 2], b = wanted[r * 3 + 2];
            CHECK(a == b || std::fabs(a - b) <= 1e-5 * (1 + std::fabs(b)), "%g, on the CPU %g", a, b);
        }
    }
}
