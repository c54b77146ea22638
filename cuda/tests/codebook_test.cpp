// Nearest codewords, k-means and channel maxima.
#include "test.h"
#include <algorithm>
#include <set>

namespace {

double distance(const float* a, const float* b, int32_t dim) {
    double sum = 0;
    for (int32_t d = 0; d < dim; ++d) sum += (double(a[d]) - b[d]) * (double(a[d]) - b[d]);
    return sum;
}

} // namespace

TEST(codebook_assign) {
    for (const int32_t dim : {1, 2, 3, 4, 7, 8, 13, 16})
        for (const int32_t codewords : {1, 5, 256, t.small ? 300 : 4096}) {
            const int32_t count = t.integer(1, t.small ? 200 : 3000);
            const std::vector<float> points = t.normal(size_t(count) * dim);
            std::vector<float> book = t.normal(size_t(codewords) * dim);
            // Twins: the lower index has to win.
            for (int32_t c = codewords / 2; c < codewords; c += 3) std::copy_n(book.begin() + (c - codewords / 2) * dim, dim,
                book.begin() + c * dim);
            Array<float> in(t, points), codebook(t, book);
            Array<int32_t> codes(t, count);
            t.call(&Functions::vi_codebook_assign, codes, in, codebook, count, dim, codewords);
            const std::vector<int32_t> wanted = codes.read(t.cpu), found = codes.read(t.cuda);
            for (int32_t n = 0; n < count; ++n) {
                CHECK(found[n] >= 0 && found[n] < codewords, "code %d of %d", found[n], codewords);
                const double a = distance(&points[n * dim], &book[found[n] * dim], dim), b = distance(&points[n * dim],
                    &book[wanted[n] * dim], dim);
                CHECK(a <= b * (1 + 1e-4) + 1e-5, "point %d: distance %g instead of %g", n, a, b);
                for (int32_t c = 0; c < found[n]; ++c) CHECK(!std::equal(&book[c * dim], &book[c * dim] + dim, &book[found[n] * dim]),
                    "code %d has a twin at %d", found[n], c);
            }
        }
}

TEST(kmeans_start) {
    for (const int32_t dim : {1, 4, 8, 11}) {
        const int32_t codewords = t.small ? 16 : 256, count = t.integer(codewords, t.small ? 2000 : 60000), seed = t.integer(-100, 100);
        const std::vector<float> points = t.normal(size_t(count) * dim);
        std::vector<float> importance(count);
        for (float& w : importance) w = t.real(0, 2);
        Array<float> in(t, points), weights(t, importance), book(t, size_t(codewords) * dim);
        for (const bool weighted : {false, true}) {
            const float* none = nullptr;
            const auto start = [&](Library& library) { t.call_one(library, &Functions::vi_kmeans_start, book, in,
                weighted ? static_cast<const float*>(weights.at(library)) : none, seed, count, dim, codewords); };
            start(t.cpu);
            start(t.cuda);
            const std::vector<float> found = book.read(t.cuda), wanted = book.read(t.cpu);
            std::set<std::vector<float>> known;
            for (int32_t n = 0; n < count; ++n) known.insert(std::vector<float>(&points[n * dim], &points[n * dim] + dim));
            for (int32_t c = 0; c < codewords; ++c)
                CHECK(known.contains(std::vector<float>(&found[c * dim], &found[c * dim] + dim)), "codeword %d is none of the points", c);
            // As spread as the CPU's: mean distance to the nearest codeword.
            double spread[2] = {0, 0};
            for (int32_t n = 0; n < count; n += std::max(1, count / 500))
                for (int side = 0; side < 2; ++side) {
                    double nearest = INFINITY;
                    for (int32_t c = 0; c < codewords; ++c) nearest = std::min(nearest, distance(&points[n * dim],
                        &(side ? wanted : found)[c * dim], dim));
                    spread[side] += nearest;
                }
            CHECK(spread[0] <= spread[1] * 1.3 + 1e-6, "mean distance %g, on the CPU %g", spread[0], spread[1]);
            start(t.cuda);
            CHECK(book.read(t.cuda) == found, "the same seed gives another codebook");
        }
    }
}

