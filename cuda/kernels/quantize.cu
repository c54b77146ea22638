// vi_quantize for few rows, and vi_dequantize. Many rows: quantize_many.cu.
#include "quantize.h"
#include "quantize.cuh"

namespace {

constexpr int threads = 256;

// Sets the code of a sub-vector. Words are shared with other tokens and sub-vectors, whose bits others may write at the same time.
__device__ void write_code(const PageFormat& f, uint8_t* page, bool value, int token, int sub, uint32_t code) {
    int word, bit, lane;
    f.locate(value, token, sub, word, bit, lane);
    uint32_t* low = reinterpret_cast<uint32_t*>(page + f.offset(token, lane, word));
    if (f.b == 8) {
        reinterpret_cast<uint8_t*>(low)[bit / 8] = static_cast<uint8_t>(code);
        return;
    }
    const uint32_t mask = (1u << f.b) - 1;
    atomicAnd(low, ~(mask << bit));
    atomicOr(low, code << bit);
    if (bit + f.b > 32) {
        uint32_t* high = reinterpret_cast<uint32_t*>(page + f.offset(token, lane, word + 1));
        atomicAnd(high, ~(mask >> (32 - bit)));
        atomicOr(high, code >> (32 - bit));
    }
}

// One block a vector: (row, KV head, side). The threads share the codewords of each sub-vector.
template <int D>
__global__ void __launch_bounds__(threads) quantize_kernel(const __grid_constant__ Cache c, const float* keys, const float* values, const int32_t* slots,
                                                           const int32_t* positions, int stride) {
    __shared__ float scaled[D], vector[D], best[threads], sums[32];
    __shared__ int best_code[threads];
    constexpr int N = D / 32;
    const int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32;
    const bool value = blockIdx.z;
    const Side& side = value ? c.values : c.keys;
    const PageFormat f = side.format;
    const QuantizeRow r(c, slots, positions, row);
    if (r.page < 0) return;
    uint8_t* page = side.page(r.page, head, c.kv_heads);
    const int token = r.position % VI_PAGE_TOKENS;

    if (threadIdx.x < 32) {
        float x[N], squares = 0;
        for (int i = 0; i < N; ++i) x[i] = (value ? values : keys)[static_cast<int64_t>(row) * stride + head * D + lane * N + i];
        transform_vector<D>(x, side, head);
        write_exact<D>(x, c, side, r, head);
        for (int i = 0; i < N; ++i) squares += x[i] * x[i];
        const float rms = f.token_scale ? sqrtf(warp_sum(squares) / D) : 1.0f;
        for (int i = 0; i < N; ++i) {
            vector[lane * N + i] = x[i];
            scaled[lane * N + i] = rms > 0 ? x[i] / rms : 0.0f;
        }
    }
    __syncthreads();
    if (f.b == 16) {
        for (int i = threadIdx.x; i < D; i += threads) {
            int word, bit, to;
            f.locate(value, token, i, word, bit, to);
            reinterpret_cast<vi_bf16*>(page + f.offset(token, to, word))[bit / 16] = f32_to_bf16(vector[i]);
        }
        return;
    }
    const int n = f.n(), d = f.d, codewords = 1 << f.b, splits = threads / n;
    const float* codebook = side.codebooks + (static_cast<int64_t>(side.codebook_head(head)) * d << f.b);
    const int sub = threadIdx.x % n;
    float least = __builtin_huge_valf();
    int code = 0;
    for (int w = threadIdx.x / n; w < codewords; w += splits) {
        float distance = 0;
        for (int i = 0; i < d; ++i) {
            const float difference = scaled[sub * d + i] - codebook[w * d + i];
            distance = fmaf(difference, difference, distance);
        }
        if (distance < least) least = distance, code = w;
    }
    best[threadIdx.x] = least;
    best_code[threadIdx.x] = code;
    __syncthreads();
    float product = 0, norm = 0;
    if (static_cast<int>(threadIdx.x) < n) {
        for (int i = 1; i < splits; ++i) {
            const float other = best[i * n + sub];
            if (other < least || (other == least && best_code[i * n + sub] < code)) least = other, code = best_code[i * n + sub];
        }
        for (int i = 0; i < d; ++i) {
            const float w = codebook[code * d + i];
            product = fmaf(vector[sub * d + i], w, product);
            norm = fmaf(w, w, norm);
        }
        write_code(f, page, value, token, sub, code);
    }
    if (!f.token_scale) return;
    product = block_sum(product, sums);
    norm = block_sum(norm, sums);
    if (threadIdx.x == 0) page[f.scale_offset(token)] = scale_code(product, norm);
}

// One warp a vector: (position first + i, KV head, side).
template <int D> __global__ void dequantize_kernel(float* keys, float* values, const __grid_constant__ Cache c, int slot, int first, int count) {
    constexpr int N = D / 32;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (i >= static_cast<int64_t>(count) * c.kv_heads) return;
    const bool value = blockIdx.y;
    const Side& side = value ? c.values : c.keys;
    const int lane = threadIdx.x % 32, head = static_cast<int>(i % c.kv_heads), position = first + static_cast<int>(i / c.kv_heads);
    float* out = (value ? values : keys) + i * D + lane * N;
    float x[N];
    read_vector<D>(x, c, side, value, slot, position, head);
    restore_vector<D>(x, side, head);
    for (int k = 0; k < N; ++k) out[k] = x[k];
}

} // namespace

