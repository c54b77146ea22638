// Transforms: smoothing factors and Hadamard, or fitted matrices.
#include "transform.cuh"

namespace {

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
    const auto kernel = (head_dim == 64 ? transform_kernels<64> : head_dim == 128 ? transform_kernels<128> : transform_kernels<256>)[direction];
    kernel<<<dim3(ceil_div(rows, 8 * ahead), heads), 256, 0, stream>>>(out, x, transform, rows, heads, heads / kv_heads, out_stride, stride);
}

TransformArrays::~TransformArrays() {
    if (memory) context->release(memory, "vi_transform_destroy");
}

extern "C" {

VI_API int32_t vi_transform_create(vi_context* context, uint8_t* out, const float* smooth, const float* matrices, int32_t kv_heads, int32_t head_dim,
                                   int32_t hadamard) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_transform_create(context, __func__, out, smooth, matrices, kv_heads, head_dim, hadamard));
    auto arrays = std::make_shared<TransformArrays>(context, TransformShape{kv_heads, head_dim}, hadamard == 1);
    const float* from = smooth ? smooth : matrices; // one of them at most
    if (from) {
        const size_t channels = static_cast<size_t>(kv_heads) * head_dim, bytes = (smooth ? channels : 3 * channels * head_dim) * sizeof(float);
        VI_CHECK(context->allocate(&arrays->memory, bytes, __func__));
        (smooth ? arrays->smooth : arrays->matrices) = static_cast<float*>(arrays->memory);
        VI_CUDA(context, __func__, cudaMemcpyAsync(arrays->memory, from, bytes, cudaMemcpyDeviceToDevice, context->stream));
        context->constants_written = true;
    }
    const vi_transform* handle = new vi_transform{std::move(arrays)};
    std::memcpy(out, &handle, sizeof handle);
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_transform_destroy(vi_context* context, vi_transform* transform) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    delete transform;
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_transform_apply(vi_context* context, float* out, const float* x, const vi_transform* transform, int32_t direction, int32_t rows,
                                  int32_t heads, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_transform_apply(context, __func__, out, x, shape_of(transform), direction, rows, heads, stride));
    VI_REQUIRE(context, heads <= 65535, "%s: heads is %d, this library takes 65535", __func__, heads);
    if (rows == 0) return VI_OK;
    const TransformArrays& t = *transform->arrays;
    launch_transform(context->stream, out, x, t.view(), direction, rows, heads, t.kv_heads, t.head_dim, stride, stride);
    VI_LAUNCHED(context, __func__);
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
