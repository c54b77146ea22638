// What measures distributions: log-probabilities and their comparison, in float64.
#include "exponential.h"
#include <cmath>
#include <omp.h>

namespace {

constexpr float nan32 = std::numeric_limits<float>::quiet_NaN();

// log sum_i e^x_i; NaN if one is.
double log_sum(const float* x, int n) {
    const double most = maximum(x, n);
    return most + std::log(sum_exponentials(x, n, most));
}

// sum_i p_i (log p_i - log q_i) with log p_i = x_i - x_total and log q_i = y_i - y_total; 0 log 0 = 0.
double divergence(const float* x, double x_total, const float* y, double y_total, int n) {
    Vec8 out = {};
    for (int i = 0; i < n; i += 8) {
        const int count = std::min(8, n - i);
        const Vec8 log_p = (count < 8 ? load8_part(x + i, count) : load8(x + i)) - x_total;
        const Vec8 log_q = (count < 8 ? load8_part(y + i, count) : load8(y + i)) - y_total;
        const Vec8 p = exponential(log_p);
        out += p == 0.0 ? Vec8{} : p * (log_p - log_q);
    }
    return sum(out);
}

int argmax(const float* x, int n) { return static_cast<int>(std::max_element(x, x + n) - x); } // the first of equals

} // namespace

extern "C" {

int32_t vi_log_probabilities(vi_context* context, float* out_targets, float* out_values, int32_t* out_ids, const float* logits, const int32_t* targets,
                             int32_t rows, int32_t vocabulary, int32_t top) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_log_probabilities(context, __func__, out_targets, out_values, out_ids, logits, targets, rows, vocabulary, top));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_log_probabilities(context, out_targets, out_values, out_ids, logits, targets, rows, vocabulary, top));
    const int threads = std::min(rows, context->threads_for(int64_t(rows) * vocabulary * 4));
    std::vector<int32_t> orders(top > 0 ? size_t(threads) * vocabulary : 0);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int r = 0; r < rows; r++) {
        const float* x = logits + size_t(r) * vocabulary;
        const double total = log_sum(x, vocabulary);
        if (targets) out_targets[r] = targets[r] >= 0 && targets[r] < vocabulary ? static_cast<float>(x[targets[r]] - total) : nan32;
        if (top == 0) continue;
        if (std::isnan(total)) { // no order
            std::fill_n(out_values + size_t(r) * top, top, nan32);
            std::fill_n(out_ids + size_t(r) * top, top, -1);
            continue;
        }
        int32_t* order = orders.data() + size_t(omp_get_thread_num()) * vocabulary;
        for (int i = 0; i < vocabulary; i++) order[i] = i;
        std::partial_sort(order, order + top, order + vocabulary, [x](int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); });
        for (int i = 0; i < top; i++) {
            out_ids[size_t(r) * top + i] = order[i];
            out_values[size_t(r) * top + i] = static_cast<float>(x[order[i]] - total);
        }
    }
    return VI_OK;
} VI_CATCH(context)

int32_t vi_compare(vi_context* context, float* out, const float* logits, const float* reference, const int32_t* targets, int32_t rows,
                   int32_t vocabulary) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_compare(context, __func__, out, logits, reference, targets, rows, vocabulary));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_compare(context, out, logits, reference, targets, rows, vocabulary));
#pragma omp parallel for schedule(static) num_threads(context->threads_for(int64_t(rows) * vocabulary * 4))
    for (int r = 0; r < rows; r++) {
        const float *q = logits + size_t(r) * vocabulary, *p = reference + size_t(r) * vocabulary;
        const double q_total = log_sum(q, vocabulary), p_total = log_sum(p, vocabulary);
        float* to = out + size_t(r) * 3;
        to[0] = static_cast<float>(divergence(p, p_total, q, q_total, vocabulary));
        to[1] = std::isnan(p_total) || std::isnan(q_total) ? nan32 : argmax(q, vocabulary) == argmax(p, vocabulary);
        to[2] = targets[r] >= 0 && targets[r] < vocabulary ? static_cast<float>(q_total - q[targets[r]]) : nan32;
    }
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
