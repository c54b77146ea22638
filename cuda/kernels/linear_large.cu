// out = x weight^T + bias for more than 8 rows, on the tensor cores with activations rounded to bf16: cuBLASLt where it is found at run time,
// and an own kernel where it is not or where it refuses the shape. VECINFER_CUBLASLT names its file; "off" leaves it out.
#include "context.h"
#include "linear.h"
#include "mma.h"
#include <algorithm>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <tuple>

// The part of cublasLt.h that is used (cuBLAS 12 and 13), declared here so that building needs no cuBLAS.
namespace cublas {
struct Algorithm { uint64_t data[8]; };
struct Heuristic { Algorithm algorithm; size_t workspace; int32_t state; float waves; int32_t reserved[4]; };
constexpr int32_t compute_f32 = 68, type_f32 = 0, type_bf16 = 14;
constexpr int32_t attribute_transpose_a = 3; // of a product
constexpr int32_t attribute_workspace = 1, attribute_reductions = 3; // of a preference
constexpr int32_t transposed = 1;
constexpr size_t workspace = size_t(32) << 20;
// From so many rows on sums are not split among blocks: their order, and with it a row's bits, is then the same for all numbers of rows. lib/models/prompt.ts counts on it.
constexpr int32_t whole_sums = 256;
} // namespace cublas

struct vi_cublas {
    void* library = nullptr;
    void* handle = nullptr;
    void *preference = nullptr, *whole_preference = nullptr; // the second without split sums
    void* product = nullptr;
    std::string name = "own matrix product";

    int32_t (*create)(void**) = nullptr;
    int32_t (*destroy)(void*) = nullptr;
    size_t (*version)() = nullptr;
    int32_t (*product_create)(void**, int32_t, int32_t) = nullptr;
    int32_t (*product_destroy)(void*) = nullptr;
    int32_t (*product_set)(void*, int32_t, const void*, size_t) = nullptr;
    int32_t (*layout_create)(void**, int32_t, uint64_t, uint64_t, int64_t) = nullptr;
    int32_t (*layout_destroy)(void*) = nullptr;
    int32_t (*preference_create)(void**) = nullptr;
    int32_t (*preference_destroy)(void*) = nullptr;
    int32_t (*preference_set)(void*, int32_t, const void*, size_t) = nullptr;
    int32_t (*heuristic)(void*, void*, void*, void*, void*, void*, void*, int32_t, cublas::Heuristic*, int32_t*) = nullptr;
    int32_t (*multiply)(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*, void*, void*,
                        const cublas::Algorithm*, void*, size_t, cudaStream_t) = nullptr;

    struct Plan {
        bool usable = false;
        void *weight = nullptr, *x = nullptr, *out = nullptr;
        cublas::Heuristic found = {};
    };
    std::map<std::tuple<int32_t, int32_t, int32_t, int32_t>, Plan> plans; // by rows, out_features, in_features, type of out

