// Attention of prompts against float64, by each kernel there is for it: all shapes, counts about the edges of tiles, offsets, a coded past and a ring, strides, peaked
// scores, sliding windows, sink logits and soft caps.
#include "cache.h"
#include <cstdlib>
#include <memory>

namespace {

// Keys and values [past, kv_heads, D] of slot 0 as decoded, with the tokens that are kept as bf16 in their places.
void put_exact(const Layer& l, int past, std::vector<double>& keys, std::vector<double>& values) {
    const CacheCase& c = l.c;
    for (int side = 0; side < 2; ++side) {
        const std::vector<vi_bf16> recent = l.recent[side]->get(), sinks = l.sinks[side]->get();
        for (int j = 0; j < past; ++j)
            for (int head = 0; head < c.kv_heads; ++head) {
                const bool sink = j < c.sinks;
                if (!sink && (c.sliding ? past - j >= c.window : past - j > c.window)) continue;
                const vi_bf16* from = sink ? &sinks[(size_t(head) * c.sinks + j) * c.D] : &recent[(size_t(head) * c.recent + j % c.recent) * c.D];
                std::vector<double> x(c.D);
                for (int i = 0; i < c.D; ++i) x[i] = double(f32(from[i]));
                l.sides[side].back(x, head);
                std::copy(x.begin(), x.end(), (side ? values : keys).begin() + (size_t(j) * c.kv_heads + head) * c.D);
            }
    }
}

// How scores become weights beside the softmax's own way; 0 and NULL: not.
struct Score {
    int window = 0; // sliding
    float cap = 0;
    const std::vector<float>* sinks = nullptr; // a head's logit
    double capped(double s) const { return cap > 0 ? cap * std::tanh(s / cap) : s; }
    std::string name() const { return (window ? " window " + std::to_string(window) : "") + (cap > 0 ? " cap " + std::to_string(cap) : "") + (sinks ? " sink logits" : ""); }
};

// A query's attention over the first `tokens` of keys and values [tokens, kv_heads, D].
std::vector<double> reference(const float* q, const std::vector<double>& keys, const std::vector<double>& values, float scale, int tokens, int kv_heads, int kv_head, int D,
                              const Score& score, int head) {
    std::vector<double> s(tokens), sum(D);
    double most = score.sinks ? double((*score.sinks)[head]) : -1e300, total = 0;
    const int from = score.window ? std::max(0, tokens - score.window) : 0;
    for (int j = from; j < tokens; ++j) {
        for (int i = 0; i < D; ++i) s[j] += q[i] * keys[(size_t(j) * kv_heads + kv_head) * D + i];
        most = std::max(most, s[j] = score.capped(s[j] * scale));
    }
    if (score.sinks) total = std::exp((*score.sinks)[head] - most);
    for (int j = from; j < tokens; ++j) {
        const double p = std::exp(s[j] - most);
        total += p;
        for (int i = 0; i < D; ++i) sum[i] += p * values[(size_t(j) * kv_heads + kv_head) * D + i];
    }
    for (double& x : sum) x /= total;
    return sum;
}

// As bf16 the same results; what is NaN in f32 was not written.
void check_rounded(const std::vector<vi_bf16>& found, const std::vector<float>& wanted, const std::string& name) {
    for (size_t i = 0; i < wanted.size(); ++i)
        CHECK(found[i] == (std::isnan(wanted[i]) ? 0xffff : bf16(wanted[i])), "%s: element %zu of bf16 is %g, in f32 %g", name.c_str(), i, f32(found[i]), wanted[i]);
}

// What a prompt comes after: nothing, codes, bf16 pages, or the ring of a layer with a sliding window.
enum class Past { none, coded, bf16, ring };

// Random tokens in slot 0, and what attention is to see of them: keys and values [past, kv_heads, D].
void store_past(const Layer& l, int past, std::vector<double>& keys, std::vector<double>& values, std::mt19937& random) {
    const CacheCase& c = l.c;
    const size_t size = size_t(past) * c.kv_heads * c.D;
    const std::vector<float> k = normal(random, size), v = normal(random, size);
    const int before = l.exact_from[0];
    if (before && !c.sliding) l.store(0, k, v, 0, before, before);
    l.store(0, k, v, before, past - before, std::min(40, c.recent));
    if (c.sliding) keys.assign(k.begin(), k.end()), values.assign(v.begin(), v.end());
    else {
        Memory<float> dk(l.library, size), dv(l.library, size);
        OK(l.library, vi_dequantize, dk.data, dv.data, l.layer, 0, 0, past);
        const auto hk = dk.get(), hv = dv.get();
        keys.assign(hk.begin(), hk.end()), values.assign(hv.begin(), hv.end());
    }
    put_exact(l, past, keys, values);
}

// Keys and values [fresh, width] as rows of 16 bits [fresh, 2 width + 8], NaN behind them.
std::vector<uint16_t> side_by_side(const std::vector<float>& k, const std::vector<float>& v, int fresh, int width, int stride, uint16_t (*round)(float)) {
    std::vector<uint16_t> out(size_t(fresh) * (2 * width + 8), 0xffff);
    for (int r = 0; r < fresh; ++r)
        for (int i = 0; i < 2 * width; ++i) out[size_t(r) * (2 * width + 8) + i] = round((i < width ? k : v)[size_t(r) * stride + i % width]);
    return out;
}

// Prompts: fresh tokens alone, in two pieces, and after a past.
void run_prefill(Library& cuda, int D, int kv_heads, int group, int fresh, Past kind, int past, const Score& plain, unsigned seed) {
    std::mt19937 random(seed);
    const int heads = kv_heads * group, width = kv_heads * D, matrices = seed % 2;
    const bool ring = kind == Past::ring;
    const Side bf16_side{1, 16, 1, 0, 0, 0}, keys_side{4, 8, kv_heads, 1, 1, 1, 1, matrices}, values_side{4, 8, 1, 0, 1, 1, 1, matrices};
    const bool coded = kind == Past::coded;
    const int window = ring ? plain.window : 32, recent = ring ? plain.window + int(random() % 70) : 64;
    CacheCase c{coded ? keys_side : bf16_side, coded ? values_side : bf16_side, D, kv_heads, group, ring ? 0 : 4, window, recent, {std::max(past, 1)}, seed, ring};
    std::vector<float> logits(heads);
    for (float& x : logits) x = std::normal_distribution<float>(0, 3)(random);
    Score score = plain;
    if (score.sinks) score.sinks = &logits;
    Memory<float> dl(cuda, logits);
    const float* const sinks = score.sinks ? dl.data : nullptr;
    const std::string name = "prefill D " + std::to_string(D) + " heads " + std::to_string(heads) + "/" + std::to_string(kv_heads) + " fresh " + std::to_string(fresh) + " past " +
        std::to_string(past) + (coded ? " coded" : ring ? " ring" : "") + score.name() + " seed " + std::to_string(seed);
    std::vector<float> codebooks[2], smooths[2];
    if (coded) codebooks[0] = normal(random, size_t(kv_heads) * 4 << 8), codebooks[1] = normal(random, size_t(4) << 8), smooths[0] = normal(random, width);
    for (float& x : smooths[0]) x = std::exp2(x / 2);
    std::unique_ptr<Layer> l;
    std::vector<double> keys, values; // [past + fresh, kv_heads, D]
    if (past) {
        l = std::make_unique<Layer>(c, cuda, codebooks, smooths, random);
        store_past(*l, past, keys, values, random);
    }
    vi_kv_layer* const layer = past ? l->layer : nullptr;
    const int q_stride = heads * D + 4, kv_stride = width + 8;
    const std::vector<float> q = normal(random, size_t(fresh) * q_stride), k = normal(random, size_t(fresh) * kv_stride), v = normal(random, size_t(fresh) * kv_stride);
    for (int r = 0; r < fresh; ++r)
        for (int i = 0; i < width; ++i) keys.push_back(k[size_t(r) * kv_stride + i]), values.push_back(v[size_t(r) * kv_stride + i]);
    const float scale = 1.5f / std::sqrt(float(D));
    Memory<float> dq(cuda, q), dk(cuda, k), dv(cuda, v), out(cuda, size_t(fresh) * heads * D);
    const int cut = fresh / 3;
    const int half_stride = 2 * width + 8;
    Memory<vi_f16> dh(cuda, side_by_side(k, v, fresh, width, kv_stride, to_half));
    Memory<vi_bf16> db(cuda, side_by_side(k, v, fresh, width, kv_stride, bf16));
    std::vector<float> whole;
    for (int pass = 0; pass < 5; ++pass) { // whole, then in two pieces; f32, then f16; then whole as bf16
        if (pass % 2 && !cut) continue;
        const int dtype = pass < 2 ? VI_F32 : pass < 4 ? VI_F16 : VI_BF16, stride = pass < 2 ? kv_stride : half_stride, first = pass % 2 ? cut : 0;
        const void *keys_in = dk.data, *values_in = dv.data;
        if (dtype == VI_F16) keys_in = dh.data, values_in = dh.data + width;
        if (dtype == VI_BF16) keys_in = db.data, values_in = db.data + width;
        auto call = [&](void* to, int from, int rows, int out_dtype) {
            OK(cuda, vi_attention_prefill, to, dq.data + size_t(from) * q_stride, keys_in, values_in, layer, sinks, scale, score.cap, 0, past, from, rows, score.window, heads,
               kv_heads, D, q_stride, stride, dtype, out_dtype);
        };
        OK(cuda, vi_fill, out.data, 255, static_cast<int64_t>(out.size * 4));
        if (first) call(out.data, 0, cut, VI_F32);
        call(out.data + size_t(first) * heads * D, first, fresh - first, VI_F32);
        const std::vector<float> result = out.get();
        CHECK(std::none_of(result.begin(), result.end(), [](float x) { return std::isnan(x); }), "%s: elements are not written, or NaN", name.c_str());
        // f16 rows are read in place by one pass, f32 rows are rounded 32768 at a time: beyond these sums are taken in another order.
        if (pass == 0 || (pass == 2 && fresh > 32768)) whole = result;
        if (pass == 2) {
            Memory<vi_bf16> rounded(cuda, result.size());
            call(rounded.data, 0, fresh, VI_BF16);
            check_rounded(rounded.get(), result, name);
        }
        CHECK(pass == 4 || result == whole, "%s: other bits %s%s than from one call", name.c_str(), pass < 2 ? "" : "from f16 rows, as which f32 rows are rounded,",
              pass % 2 ? " in two pieces" : "");
        std::vector<int> sample = {0, fresh - 1, std::max(0, cut - 1), cut};
        while (sample.size() < 24) sample.push_back(random() % fresh);
        double difference = 0, norm = 0; // together: single rows and heads of few tokens reach more
        for (const int r : sample) {
            const int head = random() % heads;
            const std::vector<double> wanted = reference(&q[size_t(r) * q_stride + head * D], keys, values, scale, past + r + 1, kv_heads, head / group, D, score, head);
            const float* found = &result[(size_t(r) * heads + head) * D];
            for (int i = 0; i < D; ++i) difference += std::pow(found[i] - wanted[i], 2), norm += wanted[i] * wanted[i];
        }
        const double error = std::sqrt(difference / norm), bound = pass < 4 ? 2e-3 : 1e-2; // bf16 rows are rounded in the 9th bit
        CHECK(error <= bound, "%s%s%s: relative error %g", name.c_str(), pass % 2 ? " in two pieces" : "", pass == 4 ? " as bf16" : "", error);
    }
}

// A second context of the library that the test opens, with the mma.sync kernel also where the wgmma kernel would run.
struct WithoutWgmma : Library {
    explicit WithoutWgmma(const Library& from) : Library(from) {
        setenv("VECINFER_WGMMA", "off", 1);
        const int32_t status = vi_context_create(reinterpret_cast<uint8_t*>(&context), 0, 0);
        unsetenv("VECINFER_WGMMA");
        CHECK(status == VI_OK, "vi_context_create: status %d: %s", status, error().c_str());
    }
    ~WithoutWgmma() { vi_context_destroy(context); }
};

std::string info(const Library& library) {
    char text[4096] = {};
    library.vi_device_info(library.context, reinterpret_cast<uint8_t*>(text), sizeof text);
    return text;
}

// A prompt without a past: `rows` queries from token `first` on.
struct Fresh {
    int D, kv_heads, group, rows, first;
    bool half;     // keys and values as f16
    float size;    // of the queries: scores have this deviation times 1.2
    float growth;  // of the keys, a token: maxima grow along a row
    int misplaced; // floats by which q is off a multiple of 16 bytes
    Score score = {};
    std::string name() const {
        return "D " + std::to_string(D) + " heads " + std::to_string(kv_heads * group) + "/" + std::to_string(kv_heads) + " rows " + std::to_string(rows) + " first " +
               std::to_string(first) + (half ? " f16" : " f32") + " size " + std::to_string(size) + " growth " + std::to_string(growth) +
               (misplaced ? " q off by " + std::to_string(misplaced) : "") + score.name();
    }
};

// The reference rounds what both kernels round first (q times the scale, keys, values), so that what is left is the rounding of weights, 2^-12 each. Behind the rows
// that are read stands NaN; what is behind those to be written must stay as it is. The same call again, twice without a wait between, and recorded, gives the same bits.
void run_fresh(const Fresh& f, Library& cuda, std::mt19937& random) {
    const int D = f.D, heads = f.kv_heads * f.group, width = f.kv_heads * D, tokens = f.first + f.rows, behind = 300;
    const int q_stride = heads * D + (f.misplaced ? 3 : 8), kv_stride = 2 * width + 8;
    const float scale = 1.2f / std::sqrt(float(D)), nan = std::nanf("");
    std::vector<float> q(size_t(f.rows + behind) * q_stride + f.misplaced, nan), kv(size_t(tokens + behind) * kv_stride, nan), logits(heads);
    std::normal_distribution<float> normal;
    for (int r = 0; r < f.rows; ++r)
        for (int i = 0; i < heads * D; ++i) q[f.misplaced + size_t(r) * q_stride + i] = f.size * normal(random);
    for (int r = 0; r < tokens; ++r)
        for (int i = 0; i < 2 * width; ++i) kv[size_t(r) * kv_stride + i] = normal(random) * (i < width ? 1 + f.growth * r : 1);
    for (float& x : logits) x = 4 * normal(random);
    Score score = f.score;
    if (score.sinks) score.sinks = &logits;
    std::vector<vi_f16> rounded(kv.size(), 0xffff);
    for (size_t i = 0; i < kv.size(); ++i)
        if (!std::isnan(kv[i])) rounded[i] = to_half(kv[i]);
    Memory<float> dq(cuda, q), dk(cuda, kv), dl(cuda, logits), out(cuda, size_t(f.rows + behind) * heads * D);
    Memory<vi_f16> dh(cuda, rounded);
    const void *keys = dk.data, *values = dk.data + width;
    if (f.half) keys = dh.data, values = dh.data + width;
    auto call_to = [&](void* to, int out_dtype) {
        OK(cuda, vi_attention_prefill, to, dq.data + f.misplaced, keys, values, nullptr, score.sinks ? dl.data : nullptr, scale, score.cap, 0, 0, f.first, f.rows, score.window,
           heads, f.kv_heads, D, q_stride, kv_stride, f.half ? VI_F16 : VI_F32, out_dtype);
    };
    auto call = [&] { call_to(out.data, VI_F32); };
    call();
    const std::vector<float> result = out.get();
    const size_t written = size_t(f.rows) * heads * D;
    for (size_t i = 0; i < result.size(); ++i)
        CHECK(std::isnan(result[i]) == (i >= written), "%s: element %zu of %zu is %g", f.name().c_str(), i, written, result[i]);

    if (f.half) {
        Memory<vi_bf16> half_out(cuda, result.size());
        call_to(half_out.data, VI_BF16);
        check_rounded(half_out.get(), result, f.name());
    }
    double difference = 0, norm = 0;
    const float factor = scale * 1.4426950408889634f;
    for (int trial = 0; trial < 40; ++trial) {
        const int r = trial < 2 ? trial * (f.rows - 1) : random() % f.rows, head = random() % heads, seen = f.first + r + 1, kv_head = head / f.group;
        const int from = score.window ? std::max(0, seen - score.window) : 0;
        std::vector<double> query(D), s(seen), sum(D);
        double most = score.sinks ? logits[head] : -1e300, total = 0, of_row = 0, of_norm = 0;
        for (int i = 0; i < D; ++i) query[i] = from_half(to_half(q[f.misplaced + size_t(r) * q_stride + head * D + i] * factor)) / 1.4426950408889634;
        for (int j = from; j < seen; ++j) {
            for (int i = 0; i < D; ++i) s[j] += query[i] * from_half(rounded[size_t(j) * kv_stride + kv_head * D + i]);
            most = std::max(most, s[j] = score.capped(s[j]));
        }
        if (score.sinks) total = std::exp(logits[head] - most);
        for (int j = from; j < seen; ++j) {
            const double p = std::exp(s[j] - most);
            total += p;
            for (int i = 0; i < D; ++i) sum[i] += p * from_half(rounded[size_t(j) * kv_stride + width + kv_head * D + i]);
        }
        for (int i = 0; i < D; ++i) {
            const double e = result[(size_t(r) * heads + head) * D + i] - sum[i] / total;
            of_row += e * e, of_norm += sum[i] * sum[i] / total / total;
        }
        CHECK(std::sqrt(of_row / of_norm) <= 2e-3, "%s: row %d head %d: relative error %g", f.name().c_str(), r, head, std::sqrt(of_row / of_norm));
        difference += of_row, norm += of_norm;
    }
    CHECK(std::sqrt(difference / norm) <= 1e-3, "%s: relative error %g", f.name().c_str(), std::sqrt(difference / norm));

    auto same = [&](const char* what) {
        const std::vector<float> again = out.get();
        CHECK(std::memcmp(again.data(), result.data(), written * sizeof(float)) == 0, "%s: other bits %s", f.name().c_str(), what);
    };
    call();
    call();
    same("from the same call again");
    vi_graph* graph = nullptr;
    OK(cuda, vi_graph_begin);
    call();
    OK(cuda, vi_graph_end, reinterpret_cast<uint8_t*>(&graph));
    OK(cuda, vi_fill, out.data, 255, static_cast<int64_t>(written * sizeof(float)));
    for (int i = 0; i < 2; ++i) OK(cuda, vi_graph_launch, graph);
    same("from a recorded call");
    OK(cuda, vi_graph_destroy, graph);
}

const std::vector<float> some; // says that there are sink logits; each case draws its own

void run_all_fresh(Test& t, Library& cuda) {
    std::mt19937 random(static_cast<unsigned>(t.random()));
    const int groups[] = {1, 2, 3, 4, 7, 8, 16};
    const std::vector<int> counts = t.small ? std::vector<int>{1, 65, 300} : std::vector<int>{1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 385, 1000, 2065};
    for (const int D : {128, 64, 256}) {
        for (const int rows : counts)
            run_fresh({D, t.integer(1, rows > 500 ? 1 : 3), groups[random() % 7], rows, t.integer(0, 2) * t.integer(1, t.small ? 200 : 1500), random() % 2 == 0, 1, 0, 0}, cuda, random);
        for (const int group : groups) run_fresh({D, t.integer(1, 2), group, t.small ? 70 : 400, t.integer(0, 300), true, 1, 0, 0}, cuda, random);
        for (const float size : {0.0f, 8.0f, 40.0f}) run_fresh({D, 2, 4, 260, 65, true, size, 0, 0}, cuda, random);
        run_fresh({D, 2, 2, t.small ? 200 : 900, 0, true, 2, 0.004f, 0}, cuda, random);
        run_fresh({D, 2, 3, 150, 77, true, 1, 0, t.integer(1, 3)}, cuda, random); // by the mma.sync kernel on every card
    }
    for (const int D : {80, 96, 112, 192}) // those that are padded
        for (const int rows : {1, 130, t.small ? 150 : 600}) run_fresh({D, t.integer(1, 3), groups[random() % 7], rows, t.integer(0, 200), random() % 2 == 0, 1, 0, 0}, cuda, random);
    for (const int D : {64, 80, 96, 112, 128, 192, 256})
        for (const int window : {1, 2, t.integer(3, 127), 128, t.integer(129, 300)}) { // every second with sink logits, and with a cap
            if (t.small && random() % 4) continue; // some of them: a sanitizer takes its time
            const int rows = t.small ? 140 : t.integer(1, 700);
            run_fresh({D, t.integer(1, 2), groups[random() % 5], rows, t.integer(0, 400), random() % 2 == 0, 2, 0, 0, {window, window % 2 ? 3.0f : 0.0f, window % 3 ? &some : nullptr}}, cuda, random);
        }
    for (const int D : {64, 128, 256}) {
        run_fresh({D, 2, 4, 200, 0, true, 1, 0, 0, {0, 0, &some}}, cuda, random);
        run_fresh({D, 2, 2, 200, 70, true, 20, 0, 0, {0, 50, nullptr}}, cuda, random); // at the cap's ends
        run_fresh({D, 1, 3, 130, 20, false, 1, 0, t.integer(1, 3), {50, 5, &some}}, cuda, random);
    }
    if (!t.small) run_fresh({128, 8, 4, 2048, 0, true, 1, 0, 0}, cuda, random); // more tiles than multiprocessors
    if (!t.small) run_fresh({256, 4, 2, 2100, 0, true, 1, 0, 0, {512, 0, nullptr}}, cuda, random);
}

void run_all_prefill(Test& t, Library& cuda, int longest, int group) {
    auto seed = [&] { return static_cast<unsigned>(t.random()); };
    const int fresh_most = t.small ? 130 : 500;
    for (const int D : {128, 64, 256})
        for (const int past : {0, 1, 65, longest})
            for (const int fresh : {1, 63, fresh_most}) {
                if (t.small && t.random() % 3) continue;
                run_prefill(cuda, D, t.integer(1, 3), t.integer(1, group), fresh, past ? Past::coded : Past::none, past, {}, seed());
            }
    for (const int D : {80, 96, 112, 192, 64, 128, 256}) {
        if (t.small && t.random() % 3) continue;
        const int fresh = t.integer(2, fresh_most), past = t.integer(1, longest), window = t.integer(2, 200);
        run_prefill(cuda, D, t.integer(1, 3), t.integer(1, group), fresh, Past::bf16, past, {}, seed());
        run_prefill(cuda, D, t.integer(1, 3), t.integer(1, group), fresh, Past::bf16, past, {window, 0, &some}, seed());
        for (const int before : {1, window - 1, window + 1, 4 * window + 77})
            if (before > 0) run_prefill(cuda, D, t.integer(1, 2), t.integer(1, group), fresh, Past::ring, before, {window, D % 3 ? 0.0f : 10.0f, D % 64 ? nullptr : &some}, seed());
    }
    for (const int D : {64, 128, 256}) run_prefill(cuda, D, 2, 2, 70, Past::coded, t.integer(100, 300), {t.integer(20, 250), 4, &some}, seed());
    // Chunks of the past and of fresh f32 rows: what a window leaves out does not move where they begin.
    if (!t.small) run_prefill(cuda, 64, 1, 1, 33500, Past::none, 0, {t.integer(200, 1200), 0, &some}, seed());
    if (!t.small) run_prefill(cuda, 64, 1, 2, 90, Past::bf16, 33000, {t.integer(200, 33000), 0, nullptr}, seed());
}

} // namespace

TEST(attention_prefill) {
    run_all_fresh(t, t.cuda);
    run_all_prefill(t, t.cuda, t.small ? 300 : 4096, 16);
}
// The same by the mma.sync kernel where the library has chosen the wgmma kernel.
TEST(attention_prefill_without_wgmma) {
    if (info(t.cuda).find("prompts by wgmma") == std::string::npos) throw Skip{"the case above did this: there is no wgmma kernel for this card, or VECINFER_WGMMA is off"};
    WithoutWgmma library(t.cuda);
    CHECK(info(library).find("wgmma") == std::string::npos, "VECINFER_WGMMA=off: %s", info(library).c_str());
    run_all_fresh(t, library);
    run_all_prefill(t, library, 300, 5);
}
