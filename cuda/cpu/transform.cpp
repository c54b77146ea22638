// Transforms: smoothing factors and Hadamard, or fitted matrices.
#include "transform.h"
#include "hadamard.h"

namespace {

// out = x M of `count` row vectors, M [n, n]: rows of M are added up, those of even and odd number apart so that sums need not wait for each other, a few
// columns at a time, which stay in registers. The same bits whatever the count.
template <int count> void multiply(float* out, int out_stride, const float* x, int x_stride, const float* matrix, int n) {
    constexpr int strips = 4; // registers of columns
    float from[count][max_head_dim]; // out may be x
    for (int v = 0; v < count; v++) std::copy_n(x + v * x_stride, n, from[v]);
    for (int column = 0; column < n; column += strips * kWidth) {
        Vec sum[2][count][strips] = {};
        for (int j = 0; j < n; j += 2)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
#pragma GCC unroll 4
                for (int i = 0; i < strips; i++) {
                    const Vec row = load(matrix + int64_t(j + half) * n + column + i * kWidth);
#pragma GCC unroll 2
                    for (int v = 0; v < count; v++) sum[half][v][i] += from[v][j + half] * row;
                }
        for (int v = 0; v < count; v++)
            for (int i = 0; i < strips; i++) store(out + v * out_stride + column + i * kWidth, sum[0][v][i] + sum[1][v][i]);
    }
}

} // namespace

void Transform::apply(float* out, int out_stride, const float* x, int x_stride, int count, int kv_head, int direction) const {
    const int n = head_dim;
    if (!matrices.empty()) {
        const float* matrix = matrices.data() + (int64_t(direction) * kv_heads + kv_head) * n * n;
        int v = 0;
        for (; v + 2 <= count; v += 2) multiply<2>(out + v * out_stride, out_stride, x + v * x_stride, x_stride, matrix, n);
        if (v < count) multiply<1>(out + v * out_stride, out_stride, x + v * x_stride, x_stride, matrix, n);
        return;
    }
    const float* factors = smooth.empty() ? nullptr : smooth.data() + int64_t(kv_head) * n;
    for (int v = 0; v < count; v++, out += out_stride, x += x_stride) {
        for (int i = 0; i < n; i++)
            out[i] = !factors || direction == VI_TRANSFORM_INVERSE ? x[i] : direction == VI_TRANSFORM_QUERY ? x[i] * factors[i] : x[i] / factors[i];
        if (hadamard) ::hadamard(out, n); // H is its own inverse
        if (direction == VI_TRANSFORM_INVERSE && factors)
            for (int i = 0; i < n; i++) out[i] *= factors[i];
    }
}

extern "C" {

int32_t vi_transform_create(vi_context* context, uint8_t* out, const float* smooth, const float* matrices, int32_t kv_heads, int32_t head_dim,
                            int32_t hadamard) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_CHECK(check_transform_create(context, __func__, out, smooth, matrices, kv_heads, head_dim, hadamard));
    const int64_t channels = int64_t(kv_heads) * head_dim, elements = 3 * channels * head_dim;
    if (smooth) VI_CHECK(check_finite(context, __func__, "smooth factors", smooth, channels));
    if (matrices) VI_CHECK(check_finite(context, __func__, "matrices", matrices, elements));
    auto transform = std::make_shared<Transform>(Transform{{kv_heads, head_dim}, hadamard == 1, {}, {}});
    if (smooth) transform->smooth.assign(smooth, smooth + channels);
    if (matrices) transform->matrices.assign(matrices, matrices + elements);
    const vi_transform* handle = new vi_transform{std::move(transform)};
    std::memcpy(out, &handle, sizeof handle);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_transform_destroy(vi_context* context, vi_transform* transform) {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    delete transform;
    return VI_OK;
}

int32_t vi_transform_apply(vi_context* context, float* out, const float* x, const vi_transform* transform, int32_t direction, int32_t rows, int32_t heads,
                           int32_t stride) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_transform_apply(context, __func__, out, x, shape_of(transform), direction, rows, heads, stride));
    if (rows == 0) return VI_OK;
    VI_RECORD(context, vi_transform_apply(context, out, x, transform, direction, rows, heads, stride));
    const Transform& t = *transform->transform;
    const int group = heads / t.kv_heads, count = rows * heads;
#pragma omp parallel for num_threads(context->threads_for(int64_t(count) * t.work()))
    for (int i = 0; i < count; i++) {
        const int64_t at = int64_t(i / heads) * stride + int64_t(i % heads) * t.head_dim;
        t.apply(out + at, 0, x + at, 0, 1, i % heads / group, direction);
    }
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
