// A case's cache stored on the GPU and attention over it, against float64 and the CPU library on the same codebooks.
#pragma once
#include "cache.h"
#include <memory>

// Codes of some tokens: no codeword may be nearer, and the scale must be the projection's.
inline void check_codes(const Layer& l, int side, int slot, const std::vector<float>& x, const std::vector<float>& decoded, std::mt19937& random) {
    const HostSide& h = l.sides[side];
    const int D = l.c.D, heads = l.c.kv_heads, d = h.side.d;
    const int length = l.c.lengths[slot];
    double excess = 0, scale_error = 0, exact_error = 0;
    for (int trial = 0; trial < 12; ++trial) {
        const int token = trial == 0 ? length - 1 : random() % length, head = random() % heads;
        const size_t at = (size_t(token) * heads + head) * D;
        const std::vector<double> v = h.forward(&x[at], head), w = h.forward(&decoded[at], head); // w = s c
        if (!h.side.coded()) {
            for (int i = 0; i < D; ++i) exact_error = std::max(exact_error, std::abs(w[i] - v[i]) / (std::abs(v[i]) + 1e-30));
            continue;
        }
        double rms = 1, product = 0, norm = 0;
        if (h.side.scale) {
            rms = 0;
            for (double e : v) rms += e * e;
            rms = std::sqrt(rms / D);
        }
        // s is not known here: find it so that w / s is a codeword for the nearest codes.
        std::vector<double> nearest(D);
        for (int s = 0; s < D / d; ++s) {
            double best = 1e300;
            for (int code = 0; code < 1 << h.side.b; ++code) {
                const float* word = h.words(head, s) + size_t(code) * d;
                double distance = 0;
                for (int i = 0; i < d; ++i) distance += std::pow(v[s * d + i] / rms - word[i], 2);
                if (distance < best) {
                    best = distance;
                    for (int i = 0; i < d; ++i) nearest[s * d + i] = word[i];
                }
            }
        }
        for (int i = 0; i < D; ++i) product += v[i] * nearest[i], norm += nearest[i] * nearest[i];
        double s = 1;
        if (h.side.scale) s = std::exp2((std::clamp(std::round(16 * std::log2(product / norm)) + 128, 0.0, 255.0) - 128) / 16);
        // The same distance, up to rounding of near ties; the scale may round to the other side of a half step.
        double mine = 1e300;
        int best_step = 0;
        for (int step = -1; step <= 1; ++step) {
            const double other = s * std::exp2(step / 16.0 * h.side.scale);
            double distance = 0, least = 0;
            for (int i = 0; i < D; ++i) distance += std::pow(v[i] / rms - w[i] / other, 2), least += std::pow(v[i] / rms - nearest[i], 2);
            const double e = (distance - least) / (least + 1e-9);
            if (std::abs(e) < std::abs(mine)) mine = e, best_step = step;
        }
        const double half_step = 16 * std::log2(product / norm);
        if (h.side.scale && best_step) scale_error = std::max(scale_error, std::abs(std::abs(half_step - std::round(half_step)) - 0.5));
        excess = std::max(excess, std::abs(mine));
    }
    CHECK(excess <= 1e-4, "%s: %s are not coded as the nearest codewords: %g", l.c.name().c_str(), side ? "values" : "keys", excess);
    CHECK(scale_error <= 1e-3, "%s: token scale is off by %g steps", l.c.name().c_str(), scale_error);
    CHECK(exact_error <= 1.0 / 256, "%s: bf16 rows are off by %g", l.c.name().c_str(), exact_error);
}

// A layer, what was stored in it, and rows of queries over it.
struct Stored {
    const CacheCase& c;
    Library& cuda;
    std::mt19937 random;
    const int width, heads, stride;
    const float scale;
    std::vector<float> codebooks[2], smooths[2];
    std::unique_ptr<Layer> l;
    std::vector<std::vector<float>> tokens[2], decoded[2]; // by slot
    std::vector<int32_t> slots, positions;                 // of rows
    std::vector<float> q, sink_logits; // of the heads, or none
    std::vector<vi_bf16> recent[2], sinks[2];

