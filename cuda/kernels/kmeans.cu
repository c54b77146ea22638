// Weighted k-means. Sums over blocks are integers or are taken in an order of their own, so that the same inputs give the same bits.
#include "codebook.h"
#include "common/splitmix.h"
#include <algorithm>

namespace {

constexpr int threads = 256;
constexpr int chunk = 1024; // points of the start's sample that a block takes

// The sum of the values of this thread and those before it. `shared` holds 32 doubles.
__device__ double inclusive_scan(double value, double* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const double other = __shfl_up_sync(0xffffffffu, value, offset);
        if (lane >= offset) value += other;
    }
    __syncthreads();
    if (lane == 31) shared[warp] = value;
    __syncthreads();
    for (int w = 0; w < warp; ++w) value += shared[w];
    return value;
}

// True in all threads of the block that comes last; what the others wrote before is visible to it. The ticket is left at 0.
__device__ bool last_block(unsigned* ticket, unsigned blocks) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(ticket, 1u) == blocks - 1;
        if (last) *ticket = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

// The points that the start looks at, transposed, with weight and squared distance to the nearest codeword drawn so far: some 16 a codeword,
// one from each of equal stretches of the points, so spread as the points are.
struct Sample {
    int32_t* index;
    float* x; // [dim][count]
    float *weight, *distance;
    double* mass; // of each chunk: sum of weight * distance
    unsigned* ticket;
    int32_t count;

    static size_t bytes(int32_t count, int32_t dim) { return align_256(static_cast<size_t>(count) * 4) * (dim + 3) + align_256(ceil_div(count, chunk) * sizeof(double)) + 256; }
    Sample(uint8_t* at, int32_t count, int32_t dim) : count(count) {
        const size_t row = align_256(static_cast<size_t>(count) * 4);
        index = reinterpret_cast<int32_t*>(at);
        weight = reinterpret_cast<float*>(at + row);
        distance = reinterpret_cast<float*>(at + 2 * row);
        x = reinterpret_cast<float*>(at + 3 * row);
        mass = reinterpret_cast<double*>(at + (dim + 3) * row);
        ticket = reinterpret_cast<unsigned*>(at + (dim + 3) * row + align_256(ceil_div(count, chunk) * sizeof(double)));
    }
};

__global__ void sample_kernel(Sample s, const float* __restrict__ points, const float* __restrict__ weights, uint64_t seed, int32_t total,
    int32_t dim) {
    const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
    if (i == 0) *s.ticket = 0;
    if (i >= s.count) return;
    const int64_t first = i * total / s.count, last = (i + 1) * total / s.count;
    const int64_t point = first + static_cast<int64_t>(uniform53(seed,
        uint64_t(1) << 32 | static_cast<uint64_t>(i)) * static_cast<double>(last - first));
    s.index[i] = static_cast<int32_t>(point);
    s.weight[i] = weights ? fmaxf(weights[point], 0.0f) : 1.0f;
    s.distance[i] = 1; // the first is drawn by weight
    for (int32_t d = 0; d < dim; ++d) s.x[static_cast<int64_t>(d) * s.count + i] = points[point * dim + d];
}

