// Nearest codewords, and the channel maxima behind the smoothing.
#include "codebook.h"
#include <algorithm>

namespace {

constexpr int threads = 256;
constexpr int tile_floats = 8192; // of the codebook in shared memory

// Each thread holds some points and meets all codewords, which are read from shared memory by the whole warp at once. The distance is summed
// from differences, not from |x|^2 - 2 x c + |c|^2: equal codewords tie exactly, and an offset common to all points costs no precision.
template <int DIM, bool VECTOR>
__global__ void __launch_bounds__(threads)
assign_kernel(int32_t* __restrict__ codes, float* __restrict__ distances, const float* __restrict__ points,
    const float* __restrict__ codebook, int32_t count,
              int32_t dim, int32_t codewords) {
    constexpr int held = DIM <= 8 ? 4 : 2;
    constexpr int tile = tile_floats / DIM;
    __shared__ __align__(16) float codeword[tile_floats];
    const int64_t first = static_cast<int64_t>(blockIdx.x) * threads * held + threadIdx.x;
    float point[held][DIM], best[held];
    int32_t code[held];
#pragma unroll
    for (int p = 0; p < held; ++p) {
        load_point<DIM, VECTOR>(point[p], points, min(first + p * threads, static_cast<int64_t>(count) - 1), dim);
        best[p] = INFINITY;
        code[p] = 0;
    }
    for (int32_t start = 0; start < codewords; start += tile) {
        const int32_t present = min(tile, codewords - start);
        __syncthreads();
        for (int32_t i = threadIdx.x; i < present * DIM; i += threads) {
            const int32_t column = i % DIM;
            codeword[i] = column < dim ? codebook[static_cast<int64_t>(start + i / DIM) * dim + column] : 0.0f;
        }
        __syncthreads();
#pragma unroll 4
        for (int32_t c = 0; c < present; ++c) {
            float value[DIM];
            if constexpr (DIM % 4 == 0) {
#pragma unroll
                for (int i = 0; i < DIM / 4; ++i) {
                    const float4 part = reinterpret_cast<const float4*>(codeword + c * DIM)[i];
                    value[4 * i] = part.x, value[4 * i + 1] = part.y, value[4 * i + 2] = part.z, value[4 * i + 3] = part.w;
                }
            } else {
#pragma unroll
                for (int i = 0; i < DIM; ++i) value[i] = codeword[c * DIM + i];
            }
#pragma unroll
            for (int p = 0; p < held; ++p) {
                const float distance = squared_distance<DIM>(point[p], value);
                if (distance < best[p]) {
                    best[p] = distance;
                    code[p] = start + c;
                }
            }
        }
    }
#pragma unroll
    for (int p = 0; p < held; ++p) {
        const int64_t n = first + p * threads;
        if (n >= count) continue;
        codes[n] = code[p];
        if (distances) distances[n] = best[p];
    }
}

// A block takes 32 channels and some of the rows. The bits of floats that are not negative order as integers do.
__global__ void channel_max_kernel(float* __restrict__ maxima, const float* __restrict__ x, int32_t rows, int32_t width, int32_t stride) {
    __shared__ float shared[8][33];
    const int32_t channel = blockIdx.x * 32 + threadIdx.x;
    float largest = 0;
    if (channel < width)
        for (int32_t row = blockIdx.y * 8 + threadIdx.y; row < rows; row += gridDim.y * 8) largest = fmaxf(largest,
            fabsf(x[static_cast<int64_t>(row) * stride + channel]));
    shared[threadIdx.y][threadIdx.x] = largest;
    __syncthreads();
    if (threadIdx.y || channel >= width) return;
#pragma unroll
    for (int i = 1; i < 8; ++i) largest = fmaxf(largest, shared[i][threadIdx.x]);
    atomicMax(reinterpret_cast<int*>(maxima) + channel, __float_as_int(largest));
}

} // namespace

int32_t codebook_assign(vi_context* context, int32_t* codes, float* distances, const float* points, const float* codebook, int32_t count,
    int32_t dim,
                        int32_t codewords, const char* name) {
    for_dim(dim, points, [&]<int DIM, bool VECTOR>() {
        const int32_t blocks = ceil_div(count, threads * (DIM <= 8 ? 4 : 2));
        assign_kernel<DIM, VECTOR><<<blocks, threads, 0, context->stream>>>(codes, distances, points, codebook, count, dim, codewords);
    });
    VI_CUDA(context, name, cudaGetLastError());
    return VI_OK;
}

extern "C" VI_API int32_t vi_codebook_assign(vi_context* context, int32_t* codes, const float* points, const float* codebook,
    int32_t count, int32_t dim, int32_t codewords) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_codebook_assign(context, __func__, codes, points, codebook, count, dim, codewords));
    if (count == 0) return VI_OK;
    return codebook_assign(context, codes, nullptr, points, codebook, count, dim, codewords, __func__);
} VI_CATCH(context)

extern "C" VI_API int32_t vi_channel_max(vi_context* context, float* maxima, const float* x, int32_t rows, int32_t width, int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_channel_max(context, __func__, maxima, x, rows, width, stride));
    if (rows == 0) return VI_OK;
    const int32_t columns = ceil_div(width, 32), parts = std::clamp(context->multiprocessors * 8 / columns, 1, std::min(ceil_div(rows, 8),
        65535));
    channel_max_kernel<<<dim3(columns, parts), dim3(32, 8), 0, context->stream>>>(maxima, x, rows, width, stride);
    VI_LAUNCHED(context, __func__);
    return VI_OK;
} VI_CATCH(context)