    Stored(const CacheCase& c, Library& cuda)
        : c(c), cuda(cuda), random(c.seed), width(c.kv_heads * c.D), heads(c.kv_heads * c.group), stride(heads * c.D + 8), scale(1.2f / std::sqrt(float(c.D))) {
        for (int i = 0; i < 2; ++i) {
            const Side& s = i ? c.values : c.keys;
            if (s.coded()) codebooks[i] = normal(random, size_t(s.codebook_heads) * s.parts * s.d << s.b);
            if (s.smooth) {
                smooths[i] = normal(random, size_t(c.kv_heads) * c.D);
                for (float& x : smooths[i]) x = std::exp2(x / 2);
            }
        }
        l = std::make_unique<Layer>(c, cuda, codebooks, smooths, random);
        if (c.sink_logits) sink_logits = normal(random, heads, 3);
    }
    int rows() const { return static_cast<int>(slots.size()); }
    void decode(int slot) {
        if (c.sliding) return;
        Memory<float> k(cuda, tokens[0][slot].size()), v(cuda, tokens[0][slot].size());
        OK(cuda, vi_dequantize, k.data, v.data, l->layer, slot, 0, c.lengths[slot]);
        decoded[0][slot] = k.get(), decoded[1][slot] = v.get();
    }
    // Slot 0's codes are the nearest codewords.
    void store() {
        for (int i = 0; i < 2; ++i) tokens[i].resize(l->slots), decoded[i].resize(l->slots);
        for (int slot = 0; slot < l->slots; ++slot) {
            const int n = c.lengths[slot];
            for (int i = 0; i < 2; ++i) {
                tokens[i][slot] = normal(random, size_t(n) * width);
                for (int t = 0; t < n; ++t) { // lengths of vectors differ, as the token scale expects
                    const float factor = std::exp2(float(random() % 5) / 2 - 1);
                    for (int j = 0; j < width; ++j) tokens[i][slot][size_t(t) * width + j] *= factor * (smooths[i].empty() ? 1 : smooths[i][j]);
                }
            }
            // A prompt in one call, then token by token, then a call of a few.
            const int single = std::min(n, 3), few = std::min(n - single, 40);
            if (n - single - few > 0) l->store(slot, tokens[0][slot], tokens[1][slot], 0, n - single - few, 200);
            if (single) l->store(slot, tokens[0][slot], tokens[1][slot], n - single - few, single, 1);
            if (few) l->store(slot, tokens[0][slot], tokens[1][slot], n - few, few, 40);
            decode(slot);
            if (slot == 0 && !c.sliding)
                for (int i = 0; i < 2; ++i) check_codes(*l, i, slot, tokens[i][slot], decoded[i][slot], random);
        }
    }
    // Both kernels of vi_quantize write the same bytes.
    void store_again() {
        const auto before_k = l->pages[0]->get(), before_v = l->pages[1]->get();
        l->store(0, tokens[0][0], tokens[1][0], 1, 200, 200);
        const auto many_k = l->pages[0]->get(), many_v = l->pages[1]->get();
        l->store(0, tokens[0][0], tokens[1][0], 1, 200, 30);
        const auto few_k = l->pages[0]->get(), few_v = l->pages[1]->get();
        auto differences = [](const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
            int count = 0;
            for (size_t i = 0; i < a.size(); ++i) count += a[i] != b[i];
            return count;
        };
        const int allowed = 4; // near ties
        const bool same = (differences(many_k, few_k) <= allowed && differences(many_v, few_v) <= allowed && differences(before_k, few_k) <= allowed &&
                           differences(before_v, few_v) <= allowed);
        CHECK(same, "%s: vi_quantize of many rows and of few: %d and %d bytes differ", c.name().c_str(), differences(many_k, few_k), differences(many_v, few_v));
        decode(0); // the second pass may have rounded a near tie the other way, and decoded must be what the pages hold
    }
    // Every slot's newest token, padding, and earlier positions of some slots.
    void ask() {
        for (int s = 0; s < l->slots; ++s) slots.push_back(s), positions.push_back(c.lengths[s] - 1);
        slots.push_back(0), positions.push_back(-1);
        slots.push_back(l->slots - 1), positions.push_back(std::max(0, c.lengths.back() - 1 - int(random() % 5)));
        if (!c.sliding) slots.push_back(0), positions.push_back(c.lengths[0] / 2);
        q = normal(random, size_t(rows()) * stride);
        for (int i = 0; i < 2; ++i) recent[i] = l->recent[i]->get(), sinks[i] = l->sinks[i]->get();
    }
    void check(const std::vector<float>& x, const std::vector<int32_t>& at, const char* what) const {
        for (int r = 0; r < rows(); ++r) {
            const float* row = &x[size_t(r) * heads * c.D];
            if (at[r] < 0) {
                CHECK(std::all_of(row, row + heads * c.D, [](float v) { return v == 0; }), "%s: padding is not zeros", c.name().c_str());
                continue;
            }
            const std::vector<float> own[2] = {decoded[0][slots[r]], decoded[1][slots[r]]};
            const double e = relative_error(row, reference(*l, &q[size_t(r) * stride], scale, slots[r], at[r], own, recent, sinks, sink_logits));
            CHECK(e <= 1e-3, "%s: %s, row %d at %d: relative error %g", c.name().c_str(), what, r, at[r], e);
        }
    }
    // The same codebooks and tokens in the CPU library.
    void check_cpu(Library& cpu, const std::vector<float>& result) {
        const std::vector<float> rounded[2] = {l->sides[0].codebook, l->sides[1].codebook};
        Layer other(c, cpu, rounded, smooths, random);
        for (int s = 0; s < l->slots; ++s) {
            const int before = std::min(c.lengths[s], other.exact_from[s]);
            if (before) other.store(s, tokens[0][s], tokens[1][s], 0, before, before);
            if (c.lengths[s] - before) other.store(s, tokens[0][s], tokens[1][s], before, c.lengths[s] - before, std::max(1, c.recent));
        }
        // Near ties of codes and steps of the token scale may be rounded either way. They are few, and the outputs of their slots differ by them.
        std::vector<bool> same(l->slots, true);
        int vectors = 0, differing = 0;
        for (int s = 0; s < l->slots; ++s) {
            const int n = c.lengths[s];
            if (c.sliding) break;
            Memory<float> k(cpu, size_t(n) * width), v(cpu, size_t(n) * width);
            OK(cpu, vi_dequantize, k.data, v.data, other.layer, s, 0, n);
            const std::vector<float> there[2] = {k.get(), v.get()};
            for (int i = 0; i < 2; ++i)
                for (size_t at = 0; at < there[i].size(); at += c.D, ++vectors) {
                    const float* here = &decoded[i][s][at];
                    if (relative_error(here, std::vector<double>(&there[i][at], &there[i][at] + c.D)) <= 1e-3) continue;
                    ++differing;
                    same[s] = false;
                }
        }
        CHECK(differing <= 2 + vectors / 500, "%s: %d of %d vectors have other codes on the CPU", c.name().c_str(), differing, vectors);
        Memory<float> cq(cpu, q), co(cpu, result.size()), logits(cpu, sink_logits);
        Memory<int32_t> cs(cpu, slots), cp(cpu, positions);
        OK(cpu, vi_attention, co.data, cq.data, other.layer, cs.data, cp.data, sink_logits.empty() ? nullptr : logits.data, scale, c.soft_cap, rows(), heads, stride);
        const std::vector<float> there = co.get();
        for (int r = 0; r < rows(); ++r) {
            if (positions[r] < 0 || !same[slots[r]]) continue;
            const size_t at = size_t(r) * heads * c.D, count = size_t(heads) * c.D;
            const double e = relative_error(&result[at], std::vector<double>(&there[at], &there[at] + count));
            CHECK(e <= 3e-3, "%s: row %d: relative error %g to the CPU", c.name().c_str(), r, e);
        }
    }
};