    vi_cublas() {
        const char* chosen = std::getenv("VECINFER_CUBLASLT");
        if (chosen && std::strcmp(chosen, "off") == 0) return;
        const std::vector<const char*> names = chosen ? std::vector<const char*>{chosen} : std::vector<const char*>{"libcublasLt.so.13",
            "libcublasLt.so.12"};
        for (const char* candidate : names)
            if ((library = dlopen(candidate, RTLD_NOW | RTLD_LOCAL))) break;
        if (!library) return;
        const bool complete = find(create, "cublasLtCreate") && find(destroy, "cublasLtDestroy") && find(version, "cublasLtGetVersion") &&
            find(product_create, "cublasLtMatmulDescCreate") && find(product_destroy, "cublasLtMatmulDescDestroy") &&
            find(product_set, "cublasLtMatmulDescSetAttribute") && find(layout_create, "cublasLtMatrixLayoutCreate") &&
            find(layout_destroy, "cublasLtMatrixLayoutDestroy") && find(preference_create, "cublasLtMatmulPreferenceCreate") &&
            find(preference_destroy, "cublasLtMatmulPreferenceDestroy") && find(preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
            find(heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(multiply, "cublasLtMatmul");
        if (!complete || create(&handle) != 0) {
            handle = nullptr;
            return;
        }
        const int32_t transpose = cublas::transposed;
        const size_t bytes = cublas::workspace;
        const uint32_t none = 0;
        if (product_create(&product, cublas::compute_f32, cublas::type_f32) != 0 || preference_create(&preference) != 0 || preference_create(&whole_preference) != 0 ||
            preference_set(whole_preference, cublas::attribute_reductions, &none, sizeof none) != 0 ||
            preference_set(whole_preference, cublas::attribute_workspace, &bytes, sizeof bytes) != 0 ||
            product_set(product, cublas::attribute_transpose_a, &transpose, sizeof transpose) != 0 ||
            preference_set(preference, cublas::attribute_workspace, &bytes, sizeof bytes) != 0) {
            close();
            return;
        }
        const size_t number = version();
        const size_t major = number >= 100000 ? number / 10000 : number / 1000; // 130100 and 120304
        name = "cuBLASLt " + std::to_string(major) + "." + std::to_string(number % (number >= 100000 ? 10000 : 1000) / 100);
    }
    ~vi_cublas() { close(); } // the library stays loaded: its kernels may be

    void forget() {
        for (auto& [shape, plan] : plans)
            for (void* layout : {plan.weight, plan.x, plan.out})
                if (layout) layout_destroy(layout);
        plans.clear();
    }

    void close() {
        if (!handle) return;
        forget();
        for (void* made : {preference, whole_preference})
            if (made) preference_destroy(made);
        if (product) product_destroy(product);
        destroy(handle);
        handle = nullptr;
    }

    template <typename F> bool find(F& function, const char* symbol) {
        function = reinterpret_cast<F>(dlsym(library, symbol));
        return function != nullptr;
    }

    // Row-major out [rows, out] is column-major [out, rows]: out = weight^T (in x out, transposed) times x (in x rows).
    // Prompts have many lengths: the plans are made anew once there are 1024.
    const Plan& plan(int32_t rows, int32_t out_features, int32_t in_features, int32_t out_dtype) {
        if (plans.size() >= 1024) forget();
        const auto [place, added] = plans.try_emplace({rows, out_features, in_features, out_dtype});
        Plan& made = place->second;
        if (!added) return made;
        int32_t count = 0;
        made.usable = layout_create(&made.weight, cublas::type_bf16, in_features, out_features, in_features) == 0 &&
            layout_create(&made.x, cublas::type_bf16, in_features, rows, in_features) == 0 &&
            layout_create(&made.out, out_dtype == VI_BF16 ? cublas::type_bf16 : cublas::type_f32, out_features, rows, out_features) == 0 &&
            heuristic(handle, product, made.weight, made.x, made.out, made.out, rows < cublas::whole_sums ? preference : whole_preference, 1, &made.found,
                &count) == 0 && count > 0 &&
            made.found.state == 0;
        return made;
    }
};

namespace {

constexpr int tile_outputs = 128, tile_rows = 64, tile_inputs = 32, padded = tile_inputs + 8;
constexpr int64_t copy_bytes = int64_t(256) << 20; // of activations rounded at a time

// vector: x and out begin at multiples of 16 bytes.
__global__ void round_kernel(vi_bf16* __restrict__ out, const float* __restrict__ x, bool vector, int64_t count) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, start = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
    const int64_t quads = vector ? count / 4 : 0;
    for (int64_t i = start; i < quads; i += step) {
        const float4 value = reinterpret_cast<const float4*>(x)[i];
        reinterpret_cast<uint2*>(out)[i] = make_uint2(pack_bf16(value.x, value.y), pack_bf16(value.z, value.w));
    }
    for (int64_t i = quads * 4 + start; i < count; i += step) out[i] = f32_to_bf16(x[i]);
}

__device__ void store(float& out, float x) { out = x; }
__device__ void store(vi_bf16& out, float x) { out = f32_to_bf16(x); }

template <class Out>
__global__ void spread_bias_kernel(Out* __restrict__ out, const vi_bf16* __restrict__ bias, bool accumulate, int64_t count, int32_t out_features) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count; i += step)
        store(out[i], bf16_to_f32(bias[i % out_features]) + (accumulate ? static_cast<float>(out[i]) : 0.0f)); // what accumulates is f32
}