// One codeword: the distances move closer to the one before it, and the block that comes last draws a point with probability proportional to
// weight * distance; with equal chances where that is 0 everywhere.
__global__ void __launch_bounds__(threads)
draw_kernel(Sample s, float* __restrict__ codebook, const float* __restrict__ points, double u, int32_t k, int32_t dim) {
    __shared__ double shared[32];
    __shared__ float codeword[16];
    __shared__ int32_t found, found_chunk;
    __shared__ double before;
    if (k > 0 && threadIdx.x < dim) codeword[threadIdx.x] = codebook[static_cast<int64_t>(k - 1) * dim + threadIdx.x];
    __syncthreads();
    double mass = 0;
    for (int32_t i = blockIdx.x * chunk + threadIdx.x; i < min(s.count, static_cast<int32_t>(blockIdx.x + 1) * chunk); i += threads) {
        float distance = s.distance[i];
        if (k > 0) {
            float square = 0;
            for (int32_t d = 0; d < dim; ++d) {
                const float difference = s.x[static_cast<int64_t>(d) * s.count + i] - codeword[d];
                square = fmaf(difference, difference, square);
            }
            distance = k == 1 ? square : fminf(distance, square);
            s.distance[i] = distance;
        }
        mass += static_cast<double>(s.weight[i]) * distance;
    }
    mass = block_sum(mass, shared);
    if (threadIdx.x == 0) s.mass[blockIdx.x] = mass;
    if (!last_block(s.ticket, gridDim.x)) return;

    const int32_t chunks = gridDim.x, own = (chunks + threads - 1) / threads, from = threadIdx.x * own, to = min(chunks, from + own);
    double part = 0;
    for (int32_t c = from; c < to; ++c) part += __ldcg(s.mass + c);
    double upto = inclusive_scan(part, shared);
    if (threadIdx.x == threads - 1) before = upto; // the total
    if (threadIdx.x == 0) found = -1, found_chunk = -1;
    __syncthreads();
    const double total = before, target = u * total;
    __syncthreads();
    if (total > 0) {
        if (upto - part <= target && target < upto) {
            double at = upto - part;
            for (int32_t c = from; c < to; ++c) {
                const double m = __ldcg(s.mass + c);
                if (m > 0) {
                    found_chunk = c;
                    before = at;
                }
                if (target < at + m) break;
                at += m;
            }
        }
        __syncthreads();
        const bool lost = found_chunk < 0; // the sums rounded below the target
        __syncthreads();
        if (lost) {
            if (threadIdx.x == 0)
                for (int32_t c = 0; c < chunks; ++c)
                    if (__ldcg(s.mass + c) > 0) found_chunk = c, before = 0;
            __syncthreads();
        }
        const int32_t first = found_chunk * chunk;
        double masses[chunk / threads];
        part = 0;
#pragma unroll
        for (int j = 0; j < chunk / threads; ++j) {
            const int32_t i = first + threadIdx.x * (chunk / threads) + j;
            masses[j] = i < s.count ? static_cast<double>(__ldcg(s.weight + i)) * __ldcg(s.distance + i) : 0.0;
            part += masses[j];
        }
        upto = before + inclusive_scan(part, shared);
        // The first point whose sum passes the target; should none, the last that could be drawn.
        int32_t last = -1, passing = 0x7fffffff;
        double at = upto - part;
#pragma unroll
        for (int j = 0; j < chunk / threads; ++j) {
            const int32_t i = first + threadIdx.x * (chunk / threads) + j;
            at += masses[j];
            if (masses[j] > 0) last = i;
            if (masses[j] > 0 && target < at) passing = min(passing, i);
        }
        __shared__ int32_t first_passing, last_possible;
        if (threadIdx.x == 0) first_passing = 0x7fffffff, last_possible = -1;
        __syncthreads();
        atomicMin(&first_passing, passing);
        atomicMax(&last_possible, last);
        __syncthreads();
        if (threadIdx.x == 0) found = first_passing != 0x7fffffff ? first_passing : last_possible;
        __syncthreads();
    }
    const int32_t drawn = found >= 0 ? found : min(s.count - 1, static_cast<int32_t>(u * s.count));
    if (threadIdx.x < dim) codebook[static_cast<int64_t>(k) * dim + threadIdx.x] = points[static_cast<int64_t>(__ldcg(s.index + drawn)) * dim + threadIdx.x];
}

// What a step adds up, scaled to integers: their sums are exact in any order. The scale of each is the power of two that keeps the sum
// of the sizes of all below 2^61.
struct Scales {
    double x, weight, error;
};

constexpr int reduce_blocks = 1024;

__device__ double scale_for(double total) { return total > 0 && total < INFINITY ? scalbn(1.0, 60 - ilogb(total)) : 1.0; }

__global__ void __launch_bounds__(threads)
scales_kernel(Scales* scales, float* distortion, double (*partial)[3], unsigned* ticket, const float* __restrict__ points,
    const float* __restrict__ weights,
              const float* __restrict__ distances, int32_t count, int32_t dim) {
    __shared__ double shared[32];
    double sums[3] = {0, 0, 0};
    for (int64_t i = blockIdx.x * static_cast<int64_t>(threads) + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * threads) {
        float size = 0;
        for (int32_t d = 0; d < dim; ++d) size = fmaxf(size, fabsf(points[i * dim + d]));
        const double weight = weights ? weights[i] : 1.0f;
        sums[0] += weight * size;
        sums[1] += weight;
        sums[2] += weight * distances[i];
    }
#pragma unroll
    for (int j = 0; j < 3; ++j) {
        const double sum = block_sum(sums[j], shared);
        if (threadIdx.x == 0) partial[blockIdx.x][j] = sum;
    }
    if (!last_block(ticket, gridDim.x)) return;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
        double sum = 0;
        for (int32_t b = threadIdx.x; b < gridDim.x; b += threads) sum += __ldcg(&partial[b][j]);
        sums[j] = block_sum(sum, shared);
    }
    if (threadIdx.x == 0) {
        *scales = {scale_for(sums[0]), scale_for(sums[1]), scale_for(sums[2])};
        if (distortion) *distortion = sums[1] > 0 ? static_cast<float>(sums[2] / sums[1]) : 0.0f;
    }
}