// A case on the GPU against float64 and, where it is given, the CPU library.
inline void run(const CacheCase& c, Library& cuda, Library* cpu) {
    Stored stored(c, cuda);
    stored.store();
    if (c.lengths[0] >= 202 && !c.sliding) stored.store_again();
    stored.ask();
    Layer& l = *stored.l;
    const int rows = stored.rows(), of_row = stored.heads * c.D;
    Memory<float> dq(cuda, stored.q), out(cuda, size_t(rows) * of_row), logits(cuda, stored.sink_logits);
    const float* sink_logits = c.sink_logits ? logits.data : nullptr;
    Memory<int32_t> ds(cuda, stored.slots), dp(cuda, stored.positions);
    auto attend = [&] {
        OK(cuda, vi_attention, out.data, dq.data, l.layer, ds.data, dp.data, sink_logits, stored.scale, c.soft_cap, rows, stored.heads, stored.stride);
    };
    attend();
    const std::vector<float> result = out.get();
    stored.check(result, stored.positions, "attention");
    attend();
    CHECK(out.get() == result, "%s: other bits the second time", c.name().c_str());

    // A recorded call, replayed after the positions moved.
    vi_graph* graph = nullptr;
    OK(cuda, vi_graph_begin);
    attend();
    OK(cuda, vi_graph_end, reinterpret_cast<uint8_t*>(&graph));
    std::vector<int32_t> moved = stored.positions;
    for (size_t r = 0; r < moved.size(); ++r)
        if (moved[r] > 0 && (r & 1)) moved[r] -= std::min(moved[r], std::max(0, std::min(c.recent - c.window, 2)));
    dp.set(moved);
    for (int i = 0; i < 2; ++i) OK(cuda, vi_graph_launch, graph);
    stored.check(out.get(), moved, "replayed attention");
    OK(cuda, vi_graph_destroy, graph);
    dp.set(stored.positions);
    if (cpu) stored.check_cpu(*cpu, result);

    // A page index outside the pages gives NaN, for that row alone.
    if (!c.sliding && c.lengths[0] > c.sinks + c.window + 64) {
        std::vector<int32_t> bad = l.table;
        bad[(c.sinks + 64) / VI_PAGE_TOKENS] = l.page_count;
        l.page_table->set(bad);
        attend();
        const std::vector<float> spoiled = out.get();
        bool all = true, others = true;
        for (int i = 0; i < of_row; ++i) all &= std::isnan(spoiled[i]);
        for (int i = of_row; i < l.slots * of_row; ++i) others &= !std::isnan(spoiled[i]);
        CHECK(all && others, "%s: a bad page index is not NaN in its own row alone", c.name().c_str());
        l.page_table->set(l.table);
        attend();
        CHECK(out.get() == result, "%s: other bits after a bad page index", c.name().c_str());
    }
}
