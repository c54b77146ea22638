// What the kernels that write and read pages share: a vector's transform, its places in sinks and ring, its token scale and its codes in a page.
#pragma once
#include "transform.cuh"

// A lane's channels of a vector of head_dim channels that a warp holds as D / 32 floats a lane, lane l those from l D/32 on. Padded: head_dim < D, and the last lanes have
// fewer or none. has(i): whether there is an i-th.
template <int D, bool Padded> struct Channels {
    static constexpr int N = D / 32;
    int first, count;
    __device__ explicit Channels(int head_dim) : first(threadIdx.x % 32 * N), count(head_dim - first) {}
    __device__ bool has(int i) const { return !Padded || i < count; }
};

// Calls run.template operator()<D, Padded>() with the D that vectors of head_dim channels are held as.
template <typename Run> auto for_head_dim(int head_dim, Run run) {
    if (head_dim == 64) return run.template operator()<64, false>();
    if (head_dim == 128) return run.template operator()<128, false>();
    if (head_dim == 256) return run.template operator()<256, false>();
    if (head_dim < 128) return run.template operator()<128, true>();
    return run.template operator()<256, true>();
}

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
template <int D, bool Padded = false>
__device__ inline void read_vector(float (&x)[D / 32], const Cache& c, const Side& side, bool value, int slot, int position, int head) {
    constexpr int N = D / 32;
    const PageFormat f = side.format;
    const Channels<D, Padded> own(c.head_dim);
    const int index = c.page_index(slot, position / page_tokens), token = position % page_tokens;
    if (index < 0 || index >= c.page_count) {
        for (int i = 0; i < N; ++i) x[i] = __int_as_float(0x7fffffff);
        return;
    }
    const uint8_t* page = side.page(index, head, c.kv_heads);
    if (Padded || f.b == 16) {
        for (int i = 0; i < N; ++i) {
            x[i] = 0;
            if (!own.has(i)) continue;
            int word, bit, to;
            f.locate(value, token, own.first + i, word, bit, to);
            x[i] = bf16_to_f32(reinterpret_cast<const vi_bf16*>(page + f.offset(token, to, word))[bit / 16]);
        }
        return;
    }
    const float scale = f.token_scale ? scale_value(page[f.scale_offset(token)]) : 1.0f;
    int code = 0;
    for (int i = 0; i < N; ++i) {
        const int channel = own.first + i;
        if (i == 0 || channel % f.d == 0) code = read_code(f, page, value, token, channel / f.d);
        x[i] = side.codebook(head, channel / f.d)[code * f.d + channel % f.d] * scale;
    }
}

// sin and cos of position * frequency, an angle of up to 10^6 radians: its part of a turn is found in double precision, by a product, and has no slow path.
__device__ inline void turn_of(int position, float frequency, float& sine, float& cosine) {
    const double turns = static_cast<double>(position) * static_cast<double>(frequency) * 0.15915494309189533576888;
    sincospif(2 * static_cast<float>(turns - rint(turns)), &sine, &cosine);
}

// cos and sin of the channel pairs that a lane holds: of channel i and i + D / 2 of its vector, lane l with channels l D/32 ..; see rope.cu
template <int D> struct Turn {
    static constexpr int N = D / 32;
    float cosine[N], sine[N];
    __device__ Turn(const float* frequencies, int position) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            turn_of(position, frequencies[threadIdx.x % 16 * N + i], sine[i], cosine[i]);
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