// A block of 8 warps makes 128 outputs x 64 rows, a warp 32 x 32. The next tiles are read while the present ones are multiplied.
// Rows of 40 bf16 in shared memory put the 32 words that a warp reads at once into 32 banks.
template <class Out>
__global__ void __launch_bounds__(256)
product_kernel(Out* __restrict__ out, const vi_bf16* __restrict__ x, const vi_bf16* __restrict__ weight, const vi_bf16* __restrict__ bias,
               bool accumulate, int32_t rows, int32_t out_features, int32_t in_features) {
    __shared__ vi_bf16 weights[tile_outputs][padded];
    __shared__ vi_bf16 inputs[tile_rows][padded];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int32_t first_output = blockIdx.x * tile_outputs, first_row = blockIdx.y * tile_rows;
    const int at_output = warp % 4 * 32, at_row = warp / 4 * 32;
    float c[2][4][4] = {};
    vi_bf16 next_weights[16], next_inputs[8];
    auto load = [&](int32_t k) {
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const int i = threadIdx.x + j * 256, r = i / tile_inputs, column = k + i % tile_inputs;
            next_weights[j] = first_output + r < out_features && column < in_features ? weight[static_cast<int64_t>(first_output + r) * in_features + column] : 0;
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int i = threadIdx.x + j * 256, r = i / tile_inputs, column = k + i % tile_inputs;
            next_inputs[j] = first_row + r < rows && column < in_features ? x[static_cast<int64_t>(first_row + r) * in_features + column] : 0;
        }
    };
    load(0);
    for (int32_t k = 0; k < in_features; k += tile_inputs) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 16; ++j) weights[(threadIdx.x + j * 256) / tile_inputs][threadIdx.x % tile_inputs] = next_weights[j];
#pragma unroll
        for (int j = 0; j < 8; ++j) inputs[(threadIdx.x + j * 256) / tile_inputs][threadIdx.x % tile_inputs] = next_inputs[j];
        __syncthreads();
        if (k + tile_inputs < in_features) load(k + tile_inputs);
#pragma unroll
        for (int s = 0; s < tile_inputs; s += 16) {
            uint32_t a[2][4], b[4][2];
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    a[m][j] = *reinterpret_cast<const uint32_t*>(&weights[at_output + m * 16 + j % 2 * 8 + g][s + j / 2 * 8 + 2 * t]);
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int j = 0; j < 2; ++j) b[n][j] = *reinterpret_cast<const uint32_t*>(&inputs[at_row + n * 8 + g][s + j * 8 + 2 * t]);
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < 4; ++n) mma_bf16(c[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[n][0], b[n][1]);
        }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int32_t output = first_output + at_output + m * 16 + j / 2 * 8 + g, row = first_row + at_row + n * 8 + 2 * t + j % 2;
                if (output >= out_features || row >= rows) continue;
                Out& to = out[static_cast<int64_t>(row) * out_features + output];
                const float sum = c[m][n][j] + (bias ? bf16_to_f32(bias[output]) : 0.0f);
                store(to, accumulate ? static_cast<float>(to) + sum : sum);
            }
}

vi_cublas& library(vi_context* context) {
    if (!context->cublas) context->cublas = std::make_shared<vi_cublas>();
    return *context->cublas;
}

} // namespace

std::string linear_large_library(vi_context* context) { return library(context).name; }

namespace {
int32_t rows_at_once(int32_t rows, int32_t in_features) { return static_cast<int32_t>(std::clamp<int64_t>(copy_bytes / 2 / in_features, 1, rows)); }
} // namespace

