// The transform's handle against float64 and the CPU library: its directions, in place and with gaps, and what it refuses. That a quantizer keeps what it holds shows
// in every test of the cache: cache.h destroys the handle at once.
#include "cache.h"

namespace {

struct Handle { // of one library
    Library& library;
    vi_transform* transform = nullptr;
    Handle(Library& library, const float* smooth, const float* matrices, int kv_heads, int D, int hadamard) : library(library) {
        OK(library, vi_transform_create, reinterpret_cast<uint8_t*>(&transform), smooth, matrices, kv_heads, D, hadamard);
    }
    Handle(const Handle&) = delete;
    ~Handle() { OK(library, vi_transform_destroy, transform); }
};

void run(Test& t, const Side& side, int D) {
    const int kv_heads = t.integer(1, 4), group = t.integer(1, 5), rows = t.small ? 9 : t.integer(1, 300), heads = kv_heads * group;
    const int stride = heads * D + 4 * t.integer(0, 3);
    HostSide host;
    host.side = side, host.D = D;
    host.smooth = t.normal(size_t(kv_heads) * D);
    for (float& x : host.smooth) x = std::exp2(x / 2);
    Array<float> smooth(t, host.smooth), matrices(t, host.matrices(kv_heads));
    const std::vector<float> values = t.normal(size_t(rows) * stride);
    for (const int direction : {VI_TRANSFORM_FORWARD, VI_TRANSFORM_QUERY, VI_TRANSFORM_INVERSE}) {
        const std::string name = side.name() + " D " + std::to_string(D) + " direction " + std::to_string(direction);
        Array<float> x(t, values), out(t, values); // the gaps stay as they are
        for (Library* library : {&t.cpu, &t.cuda}) {
            const bool fitted = side.matrices;
            const Handle handle(*library, side.smooth && !fitted ? smooth.at(*library) : nullptr, fitted ? matrices.at(*library) : nullptr, kv_heads, D,
                                side.hadamard && !fitted);
            OK(*library, vi_transform_apply, out.at(*library), x.at(*library), handle.transform, direction, rows, heads, stride);
            OK(*library, vi_transform_apply, x.at(*library), x.at(*library), handle.transform, direction, rows, heads, stride);
        }
        t.close((name + ", out").c_str(), out, 1e-6);
        t.close((name + ", in place").c_str(), x, 1e-6);
        const std::vector<float> found = out.read(t.cuda);
        for (int trial = 0; trial < 20; ++trial) {
            const int head = t.integer(0, heads - 1);
            const size_t at = size_t(t.integer(0, rows - 1)) * stride + size_t(head) * D;
            std::vector<double> expected(&values[at], &values[at] + D);
            if (direction == VI_TRANSFORM_INVERSE) host.back(expected, head / group);
            else expected = direction == VI_TRANSFORM_QUERY ? host.query(&values[at], head / group) : host.forward(&values[at], head / group);
            const double error = relative_error(&found[at], expected);
            CHECK(error <= 1e-5, "%s: relative error %g", name.c_str(), error);
        }
    }
}

} // namespace

TEST(transform) {
    for (const int D : {128, 64, 256})
        for (const int smooth : {0, 1})
            for (const int hadamard : {0, 1})
                for (const int matrices : {0, 1}) run(t, {4, 8, 1, smooth, hadamard, 0, 1, matrices}, D);
}

TEST(transform_refused) {
    const float* none = nullptr;
    vi_transform* handle = nullptr;
    uint8_t* out = reinterpret_cast<uint8_t*>(&handle);
    Array<float> x(t, 3 * 64 * 64);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_transform_create, static_cast<uint8_t*>(nullptr), none, none, 1, 64, 1);
    t.refused(VI_UNSUPPORTED, &Functions::vi_transform_create, out, none, none, 1, 96, 1);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_transform_create, out, none, none, 0, 64, 1);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_transform_create, out, none, none, 1, 64, 2);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_transform_create, out, none, x, 1, 64, 1);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_transform_create, out, x, x, 1, 64, 0);
    t.refused(VI_INVALID_ARGUMENT, &Functions::vi_transform_apply, x, x, static_cast<const vi_transform*>(nullptr), VI_TRANSFORM_FORWARD, 1, 1, 64);
    for (Library* library : {&t.cpu, &t.cuda}) {
        const Handle two(*library, nullptr, nullptr, 2, 64, 1);
        const auto refused = [&](const char* what, int32_t status) {
            CHECK(status == VI_INVALID_ARGUMENT, "%s: %s: status %d: %s", library->path.c_str(), what, status, library->error().c_str());
        };
        float* data = x.at(*library);
        const auto apply = [&](int direction, int heads, int stride) {
            return library->vi_transform_apply(library->context, data, data, two.transform, direction, 1, heads, stride);
        };
        refused("direction 3", apply(3, 2, 128));
        refused("3 heads of 2", apply(VI_TRANSFORM_QUERY, 3, 192));
        refused("a short stride", apply(VI_TRANSFORM_QUERY, 4, 255));
        vi_quantizer* quantizer = nullptr;
        const auto make = [&](const float* codebooks, int kv_heads, int sub_dim, int bits, const vi_transform* transform) {
            return library->vi_quantizer_create(library->context, reinterpret_cast<uint8_t*>(&quantizer), codebooks, transform, kv_heads, 64, sub_dim, bits, 1, 1, 0);
        };
        OK(*library, vi_fill, data, 0, int64_t(x.size() * sizeof(float)));
        refused("a quantizer of other heads", make(data, 1, 4, 8, two.transform));
        refused("bf16 with a transform", make(nullptr, 2, 1, 16, two.transform));
        refused("a format that is none", make(data, 2, 8, 10, two.transform));
        OK(*library, vi_quantizer_create, reinterpret_cast<uint8_t*>(&quantizer), data, two.transform, 2, 64, 4, 8, 1, 1, 0);
        OK(*library, vi_quantizer_destroy, quantizer);
    }
}
