// A layer's cache in one library, and its attention in float64, for the tests of quantize and attention.
#pragma once
#include "common/format.h"
#include "test.h"
#include <algorithm>

template <class T> struct Memory { // of one library, filled with NaN (-1, absurd indices) where it isn't set
    Library& library;
    T* data = nullptr;
    size_t size;
    Memory(Library& library, size_t size) : library(library), size(size) {
        const int64_t bytes = static_cast<int64_t>(std::max<size_t>(size, 1) * sizeof(T));
        check(library, library.vi_allocate(library.context, reinterpret_cast<uint8_t*>(&data), bytes), "vi_allocate");
        check(library, library.vi_fill(library.context, data, 255, bytes), "vi_fill");
    }
    Memory(Library& library, const std::vector<T>& from) : Memory(library, from.size()) { set(from); }
    Memory(const Memory&) = delete;
    ~Memory() { library.vi_free(library.context, data); }
    void set(const std::vector<T>& from) {
        if (from.empty()) return;
        check(library, library.vi_copy_to_device(library.context, data, reinterpret_cast<const uint8_t*>(from.data()), int64_t(from.size() * sizeof(T))),
              "vi_copy_to_device");
    }
    std::vector<T> get() const {
        std::vector<T> out(size);
        if (size) check(library, library.vi_copy_to_host(library.context, reinterpret_cast<uint8_t*>(out.data()), data, int64_t(size * sizeof(T))), "vi_copy_to_host");
        return out;
    }
    static void check(const Library& library, int32_t status, const char* what) {
        CHECK(status == VI_OK, "%s: %s: status %d: %s", library.path.c_str(), what, status, library.error().c_str());
    }
};
#define OK(library, name, ...) Memory<int>::check(library, (library).name((library).context __VA_OPT__(, ) __VA_ARGS__), #name)

struct Side {
    int d, b, codebook_heads, smooth, hadamard, scale, parts = 1, matrices = 0; // parts: codebooks of a head; matrices: smooth and hadamard given as such
    bool coded() const { return b < 16; }
    bool transformed() const { return smooth || hadamard || matrices; }
    std::string name() const {
        if (!coded()) return "bf16";
        return "d" + std::to_string(d) + "b" + std::to_string(b) + (codebook_heads > 1 ? "/head" : "") + (parts > 1 ? "/part" : "") + (smooth ? "+smooth" : "") + (hadamard ? "+H" : "") +
               (matrices ? " as matrices" : "") + (scale ? "+scale" : "");
    }
};

struct CacheCase {
    Side keys, values;
    int D, kv_heads, group, sinks, window, recent;
    std::vector<int> lengths; // of the slots
    unsigned seed;
    bool sliding = false; // a layer with a sliding window: its ring alone
    float soft_cap = 0;
    bool sink_logits = false;
    std::string name() const {
        return keys.name() + " | " + values.name() + " D " + std::to_string(D) + " heads " + std::to_string(kv_heads * group) + "/" + std::to_string(kv_heads) +
               " sinks " + std::to_string(sinks) + " window " + std::to_string(window) + "/" + std::to_string(recent) + (sliding ? " sliding" : "") +
               (soft_cap > 0 ? " cap " + std::to_string(soft_cap) : "") + (sink_logits ? " sink logits" : "") + " seed " + std::to_string(seed);
    }
};

// x <- x H in double.
inline void hadamard(std::vector<double>& x) {
    const size_t n = x.size();
    for (size_t h = 1; h < n; h *= 2)
        for (size_t i = 0; i < n; i += 2 * h)
            for (size_t j = i; j < i + h; ++j) {
                const double a = x[j], b = x[j + h];
                x[j] = a + b, x[j + h] = a - b;
            }
    for (double& v : x) v /= std::sqrt(double(n));
}

