// The frame of the kernel tests. A case runs an operation of vecinfer.h in both libraries on the same fresh random data and compares:
//
//     TEST(scale) {
//         Array<float> x(t, t.normal(count));
//         t.call(&Functions::vi_scale, x, 2.0f, 30.0f, count);
//         t.close("x", x, 1e-6);
//     }
//
// An Array is memory of the same contents in both libraries, each allocated at its exact size and, as an output, filled with NaN.
// `t.small` asks for sizes that a sanitizer gets through.
#pragma once
#include "vecinfer.h"
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#define VI_FUNCTIONS(X)                                                                                                                       \
    X(vi_abi_hash) X(vi_device_count) X(vi_context_create) X(vi_context_destroy) X(vi_last_error) X(vi_device_info) X(vi_synchronize)         \
    X(vi_allocate) X(vi_free) X(vi_memory_info) X(vi_copy_to_device) X(vi_copy_to_host) X(vi_copy) X(vi_fill) X(vi_convert)                   \
    X(vi_random_normal) X(vi_event_record) X(vi_event_elapsed) X(vi_graph_begin) X(vi_graph_end) X(vi_graph_launch) X(vi_graph_destroy)       \
    X(vi_embedding) X(vi_rmsnorm) X(vi_head_norm) X(vi_add) X(vi_scale) X(vi_linear) X(vi_pack) X(vi_rope) X(vi_rope_round) X(vi_gate) X(vi_advance)           \
    X(vi_codebook_assign) X(vi_kmeans_start) X(vi_kmeans_step) X(vi_channel_max) X(vi_transform_create) X(vi_transform_destroy) X(vi_transform_apply) X(vi_quantizer_create)           \
    X(vi_quantizer_destroy) X(vi_quantizer_codebook) X(vi_page_bytes) X(vi_kv_layer_create) X(vi_kv_layer_destroy) X(vi_quantize)             \
    X(vi_rope_quantize) X(vi_dequantize) X(vi_attention) X(vi_attention_prefill) X(vi_sample) X(vi_log_probabilities) X(vi_compare) \
    X(vi_route) X(vi_expert_linear) X(vi_expert_sum)

struct Functions {
#define X(name) decltype(&::name) name = nullptr;
    VI_FUNCTIONS(X)
#undef X
};

// One library with a context. A function that it lacks is a null pointer.
struct Library : Functions {
    std::string path;
    vi_context* context = nullptr;
    void open(const std::string& file); // exits with a message where the file can't be loaded
    std::string error() const {
        char text[1024] = {};
        vi_last_error(context, reinterpret_cast<uint8_t*>(text), sizeof text);
        return text;
    }
};

struct Failure {
    std::string text;
};
struct Skip {
    std::string text;
};

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

#define CHECK(condition, ...) \
    do { if (!(condition)) fail(__VA_ARGS__); } while (0)

template <typename T> class Array;

class Test {
public:
    Library &cpu, &cuda;
    const bool small;
    std::mt19937_64 random;

    Test(Library& cpu, Library& cuda, bool small, uint64_t seed) : cpu(cpu), cuda(cuda), small(small), random(seed) {}

    int32_t integer(int32_t low, int32_t high) { return std::uniform_int_distribution<int32_t>(low, high)(random); }
    float real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random); }
    std::vector<float> normal(size_t count, float deviation = 1, float mean = 0) {
        std::normal_distribution<float> of(mean, deviation);
        std::vector<float> out(count);
        for (float& x : out) x = of(random);
        return out;
    }
    std::vector<vi_bf16> normal_bf16(size_t count, float deviation = 1, float mean = 0);
    std::vector<int32_t> integers(size_t count, int32_t low, int32_t high) {
        std::vector<int32_t> out(count);
        for (int32_t& x : out) x = integer(low, high);
        return out;
    }

    // Runs a function of one library, or of both. Arrays become that library's addresses; the context is put in front.
    template <typename F, typename... A> int32_t status(Library& library, F Functions::*function, A&&... arguments) {
        CHECK(library.*function, "%s does not have this function", library.path.c_str());
        return (library.*function)(library.context, pass(library, arguments)...);
    }
    template <typename F, typename... A> void call_one(Library& library, F Functions::*function, A&&... arguments) {
        const int32_t code = status(library, function, arguments...);
        CHECK(code == VI_OK, "%s: status %d: %s", library.path.c_str(), code, library.error().c_str());
    }
    template <typename F, typename... A> void call(F Functions::*function, A&&... arguments) {
        call_one(cpu, function, arguments...);
        call_one(cuda, function, arguments...);
    }
    // Both must refuse, with this status.
    template <typename F, typename... A> void refused(int32_t code, F Functions::*function, A&&... arguments) {
        for (Library* library : {&cpu, &cuda}) {
            const int32_t found = status(*library, function, arguments...);
            CHECK(found == code, "%s: status %d instead of %d: %s", library->path.c_str(), found, code, library->error().c_str());
            CHECK(!library->error().empty(), "%s: no message", library->path.c_str());
        }
    }

    // |cuda - cpu| <= tolerance |cpu| over the whole, and each element within 20 times that of the root mean square; NaN and infinity must agree.
    void close(const char* name, const Array<float>& array, double tolerance);
    template <typename T> void equal(const char* name, const Array<T>& array);