extern "C" {

VI_API int32_t vi_quantize(vi_context* context, vi_kv_layer* layer, const float* keys, const float* values, const int32_t* slots,
                           const int32_t* positions, int32_t rows, int32_t stride) VI_TRY {
    const char* name = "vi_quantize";
    VI_OPEN(context, "vi_quantize");
    VI_REQUIRE(context, layer, "%s: layer is NULL", name);
    const Cache& c = layer->cache;
    VI_REQUIRE(context, rows >= 0, "%s: rows is %d", name, rows);
    VI_REQUIRE(context, static_cast<int64_t>(c.kv_heads) * c.head_dim <= stride, "%s: stride is %d, less than kv_heads * head_dim", name, stride);
    if (rows == 0) return VI_OK;
    VI_REQUIRE(context, keys && values && slots && positions, "%s: keys, values, slots or positions is NULL", name);
    VI_REQUIRE(context, c.kv_heads <= 65535, "%s: %d KV heads", name, c.kv_heads);
    if (rows >= quantize_many_rows) return quantize_many(context, c, keys, values, slots, positions, rows, stride);
    auto kernel = c.head_dim == 64 ? quantize_kernel<64> : quantize_kernel<128>;
    kernel<<<dim3(rows, c.kv_heads, 2), threads, 0, context->stream>>>(c, keys, values, slots, positions, stride);
    VI_LAUNCHED(context, "vi_quantize");
    return VI_OK;
} VI_CATCH(context, "vi_quantize")

VI_API int32_t vi_dequantize(vi_context* context, float* keys, float* values, const vi_kv_layer* layer, int32_t slot, int32_t first,
                             int32_t count) VI_TRY {
    const char* name = "vi_dequantize";
    VI_OPEN(context, "vi_dequantize");
    VI_REQUIRE(context, layer, "%s: layer is NULL", name);
    const Cache& c = layer->cache;
    VI_REQUIRE(context, slot >= 0 && slot < c.slots, "%s: slot %d is outside the %d slots", name, slot, c.slots);
    VI_REQUIRE(context, first >= 0 && count >= 0 && static_cast<int64_t>(first) + count <= static_cast<int64_t>(c.max_pages) * VI_PAGE_TOKENS,
               "%s: positions %d to %lld: a slot holds %lld", name, first, static_cast<long long>(first) + count - 1,
               static_cast<long long>(c.max_pages) * VI_PAGE_TOKENS);
    if (count == 0) return VI_OK;
    VI_REQUIRE(context, keys && values, "%s: keys or values is NULL", name);
    auto kernel = c.head_dim == 64 ? dequantize_kernel<64> : dequantize_kernel<128>;
    const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(static_cast<int64_t>(count) * c.kv_heads, 8));
    kernel<<<dim3(blocks, 2), 256, 0, context->stream>>>(keys, values, c, slot, first, count);
    VI_LAUNCHED(context, "vi_dequantize");
    return VI_OK;
} VI_CATCH(context, "vi_dequantize")

} // extern "C"
