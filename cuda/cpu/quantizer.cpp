// Quantizers: codebooks, and the size of a page.
#include "quantizer.h"

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

} // namespace

extern "C" {

int32_t vi_quantizer_create(vi_context* context, uint8_t* out, const float* codebooks, const vi_transform* transform, int32_t kv_heads, int32_t head_dim,
                            int32_t sub_dim, int32_t bits, int32_t codebook_heads, int32_t codebook_parts, int32_t token_scale) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    const QuantizerShape shape{kv_heads, head_dim, sub_dim, bits, codebooks ? codebook_heads : 0, codebooks ? codebook_parts : 0, token_scale};
    VI_CHECK(check_quantizer_create(context, __func__, out, codebooks, shape_of(transform), shape));
    const int64_t given = shape.book_size();
    VI_CHECK(check_finite(context, __func__, "codebooks", codebooks, shape.book_count() * given));
    auto q = std::make_shared<Quantizer>(shape);
    q->transform = transform ? transform->transform : std::make_shared<Transform>(Transform{{kv_heads, head_dim}, false, {}, {}});
    const int64_t kept = int64_t(q->padded_codewords()) * sub_dim;
    q->codebooks.resize(q->book_count() * kept);
    for (int i = 0; i < q->book_count(); i++) {
        std::copy_n(codebooks + i * given, given, q->codebooks.data() + i * kept);
        round_codebook(*q, i);
        q->books.emplace_back(q->codebooks.data() + i * kept, 1 << bits, sub_dim);
    }
    const vi_quantizer* handle = new vi_quantizer{std::move(q)};
    std::memcpy(out, &handle, sizeof handle);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_quantizer_destroy(vi_context* context, vi_quantizer* quantizer) {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    delete quantizer;
    return VI_OK;
}

int32_t vi_quantizer_codebook(vi_context* context, float* out, const vi_quantizer* quantizer) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_quantizer_codebook(context, __func__, out, shape_of(quantizer)));
    const Quantizer& q = *quantizer->quantizer;
    VI_RECORD(context, vi_quantizer_codebook(context, out, quantizer));
    const int64_t count = q.book_size(), kept = int64_t(q.padded_codewords()) * q.sub_dim;
    for (int i = 0; i < q.book_count(); i++) std::copy_n(q.codebooks.data() + i * kept, count, out + i * count);
    return VI_OK;
} VI_CATCH(context)

int32_t vi_page_bytes(vi_context* context, uint8_t* out, const vi_quantizer* quantizer) {
    VI_OPEN(context);
    VI_CHECK(check_page_bytes(context, __func__, out, shape_of(quantizer)));
    const int64_t bytes = quantizer->quantizer->page_bytes();
    std::memcpy(out, &bytes, sizeof bytes);
    return VI_OK;
}

} // extern "C"
