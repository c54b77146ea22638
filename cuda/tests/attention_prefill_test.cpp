// Attention of prompts against float64, by each kernel there is for it: all shapes, counts about the edges of tiles, offsets, a coded past, strides, peaked scores.
#include "cache.h"
#include <cstdlib>

namespace {

// Keys and values [past, kv_heads, D] of slot 0 as decoded, with the tokens that are kept as bf16 in their places.
void put_exact(const Layer& l, int past, std::vector<double>& keys, std::vector<double>& values) {
    const CacheCase& c = l.c;
    for (int side = 0; side < 2; ++side) {
        const std::vector<vi_bf16> recent = l.recent[side]->get(), sinks = l.sinks[side]->get();
        for (int j = 0; j < past; ++j)
            for (int head = 0; head < c.kv_heads; ++head) {
                const bool sink = j < c.sinks;
                if (!sink && past - j > c.window) continue;
                const vi_bf16* from = sink ? &sinks[(size_t(head) * c.sinks + j) * c.D] : &recent[(size_t(head) * c.recent + j % c.recent) * c.D];
                std::vector<double> x(c.D);
                for (int i = 0; i < c.D; ++i) x[i] = double(f32(from[i]));
                l.sides[side].back(x, head);
                std::copy(x.begin(), x.end(), (side ? values : keys).begin() + (size_t(j) * c.kv_heads + head) * c.D);
            }
    }
}

// A query's attention over the first `tokens` of keys and values [tokens, kv_heads, D].
std::vector<double> reference(const float* q, const std::vector<double>& keys, const std::vector<double>& values, float scale, int tokens, int kv_heads, int kv_head, int D) {
    std::vector<double> s(tokens), sum(D);
    double most = -1e300, total = 0;
    for (int j = 0; j < tokens; ++j) {
        for (int i = 0; i < D; ++i) s[j] += q[i] * keys[(size_t(j) * kv_heads + kv_head) * D + i];
        most = std::max(most, s[j] *= scale);
    }
    for (int j = 0; j < tokens; ++j) {
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

// Prompts: fresh tokens alone, in two pieces, and after a coded past.
void run_prefill(Library& cuda, int D, int kv_heads, int group, int fresh, int past, unsigned seed) {
    std::mt19937 random(seed);
    const int heads = kv_heads * group, width = kv_heads * D;
    const int matrices = seed % 2;
    CacheCase c{{4, 8, kv_heads, 1, 1, 1, 1, matrices}, {4, 8, 1, 0, 1, 1, 1, matrices}, D, kv_heads, group, 4, 32, 64, {std::max(past, 1)}, seed};
    const std::string name = "prefill D " + std::to_string(D) + " heads " + std::to_string(heads) + "/" + std::to_string(kv_heads) + " fresh " +
        std::to_string(fresh) + " past " + std::to_string(past) + " seed " + std::to_string(seed);
    const std::vector<float> codebooks[2] = {normal(random, size_t(kv_heads) * 4 << 8), normal(random, size_t(4) << 8)};
    std::vector<float> smooths[2] = {normal(random, width), {}};
    for (float& x : smooths[0]) x = std::exp2(x / 2);
    Layer l(c, cuda, codebooks, smooths, random);
    std::vector<double> keys, values; // [past + fresh, kv_heads, D]
    if (past) {
        const std::vector<float> k = normal(random, size_t(past) * width), v = normal(random, size_t(past) * width);
        const int before = l.exact_from[0];
        if (before) l.store(0, k, v, 0, before, before);
        l.store(0, k, v, before, past - before, 64);
        Memory<float> dk(cuda, size_t(past) * width), dv(cuda, size_t(past) * width);
        OK(cuda, vi_dequantize, dk.data, dv.data, l.layer, 0, 0, past);
        const auto hk = dk.get(), hv = dv.get();
        keys.assign(hk.begin(), hk.end()), values.assign(hv.begin(), hv.end());
        put_exact(l, past, keys, values);
    }
    const int q_stride = heads * D + 4, kv_stride = width + 4;
    const std::vector<float> q = normal(random, size_t(fresh) * q_stride), k = normal(random, size_t(fresh) * kv_stride), v = normal(random, size_t(fresh) * kv_stride);
    for (int r = 0; r < fresh; ++r)
        for (int i = 0; i < width; ++i) keys.push_back(k[size_t(r) * kv_stride + i]), values.push_back(v[size_t(r) * kv_stride + i]);
    const float scale = 1.5f / std::sqrt(float(D));
    Memory<float> dq(cuda, q), dk(cuda, k), dv(cuda, v), out(cuda, size_t(fresh) * heads * D);
    const int cut = fresh / 3;
    const int half_stride = 2 * width + 8; // the same rows as bf16, keys and values side by side, NaN behind them
    std::vector<vi_bf16> half(size_t(fresh) * half_stride, 0xffff);
    for (int r = 0; r < fresh; ++r)
        for (int i = 0; i < width; ++i) {
            half[size_t(r) * half_stride + i] = bf16(k[size_t(r) * kv_stride + i]);
            half[size_t(r) * half_stride + width + i] = bf16(v[size_t(r) * kv_stride + i]);
        }
    Memory<vi_bf16> dh(cuda, half);
    std::vector<float> whole;
    for (int pass = 0; pass < 4; ++pass) { // whole, then in two pieces; f32, then bf16
        if (pass % 2 && !cut) continue;
        const void *keys_in = dk.data, *values_in = dv.data;
        if (pass >= 2) keys_in = dh.data, values_in = dh.data + width;
        const int stride = pass < 2 ? kv_stride : half_stride, dtype = pass < 2 ? VI_F32 : VI_BF16, first = pass % 2 ? cut : 0;
        OK(cuda, vi_fill, out.data, 255, static_cast<int64_t>(out.size * 4));
        if (first)
            OK(cuda, vi_attention_prefill, out.data, dq.data, keys_in, values_in, past ? l.layer : nullptr, scale, 0, past, 0, cut, heads, kv_heads, D,
               q_stride, stride, dtype, VI_F32);
        OK(cuda, vi_attention_prefill, out.data + size_t(first) * heads * D, dq.data + size_t(first) * q_stride, keys_in, values_in,
           past ? l.layer : nullptr, scale, 0, past, first, fresh - first, heads, kv_heads, D, q_stride, stride, dtype, VI_F32);
        const std::vector<float> result = out.get();
        CHECK(std::none_of(result.begin(), result.end(), [](float x) { return std::isnan(x); }), "%s: elements are not written", name.c_str());
        if (pass == 0) whole = result;
        if (pass == 2) {
            Memory<vi_bf16> rounded(cuda, result.size());
            OK(cuda, vi_attention_prefill, rounded.data, dq.data, keys_in, values_in, past ? l.layer : nullptr, scale, 0, past, 0, fresh, heads, kv_heads, D, q_stride,
               stride, dtype, VI_BF16);
            check_rounded(rounded.get(), result, name);
        }
        CHECK(result == whole, "%s: other bits %s%s than from one call over f32 rows", name.c_str(), pass < 2 ? "" : "from bf16 rows, as which f32 rows are rounded,",
              pass % 2 ? " in two pieces" : "");
        std::vector<int> sample = {0, fresh - 1, std::max(0, cut - 1), cut};
        while (sample.size() < 24) sample.push_back(random() % fresh);
        double difference = 0, norm = 0; // together: single rows and heads of few tokens reach 1e-2
        for (const int r : sample) {
            const int head = random() % heads;
            const std::vector<double> wanted = reference(&q[size_t(r) * q_stride + head * D], keys, values, scale, past + r + 1, kv_heads, head / group, D);
            const float* found = &result[(size_t(r) * heads + head) * D];
            for (int i = 0; i < D; ++i) difference += std::pow(found[i] - wanted[i], 2), norm += wanted[i] * wanted[i];
        }
        const double error = std::sqrt(difference / norm);
        CHECK(error <= 1e-2, "%s%s: relative error %g", name.c_str(), pass % 2 ? " in two pieces" : "", error);
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
    char text[512] = {};
    library.vi_device_info(library.context, reinterpret_cast<uint8_t*>(text), sizeof text);
    return text;
}

// A prompt without a past: `rows` queries from token `first` on.
struct Fresh {
    int D, kv_heads, group, rows, first;
    bool half;     // keys and values as bf16
    float size;    // of the queries: scores have this deviation times 1.2
    float growth;  // of the keys, a token: maxima grow along a row
    int misplaced; // floats by which q is off a multiple of 16 bytes
    std::string name() const {
        return "D " + std::to_string(D) + " heads " + std::to_string(kv_heads * group) + "/" + std::to_string(kv_heads) + " rows " + std::to_string(rows) + " first " +
               std::to_string(first) + (half ? " bf16" : " f32") + " size " + std::to_string(size) + " growth " + std::to_string(growth) +
               (misplaced ? " q off by " + std::to_string(misplaced) : "");
    }
};

// The reference rounds what both kernels round first (q times the scale, keys, values), so that what is left is the rounding of weights, 2^-9 each. Behind the rows
// that are read stands NaN; what is behind those to be written must stay as it is. The same call again, twice without a wait between, and recorded, gives the same bits.
void run_fresh(const Fresh& f, Library& cuda, std::mt19937& random) {
    const int D = f.D, heads = f.kv_heads * f.group, width = f.kv_heads * D, tokens = f.first + f.rows, behind = 300;
    const int q_stride = heads * D + (f.misplaced ? 3 : 8), kv_stride = 2 * width + 8;
    const float scale = 1.2f / std::sqrt(float(D)), nan = std::nanf("");
    std::vector<float> q(size_t(f.rows + behind) * q_stride + f.misplaced, nan), kv(size_t(tokens + behind) * kv_stride, nan);
    std::normal_distribution<float> normal;
    for (int r = 0; r < f.rows; ++r)
        for (int i = 0; i < heads * D; ++i) q[f.misplaced + size_t(r) * q_stride + i] = f.size * normal(random);
    for (int r = 0; r < tokens; ++r)
        for (int i = 0; i < 2 * width; ++i) kv[size_t(r) * kv_stride + i] = normal(random) * (i < width ? 1 + f.growth * r : 1);
    std::vector<vi_bf16> rounded(kv.size(), 0xffff);
    for (size_t i = 0; i < kv.size(); ++i)
        if (!std::isnan(kv[i])) rounded[i] = bf16(kv[i]);
    Memory<float> dq(cuda, q), dk(cuda, kv), out(cuda, size_t(f.rows + behind) * heads * D);
    Memory<vi_bf16> dh(cuda, rounded);
    const void *keys = dk.data, *values = dk.data + width;
    if (f.half) keys = dh.data, values = dh.data + width;
    auto call = [&] {
        OK(cuda, vi_attention_prefill, out.data, dq.data + f.misplaced, keys, values, nullptr, scale, 0, 0, f.first, f.rows, heads, f.kv_heads, D, q_stride, kv_stride,
           f.half ? VI_BF16 : VI_F32, VI_F32);
    };
    call();
    const std::vector<float> result = out.get();
    const size_t written = size_t(f.rows) * heads * D;
    for (size_t i = 0; i < result.size(); ++i)
        CHECK(std::isnan(result[i]) == (i >= written), "%s: element %zu of %zu is %g", f.name().c_str(), i, written, result[i]);

    if (f.half) {
        Memory<vi_bf16> half_out(cuda, result.size());
        OK(cuda, vi_attention_prefill, half_out.data, dq.data + f.misplaced, keys, values, nullptr, scale, 0, 0, f.first, f.rows, heads, f.kv_heads, D, q_stride, kv_stride,
           VI_BF16, VI_BF16);
        check_rounded(half_out.get(), result, f.name());
    }
    double difference = 0, norm = 0;
    const float factor = scale * 1.4426950408889634f;
    for (int trial = 0; trial < 40; ++trial) {
        const int r = trial < 2 ? trial * (f.rows - 1) : random() % f.rows, head = random() % heads, seen = f.first + r + 1, kv_head = head / f.group;
        std::vector<double> query(D), s(seen), sum(D);
        double most = -1e300, total = 0, of_row = 0, of_norm = 0;
        for (int i = 0; i < D; ++i) query[i] = f32(bf16(q[f.misplaced + size_t(r) * q_stride + head * D + i] * factor));
        for (int j = 0; j < seen; ++j) {
            for (int i = 0; i < D; ++i) s[j] += query[i] * f32(rounded[size_t(j) * kv_stride + kv_head * D + i]);
            most = std::max(most, s[j]);
        }
        for (int j = 0; j < seen; ++j) {
            const double p = std::exp2(s[j] - most);
            total += p;
            for (int i = 0; i < D; ++i) sum[i] += p * f32(rounded[size_t(j) * kv_stride + width + kv_head * D + i]);
        }
        for (int i = 0; i < D; ++i) {
            const double e = result[(size_t(r) * heads + head) * D + i] - sum[i] / total;
            of_row += e * e, of_norm += sum[i] * sum[i] / total / total;
        }
        CHECK(std::sqrt(of_row / of_norm) <= 1e-2, "%s: row %d head %d: relative error %g", f.name().c_str(), r, head, std::sqrt(of_row / of_norm));
        difference += of_row, norm += of_norm;
    }
    CHECK(std::sqrt(difference / norm) <= 5e-3, "%s: relative error %g", f.name().c_str(), std::sqrt(difference / norm));

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

void run_all_fresh(Test& t, Library& cuda) {
    std::mt19937 random(static_cast<unsigned>(t.random()));
    const int groups[] = {1, 2, 3, 4, 7, 8, 16};
    const std::vector<int> counts = t.small ? std::vector<int>{1, 65, 300} : std::vector<int>{1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 385, 1000, 2065};
    for (const int D : {128, 64}) {
        for (const int rows : counts)
            run_fresh({D, t.integer(1, rows > 500 ? 1 : 3), groups[random() % 7], rows, t.integer(0, 2) * t.integer(1, t.small ? 200 : 1500), random() % 2 == 0, 1, 0, 0}, cuda, random);
        for (const int group : groups) run_fresh({D, t.integer(1, 2), group, t.small ? 70 : 400, t.integer(0, 300), true, 1, 0, 0}, cuda, random);
        for (const float size : {0.0f, 8.0f, 40.0f}) run_fresh({D, 2, 4, 260, 65, true, size, 0, 0}, cuda, random);
        run_fresh({D, 2, 2, t.small ? 200 : 900, 0, true, 2, 0.004f, 0}, cuda, random);
        run_fresh({D, 2, 3, 150, 77, true, 1, 0, t.integer(1, 3)}, cuda, random); // by the mma.sync kernel on every card
    }
    if (!t.small) run_fresh({128, 8, 4, 2048, 0, true, 1, 0, 0}, cuda, random); // more tiles than multiprocessors
}

} // namespace

TEST(attention_prefill) {
    run_all_fresh(t, t.cuda);
    for (const int D : {128, 64})
        for (const int past : {0, 1, 65, t.small ? 300 : 4096})
            for (const int fresh : {1, 63, t.small ? 130 : 500}) run_prefill(t.cuda, D, t.integer(1, 3), t.integer(1, 16), fresh, past, static_cast<unsigned>(t.random()));
}
// The same by the mma.sync kernel where the library has chosen the wgmma kernel.
TEST(attention_prefill_without_wgmma) {
    if (info(t.cuda).find("prompts by wgmma") == std::string::npos) throw Skip{"the case above did this: there is no wgmma kernel for this card, or VECINFER_WGMMA is off"};
    WithoutWgmma library(t.cuda);
    CHECK(info(library).find("wgmma") == std::string::npos, "VECINFER_WGMMA=off: %s", info(library).c_str());
    run_all_fresh(t, library);
    for (const int D : {128, 64})
        for (const int past : {0, 1, 300})
            for (const int fresh : {1, 63, t.small ? 130 : 500}) run_prefill(library, D, t.integer(1, 3), t.integer(1, 5), fresh, past, static_cast<unsigned>(t.random()));
}
