// Quantizers: codebooks, and the size of a page.
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

} // namespace

Quantizer::~Quantizer() {
    if (memory) context->release(memory, "vi_quantizer_destroy");
}

extern "C" {

VI_API int32_t vi_quantizer_create(vi_context* context, uint8_t* out, const float* codebooks, const vi_transform* transform, int32_t kv_heads, int32_t head_dim,
                                   int32_t sub_dim, int32_t bits, int32_t codebook_heads, int32_t codebook_parts, int32_t token_scale) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    const QuantizerShape shape{kv_heads, head_dim, sub_dim, bits, codebooks ? codebook_heads : 0, codebooks ? codebook_parts : 0, token_scale};
    VI_CHECK(check_quantizer_create(context, __func__, out, codebooks, shape_of(transform), shape));
    auto q = std::make_shared<Quantizer>(context, shape);
    if (transform) q->transform = transform->arrays;
    if (codebooks) {
        const size_t books = q->book_count(), count = books * q->book_size();
        const size_t book_bytes = align_256(count * 4), table_bytes = align_256(count * (sub_dim == 2 ? 2 : 1)), scale_bytes = align_256(books * 4);
        VI_CHECK(context->allocate(&q->memory, book_bytes + table_bytes + scale_bytes, __func__));
        uint8_t* memory = static_cast<uint8_t*>(q->memory);
        q->codebooks = reinterpret_cast<float*>(memory);
        q->table = memory + book_bytes;
        q->table_scales = reinterpret_cast<float*>(memory + book_bytes + table_bytes);
        VI_CUDA(context, __func__, cudaMemcpyAsync(q->codebooks, codebooks, count * 4, cudaMemcpyDeviceToDevice, context->stream));
        round_codebook_kernel<<<static_cast<unsigned>(books), 256, 0, context->stream>>>(q->codebooks, q->table, q->table_scales, 1 << bits, sub_dim);
        VI_LAUNCHED(context, __func__);
        context->constants_written = true;
    }
    const vi_quantizer* handle = new vi_quantizer{std::move(q)};
    std::memcpy(out, &handle, sizeof handle);
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_quantizer_destroy(vi_context* context, vi_quantizer* quantizer) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    delete quantizer;
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_quantizer_codebook(vi_context* context, float* out, const vi_quantizer* quantizer) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_quantizer_codebook(context, __func__, out, shape_of(quantizer)));
    const Quantizer& q = *quantizer->quantizer;
    const size_t bytes = q.book_count() * q.book_size() * sizeof(float);
    VI_CUDA(context, __func__, cudaMemcpyAsync(out, q.codebooks, bytes, cudaMemcpyDeviceToDevice, context->stream));
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_page_bytes(vi_context* context, uint8_t* out, const vi_quantizer* quantizer) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_page_bytes(context, __func__, out, shape_of(quantizer)));
    const int64_t bytes = quantizer->quantizer->page_bytes();
    std::memcpy(out, &bytes, sizeof bytes);
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
