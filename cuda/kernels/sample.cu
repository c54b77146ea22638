// Sampling as vecinfer.h defines it: filters are thresholds on (x, id), so that the draw can go in order of id.
#include "ranks.h"
#include <cfloat>

namespace {

constexpr float unit_mass = 0x1p40f; // of the most probable entry

struct Sample {
    int32_t* ids;
    float* logprobs;
    const float* logits;
    int32_t* counts;
    const float *bias, *settings;
    const int32_t *seeds, *positions;
    float* scratch; // [rows, vocabulary]
    int32_t vocabulary;
};

__global__ void __launch_bounds__(ranks::threads) sample_kernel(Sample a) {
    extern __shared__ __align__(16) uint8_t memory[];
    ranks::Shared& s = *reinterpret_cast<ranks::Shared*>(memory);
    wait_for_previous();
    let_next_start();
    const int64_t row = blockIdx.x, start = row * a.vocabulary;
    const int32_t n = a.vocabulary;
    const float* logits = a.logits + start;
    const float* bias = a.bias ? a.bias + start : nullptr;
    int32_t* counts = a.counts ? a.counts + start : nullptr;
    float* scratch = a.scratch + start;
    const float* settings = a.settings + row * VI_SAMPLE_SETTINGS;
    const float temperature = settings[0], top_k = settings[1], top_p = settings[2], min_p = settings[3];
    const float repetition = settings[4], presence = settings[5], frequency = settings[6];

    // One pass: x after bias and penalties, its largest, and log sum exp of the raw logits.
    int32_t best_id = -1;
    float best_x = -INFINITY;
    bool nan = false;
    float raw_maximum = -FLT_MAX, raw_sum = 0;
    ranks::each(logits, threadIdx.x, ranks::threads, n, [&](int32_t i, float raw) {
        float x = raw;
        if (bias) x += bias[i];
        const int32_t count = counts ? counts[i] : 0;
        if (count) {
            const int32_t generated = count / 2;
            x = x > 0 ? x / repetition : x * repetition;
            x -= presence * static_cast<float>(generated > 0) + frequency * static_cast<float>(generated);
        }
        nan |= isnan(x);
        if (x > best_x || best_id < 0) best_x = x, best_id = i;
        scratch[i] = x;
        if (!a.logprobs) return;
        if (raw > raw_maximum) {
            raw_sum *= expf(raw_maximum - raw);
            raw_maximum = raw;
        }
        raw_sum += expf(raw - raw_maximum);
    });
    nan = __syncthreads_or(nan);
    int32_t id = ranks::id_of(ranks::largest(best_id < 0 ? 0 : ranks::key_of(best_x, best_id), s));
    const float maximum = scratch[id]; // written before the barriers of largest()
    if (nan || isinf(maximum)) {
        if (threadIdx.x == 0) {
            a.ids[row] = -1;
            if (a.logprobs) a.logprobs[row] = NAN;
        }
        return;
    }

    if (temperature > 0) {
        const float scale = 1 / temperature;
        auto probability = [&](float value) { return expf((value - maximum) * scale); }; // over the largest one
        auto mass = [&](float value) { return static_cast<unsigned long long>(__float2ull_rn(probability(value) * unit_mass)); };
        const bool few = top_k >= 1 && top_k < static_cast<float>(n), nucleus = top_p < 1;
        uint64_t least = 0; // the key of the last entry kept
        if (few || nucleus) {
            ranks::histogram(s, scratch, n, maximum, nucleus, mass);
            if (few) least = ranks::threshold(s, scratch, n, maximum, static_cast<unsigned long long>(top_k), false, mass);
            if (nucleus) {
                unsigned long long all = 0;
                for (int b = threadIdx.x; b < ranks::bins; b += ranks::threads) all += s.mass[b];
                all = ranks::sum(all, s);
                const double need = ceil(static_cast<double>(top_p) * static_cast<double>(all));
                least = max(least, ranks::threshold(s, scratch, n, maximum, static_cast<unsigned long long>(fmax(need, 1.0)), true, mass));
            }
        }
        auto kept = [&](int32_t i, float value) {
            if (ranks::key_of(value, i) < least || probability(value) < min_p) return 0ull;
            return mass(value);
        };
        // A warp sums a chunk of ids; the chunk where the sum passes the target is scanned in order.
        const int32_t chunk = max(1024, (n + ranks::threads - 1) / ranks::threads + 31) / 32 * 32;
        const int lane = threadIdx.x % 32;
        s.mass[threadIdx.x] = 0; // of a chunk, from here on
        __syncthreads();
        for (int32_t c = threadIdx.x / 32; c * static_cast<int64_t>(chunk) < n; c += 32) {
            unsigned long long part = 0;
            const int32_t end = static_cast<int32_t>(min(static_cast<int64_t>(n), (c + 1) * static_cast<int64_t>(chunk)));
            ranks::each(scratch, c * chunk + lane, 32, end, [&](int32_t i, float value) { part += kept(i, value); });
            part = warp_sum(part);
            if (lane == 0) s.mass[c] = part;
        }
        __syncthreads();
        const unsigned long long own = s.mass[threadIdx.x], upto = ranks::inclusive_scan(own, s);
        if (threadIdx.x == ranks::threads - 1) s.found = upto;
        if (threadIdx.x == 0) s.bin = 0, s.before = 0;
        __syncthreads();
        // floor(u total): u has 24 bits.
        const uint64_t draw = uniform24(a.seeds[row], a.positions[row]);
        const unsigned long long target = __umul64hi(s.found, draw << 40);
        if (upto - own <= target && target < upto) s.bin = threadIdx.x, s.before = upto - own;
        __syncthreads();
        unsigned long long before = s.before;
        const int32_t first = s.bin * chunk, end = min(n, first + chunk);
        __syncthreads();
        for (int32_t i = first; i < end; i += ranks::threads) {
            const int32_t at = i + threadIdx.x;
            const unsigned long long mine = at < end ? kept(at, scratch[at]) : 0, sum = before + ranks::inclusive_scan(mine, s);
            if (sum - mine <= target && target < sum) s.bin = at;
            if (threadIdx.x == ranks::threads - 1) s.before = sum;
            __syncthreads();
            before = s.before;
            if (before > target) break;
        }
        if (s.found) id = s.bin; // a min_p above 1 keeps nothing: the most probable one then
    }

    if (a.logprobs) {
        // Each thread's sum has its own maximum.
        const float all_maximum = [&] {
            const float value = warp_max(raw_maximum);
            __syncthreads();
            if (threadIdx.x % 32 == 0) s.sum[threadIdx.x / 32] = value;
            __syncthreads();
            float most = -FLT_MAX;
            for (int w = 0; w < 32; ++w) most = fmaxf(most, static_cast<float>(s.sum[w]));
            return most;
        }();
        const double total = block_sum(static_cast<double>(raw_sum) * exp(static_cast<double>(raw_maximum) - all_maximum), s.sum);
        if (threadIdx.x == 0) a.logprobs[row] = static_cast<float>(static_cast<double>(logits[id]) - all_maximum - log(total));
    }
    if (threadIdx.x == 0) {
        a.ids[row] = id;
        if (counts) counts[id] += 2;
    }
}

} // namespace

extern "C" VI_API int32_t vi_sample(vi_context* context, int32_t* ids, float* logprobs, const float* logits, int32_t* counts,
    const float* bias, const float* settings,
                                    const int32_t* seeds, const int32_t* positions, int32_t rows, int32_t vocabulary) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_sample(context, __func__, ids, logits, settings, seeds, positions, rows, vocabulary));
    VI_CHECK(ranks::check_vocabulary(context, __func__, vocabulary));
    if (rows == 0) return VI_OK;
    VI_WORKSPACE(context, float, scratch, static_cast<size_t>(rows) * vocabulary * sizeof(float), __func__);
    VI_SHARED(context, __func__, sample_kernel, sizeof(ranks::Shared));
    const Sample arguments = {ids, logprobs, logits, counts, bias, settings, seeds, positions, scratch, vocabulary};
    VI_CUDA(context, __func__, launch_early(context, sample_kernel, rows, ranks::threads, sizeof(ranks::Shared), arguments));
    return VI_OK;
} VI_CATCH(context)