__device__ void add(unsigned long long* sum, double value) { atomicAdd(sum, static_cast<unsigned long long>(__double2ll_rn(value))); }

// sums [codewords, dim + 2]: coordinates, weight, error.
__global__ void accumulate_kernel(unsigned long long* __restrict__ sums, const Scales* __restrict__ scales, const int32_t* __restrict__ codes,
                                  const float* __restrict__ distances, const float* __restrict__ points,
                                      const float* __restrict__ weights, int32_t count, int32_t dim) {
    const Scales scale = *scales;
    const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
    if (i >= count) return;
    unsigned long long* to = sums + static_cast<int64_t>(codes[i]) * (dim + 2);
    const double weight = weights ? weights[i] : 1.0f;
    if (!(weight > 0)) return;
    for (int32_t d = 0; d < dim; ++d) add(to + d, weight * points[i * dim + d] * scale.x);
    add(to + dim, weight * scale.weight);
    add(to + dim + 1, weight * distances[i] * scale.error);
}

// Means; masses and errors [codewords] are left for the split.
__global__ void mean_kernel(float* __restrict__ codebook, double* __restrict__ masses, double* __restrict__ errors,
    const Scales* __restrict__ scales,
                            const long long* __restrict__ sums, int32_t dim, int32_t codewords) {
    const int32_t c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= codewords) return;
    const Scales scale = *scales;
    const long long* from = sums + static_cast<int64_t>(c) * (dim + 2);
    const double mass = static_cast<double>(from[dim]) / scale.weight;
    masses[c] = mass;
    errors[c] = static_cast<double>(from[dim + 1]) / scale.error;
    if (mass > 0)
        for (int32_t d = 0; d < dim; ++d) codebook[static_cast<int64_t>(c) * dim + d] = static_cast<float>(static_cast<double>(from[d]) / scale.x / mass);
}

// An empty codeword goes a quarter of the spread away from the mean with the largest error, in a random direction; each of the two then counts
// as half of it. Of equals the lowest index is split. One block, as each split changes the next.
__global__ void __launch_bounds__(1024)
split_kernel(float* codebook, double* masses, double* errors, uint64_t stream, int32_t dim, int32_t codewords) {
    __shared__ double shared_error[32];
    __shared__ int32_t shared_index[32];
    __shared__ int32_t splits;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int32_t first = 0; first < codewords; first += 1024) {
        const bool empty = first + static_cast<int32_t>(threadIdx.x) < codewords && !(masses[first + threadIdx.x] > 0);
        if (!__syncthreads_or(empty)) continue;
        for (int32_t c = first; c < min(codewords, first + 1024); ++c) {
            if (masses[c] > 0) continue; // the same for all threads: only codewords before c and those with mass change
            double error = -1;
            int32_t index = -1;
            for (int32_t i = threadIdx.x; i < codewords; i += 1024)
                if (masses[i] > 0 && errors[i] > error) error = errors[i], index = i;
#pragma unroll
            for (int offset = 16; offset; offset /= 2) {
                const double other = __shfl_xor_sync(0xffffffffu, error, offset);
                const int32_t at = __shfl_xor_sync(0xffffffffu, index, offset);
                if (other > error || (other == error && at < index)) error = other, index = at;
            }
            if (lane == 0) shared_error[warp] = error, shared_index[warp] = index;
            __syncthreads();
            if (threadIdx.x == 0) {
                for (int w = 1; w < 32; ++w)
                    if (shared_error[w] > error || (shared_error[w] == error && shared_index[w] < index)) error = shared_error[w],
                        index = shared_index[w];
                splits = index;
            }
            __syncthreads();
            const int32_t split = splits;
            if (split < 0) return; // every weight is 0: nothing to move by
            const double spread = sqrt(errors[split] / masses[split] / dim);
            __syncthreads();
            if (threadIdx.x < dim) {
                const double sign = uniform53(stream, static_cast<uint64_t>(c) * 16 + threadIdx.x) < 0.5 ? -1 : 1;
                codebook[static_cast<int64_t>(c) * dim + threadIdx.x] = static_cast<float>(codebook[static_cast<int64_t>(split) * dim + threadIdx.x] + sign * spread / 4);
            }
            if (threadIdx.x == 0) {
                errors[c] = errors[split] /= 2;
                masses[c] = masses[split] /= 2;
            }
            __syncthreads();
        }
    }
}

} // namespace