private:
    template <typename T> static T* pass(const Library& library, Array<T>& array) { return array.at(library); }
    template <typename T> static T* pass(const Library& library, const Array<T>& array) { return array.at(library); }
    template <typename T> static T pass(const Library&, const T& value) { return value; }
};

void close(const char* name, const std::vector<float>& found, const std::vector<float>& wanted, double tolerance);

template <typename T> class Array {
public:
    Array(Test& test, size_t count) : Array(test, std::vector<T>(count, poison())) {}
    Array(Test& test, const std::vector<T>& values) : test(test), count(values.size()) {
        for (Library* library : {&test.cpu, &test.cuda})
            if (count) test.call_one(*library, &Functions::vi_allocate, reinterpret_cast<uint8_t*>(&address(*library)),
                int64_t(count * sizeof(T)));
        write(values);
    }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array() {
        for (Library* library : {&test.cpu, &test.cuda}) library->vi_free(library->context, address(*library));
    }

    T* at(const Library& library) const { return const_cast<Array*>(this)->address(library); }
    size_t size() const { return count; }
    void write(const std::vector<T>& values) {
        for (Library* library : {&test.cpu, &test.cuda}) write(*library, values);
    }
    void write(Library& library, const std::vector<T>& values) {
        test.call_one(library, &Functions::vi_copy_to_device, static_cast<void*>(at(library)),
            reinterpret_cast<const uint8_t*>(values.data()), int64_t(count * sizeof(T)));
    }
    std::vector<T> read(Library& library) const {
        std::vector<T> out(count);
        test.call_one(library, &Functions::vi_copy_to_host, reinterpret_cast<uint8_t*>(out.data()), static_cast<const void*>(at(library)),
            int64_t(count * sizeof(T)));
        return out;
    }

private:
    static T poison() {
        T value;
        std::memset(&value, 0xff, sizeof value); // NaN as a float and as bf16, -1 as an integer
        return value;
    }
    T*& address(const Library& library) { return &library == &test.cpu ? on_cpu : on_cuda; }

    Test& test;
    size_t count;
    T *on_cpu = nullptr, *on_cuda = nullptr;
};

template <typename T> void Test::equal(const char* name, const Array<T>& array) {
    const std::vector<T> wanted = array.read(cpu), found = array.read(cuda);
    for (size_t i = 0; i < wanted.size(); ++i)
        CHECK(std::memcmp(&wanted[i], &found[i], sizeof(T)) == 0, "%s[%zu] of %zu is %g, on the CPU %g", name, i, wanted.size(),
            double(found[i]), double(wanted[i]));
}

inline float f32(vi_bf16 x) {
    const uint32_t bits = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline float from_half(vi_f16 x) {
    _Float16 half;
    std::memcpy(&half, &x, 2);
    return static_cast<float>(half);
}

// To nearest even, and the largest beyond the range.
inline vi_f16 to_half(float x) {
    const _Float16 half = static_cast<_Float16>(x > 65504 ? 65504 : x < -65504 ? -65504 : x);
    vi_f16 out;
    std::memcpy(&out, &half, 2);
    return out;
}

inline vi_bf16 bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return vi_bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline std::vector<vi_bf16> Test::normal_bf16(size_t count, float deviation, float mean) {
    const std::vector<float> values = normal(count, deviation, mean);
    std::vector<vi_bf16> out(count);
    for (size_t i = 0; i < count; ++i) out[i] = bf16(values[i]);
    return out;
}

struct Case {
    const char* name;
    void (*run)(Test& t);
};
std::vector<Case>& cases();
struct Registration {
    Registration(const char* name, void (*run)(Test&)) { cases().push_back({name, run}); }
};
#define TEST(name)                                          \
    static void test_##name(Test& t);                       \
    static const Registration register_##name(#name, test_##name); \
    static void test_##name([[maybe_unused]] Test& t)
