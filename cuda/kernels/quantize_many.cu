// vi_quantize and vi_rope_quantize for many rows, one kernel from the rows to the pages: a block takes 8 or 32 rows of one KV head and side, transforms them into
// shared memory, finds the codes of their sub-vectors, and writes them into the pages. Layers that keep bf16 alone have a kernel of their own (store_kernel).
#include "quantize.h"
#include "quantize_matrix.cuh"
#include "quantize_search.cuh"

namespace {

// The codes of one token that lie together in one lane's words: `own` of b bits. Tokens share words, not bytes (or else see write_shared).
__device__ void write_piece(const PageFormat& f, uint8_t* page, bool value, int token, int sub, int step, int own, const uint16_t* codes) {
    int word, bit, lane;
    f.locate(value, token, sub, word, bit, lane);
    const int bits = own * f.b, unit = bits % 32 == 0 ? 32 : bits % 16 == 0 ? 16 : 8;
    int at = word * 32 + bit, held = 0;
    uint64_t buffer = 0;
    for (int i = 0; i < own; ++i) {
        buffer |= static_cast<uint64_t>(codes[sub + i * step]) << held;
        held += f.b;
        for (; held >= unit; held -= unit, buffer >>= unit, at += unit) {
            uint8_t* to = page + f.offset(token, lane, at / 32) + at % 32 / 8;
            if (unit == 32) *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(buffer);
            else if (unit == 16) *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(buffer);
            else *to = static_cast<uint8_t>(buffer);
        }
    }
}

// The same where a token's bits do not fill bytes: its bits alone are changed.
__device__ void write_shared(const PageFormat& f, uint8_t* page, bool value, int token, int sub, int step, int own, const uint16_t* codes) {
    for (int i = 0; i < own; ++i) {
        int word, bit, lane;
        f.locate(value, token, sub + i * step, word, bit, lane);
        write_bits(f, page, token, lane, word, bit, codes[sub + i * step]);
    }
}

// Exact copies of the rows first, first + step, ... of the block, as the transformed vectors v of a warp, and these scaled into shared memory.
template <int D, int Rows, int count>
__device__ void write_rows(SharedRows<D, Rows>& shared, const float (&v)[count][D / 32], const Cache& c, const Side& side, int head, int first, int step, int rows) {
    constexpr int N = D / 32;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < count; ++j) {
        const int i = first + j * step;
        float squares = 0;
        if (i < rows) {
            const QuantizeRow r = shared.rows[i];
            if (r.page >= 0) write_exact<D>(v[j], c, side, r, head);
        }
        for (int k = 0; k < N; ++k) squares += v[j][k] * v[j][k];
        const float rms = side.format.token_scale ? sqrtf(warp_sum(squares) / D) : 1.0f, inverse = rms > 0 ? 1 / rms : 0.0f;
        for (int k = 0; k < N; ++k) shared.scaled[i][lane * N + k] = v[j][k] * inverse;
        if (lane == 0) shared.rms[i] = rms;
    }
}

