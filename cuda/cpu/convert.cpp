// Between f32, bf16 and f16, by way of f32, which holds both halves exactly: one rounding, to nearest even.
#include "context.h"

namespace {

typedef _Float16 f16;

inline float to_f32(float x) { return x; }
inline float to_f32(vi_bf16 x) { return bf16_to_f32(x); }
inline float to_f32(f16 x) { return static_cast<float>(x); }
inline void from_f32(float& out, float x) { out = x; }
inline void from_f32(vi_bf16& out, float x) { out = f32_to_bf16(x); }
inline void from_f32(f16& out, float x) { out = static_cast<f16>(x); }

template <class Out, class In> void convert(vi_context* context, void* out, const void* in, int64_t count) {
    Out* to = static_cast<Out*>(out);
    const In* from = static_cast<const In*>(in);
#pragma omp parallel for schedule(static) num_threads(context->threads_for(count))
    for (int64_t i = 0; i < count; i++) from_f32(to[i], to_f32(from[i]));
}

template <class Out> void convert_from(vi_context* context, void* out, const void* in, int32_t in_dtype, int64_t count) {
    if (in_dtype == VI_F32) convert<Out, float>(context, out, in, count);
    else if (in_dtype == VI_BF16) convert<Out, vi_bf16>(context, out, in, count);
    else convert<Out, f16>(context, out, in, count);
}

} // namespace

extern "C" int32_t vi_convert(vi_context* context, void* out, const void* in, int32_t out_dtype, int32_t in_dtype, int64_t count) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_convert(context, __func__, out, in, out_dtype, in_dtype, count));
    if (count == 0) return VI_OK;
    VI_RECORD(context, vi_convert(context, out, in, out_dtype, in_dtype, count));
    if (out_dtype == VI_F32) convert_from<float>(context, out, in, in_dtype, count);
    else if (out_dtype == VI_BF16) convert_from<vi_bf16>(context, out, in, in_dtype, count);
    else convert_from<f16>(context, out, in, in_dtype, count);
    return VI_OK;
} VI_CATCH(context)
