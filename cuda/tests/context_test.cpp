// The library, the context, memory, events and graphs.
#include "test.h"

TEST(abi_hash) {
    char cpu[65] = {}, cuda[65] = {};
    CHECK(t.cpu.vi_abi_hash(reinterpret_cast<uint8_t*>(cpu), 65) == VI_OK, "no hash");
    CHECK(t.cuda.vi_abi_hash(reinterpret_cast<uint8_t*>(cuda), 65) == VI_OK, "no hash");
    CHECK(std::strlen(cuda) == 64 && std::strcmp(cpu, cuda) == 0, "%s and %s", cpu, cuda);
    CHECK(t.cuda.vi_abi_hash(reinterpret_cast<uint8_t*>(cuda), 64) == VI_INVALID_ARGUMENT, "a short buffer is taken");
}

TEST(unusable_context) {
    Library other = t.cuda;
    other.context = nullptr;
    const int32_t status = other.vi_context_create(reinterpret_cast<uint8_t*>(&other.context), 99, 0);
    CHECK(status == VI_NO_DEVICE && other.context, "status %d", status);
    CHECK(other.error().find("99") != std::string::npos, "%s", other.error().c_str());
    float* address = nullptr;
    CHECK(other.vi_allocate(other.context, reinterpret_cast<uint8_t*>(&address), 4) == VI_NO_DEVICE, "an operation is accepted");
    CHECK(other.vi_gate(other.context, nullptr, nullptr, VI_SILU, 1, 1) == VI_NO_DEVICE, "an operation is accepted");
    CHECK(other.error().find("vi_gate") != std::string::npos, "%s", other.error().c_str());
    CHECK(other.vi_context_destroy(other.context) == VI_OK, "not destroyed");
}

TEST(memory) {
    int64_t before[4], after[4];
    t.call_one(t.cuda, &Functions::vi_memory_info, reinterpret_cast<uint8_t*>(before));
    const int32_t count = t.integer(1, 100000);
    const std::vector<int32_t> values = t.integers(count, -1000000, 1000000);
    {
        Array<int32_t> a(t, values), b(t, count);
        t.call(&Functions::vi_copy, static_cast<void*>(b.at(t.cpu)), static_cast<const void*>(b.at(t.cpu)), int64_t(0));
        for (Library* library : {&t.cpu, &t.cuda}) {
            t.call_one(*library, &Functions::vi_copy, static_cast<void*>(b.at(*library)), static_cast<const void*>(a.at(*library)),
                int64_t(count) * 4);
            CHECK(b.read(*library) == values, "vi_copy changes something");
            CHECK(t.status(*library, &Functions::vi_copy, static_cast<void*>(b.at(*library)), static_cast<const void*>(b.at(*library)),
                int64_t(4)) == VI_INVALID_ARGUMENT, "an overlap is accepted");
            CHECK(reinterpret_cast<uintptr_t>(a.at(*library)) % 256 == 0, "not aligned");
        }
        for (Library* library : {&t.cpu, &t.cuda}) t.call_one(*library, &Functions::vi_fill, static_cast<void*>(b.at(*library)), 0x5a,
            int64_t(count) * 4);
        t.equal("vi_fill", b);
    }
    t.call_one(t.cuda, &Functions::vi_memory_info, reinterpret_cast<uint8_t*>(after));
    CHECK(before[0] == after[0] && after[1] >= before[0] + count * 8, "%lld bytes before, %lld after, peak %lld",
        static_cast<long long>(before[0]), static_cast<long long>(after[0]), static_cast<long long>(after[1]));
    int local = 0;
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_free, static_cast<void*>(&local));
    t.call(&Functions::vi_free, static_cast<void*>(nullptr));
    uint8_t* address = nullptr;
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_allocate, reinterpret_cast<uint8_t*>(&address), int64_t(0));
}

TEST(out_of_memory) {
    uint8_t* address = nullptr;
    int64_t info[4], after[4];
    t.call_one(t.cuda, &Functions::vi_memory_info, reinterpret_cast<uint8_t*>(info));
    const int64_t bytes = info[3] + (int64_t(1) << 30);
    const int32_t status = t.status(t.cuda, &Functions::vi_allocate, reinterpret_cast<uint8_t*>(&address), bytes);
    CHECK(status == VI_OUT_OF_MEMORY && !address, "status %d", status);
    CHECK(t.cuda.error().find(std::to_string(bytes)) != std::string::npos && t.cuda.error().find("vi_allocate") == 0, "%s",
        t.cuda.error().c_str());
    t.call_one(t.cuda, &Functions::vi_memory_info, reinterpret_cast<uint8_t*>(after));
    CHECK(after[0] == info[0], "memory is lost");
    // The context lives on.
    Array<float> out(t, 64), in(t, t.normal(128));
    t.call(&Functions::vi_gate, out, in, VI_SILU, 1, 64);
    t.close("out", out, 1e-6);
}

TEST(events) {
    Array<float> out(t, 4096), in(t, t.normal(8192));
    t.call(&Functions::vi_event_record, 3);
    t.call(&Functions::vi_gate, out, in, VI_SILU, 1, 4096);
    t.call(&Functions::vi_event_record, 7);
    for (Library* library : {&t.cpu, &t.cuda}) {
        float milliseconds = -1;
        t.call_one(*library, &Functions::vi_event_elapsed, reinterpret_cast<uint8_t*>(&milliseconds), 3, 7);
        CHECK(milliseconds >= 0 && milliseconds < 10000, "%g ms", milliseconds);
    }
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_event_record, 64);
    float milliseconds;
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_event_elapsed, reinterpret_cast<uint8_t*>(&milliseconds), 3, 61);
}