// The codes of the block's `count` rows in shared memory, into the pages. d = 1: bf16, which has no codes.
template <int D, int d, int Rows> __device__ void encode(Shared<D, d, Rows>& shared, const Cache& c, const Side& side, bool value, int head, int count) {
    constexpr int N = D / 32, n = D / d;
    const PageFormat f = side.format;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto page_of = [&](const QuantizeRow& r) { return side.page(r.page, head, c.kv_heads); };
    if constexpr (d == 1) {
        for (int i = threadIdx.x; i < count * (D / 2); i += threads) {
            const QuantizeRow r = shared.rows[i / (D / 2)];
            if (r.page < 0) continue;
            const int channel = i % (D / 2) * 2;
            int word, bit, to;
            f.locate(value, r.position % page_tokens, channel, word, bit, to);
            const float* v = &shared.scaled[i / (D / 2)][channel];
            *reinterpret_cast<uint32_t*>(page_of(r) + f.offset(r.position % page_tokens, to, word)) = f32_to_bf16(v[0]) | f32_to_bf16(v[1]) << 16;
        }
    } else {
        if constexpr (d == 2) search_pairs(shared);
        else search_tiles(shared, side, head);

        if (f.token_scale) {
            const float* codebook = side.codebook(head, 0);
            for (int i = warp; i < count; i += warps) {
                float product = 0, norm = 0;
                for (int k = 0; k < N; ++k) {
                    const int channel = lane * N + k;
                    const float w = codebook[static_cast<int>(shared.codes[i * n + channel / d]) * d + channel % d];
                    product = fmaf(shared.scaled[i][channel], w, product);
                    norm = fmaf(w, w, norm);
                }
                product = warp_sum(product) * shared.rms[i];
                norm = warp_sum(norm);
                const QuantizeRow r = shared.rows[i];
                if (lane == 0 && r.page >= 0) {
                    const int token = r.position % page_tokens;
                    page_of(r)[f.scale_offset(token)] = scale_code(product, norm);
                }
            }
        }

        const int pieces = value ? 8 : 4, own = n / pieces, step = value ? 8 : 1;
        const bool apart = own * f.b % 8 == 0;
        for (int i = threadIdx.x; i < count * pieces; i += threads) {
            const QuantizeRow r = shared.rows[i / pieces];
            if (r.page < 0) continue;
            const int sub = value ? i % pieces : i % pieces * own;
            (apart ? write_piece : write_shared)(f, page_of(r), value, r.position % page_tokens, sub, step, own, shared.codes + i / pieces * n);
        }
    }
}

// Both sides of a KV head, and after the KV heads blocks that rotate 8 query heads each. Codewords and matrices are no kernel's work: they are read before the
// kernel ahead of this one has ended.
template <int D, int Rows>
__global__ void __launch_bounds__(threads) quantize_many_kernel(const __grid_constant__ Cache c, const float* keys, const float* values, const int32_t* slots,
                                                                const int32_t* positions, const __grid_constant__ Rope rope, int rows, int stride) {
    extern __shared__ __align__(16) uint8_t memory[];
    constexpr int N = D / 32, own = Rows / warps; // rows of a warp: warp, warp + 8, ...
    auto& shared = *reinterpret_cast<SharedRows<D, Rows>*>(memory);
    const int first = blockIdx.x * Rows, head = blockIdx.y / 2, warp = threadIdx.x / 32, lane = threadIdx.x % 32, count = min(Rows, rows - first);
    const bool value = blockIdx.y % 2, vectors = static_cast<int>(blockIdx.y) < 2 * c.kv_heads;
    const Side& side = value ? c.values : c.keys;
    auto with_format = [&](auto run) { // run(the shared memory of the side's format)
        switch (side.format.d) {
            case 1: run(*reinterpret_cast<Shared<D, 1, Rows>*>(memory)); break;
            case 2: run(*reinterpret_cast<Shared<D, 2, Rows>*>(memory)); break;
            case 4: run(*reinterpret_cast<Shared<D, 4, Rows>*>(memory)); break;
            case 8: run(*reinterpret_cast<Shared<D, 8, Rows>*>(memory)); break;
        }
    };
    const bool fitted = vectors && side.transform.matrices;
    if (fitted) prefetch(side.transform.matrix(VI_TRANSFORM_FORWARD, head, D), D * D, threadIdx.x, threads);
    if (vectors) with_format([&](auto& all) { fill_words(all, side, head, 0); });
    wait_for_previous();
    let_next_start();
    if (!vectors) {
        const int first_head = (blockIdx.y - 2 * c.kv_heads) * 8, last_head = min(first_head + 8, rope.heads);
        for (int i = warp; i < count; i += warps) {
            const Turn<D> turn(rope.frequencies, positions[first + i]);
            for (int h = first_head; h < last_head; ++h) {
                float* q = rope.queries + static_cast<int64_t>(first + i) * stride + h * D + lane * N;
                float x[N];
                for (int k = 0; k < N; ++k) x[k] = q[k];
                turn.rotate(x);
                for (int k = 0; k < N; ++k) q[k] = x[k];
            }
        }
        return;
    }
    if (threadIdx.x < count) shared.rows[threadIdx.x] = QuantizeRow(c, slots, positions, first + threadIdx.x);
    float v[own][N] = {};
#pragma unroll
    for (int j = 0; j < own; ++j)
        if (const int i = warp + j * warps; i < count)
            for (int k = 0; k < N; ++k) v[j][k] = (value ? values : keys)[static_cast<int64_t>(first + i) * stride + head * D + lane * N + k];
    if (!value && rope.frequencies)
#pragma unroll
        for (int j = 0; j < own; ++j)
            if (const int i = warp + j * warps; i < count) Turn<D>(rope.frequencies, positions[first + i]).rotate(v[j]);
    if (fitted) {
#pragma unroll
        for (int j = 0; j < own; ++j)
            for (int k = 0; k < N; ++k) shared.scaled[warp + j * warps][chunked(warp + j * warps, lane * N + k)] = v[j][k];
        __syncthreads();
        multiply(shared.scaled, side.transform.matrix(VI_TRANSFORM_FORWARD, head, D));
#pragma unroll
        for (int j = 0; j < own; ++j)
            for (int k = 0; k < N; ++k) v[j][k] = shared.scaled[warp + j * warps][lane * N + k];
    } else {
        __syncthreads();
        const float* factors = side.transform.smooth ? side.transform.smooth + head * D + lane * N : nullptr;
#pragma unroll
        for (int j = 0; j < own; ++j) {
            for (int k = 0; factors && k < N; ++k) v[j][k] /= factors[k];
            if (side.transform.hadamard) hadamard<D>(v[j]);
        }
    }
    write_rows(shared, v, c, side, head, warp, warps, count);
    __syncthreads();
    with_format([&](auto& all) { encode(all, c, side, value, head, count); });
}

