// Weighted k-means. Every sum has an order of its own, so that neither the threads nor their number change a bit.
#include "nearest.h"
#include "common/splitmix.h"
#include <cmath>
#include <queue>

namespace {

constexpr int chunk = 1024; // points whose mass is kept as one number, to find a draw in two steps

int32_t check_numbers(vi_context* context, const char* name, const float* points, const float* weights, int32_t count, int32_t dim) {
    VI_CHECK(check_finite(context, name, "points", points, int64_t(count) * dim));
    for (int32_t i = 0; weights && i < count; i++)
        VI_REQUIRE(context, weights[i] >= 0 && std::isfinite(weights[i]), "%s: weights[%d] is %g, not at least 0", name, i, weights[i]);
    return VI_OK;
}

// The points that the start looks at, transposed, with weight and squared distance to the nearest codeword drawn so far.
struct Sample {
    int count, padded, dim;
    std::vector<int32_t> index;
    std::vector<float> x; // [dim][padded]
    std::vector<float> weight, distance; // weight 0 in the padding
    std::vector<double> mass; // of each chunk: sum of weight * distance

    // Some 16 a codeword, one from each of equal stretches of the points, so spread as the points are.
    Sample(const float* points, const float* weights, uint64_t seed, int total, int dim, int codewords)
        : count(int(std::min<int64_t>(total, std::max<int64_t>(16384, int64_t(16) * codewords)))), padded((count + chunk - 1) / chunk * chunk),
          dim(dim), index(count), x(size_t(padded) * dim), weight(padded), distance(padded, 1), mass(padded / chunk) {
        for (int64_t i = 0; i < count; i++) {
            const int64_t first = i * total / count, last = (i + 1) * total / count;
            index[i] = int32_t(first + int64_t(uniform53(seed, uint64_t(1) << 32 | uint64_t(i)) * double(last - first)));
            weight[i] = weights ? weights[index[i]] : 1;
            for (int d = 0; d < dim; d++) x[size_t(d) * padded + i] = points[size_t(index[i]) * dim + d];
        }
        for (int i = 0; i < count; i++) mass[i / chunk] += weight[i]; // distances of 1: the first is drawn by weight
    }

    void move_closer(const float* codeword) {
        for (int first = 0; first < padded; first += chunk) {
            Vec sums = {};
            for (int i = first; i < first + chunk; i += kWidth) {
                Vec squares = {};
                for (int d = 0; d < dim; d++) {
                    const Vec difference = load(&x[size_t(d) * padded + i]) - codeword[d];
                    squares += difference * difference;
                }
                const Vec before = load(&distance[i]);
                squares = squares < before ? squares : before;
                store(&distance[i], squares);
                sums += squares * load(&weight[i]);
            }
            mass[first / chunk] = sum(sums);
        }
    }

    // With probability proportional to weight * distance; with equal chances where that is 0 everywhere.
    int draw(double u) const {
        double total = 0;
        for (const double m : mass) total += m;
        if (!(total > 0)) return int(u * count);
        double target = u * total;
        int c = 0, found = 0;
        for (int i = 0; i < int(mass.size()); i++) {
            if (!(mass[i] > 0)) continue;
            c = i; // the last one stays, should the sums round below the target
            if (target < mass[i]) break;
            target -= mass[i];
        }
        for (int i = c * chunk; i < std::min(count, (c + 1) * chunk); i++) {
            const double m = double(weight[i]) * distance[i];
            if (!(m > 0)) continue;
            found = i;
            if ((target -= m) < 0) break;
        }
        return found;
    }
};

} // namespace