TEST(kmeans_step) {
    for (const int32_t dim : {1, 4, 8, 16})
        for (const bool weighted : {false, true}) {
            const int32_t codewords = t.small ? 16 : 200, count = t.small ? 1000 : 50000;
            const std::vector<float> points = t.normal(size_t(count) * dim);
            std::vector<float> importance(count);
            for (float& w : importance) w = std::exp(t.real(-6, 3));
            const std::vector<float> start(points.begin(), points.begin() + codewords * dim);
            Array<float> in(t, points), weights(t, importance), book(t, start), distortion(t, 1);
            const float* none = nullptr;
            const auto step = [&](Library& library, int32_t iteration) {
                t.call_one(library, &Functions::vi_kmeans_step, book, distortion, in,
                    weighted ? static_cast<const float*>(weights.at(library)) : none, 5, iteration, count, dim, codewords);
            };
            float last = INFINITY;
            for (int32_t iteration = 0; iteration < 3; ++iteration) {
                const std::vector<float> before = book.read(t.cpu);
                book.write(before); // both start from the same bits
                step(t.cpu, iteration);
                step(t.cuda, iteration);
                t.close("distortion", distortion, 1e-5);
                // The means of the points that the library itself assigns, in float64.
                Array<float> start(t, before);
                Array<int32_t> codes(t, count);
                t.call_one(t.cuda, &Functions::vi_codebook_assign, codes, in, start, count, dim, codewords);
                const std::vector<int32_t> assigned = codes.read(t.cuda);
                std::vector<double> sums(codewords * dim, 0), masses(codewords, 0);
                for (int32_t n = 0; n < count; ++n) {
                    const double weight = weighted ? importance[n] : 1;
                    masses[assigned[n]] += weight;
                    for (int32_t d = 0; d < dim; ++d) sums[assigned[n] * dim + d] += weight * points[n * dim + d];
                }
                // A point between two codewords may go to either; where one is empty that may decide which is split for it.
                if (std::all_of(masses.begin(), masses.end(), [](double mass) { return mass > 0; })) t.close("codebook", book, 5e-3);
                std::vector<float> means = book.read(t.cuda);
                for (int32_t c = 0; c < codewords; ++c)
                    for (int32_t d = 0; d < dim; ++d)
                        if (masses[c] > 0) means[c * dim + d] = float(sums[c * dim + d] / masses[c]);
                close("means", book.read(t.cuda), means, 1e-6);
                const float now = distortion.read(t.cuda)[0];
                CHECK(now <= last * 1.0001f, "the distortion grows from %g to %g", last, now);
                last = now;
                const std::vector<float> found = book.read(t.cuda);
                book.write(t.cuda, before);
                step(t.cuda, iteration);
                CHECK(book.read(t.cuda) == found, "the same step gives other bits");
            }
        }
}

TEST(kmeans_empty_codewords) {
    const int32_t dim = 4, codewords = 40, count = 3000;
    std::vector<float> points = t.normal(count * dim), start(codewords * dim);
    for (int32_t c = 0; c < codewords; ++c)
        for (int32_t d = 0; d < dim; ++d) start[c * dim + d] = c % 4 == 0 ? points[c * dim + d] : c % 4 == 1 ? points[(c - 1) * dim + d] : 1000.0f + c;
    Array<float> in(t, points), book(t, start), distortion(t, 1);
    t.call(&Functions::vi_kmeans_step, book, distortion, in, static_cast<const float*>(nullptr), 1, 0, count, dim, codewords);
    t.close("codebook", book, 1e-3);
    // From here each goes its own way: codewords that were split twice may lie within a rounding of each other.
    float last = distortion.read(t.cuda)[0];
    for (int32_t iteration = 1; iteration < 5; ++iteration) {
        t.call_one(t.cuda, &Functions::vi_kmeans_step, book, distortion, in, static_cast<const float*>(nullptr), 1, iteration, count, dim,
            codewords);
        const float now = distortion.read(t.cuda)[0];
        CHECK(now <= last * 1.0001f, "the distortion grows from %g to %g", last, now);
        last = now;
    }
    for (const float x : book.read(t.cuda)) CHECK(std::fabs(x) < 10, "a codeword stays at %g", x);
    // Weights of 0 move nothing.
    Array<float> weights(t, std::vector<float>(count, 0));
    const std::vector<float> before = book.read(t.cuda);
    t.call_one(t.cuda, &Functions::vi_kmeans_step, book, distortion, in, weights, 1, 3, count, dim, codewords);
    CHECK(book.read(t.cuda) == before && distortion.read(t.cuda)[0] == 0, "moved");
}

TEST(channel_max) {
    for (const int32_t width : {1, 31, 64, 1024}) {
        const int32_t rows = t.integer(1, 700), stride = width + t.integer(0, 9);
        Array<float> maxima(t, t.normal(width)), x(t, t.normal(size_t(rows) * stride));
        t.call(&Functions::vi_channel_max, maxima, x, rows, width, stride);
        t.equal("maxima", maxima);
    }
}