// Layers that keep bf16 alone, of any head dimension that is a multiple of 8: a warp a vector (row, KV head, side), and the same of the queries, which are rotated.
// A lane has the channels 2 l, 2 l + 1, 2 l + 64, .. A layer with a sliding window has its ring alone.
__global__ void __launch_bounds__(threads) store_kernel(const __grid_constant__ Cache c, const float* keys, const float* values, const int32_t* slots,
                                                        const int32_t* positions, const __grid_constant__ Rope rope, int rows, int stride) {
    wait_for_previous();
    let_next_start();
    constexpr int pairs = 256 / 64;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
    const int of_row = 2 * c.kv_heads + rope.heads, row = static_cast<int>(i / of_row), vector = static_cast<int>(i % of_row), lane = threadIdx.x % 32, D = c.head_dim;
    if (row >= rows) return;
    const bool query = vector >= 2 * c.kv_heads, value = !query && vector % 2;
    const int head = query ? vector - 2 * c.kv_heads : vector / 2, position = positions[row], slot = slots[row];
    const float* x = (query ? rope.queries : value ? values : keys) + static_cast<int64_t>(row) * stride + head * D;
    float2 v[pairs];
    const bool turned = !value && rope.frequencies;
#pragma unroll
    for (int j = 0; j < pairs; ++j) {
        const int channel = j * 64 + lane * 2, half = D / 2;
        if (channel >= D) break;
        v[j] = make_float2(x[channel], x[channel + 1]);
        if (!turned) continue;
        const bool first = channel < half; // D is a multiple of 8: both channels are of one half
        const int other = first ? channel + half : channel - half;
        float sine[2], cosine[2];
        for (int k = 0; k < 2; ++k) turn_of(position, rope.frequencies[(first ? channel : other) + k], sine[k], cosine[k]);
        const float2 y = make_float2(x[other], x[other + 1]);
        v[j] = first ? make_float2(v[j].x * cosine[0] - y.x * sine[0], v[j].y * cosine[1] - y.y * sine[1])
                     : make_float2(v[j].x * cosine[0] + y.x * sine[0], v[j].y * cosine[1] + y.y * sine[1]);
    }
    if (query) {
        __syncwarp(); // the other half's channels are read
        float* to = rope.queries + static_cast<int64_t>(row) * stride + head * D;
#pragma unroll
        for (int j = 0; j < pairs; ++j)
            if (const int channel = j * 64 + lane * 2; channel < D) to[channel] = v[j].x, to[channel + 1] = v[j].y;
        return;
    }
    if (position < 0 || !c.valid(slot, position)) return;
    const Side& side = value ? c.values : c.keys;
    const int page = c.sliding() ? -1 : c.page_index(slot, position / page_tokens), token = position % page_tokens;
    if (!c.sliding() && (page < 0 || page >= c.page_count)) return;
    vi_bf16* const sink = position < c.sinks ? side.sinks + c.sink_row(slot, head, position) : nullptr;
    vi_bf16* const recent = c.recent > 0 && position >= c.exact_from[slot] ? side.recent + c.recent_row(slot, head, position) : nullptr;
#pragma unroll
    for (int j = 0; j < pairs; ++j) {
        const int channel = j * 64 + lane * 2;
        if (channel >= D) break;
        const uint32_t pair = f32_to_bf16(v[j].x) | f32_to_bf16(v[j].y) << 16;
        if (sink) *reinterpret_cast<uint32_t*>(sink + channel) = pair;
        if (recent) *reinterpret_cast<uint32_t*>(recent + channel) = pair;
        if (page < 0) continue;
        int word, bit, to;
        side.format.locate(value, token, channel, word, bit, to);
        *reinterpret_cast<uint32_t*>(side.page(page, head, c.kv_heads) + side.format.offset(token, to, word)) = pair;
    }
}

