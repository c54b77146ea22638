// Quantizers: codebooks, smoothing factors, transforms, and the size of a page.
#include "quantizer.h"
#include "hadamard.h"
#include <cmath>

namespace {

// Codebooks are rounded, c = unit * n with n a signed byte, for the tables of lookup.h and of the CUDA library's kernels. That adds a variance of
// unit^2 / 12 to each channel: 1e-4 of the channel's where max |c| is four standard deviations, and d4b12 is off by 0.04 itself. d2b8, which
// is off by only 0.01, takes 12 bits, which two bytes hold and a 16-bit float: n = 256 high + low, both signed. 10 bits or fewer have components.
void round_codebook(Quantizer& q, int index) {
    float* book = q.codebooks.data() + int64_t(index) * q.padded_codewords() * q.sub_dim;
    const int count = q.padded_codewords() * q.sub_dim, bytes = q.component_bytes(), most = bytes == 2 ? 2047 : 127;
    float largest = 0;
    for (int i = 0; i < count; i++) largest = std::max(largest, std::fabs(book[i]));
    const float unit = largest > 0 ? largest / most : 1;
    q.units.push_back(unit);
    const bool components = q.bits <= 10;
    if (components) q.components.resize(q.components.size() + int64_t(count) * bytes);
    for (int i = 0; i < count; i++) {
        const int n = static_cast<int>(std::clamp<float>(std::nearbyint(book[i] / unit), -most, most));
        book[i] = unit * n;
        if (!components) continue;
        const int8_t low = static_cast<int8_t>(n & 255);
        int8_t* to = &q.components[int64_t(index) * count * bytes + i % q.sub_dim * bytes * q.padded_codewords() + i / q.sub_dim];
        to[0] = bytes == 2 ? static_cast<int8_t>((n - low) >> 8) : low;
        if (bytes == 2) to[q.padded_codewords()] = low;
    }
}

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

void Quantizer::transform(float* out, int out_stride, const float* x, int x_stride, int count, int kv_head, int direction) const {
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
        for (int i = 0; i < n; i++) out[i] = !factors || direction == 2 ? x[i] : direction ? x[i] * factors[i] : x[i] / factors[i];
        if (hadamard) ::hadamard(out, n); // H is its own inverse
        if (direction == 2 && factors)
            for (int i = 0; i < n; i++) out[i] *= factors[i];
    }
}

