// Quantizers: codebooks, smoothing factors, transforms, and the size of a page.
#include "transform.cuh"
#include "quantizer.h"

namespace {

// One block a codebook: the codebook as attention reads it, n unit with whole n; unit = max |c| / 127 as int8, or for codewords of 2 channels
// max |c| / 2047 as f16, which holds such n. codebooks holds the caller's values and is replaced by the rounded ones.
__global__ void round_codebook_kernel(float* codebooks, uint8_t* table, float* table_scales, int codewords, int sub_dim) {
    __shared__ float shared[32];
    const int count = codewords * sub_dim, limit = sub_dim == 2 ? 2047 : 127;
    const int64_t start = static_cast<int64_t>(blockIdx.x) * count;
    float* codebook = codebooks + start;
    float most = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) most = fmaxf(most, fabsf(codebook[i]));
    most = warp_max(most);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = most;
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / 32; ++w) most = fmaxf(most, shared[w]);
    const float unit = most > 0 ? most / limit : 1;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int rounded = max(-limit, min(limit, __float2int_rn(codebook[i] / unit)));
        if (sub_dim == 2) reinterpret_cast<__half*>(table)[start + i] = __int2half_rn(rounded);
        else reinterpret_cast<int8_t*>(table)[start + i] = static_cast<int8_t>(rounded);
        codebook[i] = rounded * unit;
    }
    if (threadIdx.x == 0) table_scales[blockIdx.x] = unit;
}

constexpr int ahead = 4; // vectors of a warp, for which it reads a matrix once

// One warp `ahead` rows of a head.
template <int D, int direction>
__global__ void transform_kernel(float* out, const float* x, const Transform transform, int rows, int heads, int group, int64_t out_stride, int64_t stride) {
    const int first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * ahead, head = blockIdx.y;
    if (first >= rows) return;
    constexpr int N = D / 32;
    const int at = head * D + threadIdx.x % 32 * N;
    float v[ahead][N];
#pragma unroll
    for (int j = 0; j < ahead; ++j)
        for (int k = 0; k < N; ++k) v[j][k] = x[min(first + j, rows - 1) * stride + at + k];
    transform_vectors<D, direction>(v, transform, head / group);
#pragma unroll
    for (int j = 0; j < ahead; ++j)
        if (first + j < rows)
            for (int k = 0; k < N; ++k) out[(first + j) * out_stride + at + k] = v[j][k];
}
template <int D> constexpr decltype(&transform_kernel<D, 0>) transform_kernels[] = {transform_kernel<D, 0>, transform_kernel<D, 1>, transform_kernel<D, 2>};

} // namespace

void launch_transform(cudaStream_t stream, float* out, const float* x, const Transform& transform, int direction, int rows, int heads, int kv_heads, int head_dim,
                      int64_t out_stride, int64_t stride) {
    const auto kernel = (head_dim == 64 ? transform_kernels<64> : transform_kernels<128>)[direction];
    kernel<<<dim3(ceil_div(rows, 8 * ahead), heads), 256, 0, stream>>>(out, x, transform, rows, heads, heads / kv_heads, out_stride, stride);
}

Quantizer::~Quantizer() {
    if (memory) context->release(memory, "vi_quantizer_destroy");
    if (matrices) context->release(matrices, "vi_quantizer_destroy");
}