struct HostSide { // one side of a layer, on the host
    Side side;
    std::vector<float> codebook, smooth;
    vi_quantizer* quantizer = nullptr;
    int D = 0;
    std::vector<double> forward(const float* x, int head) const {
        std::vector<double> v(x, x + D);
        if (side.smooth)
            for (int i = 0; i < D; ++i) v[i] /= smooth[head * D + i];
        if (side.hadamard) hadamard(v);
        return v;
    }
    std::vector<double> query(const float* x, int head) const {
        std::vector<double> v(x, x + D);
        if (side.smooth)
            for (int i = 0; i < D; ++i) v[i] *= smooth[head * D + i];
        if (side.hadamard) hadamard(v);
        return v;
    }
    void back(std::vector<double>& v, int head) const {
        if (side.hadamard) hadamard(v);
        if (side.smooth)
            for (int i = 0; i < D; ++i) v[i] *= smooth[head * D + i];
    }
    // The transform as matrices of vi_transform_create: where each unit vector goes.
    std::vector<float> matrices(int kv_heads) const {
        std::vector<float> out;
        for (int direction = 0; direction < 3; ++direction)
            for (int head = 0; head < kv_heads; ++head)
                for (int i = 0; i < D; ++i) {
                    std::vector<float> unit(D);
                    unit[i] = 1;
                    std::vector<double> row = direction == 1 ? query(unit.data(), head) : direction == 0 ? forward(unit.data(), head) : std::vector<double>(unit.begin(), unit.end());
                    if (direction == 2) back(row, head);
                    out.insert(out.end(), row.begin(), row.end());
                }
        return out;
    }
    const float* words(int head, int sub) const {
        const size_t book = (side.codebook_heads > 1 ? head : 0) * size_t(side.parts) + (side.parts > 1 ? sub : 0);
        return codebook.data() + (book * side.d << side.b);
    }
};

struct Layer { // a case's memory in one library
    const CacheCase& c;
    Library& library;
    HostSide sides[2];
    int slots, max_pages, page_count;
    std::vector<int32_t> table, exact_from;
    Memory<uint8_t>* pages[2];
    Memory<vi_bf16>*recent[2], *sinks[2];
    Memory<int32_t>*page_table, *exact;
    vi_kv_layer* layer = nullptr;

    Layer(const CacheCase& c, Library& library, const std::vector<float> (&codebooks)[2], const std::vector<float> (&smooths)[2], std::mt19937& random)
        : c(c), library(library), slots(c.lengths.size()) {
        max_pages = c.sliding ? 0 : *std::max_element(c.lengths.begin(), c.lengths.end()) / VI_PAGE_TOKENS + 2;
        page_count = c.sliding ? 0 : 3;
        for (int n : c.lengths) page_count += c.sliding ? 0 : (n + VI_PAGE_TOKENS - 1) / VI_PAGE_TOKENS;
        std::vector<int32_t> order(page_count);
        for (int i = 0; i < page_count; ++i) order[i] = i;
        std::shuffle(order.begin(), order.end(), random);
        table.assign(size_t(slots) * max_pages, 0x7ffffff0); // absurd past a sequence's end
        for (int s = 0, next = 0; s < slots && !c.sliding; ++s)
            for (int p = 0; p < (c.lengths[s] + VI_PAGE_TOKENS - 1) / VI_PAGE_TOKENS; ++p) table[size_t(s) * max_pages + p] = order[next++];
        for (int n : c.lengths) exact_from.push_back(std::max(0, n - c.recent));
        for (int i = 0; i < 2; ++i) {
            HostSide& h = sides[i];
            h.side = i ? c.values : c.keys;
            h.D = c.D, h.codebook = codebooks[i], h.smooth = smooths[i];
            Memory<float> book(library, codebooks[i]), smooth(library, smooths[i]);
            vi_transform* transform = nullptr;
            if (h.side.transformed()) {
                Memory<float> matrices(library, h.side.matrices ? h.matrices(c.kv_heads) : std::vector<float>());
                OK(library, vi_transform_create, reinterpret_cast<uint8_t*>(&transform), h.side.smooth && !h.side.matrices ? smooth.data : nullptr,
                   h.side.matrices ? matrices.data : nullptr, c.kv_heads, c.D, h.side.hadamard && !h.side.matrices);
            }
            OK(library, vi_quantizer_create, reinterpret_cast<uint8_t*>(&h.quantizer), h.side.coded() ? book.data : nullptr, transform, c.kv_heads, c.D,
               h.side.d, h.side.b, h.side.codebook_heads, h.side.parts, h.side.scale);
            OK(library, vi_transform_destroy, transform); // the quantizer keeps what it holds
            if (h.side.coded()) {
                OK(library, vi_quantizer_codebook, book.data, h.quantizer);
                h.codebook = book.get();
            }
            int64_t bytes = 0;
            OK(library, vi_page_bytes, reinterpret_cast<uint8_t*>(&bytes), h.quantizer);
            pages[i] = new Memory<uint8_t>(library, size_t(page_count) * bytes);
            recent[i] = new Memory<vi_bf16>(library, size_t(slots) * c.kv_heads * c.recent * c.D);
            sinks[i] = new Memory<vi_bf16>(library, size_t(slots) * c.kv_heads * c.sinks * c.D);
        }
        page_table = new Memory<int32_t>(library, table);
        exact = new Memory<int32_t>(library, exact_from);
        OK(library, vi_kv_layer_create, reinterpret_cast<uint8_t*>(&layer), sides[0].quantizer, sides[1].quantizer, c.sliding ? nullptr : pages[0]->data,
           c.sliding ? nullptr : pages[1]->data,
           c.recent ? recent[0]->data : nullptr, c.recent ? recent[1]->data : nullptr, c.sinks ? sinks[0]->data : nullptr,
           c.sinks ? sinks[1]->data : nullptr, c.sliding ? nullptr : page_table->data, exact->data, c.sliding ? 0 : page_count, slots, c.sliding ? 0 : max_pages, c.sinks,
           c.window, c.recent);
    }
    ~Layer() {
        library.vi_kv_layer_destroy(library.context, layer);
        for (int i = 0; i < 2; ++i) {
            library.vi_quantizer_destroy(library.context, sides[i].quantizer);
            delete pages[i], delete recent[i], delete sinks[i];
        }
        delete page_table, delete exact;
    }