extern "C" {

int32_t vi_quantizer_create(vi_context* context, uint8_t* out, const float* codebooks, const float* smooth, int32_t kv_heads, int32_t head_dim,
                            int32_t sub_dim, int32_t bits, int32_t codebook_heads, int32_t codebook_parts, int32_t hadamard, int32_t token_scale) {
    const char* name = "vi_quantizer_create";
    VI_NOT_RECORDED(context, "vi_quantizer_create");
    VI_POINTER(context, "vi_quantizer_create", out);
    VI_REQUIRE(context, kv_heads >= 1, "%s: kv_heads is %d", name, kv_heads);
    if (head_dim != 64 && head_dim != 128) return context->fail(VI_UNSUPPORTED, "%s: head_dim %d is not supported: 64 and 128 are", name, head_dim);
    VI_REQUIRE(context, (hadamard | 1) == 1 && (token_scale | 1) == 1, "%s: hadamard is %d and token_scale is %d: 0 or 1", name, hadamard, token_scale);
    if (bits == 16) {
        VI_REQUIRE(context, sub_dim == 1 && !codebooks, "%s: 16 bits go with sub_dim 1 and no codebooks, sub_dim is %d", name, sub_dim);
        VI_REQUIRE(context, !smooth && !hadamard && !token_scale, "%s: 16 bits go without smooth, hadamard and token_scale", name);
    } else {
        static const int formats[][2] = {{2, 8}, {4, 12}, {4, 10}, {4, 8}, {4, 6}, {8, 12}, {8, 8}};
        bool known = false;
        for (auto [d, b] : formats) known |= d == sub_dim && b == bits;
        VI_REQUIRE(context, known, "%s: (sub_dim, bits) is (%d, %d): (2,8) (4,12) (4,10) (4,8) (4,6) (8,12) (8,8) or (1,16)", name, sub_dim, bits);
        VI_REQUIRE(context, codebooks, "%s: codebooks is NULL: only 16 bits go without", name);
        VI_REQUIRE(context, codebook_heads == 1 || codebook_heads == kv_heads, "%s: codebook_heads is %d: 1 or kv_heads (%d)", name,
                   codebook_heads, kv_heads);
        VI_REQUIRE(context, codebook_parts == 1 || codebook_parts == head_dim / sub_dim, "%s: codebook_parts is %d: 1 or head_dim / sub_dim (%d)", name,
                   codebook_parts, head_dim / sub_dim);
    }
    for (int64_t i = 0, count = bits < 16 ? int64_t(codebook_heads) * codebook_parts * sub_dim << bits : 0; i < count; i++)
        VI_REQUIRE(context, std::isfinite(codebooks[i]), "%s: codebooks hold NaN or infinity at element %lld", name, static_cast<long long>(i));
    VI_TRY {
        auto q = std::make_shared<Quantizer>();
        q->kv_heads = kv_heads, q->head_dim = head_dim, q->sub_dim = sub_dim, q->bits = bits, q->codebook_heads = codebook_heads;
        q->codebook_parts = codebook_parts;
        q->hadamard = hadamard, q->token_scale = token_scale;
        if (smooth) q->smooth.assign(smooth, smooth + int64_t(kv_heads) * head_dim);
        if (q->coded()) {
            const int64_t given = int64_t(1 << bits) * sub_dim, kept = int64_t(q->padded_codewords()) * sub_dim;
            q->codebooks.resize(q->book_count() * kept);
            for (int i = 0; i < q->book_count(); i++) {
                std::copy_n(codebooks + i * given, given, q->codebooks.data() + i * kept);
                round_codebook(*q, i);
                q->books.emplace_back(q->codebooks.data() + i * kept, 1 << bits, sub_dim);
            }
        }
        auto handle = new vi_quantizer{std::move(q)};
        std::memcpy(out, &handle, sizeof handle);
        return VI_OK;
    }
    VI_CATCH(context, "vi_quantizer_create")
}

int32_t vi_quantizer_destroy(vi_context* context, vi_quantizer* quantizer) {
    VI_NOT_RECORDED(context, "vi_quantizer_destroy");
    delete quantizer;
    return VI_OK;
}

int32_t vi_quantizer_matrices(vi_context* context, vi_quantizer* quantizer, const float* matrices) {
    const char* name = "vi_quantizer_matrices";
    VI_NOT_RECORDED(context, "vi_quantizer_matrices");
    VI_POINTER(context, "vi_quantizer_matrices", quantizer);
    VI_POINTER(context, "vi_quantizer_matrices", matrices);
    Quantizer& q = *quantizer->quantizer;
    VI_REQUIRE(context, q.coded(), "%s: 16 bits have no transform", name);
    VI_REQUIRE(context, q.smooth.empty() && !q.hadamard, "%s: the quantizer has smooth or hadamard, which matrices stand in place of", name);
    VI_REQUIRE(context, q.matrices.empty(), "%s: the quantizer has matrices already", name);
    VI_REQUIRE(context, quantizer->quantizer.use_count() == 1, "%s: layers are made with this quantizer already", name);
    const int64_t count = int64_t(3) * q.kv_heads * q.head_dim * q.head_dim;
    for (int64_t i = 0; i < count; i++)
        VI_REQUIRE(context, std::isfinite(matrices[i]), "%s: matrices hold NaN or infinity at element %lld", name, static_cast<long long>(i));
    VI_TRY {
        q.matrices.assign(matrices, matrices + count);
        return VI_OK;
    }
    VI_CATCH(context, "vi_quantizer_matrices")
}

int32_t vi_quantizer_codebook(vi_context* context, float* out, const vi_quantizer* quantizer) {
    VI_CONTEXT(context);
    VI_POINTER(context, "vi_quantizer_codebook", out);
    VI_POINTER(context, "vi_quantizer_codebook", quantizer);
    const Quantizer& q = *quantizer->quantizer;
    VI_REQUIRE(context, q.coded(), "vi_quantizer_codebook: 16 bits have no codebook");
    VI_RECORD(context, vi_quantizer_codebook(context, out, quantizer));
    const int64_t count = int64_t(1 << q.bits) * q.sub_dim, kept = int64_t(q.padded_codewords()) * q.sub_dim;
    for (int i = 0; i < q.book_count(); i++) std::copy_n(q.codebooks.data() + i * kept, count, out + i * count);
    return VI_OK;
}

int32_t vi_page_bytes(vi_context* context, uint8_t* out, const vi_quantizer* quantizer) {
    VI_CONTEXT(context);
    VI_POINTER(context, "vi_page_bytes", out);
    VI_POINTER(context, "vi_page_bytes", quantizer);
    const int64_t bytes = quantizer->quantizer->page_bytes();
    std::memcpy(out, &bytes, sizeof bytes);
    return VI_OK;
}

int32_t vi_transform(vi_context* context, float* out, const float* x, const vi_quantizer* quantizer, int32_t direction, int32_t rows, int32_t heads,
                     int32_t stride) {
    const char* name = "vi_transform";
    VI_CONTEXT(context);
    VI_POINTER(context, "vi_transform", quantizer);
    const Quantizer& q = *quantizer->quantizer;
    VI_REQUIRE(context, rows >= 0, "%s: rows is %d", name, rows);
    VI_REQUIRE(context, direction >= 0 && direction <= 2, "%s: direction is %d: 0, 1 or 2", name, direction);
    VI_REQUIRE(context, heads >= 1 && heads % q.kv_heads == 0, "%s: heads is %d, not a multiple of %d KV heads", name, heads, q.kv_heads);
    VI_REQUIRE(context, int64_t(heads) * q.head_dim <= stride, "%s: stride is %d, less than heads * head_dim", name, stride);
    if (rows == 0) return VI_OK;
    VI_POINTER(context, "vi_transform", out);
    VI_POINTER(context, "vi_transform", x);
    VI_RECORD(context, vi_transform(context, out, x, quantizer, direction, rows, heads, stride));
    const int group = heads / q.kv_heads, count = rows * heads;
#pragma omp parallel for num_threads(context->threads_for(int64_t(count) * q.transform_work()))
    for (int i = 0; i < count; i++) {
        const int64_t at = int64_t(i / heads) * stride + int64_t(i % heads) * q.head_dim;
        q.transform(out + at, 0, x + at, 0, 1, i % heads / group, direction);
    }
    return VI_OK;
}
}
