// Sampling as vecinfer.h defines it, in float64. With the ids in order of x (ties: lowest id first) top_k, top_p and min_p each keep a
// beginning of that order, so together they keep the shortest of the three, and cheap bounds come before any sorting.
#include "exponential.h"
#include "common/splitmix.h"
#include <cmath>
#include <omp.h>

namespace {

struct Candidate {
    double x;    // logit after bias, penalties
    double mass; // e^((x - maximum) / temperature)
    int32_t id;
};

inline bool before(const Candidate& a, const Candidate& b) { return a.x > b.x || (a.x == b.x && a.id < b.id); }

enum Fault { none, negative_temperature, nothing_to_draw };

struct Row {
    const float *logits, *bias, *settings;
    const int32_t* counts;
    int32_t seed, position, vocabulary;
    int32_t id;
    float logprob;
};

struct Scratch { // of one thread
    std::vector<double> x, mass;
    std::vector<Candidate> candidates;
};

// x after bias and penalties; false if one is NaN.
bool penalize(double* x, const Row& row) {
    const int n = row.vocabulary;
    for (int i = 0; i < n; i++) x[i] = row.logits[i];
    if (row.bias)
        for (int i = 0; i < n; i++) x[i] += row.bias[i];
    if (row.counts) {
        const double repetition = row.settings[4], presence = row.settings[5], frequency = row.settings[6];
        for (int i = 0; i < n; i++) {
            if (row.counts[i] == 0) continue;
            const int32_t generated = row.counts[i] / 2;
            x[i] = (x[i] > 0 ? x[i] / repetition : x[i] * repetition) - presence * (generated > 0) - frequency * generated;
        }
    }
    int unordered = 0;
    for (int i = 0; i < n; i++) unordered |= x[i] != x[i];
    return !unordered;
}

// Those of x that top_k, top_p and min_p could keep, in any order. A mass below (1 - top_p) / n of the total is never needed to reach
// top_p, as all of those together are less than what may be missing; a little less leaves room for rounding.
void collect(std::vector<Candidate>& candidates, const double* x, const double* mass, int n, double total, int top_k, double top_p, double min_p) {
    const double least = std::max(min_p, (1 - top_p) * total / n * 0.999);
    double bar = -std::numeric_limits<double>::infinity(); // the k-th best so far; an equal that comes later has a higher id
    candidates.clear();
    for (int i = 0; i < n; i++) {
        if (!(mass[i] >= least && x[i] > bar)) continue;
        candidates.push_back({x[i], mass[i], i});
        if (int64_t(candidates.size()) < 2 * int64_t(top_k)) continue;
        std::nth_element(candidates.begin(), candidates.begin() + top_k - 1, candidates.end(), before);
        candidates.resize(top_k);
        bar = candidates.back().x;
    }
    if (int64_t(candidates.size()) > top_k) {
        std::nth_element(candidates.begin(), candidates.begin() + top_k - 1, candidates.end(), before);
        candidates.resize(top_k);
    }
}

// How many of the largest reach the mass `need`, those first in `candidates`: quickselect by mass.
// What is left of `low` is in, what is right of `high` is out.
size_t smallest_set(std::vector<Candidate>& candidates, double need) {
    size_t low = 0, high = candidates.size();
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        std::nth_element(candidates.begin() + low, candidates.begin() + middle, candidates.begin() + high, before);
        double mass = 0;
        for (size_t i = low; i < middle; i++) mass += candidates[i].mass;
        if (mass >= need) high = middle;
        else need -= mass, low = middle;
    }
    return high;
}

Fault sample(Row& row, Scratch& scratch) {
    const int n = row.vocabulary;
    const double temperature = row.settings[0], top_p = row.settings[2], min_p = row.settings[3];
    const int top_k = row.settings[1] >= 1 && row.settings[1] < float(n) ? int(row.settings[1]) : n;
    double *x = scratch.x.data(), *mass = scratch.mass.data();
    if (!(temperature >= 0)) return negative_temperature;
    if (!penalize(x, row)) return nothing_to_draw;
    const double most = maximum(x, n);
    if (std::isinf(most)) return nothing_to_draw;
    row.id = int(std::find(x, x + n, most) - x);
    if (temperature == 0) return none;

    const double total = sum_exponentials(x, n, most, 1 / temperature, mass), u = static_cast<double>(uniform24(row.seed, row.position)) * 0x1p-24;
    double sum = 0, kept = 0;
    if (top_k == n && !(top_p < 1) && !(min_p > 0)) {
        for (int i = 0; i < n; i++) kept += mass[i];
        for (int i = 0; i < n && !(sum > u * kept); i++)
            if (mass[i] > 0) sum += mass[i], row.id = i;
        return none;
    }
    std::vector<Candidate>& candidates = scratch.candidates;
    collect(candidates, x, mass, n, total, top_k, std::clamp(top_p, 0.0, 1.0), min_p);
    if (top_p < 1) candidates.resize(smallest_set(candidates, top_p * total));
    std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    for (const Candidate& c : candidates) kept += c.mass;
    for (const Candidate& c : candidates) {
        if (sum > u * kept) break;
        if (c.mass > 0) sum += c.mass, row.id = c.id; // the last one stays, should the sums round below the target
    }
    return none;
}

float log_probability(const Row& row) {
    const double most = maximum(row.logits, row.vocabulary);
    return float(row.logits[row.id] - most - std::log(sum_exponentials(row.logits, row.vocabulary, most)));
}

} // namespace

extern "C" int32_t vi_sample(vi_context* context, int32_t* ids, float* logprobs, const float* logits, int32_t* counts, const float* bias,
                             const float* settings, const int32_t* seeds, const int32_t* positions, int32_t rows, int32_t vocabulary) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_sample(context, __func__, ids, logits, settings, seeds, positions, rows, vocabulary));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_sample(context, ids, logprobs, logits, counts, bias, settings, seeds, positions, rows, vocabulary));

    const int threads = std::min(rows, context->threads_for(int64_t(rows) * vocabulary * 4));
    std::vector<Scratch> scratch(threads);
    for (Scratch& s : scratch) {
        s.x.resize(vocabulary);
        s.mass.resize(vocabulary + 7);
        s.candidates.reserve(vocabulary);
    }
    std::vector<Row> drawn(rows);
    std::vector<Fault> faults(rows);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int r = 0; r < rows; r++) {
        const size_t start = size_t(r) * vocabulary;
        Row& row = drawn[r];
        row = {logits + start, bias ? bias + start : nullptr, settings + size_t(r) * VI_SAMPLE_SETTINGS, counts ? counts + start : nullptr,
               seeds[r], positions[r], vocabulary, 0, 0};
        faults[r] = sample(row, scratch[omp_get_thread_num()]);
        if (faults[r] == none && logprobs) row.logprob = log_probability(row);
    }
    for (int r = 0; r < rows; r++) {
        VI_REQUIRE(context, faults[r] != negative_temperature, "%s: row %d has the temperature %g", __func__, r, drawn[r].settings[0]);
    }
    for (int r = 0; r < rows; r++) {
        const bool drew = faults[r] == none;
        ids[r] = drew ? drawn[r].id : -1;
        if (logprobs) logprobs[r] = drew ? drawn[r].logprob : NAN;
        if (counts && drew) counts[size_t(r) * vocabulary + drawn[r].id] += 2;
    }
    return VI_OK;
} VI_CATCH(context)