    // Stores a slot's tokens, `chunk` at a time.
    void store(int slot, const std::vector<float>& keys, const std::vector<float>& values, int first, int count, int chunk) const {
        const int width = c.kv_heads * c.D;
        Memory<float> k(library, keys), v(library, values);
        for (int at = first; at < first + count; at += chunk) {
            const int n = std::min(chunk, first + count - at);
            std::vector<int32_t> s(n, slot), p(n);
            for (int i = 0; i < n; ++i) p[i] = at + i;
            Memory<int32_t> ds(library, s), dp(library, p);
            OK(library, vi_quantize, layer, k.data + size_t(at) * width, v.data + size_t(at) * width, ds.data, dp.data, n, width);
        }
    }
};

// out [heads, D] in float64 of one row. sink_logits: of the heads, or none.
inline std::vector<double> reference(const Layer& l, const float* q, float scale, int slot, int position, const std::vector<float> (&decoded)[2],
                              const std::vector<vi_bf16> (&recent)[2], const std::vector<vi_bf16> (&sinks)[2], const std::vector<float>& sink_logits = {}) {
    const CacheCase& c = l.c;
    const int D = c.D, begin = c.sliding ? std::max({0, position + 1 - c.window, l.exact_from[slot]}) : 0; // the first token that is seen
    std::vector<double> out(size_t(c.kv_heads) * c.group * D);
    for (int head = 0; head < c.kv_heads; ++head) {
        std::vector<std::vector<double>> rows[2];
        for (int side = 0; side < 2; ++side)
            for (int j = begin; j <= position; ++j) {
                std::vector<double> v(D);
                const bool exact = j < c.sinks || (position - j < c.window && j >= l.exact_from[slot]);
                const vi_bf16* from = j < c.sinks ? &sinks[side][((size_t(slot) * c.kv_heads + head) * c.sinks + j) * D]
                    : exact                       ? &recent[side][((size_t(slot) * c.kv_heads + head) * c.recent + j % c.recent) * D]
                                                  : nullptr;
                if (exact)
                    for (int i = 0; i < D; ++i) v[i] = double(f32(from[i]));
                else v = l.sides[side].forward(&decoded[side][(size_t(j) * c.kv_heads + head) * D], head);
                rows[side].push_back(v);
            }
        for (int g = 0; g < c.group; ++g) {
            const int query_head = head * c.group + g;
            const std::vector<double> x = l.sides[0].query(q + size_t(query_head) * D, head);
            const int count = position + 1 - begin;
            std::vector<double> scores(count), sum(D);
            double most = sink_logits.empty() ? -1e300 : sink_logits[query_head], total = 0;
            for (int j = 0; j < count; ++j) {
                double s = 0;
                for (int i = 0; i < D; ++i) s += x[i] * rows[0][j][i];
                scores[j] = c.soft_cap > 0 ? c.soft_cap * std::tanh(s * scale / c.soft_cap) : s * scale;
                most = std::max(most, scores[j]);
            }
            if (!sink_logits.empty()) total = std::exp(sink_logits[query_head] - most);
            for (int j = 0; j < count; ++j) {
                const double p = std::exp(scores[j] - most);
                total += p;
                for (int i = 0; i < D; ++i) sum[i] += p * rows[1][j][i];
            }
            for (double& v : sum) v /= total;
            l.sides[1].back(sum, head);
            std::copy(sum.begin(), sum.end(), out.begin() + size_t(query_head) * D);
        }
    }
    return out;
}

inline double relative_error(const float* x, const std::vector<double>& expected) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < expected.size(); ++i) difference += std::pow(x[i] - expected[i], 2), norm += expected[i] * expected[i];
    return std::sqrt(difference / norm);
}

inline std::vector<float> normal(std::mt19937& random, size_t count, float deviation = 1) {
    std::normal_distribution<float> distribution(0, deviation);
    std::vector<float> out(count);
    for (float& x : out) x = distribution(random);
    return out;
}
