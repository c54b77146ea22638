// What the kernels that write and read pages share: a vector's transform, its places in sinks and ring, its token scale and its codes in a page.
#pragma once
#include "transform.cuh"

// Where a row of vi_quantize goes.
struct QuantizeRow {
    int slot, position, page; // page < 0: nowhere
    bool recent;
    QuantizeRow() = default;
    __device__ QuantizeRow(const Cache& c, const int32_t* slots, const int32_t* positions, int row) {
        slot = slots[row], position = positions[row], page = -1, recent = false;
        if (position < 0 || !c.valid(slot, position)) return;
        const int index = c.page_index(slot, position / page_tokens);
        if (index < 0 || index >= c.page_count) return;
        page = index;
        recent = c.recent > 0 && position >= c.exact_from[slot];
    }
};

// bf16 copies of a warp's vector in the sinks and the ring.
template <int D> __device__ inline void write_exact(const float (&x)[D / 32], const Cache& c, const Side& side, const QuantizeRow& r, int head) {
    constexpr int N = D / 32;
    const int lane = threadIdx.x % 32;
    auto write = [&](vi_bf16* out) {
        for (int i = 0; i < N; ++i) out[lane * N + i] = f32_to_bf16(x[i]);
    };
    if (r.position < c.sinks) write(side.sinks + c.sink_row(r.slot, head, r.position));
    if (r.recent) write(side.recent + c.recent_row(r.slot, head, r.position));
}

// Sets a code that may share its words with other tokens and sub-vectors, whose bits others may write at the same time.
__device__ inline void write_bits(const PageFormat& f, uint8_t* page, int token, int lane, int word, int bit, uint32_t code) {
    const uint32_t mask = (1u << f.b) - 1;
    uint32_t* low = reinterpret_cast<uint32_t*>(page + f.offset(token, lane, word));
    atomicAnd(low, ~(mask << bit));
    atomicOr(low, code << bit);
    if (bit + f.b > 32) {
        uint32_t* high = reinterpret_cast<uint32_t*>(page + f.offset(token, lane, word + 1));
        atomicAnd(high, ~(mask >> (32 - bit)));
        atomicOr(high, code >> (32 - bit));
    }
}

// u of s = <x, c> / <c, c>.
__device__ inline uint8_t scale_code(float product, float norm) {
    if (!(norm > 0) || !(product > 0)) return 0;
    return static_cast<uint8_t>(fminf(fmaxf(roundf(16 * log2f(product / norm)) + 128, 0.0f), 255.0f));
}
__device__ inline float scale_value(uint8_t u) { return exp2f((u - 128) / 16.0f); }

// A token of the pages, in the transformed space, as a warp's vector. NaN where the page index is outside the pages.
template <int D> __device__ inline void read_vector(float (&x)[D / 32], const Cache& c, const Side& side, bool value, int slot, int position, int head) {
    constexpr int N = D / 32;
    const PageFormat f = side.format;
    const int index = c.page_index(slot, position / page_tokens), token = position % page_tokens, lane = threadIdx.x % 32;
    if (index < 0 || index >= c.page_count) {
        for (int i = 0; i < N; ++i) x[i] = __int_as_float(0x7fffffff);
        return;
    }
    const uint8_t* page = side.page(index, head, c.kv_heads);
    if (f.b == 16) {
        for (int i = 0; i < N; ++i) {
            int word, bit, to;
            f.locate(value, token, lane * N + i, word, bit, to);
            x[i] = bf16_to_f32(reinterpret_cast<const vi_bf16*>(page + f.offset(token, to, word))[bit / 16]);
        }
        return;
    }
    const float scale = f.token_scale ? scale_value(page[f.scale_offset(token)]) : 1.0f;
    int code = 0;
    for (int i = 0; i < N; ++i) {
        const int channel = lane * N + i;
        if (i == 0 || channel % f.d == 0) code = read_code(f, page, value, token, channel / f.d);
        x[i] = side.codebook(head, channel / f.d)[code * f.d + channel % f.d] * scale;
    }
}

// cos and sin of the channel pairs that a lane holds: of channel i and i + D / 2 of its vector, lane l with channels l D/32 ..; see rope.cu
template <int D> struct Turn {
    static constexpr int N = D / 32;
    float cosine[N], sine[N];
    __device__ Turn(const float* frequencies, int position) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const double angle = static_cast<double>(position) * static_cast<double>(frequencies[threadIdx.x % 16 * N + i]);
            const double two_pi = 6.283185307179586476925286766559;
            sincosf(static_cast<float>(fma(-rint(angle / two_pi), two_pi, angle)), &sine[i], &cosine[i]);
        }
    }
    __device__ void rotate(float (&x)[N]) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float other = __shfl_xor_sync(0xffffffffu, x[i], 16);
            x[i] = threadIdx.x % 32 < 16 ? x[i] * cosine[i] - other * sine[i] : x[i] * cosine[i] + other * sine[i];
        }
    }
};