extern "C" VI_API int32_t vi_kmeans_start(vi_context* context, float* codebook, const float* points, const float* weights, int32_t seed,
    int32_t count, int32_t dim,
                                          int32_t codewords) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_kmeans(context, __func__, codebook, points, count, dim, codewords));
    const int32_t sampled = static_cast<int32_t>(std::min<int64_t>(count, std::max<int64_t>(16384, int64_t(16) * codewords)));
    VI_WORKSPACE(context, uint8_t, scratch, Sample::bytes(sampled, dim), __func__);
    const Sample sample(scratch, sampled, dim);
    const uint64_t stream = static_cast<uint32_t>(seed);
    sample_kernel<<<ceil_div(sampled, threads), threads, 0, context->stream>>>(sample, points, weights, stream, count, dim);
    VI_LAUNCHED(context, __func__);
    for (int32_t k = 0; k < codewords; ++k) {
        draw_kernel<<<ceil_div(sampled, chunk), threads, 0, context->stream>>>(sample, codebook, points, uniform53(stream, k), k, dim);
        VI_LAUNCHED(context, __func__);
    }
    return VI_OK;
} VI_CATCH(context)

extern "C" VI_API int32_t vi_kmeans_step(vi_context* context, float* codebook, float* distortion, const float* points,
    const float* weights, int32_t seed, int32_t iteration,
                                         int32_t count, int32_t dim, int32_t codewords) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_kmeans(context, __func__, codebook, points, count, dim, codewords));
    const size_t each = align_256(static_cast<size_t>(count) * 4), sum_bytes = align_256(static_cast<size_t>(codewords) * (dim + 2) * 8);
    const size_t word_bytes = align_256(static_cast<size_t>(codewords) * 8), partial_bytes = reduce_blocks * 3 * sizeof(double);
    VI_WORKSPACE(context, uint8_t, scratch, 2 * each + sum_bytes + 256 + 2 * word_bytes + partial_bytes, __func__);
    int32_t* codes = reinterpret_cast<int32_t*>(scratch);
    float* distances = reinterpret_cast<float*>(scratch + each);
    unsigned long long* sums = reinterpret_cast<unsigned long long*>(scratch + 2 * each);
    uint8_t* head = scratch + 2 * each + sum_bytes;
    Scales* scales = reinterpret_cast<Scales*>(head);
    unsigned* ticket = reinterpret_cast<unsigned*>(head + 128);
    double* masses = reinterpret_cast<double*>(head + 256);
    double* errors = reinterpret_cast<double*>(head + 256 + word_bytes);
    auto* partial = reinterpret_cast<double (*)[3]>(head + 256 + 2 * word_bytes);

    VI_CHECK(codebook_assign(context, codes, distances, points, codebook, count, dim, codewords, __func__));
    VI_CUDA(context, __func__, cudaMemsetAsync(sums, 0, sum_bytes + 256, context->stream)); // the ticket too
    scales_kernel<<<std::min(reduce_blocks, ceil_div(count, threads)), threads, 0, context->stream>>>(scales, distortion, partial, ticket,
        points, weights, distances, count, dim);
    VI_LAUNCHED(context, __func__);
    accumulate_kernel<<<ceil_div(count, threads), threads, 0, context->stream>>>(sums, scales, codes, distances, points, weights, count, dim);
    VI_LAUNCHED(context, __func__);
    mean_kernel<<<ceil_div(codewords, threads), threads, 0, context->stream>>>(codebook, masses, errors, scales,
        reinterpret_cast<const long long*>(sums), dim, codewords);
    VI_LAUNCHED(context, __func__);
    const uint64_t stream = static_cast<uint64_t>(static_cast<uint32_t>(seed)) << 32 | static_cast<uint32_t>(iteration);
    split_kernel<<<1, 1024, 0, context->stream>>>(codebook, masses, errors, stream, dim, codewords);
    VI_LAUNCHED(context, __func__);
    return VI_OK;
} VI_CATCH(context)