extern "C" {

int32_t vi_kmeans_start(vi_context* context, float* codebook, const float* points, const float* weights, int32_t seed, int32_t count, int32_t dim,
                        int32_t codewords) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_kmeans(context, __func__, codebook, points, count, dim, codewords));
    VI_RECORD(context, vi_kmeans_start(context, codebook, points, weights, seed, count, dim, codewords));
    VI_CHECK(check_numbers(context, __func__, points, weights, count, dim));
    const uint64_t stream = static_cast<uint32_t>(seed);
    Sample sample(points, weights, stream, count, dim, codewords);
    for (int k = 0; k < codewords; k++) {
        const int drawn = sample.draw(uniform53(stream, uint64_t(k)));
        float* codeword = codebook + size_t(k) * dim;
        std::memcpy(codeword, points + size_t(sample.index[drawn]) * dim, size_t(dim) * 4);
        if (k == 0) std::fill(sample.distance.begin(), sample.distance.end(), std::numeric_limits<float>::infinity());
        sample.move_closer(codeword); // on one thread: a team for each of so many short sweeps would mostly wait
    }
    return VI_OK;
} VI_CATCH(context)

int32_t vi_kmeans_step(vi_context* context, float* codebook, float* distortion, const float* points, const float* weights, int32_t seed,
                       int32_t iteration, int32_t count, int32_t dim, int32_t codewords) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_kmeans(context, __func__, codebook, points, count, dim, codewords));
    VI_RECORD(context, vi_kmeans_step(context, codebook, distortion, points, weights, seed, iteration, count, dim, codewords));
    VI_CHECK(check_numbers(context, __func__, points, weights, count, dim));
    std::vector<int32_t> codes(count), order(count), starts(codewords + 1);
    std::vector<double> masses(codewords), errors(codewords);
    if (const int32_t status = vi_codebook_assign(context, codes.data(), points, codebook, count, dim, codewords)) return status;

    // The points of each codeword in order of their index, by counting.
    for (const int32_t code : codes) starts[code + 1]++;
    for (int c = 0; c < codewords; c++) starts[c + 1] += starts[c];
    std::vector<int32_t> next(starts.begin(), starts.end() - 1);
    for (int i = 0; i < count; i++) order[next[codes[i]]++] = i;

#pragma omp parallel for schedule(dynamic, 16) num_threads(context->threads_for(int64_t(count) * dim * 8))
    for (int c = 0; c < codewords; c++) {
        double sums[16] = {};
        float* codeword = codebook + size_t(c) * dim;
        for (int n = starts[c]; n < starts[c + 1]; n++) {
            const float* point = points + size_t(order[n]) * dim;
            const double weight = weights ? weights[order[n]] : 1;
            double squares = 0;
            for (int d = 0; d < dim; d++) {
                const double difference = double(point[d]) - codeword[d];
                squares += difference * difference;
                sums[d] += weight * point[d];
            }
            masses[c] += weight;
            errors[c] += weight * squares;
        }
        if (masses[c] > 0)
            for (int d = 0; d < dim; d++) codeword[d] = float(sums[d] / masses[c]);
    }
    double mass = 0, error = 0;
    for (int c = 0; c < codewords; c++) mass += masses[c], error += errors[c];
    if (distortion) *distortion = mass > 0 ? float(error / mass) : 0;
    if (!(mass > 0)) return VI_OK; // every weight is 0: nothing to move by

    // An empty codeword goes a quarter of the spread away from the mean with the largest distortion, in a random direction;
    // each of the two then counts as half of it. Of equals the lowest index is split.
    std::priority_queue<std::pair<double, int>> largest;
    for (int c = 0; c < codewords; c++)
        if (masses[c] > 0) largest.push({errors[c], -c});
    const uint64_t stream = uint64_t(static_cast<uint32_t>(seed)) << 32 | static_cast<uint32_t>(iteration);
    for (int c = 0; c < codewords; c++) {
        if (masses[c] > 0) continue;
        const int split = -largest.top().second;
        largest.pop();
        const double spread = std::sqrt(errors[split] / masses[split] / dim);
        for (int d = 0; d < dim; d++) {
            const double sign = uniform53(stream, uint64_t(c) * 16 + d) < 0.5 ? -1 : 1;
            codebook[size_t(c) * dim + d] = float(codebook[size_t(split) * dim + d] + sign * spread / 4);
        }
        errors[c] = errors[split] /= 2;
        masses[c] = masses[split] /= 2;
        largest.push({errors[c], -c});
        largest.push({errors[split], -split});
    }
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
