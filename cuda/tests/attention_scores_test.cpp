// Attention's sink logits and soft caps, and layers with a sliding window, against float64 and the CPU library.
#include "stored.h"

// Layers with a sliding window: rings alone, of every head dimension; few rows and more than a launch takes.
TEST(attention_sliding) {
    const Side exact{1, 16, 1, 0, 0, 0};
    for (const int D : {64, 80, 96, 112, 128, 192, 256})
        for (const int window : {1, 17, 128, 300})
            for (const bool many : {false, true}) {
                if (many && D % 128 && t.small) continue;
                const int recent = window + 8;
                CacheCase c{exact, exact, D, t.integer(1, 3), t.integer(1, 16), 0, window, recent, {t.integer(400, 1200), window, window + 1, 1}, static_cast<unsigned>(t.random())};
                c.sliding = true, c.sink_logits = t.integer(0, 1), c.soft_cap = t.integer(0, 1) ? 1.5f : 0.0f;
                for (int i = 0; many && i < (t.small ? 20 : 140); ++i) c.lengths.push_back(t.integer(1, 2 * window));
                run(c, t.cuda, many ? nullptr : &t.cpu);
            }
}
// Sink logits and soft caps where many blocks share a row, and where blocks go from row to row; logits far above and below all scores.
TEST(attention_scores) {
    const Side formats_of[] = {{4, 8, 1, 1, 1, 1}, {1, 16, 1, 0, 0, 0}, {2, 8, 1, 0, 1, 0}, {4, 10, 2, 0, 1, 1, 1, 1}, {8, 8, 2, 1, 0, 1}, {4, 6, 1, 0, 1, 1}, {8, 12, 1, 1, 1, 1}};
    for (const Side& side : formats_of)
        for (const int D : {128, 64})
            for (const bool rows : {false, true}) {
                CacheCase c{side, side, D, 2, 5, 4, 32, 40, {t.small ? 2500 : 9000, 777}, static_cast<unsigned>(t.random())};
                c.sink_logits = true, c.soft_cap = rows ? 0.0f : 0.8f;
                for (int i = 0; rows && i < (t.small ? 40 : 140); ++i) c.lengths.push_back(t.integer(1, i % 9 ? 150 : 900));
                run(c, t.cuda, nullptr);
            }
}
TEST(attention_scores_extremes) {
    for (const int D : {128, 256}) {
        const CacheCase c{{4, 8, 1, 1, 1, 1}, {4, 8, 1, 0, 0, 1}, D, 1, 2, 4, 32, 40, {300}, static_cast<unsigned>(t.random())};
        Stored stored(c, t.cuda);
        stored.store();
        stored.ask();
        Memory<float> q(t.cuda, stored.q), out(t.cuda, size_t(stored.rows()) * stored.heads * D), logits(t.cuda, std::vector<float>{1e4f, -1e4f});
        Memory<int32_t> slots(t.cuda, stored.slots), positions(t.cuda, stored.positions);
        auto attend = [&](const float* sink_logits) {
            OK(t.cuda, vi_attention, out.data, q.data, stored.l->layer, slots.data, positions.data, sink_logits, stored.scale, 0, stored.rows(), stored.heads, stored.stride);
            return out.get();
        };
        const std::vector<float> plain = attend(nullptr), found = attend(logits.data);
        for (size_t i = 0; i < found.size(); ++i) {
            const float wanted = i / D % 2 ? plain[i] : 0.0f;
            CHECK(std::abs(found[i] - wanted) <= 1e-6f, "D %d: element %zu is %g, not %g", D, i, found[i], wanted);
        }
    }
}
// A row of a layer with a sliding window whose ring holds nothing that it may see.
TEST(attention_sliding_empty) {
    const Side exact{1, 16, 1, 0, 0, 0};
    for (const int D : {64, 256}) {
        CacheCase c{exact, exact, D, 2, 3, 0, 20, 24, {100, 50}, static_cast<unsigned>(t.random())};
        c.sliding = true;
        Stored stored(c, t.cuda);
        stored.store();
        stored.ask();
        stored.l->exact->set({100, 30});
        Memory<float> q(t.cuda, stored.q), out(t.cuda, size_t(stored.rows()) * stored.heads * D);
        Memory<int32_t> slots(t.cuda, stored.slots), positions(t.cuda, stored.positions);
        OK(t.cuda, vi_attention, out.data, q.data, stored.l->layer, slots.data, positions.data, nullptr, stored.scale, 0, stored.rows(), stored.heads, stored.stride);
        const std::vector<float> found = out.get();
        for (size_t i = 0; i < found.size(); ++i) {
            const int row = static_cast<int>(i / (size_t(stored.heads) * D));
            const bool empty = stored.positions[row] < 0 || stored.slots[row] == 0;
            CHECK(empty ? found[i] == 0 : std::isfinite(found[i]), "D %d: element %zu is %g", D, i, found[i]);
        }
    }
}