template <int D, int Rows>
int32_t launch(vi_context* context, const char* name, const Cache& c, const float* keys, const float* values, const int32_t* slots,
               const int32_t* positions, const Rope& rope, int32_t rows, int32_t stride) {
    constexpr size_t bytes = shared_bytes<D, Rows>;
    VI_SHARED(context, name, (quantize_many_kernel<D, Rows>), bytes);
    VI_CUDA(context, name, launch_early(context, (quantize_many_kernel<D, Rows>), dim3(ceil_div(rows, Rows), 2 * c.kv_heads + ceil_div(rope.heads, 8)), threads,
                                        bytes, c, keys, values, slots, positions, rope, rows, stride));
    return VI_OK;
}

} // namespace

int32_t quantize_many(vi_context* context, const char* name, const Cache& c, const float* keys, const float* values, const int32_t* slots,
                      const int32_t* positions, const Rope& rope, int32_t rows, int32_t stride) {
    if (c.keys.format.b == 16 && c.values.format.b == 16) {
        const int64_t vectors = static_cast<int64_t>(rows) * (2 * c.kv_heads + rope.heads);
        VI_CUDA(context, name, launch_early(context, store_kernel, dim3(static_cast<unsigned>(ceil_div<int64_t>(vectors, warps))), threads, 0, c, keys, values, slots,
                                            positions, rope, rows, stride));
        return VI_OK;
    }
    // More rows read the matrix and the codebook less often, fewer leave no multiprocessor without work.
    const bool large = static_cast<int64_t>(rows) * c.kv_heads > 12 * context->multiprocessors;
    const auto launcher = c.head_dim == 64 ? (large ? launch<64, 32> : launch<64, 8>)
                        : c.head_dim == 128 ? (large ? launch<128, 32> : launch<128, 8>) : launch<256, 32>;
    return launcher(context, name, c, keys, values, slots, positions, rope, rows, stride);
}