namespace {

// A step of a small model: what the host changes between replays lies in buffers.
struct Step {
    static constexpr int32_t width = 64, vocabulary = 300;
    int32_t rows;
    Array<vi_bf16> table, up, head, bias;
    Array<float> norm, scales, x, residual, normed, gate, hidden, logits, settings, logprobs, frequencies;
    Array<int32_t> ids, positions, seeds, counts;

    Step(Test& t, int32_t rows)
        : rows(rows), table(t, t.normal_bf16(vocabulary * width)), up(t, t.normal_bf16(4 * width * width, 0.1f)),
          head(t, t.normal_bf16(vocabulary * 2 * width, 0.2f)), bias(t, t.normal_bf16(4 * width)), norm(t, t.normal(width, 0.1f, 1)),
          scales(t, t.normal(32, 0.1f, 1)), x(t, rows * width), residual(t,
              std::vector<float>(rows * width, 0)),
          normed(t, rows * width), gate(t, rows * 4 * width), hidden(t, rows * 2 * width), logits(t, rows * vocabulary), settings(t,
              settings_of(rows)),
          logprobs(t, rows), frequencies(t, t.normal(16)), ids(t, t.integers(rows, 0, vocabulary - 1)), positions(t, t.integers(rows, 0, 100)),
          seeds(t, t.integers(rows, -1000, 1000)), counts(t, std::vector<int32_t>(rows * vocabulary, 0)) {}

    static std::vector<float> settings_of(int32_t rows) {
        std::vector<float> out;
        for (int32_t r = 0; r < rows; ++r) out.insert(out.end(), {0.7f + 0.1f * r, 20, 0.9f, 0, 1.1f, 0.1f, 0.1f, 0});
        return out;
    }

    void run(Test& t, Library& l) {
        const vi_bf16* no_bf16 = nullptr;
        const float* no_norm = nullptr;
        t.call_one(l, &Functions::vi_embedding, x, ids, table, rows, width, vocabulary);
        t.call_one(l, &Functions::vi_rmsnorm, normed, residual, x, norm, 1e-5f, rows, width);
        t.call_one(l, &Functions::vi_head_norm, normed, scales, 1e-5f, rows, 2, 32, width);
        t.call_one(l, &Functions::vi_rope, normed, positions, frequencies, 1.1f, rows, 2, 32, 24, 0, width);
        t.call_one(l, &Functions::vi_add, normed, x, norm, 1e-5f, 0.5f, rows, width);
        t.call_one(l, &Functions::vi_linear, gate, normed, up, bias, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, rows, 4 * width, width);
        t.call_one(l, &Functions::vi_gate, hidden, gate, VI_GELU, rows, 2 * width);
        t.call_one(l, &Functions::vi_linear, logits, hidden, head, no_bf16, no_norm, 0.0f, VI_BF16, VI_OUTPUT_VALUES, rows, vocabulary, 2 * width);
        t.call_one(l, &Functions::vi_scale, logits, 0.5f, 30.0f, int64_t(rows) * vocabulary);
        t.call_one(l, &Functions::vi_sample, ids, logprobs, logits, counts, static_cast<const float*>(nullptr), settings, seeds,
            positions, rows, vocabulary);
        t.call_one(l, &Functions::vi_advance, positions, rows);
    }
};

} // namespace

TEST(graph) {
    for (const int32_t rows : {1, 3, 12}) {
        Step step(t, rows);
        const std::vector<int32_t> ids = step.ids.read(t.cuda), positions = step.positions.read(t.cuda);
        // Eager, three steps.
        std::vector<std::vector<int32_t>> wanted;
        for (int i = 0; i < 3; ++i) {
            step.run(t, t.cuda);
            wanted.push_back(step.ids.read(t.cuda));
        }
        const std::vector<float> logits = step.logits.read(t.cuda);
        const std::vector<int32_t> counts = step.counts.read(t.cuda);
        // The same from a graph.
        step.ids.write(t.cuda, ids);
        step.positions.write(t.cuda, positions);
        step.residual.write(t.cuda, std::vector<float>(step.residual.size(), 0));
        step.counts.write(t.cuda, std::vector<int32_t>(step.counts.size(), 0));
        t.call_one(t.cuda, &Functions::vi_graph_begin);
        step.run(t, t.cuda);
        vi_graph* graph = nullptr;
        t.call_one(t.cuda, &Functions::vi_graph_end, reinterpret_cast<uint8_t*>(&graph));
        CHECK(step.ids.read(t.cuda) == ids, "recording ran something");
        for (int i = 0; i < 3; ++i) {
            t.call_one(t.cuda, &Functions::vi_graph_launch, graph);
            CHECK(step.ids.read(t.cuda) == wanted[i], "replay %d draws other ids", i);
        }
        CHECK(step.logits.read(t.cuda) == logits, "other logits");
        CHECK(step.counts.read(t.cuda) == counts, "other counts");
        t.call_one(t.cuda, &Functions::vi_graph_destroy, graph);
    }
}

TEST(graph_refuses) {
    uint8_t* address = nullptr;
    vi_graph* graph = nullptr;
    Array<int32_t> positions(t, t.integers(4, 0, 10));
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_graph_end, reinterpret_cast<uint8_t*>(&graph));
    t.call(&Functions::vi_graph_begin);
    t.call(&Functions::vi_advance, positions, 4);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_allocate, reinterpret_cast<uint8_t*>(&address), int64_t(16));
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_synchronize);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_graph_end, reinterpret_cast<uint8_t*>(&graph));
    CHECK(!graph && t.cuda.error().find("vi_allocate") == 0, "the first error is lost: %s", t.cuda.error().c_str());
    t.call(&Functions::vi_advance, positions, 4);
    t.equal("positions", positions);
}