extern "C" {

VI_API int32_t vi_quantizer_create(vi_context* context, uint8_t* out, const float* codebooks, const float* smooth, int32_t kv_heads, int32_t head_dim,
                                   int32_t sub_dim, int32_t bits, int32_t codebook_heads, int32_t codebook_parts, int32_t hadamard,
                                   int32_t token_scale) VI_TRY {
    const char* name = "vi_quantizer_create";
    VI_OPEN(context, "vi_quantizer_create");
    VI_NOT_CAPTURED(context, "vi_quantizer_create");
    VI_REQUIRE(context, out, "%s: out is NULL", name);
    VI_REQUIRE(context, kv_heads >= 1, "%s: kv_heads is %d", name, kv_heads);
    if (head_dim != 64 && head_dim != 128) return context->fail(VI_UNSUPPORTED, "%s: head_dim %d is not supported: 64 and 128 are", name, head_dim);
    VI_REQUIRE(context, (hadamard | 1) == 1 && (token_scale | 1) == 1, "%s: hadamard is %d and token_scale is %d: 0 or 1", name, hadamard, token_scale);
    if (bits == 16) {
        VI_REQUIRE(context, sub_dim == 1 && !codebooks, "%s: 16 bits go with sub_dim 1 and no codebooks, sub_dim is %d", name, sub_dim);
        VI_REQUIRE(context, !smooth && !hadamard && !token_scale, "%s: 16 bits go without smooth, hadamard and token_scale", name);
    } else {
        static const int formats[][2] = {{2, 8}, {4, 12}, {4, 10}, {4, 8}, {4, 6}, {8, 12}, {8, 8}};
        bool known = false;
        for (const auto& [d, b] : formats) known |= d == sub_dim && b == bits;
        VI_REQUIRE(context, known, "%s: (sub_dim, bits) is (%d, %d): (2,8) (4,12) (4,10) (4,8) (4,6) (8,12) (8,8) or (1,16)", name, sub_dim, bits);
        VI_REQUIRE(context, codebooks, "%s: codebooks is NULL: only 16 bits go without", name);
        VI_REQUIRE(context, codebook_heads == 1 || codebook_heads == kv_heads, "%s: codebook_heads is %d: 1 or kv_heads (%d)", name, codebook_heads,
                   kv_heads);
        VI_REQUIRE(context, codebook_parts == 1 || codebook_parts == head_dim / sub_dim, "%s: codebook_parts is %d: 1 or head_dim / sub_dim (%d)", name,
                   codebook_parts, head_dim / sub_dim);
    }
    auto handle = std::make_unique<vi_quantizer>();
    handle->quantizer = std::make_shared<Quantizer>();
    Quantizer& q = *handle->quantizer;
    q.context = context;
    q.kv_heads = kv_heads, q.head_dim = head_dim, q.sub_dim = sub_dim, q.bits = bits;
    q.codebook_heads = bits == 16 ? 0 : codebook_heads, q.codebook_parts = bits == 16 ? 0 : codebook_parts, q.hadamard = hadamard, q.token_scale = token_scale;
    const size_t books = q.book_count(), count = bits == 16 ? 0 : books * sub_dim << bits;
    const size_t book_bytes = align_256(count * 4), table_bytes = align_256(count * (sub_dim == 2 ? 2 : 1));
    const size_t scale_bytes = align_256(books * 4), smooth_bytes = smooth ? align_256(static_cast<size_t>(kv_heads) * head_dim * 4) : 0;
    if (book_bytes + smooth_bytes) {
        const int32_t status = context->allocate(&q.memory, book_bytes + table_bytes + scale_bytes + smooth_bytes, name);
        if (status != VI_OK) return status;
        uint8_t* memory = static_cast<uint8_t*>(q.memory);
        q.codebooks = reinterpret_cast<float*>(memory);
        q.table = memory + book_bytes;
        q.table_scales = reinterpret_cast<float*>(memory + book_bytes + table_bytes);
        if (smooth) {
            q.smooth = reinterpret_cast<float*>(memory + book_bytes + table_bytes + scale_bytes);
            VI_CUDA(context, "vi_quantizer_create",
                    cudaMemcpyAsync(q.smooth, smooth, static_cast<size_t>(kv_heads) * head_dim * 4, cudaMemcpyDeviceToDevice, context->stream));
        }
        VI_CUDA(context, "vi_quantizer_create", cudaMemcpyAsync(q.codebooks, codebooks, count * 4, cudaMemcpyDeviceToDevice, context->stream));
        round_codebook_kernel<<<static_cast<unsigned>(books), 256, 0, context->stream>>>(q.codebooks, q.table, q.table_scales, 1 << bits, sub_dim);
        VI_LAUNCHED(context, "vi_quantizer_create");
        context->constants_written = true;
    }
    vi_quantizer* address = handle.release();
    std::memcpy(out, &address, sizeof address);
    return VI_OK;
} VI_CATCH(context, "vi_quantizer_create")

VI_API int32_t vi_quantizer_destroy(vi_context* context, vi_quantizer* quantizer) VI_TRY {
    VI_OPEN(context, "vi_quantizer_destroy");
    VI_NOT_CAPTURED(context, "vi_quantizer_destroy");
    delete quantizer;
    return VI_OK;
} VI_CATCH(context, "vi_quantizer_destroy")

VI_API int32_t vi_quantizer_matrices(vi_context* context, vi_quantizer* quantizer, const float* matrices) VI_TRY {
    const char* name = "vi_quantizer_matrices";
    VI_OPEN(context, "vi_quantizer_matrices");
    VI_NOT_CAPTURED(context, "vi_quantizer_matrices");
    VI_REQUIRE(context, quantizer && matrices, "%s: quantizer or matrices is NULL", name);
    Quantizer& q = *quantizer->quantizer;
    VI_REQUIRE(context, q.bits < 16, "%s: 16 bits have no transform", name);
    VI_REQUIRE(context, !q.smooth && !q.hadamard, "%s: the quantizer has smooth or hadamard, which matrices stand in place of", name);
    VI_REQUIRE(context, quantizer->quantizer.use_count() == 1, "%s: layers are made with this quantizer already", name);
    const size_t bytes = 3 * static_cast<size_t>(q.kv_heads) * q.head_dim * q.head_dim * sizeof(float);
    VI_REQUIRE(context, !q.matrices, "%s: the quantizer has matrices already", name);
    void* memory = nullptr;
    const int32_t status = context->allocate(&memory, bytes, name);
    if (status != VI_OK) return status;
    const cudaError_t copied = cudaMemcpyAsync(memory, matrices, bytes, cudaMemcpyDeviceToDevice, context->stream);
    if (copied != cudaSuccess) context->release(memory, name);
    VI_CUDA(context, "vi_quantizer_matrices", copied);
    q.matrices = static_cast<float*>(memory);
    context->constants_written = true;
    return VI_OK;
} VI_CATCH(context, "vi_quantizer_matrices")

VI_API int32_t vi_quantizer_codebook(vi_context* context, float* out, const vi_quantizer* quantizer) VI_TRY {
    VI_OPEN(context, "vi_quantizer_codebook");
    VI_REQUIRE(context, out && quantizer, "vi_quantizer_codebook: out or quantizer is NULL");
    const Quantizer& q = *quantizer->quantizer;
    VI_REQUIRE(context, q.bits < 16, "vi_quantizer_codebook: 16 bits have no codebook");
    const size_t bytes = (static_cast<size_t>(q.book_count()) * q.sub_dim << q.bits) * 4;
    VI_CUDA(context, "vi_quantizer_codebook", cudaMemcpyAsync(out, q.codebooks, bytes, cudaMemcpyDeviceToDevice, context->stream));
    return VI_OK;
} VI_CATCH(context, "vi_quantizer_codebook")

VI_API int32_t vi_page_bytes(vi_context* context, uint8_t* out, const vi_quantizer* quantizer) VI_TRY {
    VI_OPEN(context, "vi_page_bytes");
    VI_REQUIRE(context, out && quantizer, "vi_page_bytes: out or quantizer is NULL");
    const int64_t bytes = quantizer->quantizer->page_bytes();
    std::memcpy(out, &bytes, sizeof bytes);
    return VI_OK;
} VI_CATCH(context, "vi_page_bytes")

VI_API int32_t vi_transform(vi_context* context, float* out, const float* x, const vi_quantizer* quantizer, int32_t direction, int32_t rows,
                            int32_t heads, int32_t stride) VI_TRY {
    const char* name = "vi_transform";
    VI_OPEN(context, "vi_transform");
    VI_REQUIRE(context, quantizer, "%s: quantizer is NULL", name);
    const Quantizer& q = *quantizer->quantizer;
    VI_REQUIRE(context, rows >= 0, "%s: rows is %d", name, rows);
    VI_REQUIRE(context, direction >= 0 && direction <= 2, "%s: direction is %d: 0, 1 or 2", name, direction);
    VI_REQUIRE(context, heads >= 1 && heads % q.kv_heads == 0, "%s: heads is %d, not a multiple of %d KV heads", name, heads, q.kv_heads);
    VI_REQUIRE(context, static_cast<int64_t>(heads) * q.head_dim <= stride, "%s: stride is %d, less than heads * head_dim", name, stride);
    if (rows == 0) return VI_OK;
    VI_REQUIRE(context, out && x, "%s: out or x is NULL", name);
    VI_REQUIRE(context, heads <= 65535, "%s: heads is %d, more than 65535", name, heads);
    launch_transform(context->stream, out, x, q.transform(), direction, rows, heads, q.kv_heads, q.head_dim, stride, stride);
    VI_LAUNCHED(context, "vi_transform");
    return VI_OK;
} VI_CATCH(context, "vi_transform")

} // extern "C"
