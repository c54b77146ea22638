// What measures distributions: log-probabilities and their comparison. One block a row, sums in float64.
#include "ranks.h"
#include <cfloat>

namespace {

// e^x for x <= 0: to double precision where it counts.
__device__ double exponential(float x) { return x > -8 ? exp(static_cast<double>(x)) : static_cast<double>(expf(x)); }

struct Total {
    float maximum;
    int32_t argmax;
    double log_sum; // log sum e^(x - maximum); NaN if an entry is
};

__device__ uint64_t row_largest(const float* x, int32_t n, ranks::Shared& s) {
    int32_t best = -1;
    float most = -INFINITY;
    ranks::each(x, threadIdx.x, ranks::threads, n, [&](int32_t i, float value) {
        if (value > most || (best < 0 && value == most)) most = value, best = i;
    });
    return ranks::largest(best < 0 ? 0 : ranks::key_of(most, best), s);
}

__device__ Total row_total(const float* x, int32_t n, ranks::Shared& s) {
    Total total;
    const uint64_t best = row_largest(x, n, s);
    total.argmax = best ? ranks::id_of(best) : 0;
    total.maximum = x[total.argmax];
    double sum = 0;
    ranks::each(x, threadIdx.x, ranks::threads, n, [&](int32_t, float value) { sum += exponential(value - total.maximum); });
    total.log_sum = log(block_sum(sum, s.sum));
    return total;
}

__global__ void __launch_bounds__(ranks::threads)
log_probabilities_kernel(float* out_targets, float* out_values, int32_t* out_ids, const float* all_logits, const int32_t* targets,
    int32_t n, int32_t top) {
    extern __shared__ __align__(16) uint8_t memory[];
    ranks::Shared& s = *reinterpret_cast<ranks::Shared*>(memory);
    const int64_t row = blockIdx.x;
    const float* logits = all_logits + row * n;
    const Total total = row_total(logits, n, s);
    auto log_probability = [&](float value) { return static_cast<float>(static_cast<double>(value) - total.maximum - total.log_sum); };
    if (targets && threadIdx.x == 0) out_targets[row] = targets[row] >= 0 && targets[row] < n ? log_probability(logits[targets[row]]) : NAN;
    if (top == 0) return;
    out_values += row * top;
    out_ids += row * top;
    if (isnan(total.log_sum)) { // no order
        for (int32_t i = threadIdx.x; i < top; i += ranks::threads) out_values[i] = NAN, out_ids[i] = -1;
        return;
    }
    auto mass = [](float) { return 0ull; };
    ranks::histogram(s, logits, n, total.maximum, false, mass);
    uint64_t above = ~uint64_t(0); // the last key of the ranks before
    for (int32_t first = 0; first < top; first += ranks::list_entries) {
        const int32_t some = min(ranks::list_entries, top - first);
        const uint64_t least = ranks::threshold(s, logits, n, total.maximum, static_cast<unsigned long long>(first) + some, false, mass);
        if (threadIdx.x == 0) s.listed = 0;
        __syncthreads();
        ranks::each(logits, threadIdx.x, ranks::threads, n, [&](int32_t i, float value) {
            const uint64_t key = ranks::key_of(value, i);
            if (key >= least && key < above) s.key[atomicAdd(&s.listed, 1u)] = key;
        });
        __syncthreads();
        if (threadIdx.x < some) {
            const uint64_t key = s.key[threadIdx.x];
            int32_t rank = first;
            for (int32_t j = 0; j < some; ++j) rank += s.key[j] > key;
            const int32_t id = ranks::id_of(key);
            out_ids[rank] = id;
            out_values[rank] = log_probability(logits[id]);
        }
        __syncthreads();
        above = least;
    }
}

// With d = x - maximum and S = sum e^d of each: KL = sum_i e^dp_i (dp_i - dq_i) / Sp - log Sp + log Sq.
__global__ void __launch_bounds__(ranks::threads)
compare_kernel(float* out, const float* all_logits, const float* all_reference, const int32_t* targets, int32_t n) {
    extern __shared__ __align__(16) uint8_t memory[];
    ranks::Shared& s = *reinterpret_cast<ranks::Shared*>(memory);
    const int64_t row = blockIdx.x;
    const float *q = all_logits + row * n, *p = all_reference + row * n;
    const Total of_q = row_total(q, n, s), of_p = row_total(p, n, s);
    double divergence = 0;
    ranks::each(p, threadIdx.x, ranks::threads, n, [&](int32_t i, float value) {
        const float dp = value - of_p.maximum, dq = q[i] - of_q.maximum;
        const double mass = exponential(dp);
        if (mass != 0) divergence += mass * (static_cast<double>(dp) - static_cast<double>(dq));
    });
    divergence = block_sum(divergence, s.sum);
    if (threadIdx.x) return;
    const bool nan = isnan(of_p.log_sum) || isnan(of_q.log_sum);
    out[row * 3] = static_cast<float>(divergence / exp(of_p.log_sum) - of_p.log_sum + of_q.log_sum);
    out[row * 3 + 1] = nan ? NAN : static_cast<float>(of_q.argmax == of_p.argmax);
    out[row * 3 + 2] = targets[row] >= 0 && targets[row] < n ? static_cast<float>(of_q.log_sum - (static_cast<double>(q[targets[row]]) - of_q.maximum)) : NAN;
}

} // namespace

extern "C" VI_API int32_t vi_log_probabilities(vi_context* context, float* out_targets, float* out_values, int32_t* out_ids,
    const float* logits, const int32_t* targets,
                                               int32_t rows, int32_t vocabulary, int32_t top) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_log_probabilities(context, __func__, out_targets, out_values, out_ids, logits, targets, rows, vocabulary, top));
    VI_CHECK(ranks::check_vocabulary(context, __func__, vocabulary));
    if (rows == 0) return VI_OK;
    VI_SHARED(context, __func__, log_probabilities_kernel, sizeof(ranks::Shared));
    log_probabilities_kernel<<<rows, ranks::threads, sizeof(ranks::Shared), context->stream>>>(out_targets, out_values, out_ids, logits,
        targets, vocabulary, top);
    VI_LAUNCHED(context, __func__);
    return VI_OK;
} VI_CATCH(context)

extern "C" VI_API int32_t vi_compare(vi_context* context, float* out, const float* logits, const float* reference, const int32_t* targets,
    int32_t rows, int32_t vocabulary) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_compare(context, __func__, out, logits, reference, targets, rows, vocabulary));
    VI_CHECK(ranks::check_vocabulary(context, __func__, vocabulary));
    if (rows == 0) return VI_OK;
    VI_SHARED(context, __func__, compare_kernel, sizeof(ranks::Shared));
    compare_kernel<<<rows, ranks::threads, sizeof(ranks::Shared), context->stream>>>(out, logits, reference, targets, vocabulary);
    VI_LAUNCHED(context, __func__);
    return VI_OK;
} VI_CATCH(context)