size_t linear_large_bytes(int32_t rows, int32_t in_features) {
    return cublas::workspace + static_cast<size_t>(rows_at_once(rows, in_features)) * in_features * 2;
}

template <class Out> static int32_t linear_large(vi_context* context, const char* name, const Product& p, size_t reserved) {
    vi_cublas& found = library(context);
    const int32_t out_features = p.out_features, in_features = p.in_features, most = rows_at_once(p.rows, in_features), last = p.rows % most;
    const auto usable = [&](int32_t rows) { return found.plan(rows, out_features, in_features, p.out_dtype).usable; };
    const bool cublas = found.handle && in_features % 8 == 0 && out_features % (16 / sizeof(Out)) == 0 && aligned_16(p.out) && aligned_16(p.weight) &&
        (p.x_dtype == VI_F32 || aligned_16(p.x)) && usable(most) && (!last || usable(last));
    VI_REQUIRE(context, cublas || ceil_div(most, tile_rows) <= 65535, "%s: rows is %d, the own matrix product takes %d", name, p.rows, 65535 * tile_rows);
    VI_WORKSPACE(context, uint8_t, scratch, reserved + linear_large_bytes(p.rows, in_features), name);
    scratch += reserved;
    const vi_bf16* weight = static_cast<const vi_bf16*>(p.weight);
    const bool accumulate = p.output == VI_OUTPUT_SUM;
    const int32_t blocks = context->multiprocessors * 8;
    for (int32_t first = 0; first < p.rows; first += most) {
        const int32_t some = std::min(most, p.rows - first);
        const int64_t at = static_cast<int64_t>(first) * in_features;
        Out* to = static_cast<Out*>(p.out) + static_cast<int64_t>(first) * out_features;
        vi_bf16* rounded = reinterpret_cast<vi_bf16*>(scratch + cublas::workspace);
        const vi_bf16* x = p.x_dtype == VI_BF16 ? static_cast<const vi_bf16*>(p.x) + at : rounded;
        if (p.norm) {
            const int32_t status = rmsnorm_rounded(context, name, rounded, static_cast<const float*>(p.x) + at, p.norm, p.epsilon, some, in_features);
            if (status != VI_OK) return status;
        } else if (p.x_dtype == VI_F32) {
            const float* from = static_cast<const float*>(p.x) + at;
            round_kernel<<<blocks, 256, 0, context->stream>>>(rounded, from, aligned_16(from), static_cast<int64_t>(some) * in_features);
            VI_LAUNCHED(context, name);
        }
        if (!cublas) {
            product_kernel<<<dim3(ceil_div(out_features, tile_outputs), ceil_div(some, tile_rows)), 256, 0, context->stream>>>(to, x, weight, p.bias, accumulate,
                some, out_features, in_features);
            VI_LAUNCHED(context, name);
            continue;
        }
        // The bias goes in as the product's addend: an epilogue with a bf16 bias on f32 outputs is not among cuBLASLt's.
        if (p.bias) {
            spread_bias_kernel<<<blocks, 256, 0, context->stream>>>(to, p.bias, accumulate, static_cast<int64_t>(some) * out_features, out_features);
            VI_LAUNCHED(context, name);
        }
        const auto& plan = found.plan(some, out_features, in_features, p.out_dtype);
        const float alpha = 1, beta = p.bias || accumulate ? 1 : 0;
        const int32_t status = found.multiply(found.handle, found.product, &alpha, weight, plan.weight, x, plan.x, &beta, to, plan.out, to, plan.out,
            &plan.found.algorithm, scratch, cublas::workspace, context->stream);
        if (status != 0) return context->fail(VI_DEVICE_ERROR, "%s: cublasLtMatmul answers %d", name, status);
    }
    return VI_OK;
}

int32_t linear_large(vi_context* context, const char* name, const Product& product, size_t reserved) {
    return product.out_dtype == VI_BF16 ? linear_large<vi_bf16>(context, name, product, reserved) : linear_large<float>(context, name, product, reserved);
}
