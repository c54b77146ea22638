// What attention does with a tile of 16 tokens, by format: the scores of keys (Keys) and the weighted sum of values (Values), both from
// a lane's own codes, through codewords in shared memory, into tensor core products. lane = 4 g + t.
//
// A block has up to 4 query heads. The 8 columns of a product are those heads twice: once with the high part of q (or of the probability),
// once with what is left of it, so that 8- and 16-bit operands carry twice their precision. Scores are C[token, column]; outputs C[channel, column].
#pragma once
#include "mma.h"
#include "page.cuh"

__device__ inline void mma_f16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ inline void mma_s8s8(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ inline void mma_s8u8(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Transposes an 8 x 8 matrix of 16-bit elements, lane (g, t) holding row g, columns 2t and 2t + 1.
__device__ inline uint32_t transpose(uint32_t x) {
    uint32_t out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(x));
    return out;
}
__device__ inline float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
__device__ inline uint32_t pack_f16(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

constexpr int log2_of(int x) { return x < 2 ? 0 : 1 + log2_of(x / 2); } // of a power of 2

// Codewords in shared memory, each `copies` times so that no two lanes (8 bytes: of half a warp) meet in a bank: entry i of copy c stands at
// i Stride + c entry_bytes. Codes of 8 bits have 128 bytes of copies; with a Stride of 256 two tables fill each other's gaps. An offset is one
// dot product of the code's word (measured faster than a byte permutation, which the values need for their transposes). 10 bits have the copies that fit; 12 bits one copy, and conflicts.
template <class F, int Copies, int Stride> struct Table {
    static constexpr int copies = Copies, stride = Stride, row = Copies * F::entry_bytes, bytes = F::codewords * row;
    static constexpr int shift = log2_of(stride);

    static __device__ int lane_offset(int lane) { return lane % copies * F::entry_bytes; }

    // Byte offset of the codeword of code `index` among the lane's codes of a half page.
    static __device__ __forceinline__ uint32_t offset(const uint32_t (&words)[F::words], int index, uint32_t lane_offset) {
        if constexpr (F::b == 8 && stride == 256) {
            const uint32_t factors = index % 2 ? 256u << 16 : 256u;
            return index % 4 < 2 ? __dp2a_lo(factors, words[index / 4], lane_offset) : __dp2a_hi(factors, words[index / 4], lane_offset);
        } else if constexpr (F::b == 8 && stride == 128) {
            return __dp4a(words[index / 4], 128u << (index % 4 * 8), lane_offset); // code * 128 + lane_offset
        } else {
            const int bit = index * F::b, word = bit / 32, low = bit % 32;
            constexpr uint32_t mask = uint32_t(F::codewords - 1) << shift;
            uint32_t x;
            if (low + F::b > 32) x = __funnelshift_r(words[word], words[word + 1 < F::words ? word + 1 : word], low - shift);
            else if (low >= shift) x = words[word] >> (low - shift);
            else x = words[word] << (shift - low);
            return (x & mask) | lane_offset;
        }
    }

    // A codeword, and its copies. Lanes write 16-byte chunks of theirs in turn from different ones, for the banks' sake.
    static __device__ uint2 load(const uint8_t* codebook, int i) {
        if constexpr (F::entry_bytes == 8) return reinterpret_cast<const uint2*>(codebook)[i];
        const uint32_t entry = reinterpret_cast<const uint32_t*>(codebook)[i];
        return make_uint2(entry, entry);
    }
    static __device__ void store(uint8_t* out, uint2 entry, int i) {
        constexpr int chunks = row / 16;
#pragma unroll
        for (int k = 0; k < chunks; ++k)
            *reinterpret_cast<uint4*>(out + i * stride + (k + i) % chunks * 16) = make_uint4(entry.x, entry.y, entry.x, entry.y);
    }
    static __device__ void fill(uint8_t* out, const uint8_t* codebook, int thread, int threads) {
        if constexpr (row < 16) {
            for (int i = thread; i < bytes / 16; i += threads) reinterpret_cast<uint4*>(out)[i] = reinterpret_cast<const uint4*>(codebook)[i];
        } else {
            for (int i = thread; i < F::codewords; i += threads) store(out, load(codebook, i), i);
        }
    }
};

template <class F, int Stride> struct Table<F, 0, Stride> {
    static constexpr int bytes = 0;
    static __device__ int lane_offset(int) { return 0; }
    static __device__ uint32_t offset(const uint32_t (&)[F::words], int, uint32_t) { return 0; }
    static __device__ void fill(uint8_t*, const uint8_t*, int, int) {}
};

// A lane's words of a half page. own: the half page's address + 16 lane. Constant: through the read-only path.
template <bool Constant, int Words> __device__ __forceinline__ void load_half(uint32_t (&words)[Words], const uint8_t* own, int lane) {
    constexpr int pair = Words / 4 * 4, last = Words / 2 * 2;
#define VI_LOAD(operands, ...)                                                                              \
    if constexpr (Constant) asm volatile("ld.global.nc.L1::no_allocate.L2::128B." operands : __VA_ARGS__);  \
    else asm volatile("ld.global.L1::no_allocate.L2::128B." operands : __VA_ARGS__)
#pragma unroll
    for (int i = 0; i < pair; i += 4)
        VI_LOAD("v4.u32 {%0, %1, %2, %3}, [%4];", "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3]) : "l"(own + i * 128));
    if constexpr (last > pair) VI_LOAD("v2.u32 {%0, %1}, [%2];", "=r"(words[pair]), "=r"(words[pair + 1]) : "l"(own + pair * 128 - lane * 8));
    if constexpr (Words > last) VI_LOAD("u32 %0, [%1];", "=r"(words[last]) : "l"(own + last * 128 - lane * 12));
#undef VI_LOAD
}

constexpr float magic = 12582912.0f; // 1.5 * 2^23: an integer below 2^22 added to its bits adds to its value
constexpr int magic_bits = 0x4b400000;

// log2 s = (u - 128) / 16 of a tile's token, from the byte's value as the low bits of 2^23.
__device__ __forceinline__ float log_scale(uint32_t scales, int tile) {
    return fmaf(__uint_as_float(__byte_perm(scales, 0x4b000000u, 0x7650 | tile)), 1.0f / 16, -(8388608.0f + 128) / 16);
}
constexpr uint32_t no_scales = 0x80808080u; // 1

// What scores are accumulated in. A product's columns are heads 0..3 of the high part of q, then of the low part; afterwards a lane
// keeps the scores of one token, g for t < 2, else g + 8, for the heads 2 (t % 2) and the next.
template <bool Integer> struct Score;
template <> struct Score<true> {
    int c[4] = {magic_bits, magic_bits, magic_bits, magic_bits}; // float(bits) - magic is the sum
    __device__ __forceinline__ void scores(float& s0, float& s1, const float (&weight)[4], bool first) const {
        const float r0 = __int_as_float(__shfl_xor_sync(0xffffffffu, first ? c[2] : c[0], 2));
        const float r1 = __int_as_float(__shfl_xor_sync(0xffffffffu, first ? c[3] : c[1], 2));
        const float k0 = __int_as_float(first ? c[0] : c[2]), k1 = __int_as_float(first ? c[1] : c[3]);
        s0 = (k0 - magic) * weight[0] + (r0 - magic) * weight[1];
        s1 = (k1 - magic) * weight[2] + (r1 - magic) * weight[3];
    }
};
template <> struct Score<false> {
    float c[4] = {};
    __device__ __forceinline__ void scores(float& s0, float& s1, const float (&weight)[4], bool first) const {
        s0 = (first ? c[0] : c[2]) * weight[0] + __shfl_xor_sync(0xffffffffu, first ? c[2] : c[0], 2) * weight[1];
        s1 = (first ? c[1] : c[3]) * weight[2] + __shfl_xor_sync(0xffffffffu, first ? c[3] : c[1], 2) * weight[3];
    }
};

template <class F, class T> struct Keys {
    static constexpr int D = F::D;
    static constexpr int query_words = F::integer ? D / 16 : D / 8;

    // The lane's part of q from the heads' f32 vectors in shared memory, q / step in two parts. Columns g < 4 are the high part of head g,
    // the others the low part of head g - 4; channels are t D/4 + 8 i + (0..3, 4..7) of int8 and t D/4 + 4 i + (0, 1; 2, 3) else.
    static __device__ void query(uint32_t (&q)[query_words], const float* heads, float inverse, int lane) {
        const int g = lane / 4, t = lane % 4;
        const float* x = heads + g % 4 * D + t * (D / 4);
#pragma unroll
        for (int i = 0; i < query_words; ++i) {
            if constexpr (F::integer) {
                uint32_t word = 0;
                for (int k = 0; k < 4; ++k) {
                    const float y = x[4 * i + k] * inverse;
                    const int high = __float2int_rn(y), low = __float2int_rn((y - high) * 254);
                    word |= static_cast<uint32_t>((g < 4 ? high : low) & 255) << (8 * k);
                }
                q[i] = word;
            } else if constexpr (F::coded) {
                const float a = x[2 * i] * inverse, b = x[2 * i + 1] * inverse;
                const float ha = __half2float(__float2half_rn(a)), hb = __half2float(__float2half_rn(b));
                q[i] = g < 4 ? pack_f16(a, b) : pack_f16(a - ha, b - hb);
            } else {
                const float a = x[2 * i], b = x[2 * i + 1];
                const float ha = __bfloat162float(__float2bfloat16_rn(a)), hb = __bfloat162float(__float2bfloat16_rn(b));
                q[i] = g < 4 ? pack_bf16(a, b) : pack_bf16(a - ha, b - hb);
            }
        }
    }
    // q = step (high + low / low_steps)
    static __device__ float step(float most) { return F::integer ? most / 127 : F::coded ? most : 1.0f; }
    static constexpr float low_steps = F::integer ? 254.0f : 1.0f;

    // The two tiles of a half page, whose products alternate: each waits for the one before it of its tile.
    static __device__ __forceinline__ void score(Score<F::integer> (&s)[2], const uint32_t (&w)[F::words], const uint8_t* table, uint32_t lane_offset,
                                                 const uint32_t (&q)[query_words]) {
        constexpr int own = F::n / 4; // sub-vectors of a token
        auto word = [&](int index) { return *reinterpret_cast<const uint32_t*>(table + T::offset(w, index, lane_offset)); };
        auto pair = [&](int index) { return *reinterpret_cast<const uint2*>(table + T::offset(w, index, lane_offset)); };
#pragma unroll
        for (int i = 0; i < query_words / 2; ++i)
#pragma unroll
            for (int tile = 0; tile < 2; ++tile) {
                auto& c = s[tile].c;
                const int a = tile * 2 * own, b = a + own;
                if constexpr (!F::coded) {
                    const int x = tile * (D / 4) + 2 * i, y = x + D / 8;
                    mma_bf16(c, w[x], w[y], w[x + 1], w[y + 1], q[2 * i], q[2 * i + 1]);
                } else if constexpr (F::d == 2) {
                    mma_f16(c, word(a + 2 * i), word(b + 2 * i), word(a + 2 * i + 1), word(b + 2 * i + 1), q[2 * i], q[2 * i + 1]);
                } else if constexpr (F::d == 4) {
                    mma_s8s8(c, word(a + 2 * i), word(b + 2 * i), word(a + 2 * i + 1), word(b + 2 * i + 1), q[2 * i], q[2 * i + 1]);
                } else {
                    const uint2 x = pair(a + i), y = pair(b + i);
                    mma_s8s8(c, x.x, y.x, x.y, y.y, q[2 * i], q[2 * i + 1]);
                }
            }
    }
};

// Four codewords' 4 bytes each, transposed.
__device__ __forceinline__ void transpose_bytes(uint32_t (&out)[4], uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const uint32_t x = __byte_perm(a, b, 0x5140), y = __byte_perm(c, d, 0x5140), z = __byte_perm(a, b, 0x7362), w = __byte_perm(c, d, 0x7362);
    out[0] = __byte_perm(x, y, 0x5410);
    out[1] = __byte_perm(x, y, 0x7632);
    out[2] = __byte_perm(z, w, 0x5410);
    out[3] = __byte_perm(z, w, 0x7632);
}

// The probabilities of a tile as an operand.
template <bool Integer, bool Bf16> struct Weights {
    uint32_t b[Integer ? 1 : 2];

    // p0, p1 of the lane's token, for its two heads.
    __device__ __forceinline__ void set(float p0, float p1, bool first) {
        if constexpr (Integer) { // round(65280 p), the upper byte to the high columns, the lower to the low ones
            const uint32_t u0 = __float_as_uint(fmaf(p0, 65280.0f, magic)), u1 = __float_as_uint(fmaf(p1, 65280.0f, magic));
            const uint32_t own = __byte_perm(u0, u1, 0x5410), other = __shfl_xor_sync(0xffffffffu, own, 2);
            b[0] = transpose(__byte_perm(own, other, first ? 0x7351 : 0x2604));
        } else {
            uint32_t high, low;
            if constexpr (Bf16) {
                high = pack_bf16(p0, p1);
                low = pack_bf16(p0 - __uint_as_float(high << 16), p1 - __uint_as_float(high & 0xffff0000u));
            } else {
                high = pack_f16(p0, p1);
                const float2 back = __half22float2(*reinterpret_cast<const __half2*>(&high));
                low = pack_f16(p0 - back.x, p1 - back.y);
            }
            const uint32_t other = __shfl_xor_sync(0xffffffffu, first ? low : high, 2);
            b[0] = transpose(first ? high : other);
            b[1] = transpose(first ? other : low);
        }
    }
};

// out: product i = j d/2 + h has in row g channel d (g + 8 j) + 2 h, in row g + 8 the next.
template <class F, class T> struct Values {
    static constexpr int D = F::D, d = F::value_d;
    using Accumulator = std::conditional_t<F::integer, int, float>;
    using Weight = Weights<F::integer, !F::coded>;
    static constexpr float headroom = F::coded && !F::integer ? 12.0f : 0.0f; // f16 probabilities go up to 2^12, to reach down to 2^-36

    static __device__ __forceinline__ void accumulate(Accumulator (&out)[D / 16][4], const uint32_t (&w)[F::words], const uint8_t* table,
                                                      uint32_t lane_offset, const Weight& p, const Weight& r) {
        if constexpr (!F::coded) {
#pragma unroll
            for (int tile = 0; tile < 2; ++tile)
#pragma unroll
                for (int i = 0; i < D / 16; ++i) { // word i of the lane's 8 (or 4) words a token
                    auto token = [&](int k) { return w[(tile * 4 + k) * (D / 16) + i]; };
                    pairs(out[i], token(0), token(1), token(2), token(3), tile ? r : p);
                }
        } else {
            constexpr int own = F::n / 8;
            auto word = [&](int tile, int k, int j) {
                return *reinterpret_cast<const uint32_t*>(table + T::offset(w, (tile * 4 + k) * own + j, lane_offset));
            };
            auto pair = [&](int tile, int k, int j) {
                return *reinterpret_cast<const uint2*>(table + T::offset(w, (tile * 4 + k) * own + j, lane_offset));
            };
#pragma unroll
            for (int j = 0; j < own; ++j) {
                if constexpr (d == 2) {
                    pairs(out[j], word(0, 0, j), word(0, 1, j), word(0, 2, j), word(0, 3, j), p);
                    pairs(out[j], word(1, 0, j), word(1, 1, j), word(1, 2, j), word(1, 3, j), r);
                } else if constexpr (d == 4) {
                    uint32_t x[4], y[4];
                    transpose_bytes(x, word(0, 0, j), word(0, 1, j), word(0, 2, j), word(0, 3, j));
                    transpose_bytes(y, word(1, 0, j), word(1, 1, j), word(1, 2, j), word(1, 3, j));
                    mma_s8u8(out[2 * j], x[0], x[1], y[0], y[1], p.b[0], r.b[0]);
                    mma_s8u8(out[2 * j + 1], x[2], x[3], y[2], y[3], p.b[0], r.b[0]);
                } else {
                    uint2 e[8];
#pragma unroll
                    for (int k = 0; k < 8; ++k) e[k] = pair(k / 4, k % 4, j);
                    uint32_t x[4], y[4];
                    transpose_bytes(x, e[0].x, e[1].x, e[2].x, e[3].x);
                    transpose_bytes(y, e[4].x, e[5].x, e[6].x, e[7].x);
                    mma_s8u8(out[4 * j], x[0], x[1], y[0], y[1], p.b[0], r.b[0]);
                    mma_s8u8(out[4 * j + 1], x[2], x[3], y[2], y[3], p.b[0], r.b[0]);
                    transpose_bytes(x, e[0].y, e[1].y, e[2].y, e[3].y);
                    transpose_bytes(y, e[4].y, e[5].y, e[6].y, e[7].y);
                    mma_s8u8(out[4 * j + 2], x[0], x[1], y[0], y[1], p.b[0], r.b[0]);
                    mma_s8u8(out[4 * j + 3], x[2], x[3], y[2], y[3], p.b[0], r.b[0]);
                }
            }
        }
    }

    // Two channels (16 bits each) of the tokens 2t, 2t + 8, 2t + 1, 2t + 9.
    static __device__ __forceinline__ void pairs(float (&c)[4], uint32_t a, uint32_t b, uint32_t e, uint32_t f, const Weight& p) {
        const uint32_t a0 = __byte_perm(a, e, 0x5410), a1 = __byte_perm(a, e, 0x7632), a2 = __byte_perm(b, f, 0x5410), a3 = __byte_perm(b, f, 0x7632);
        if constexpr (F::coded) mma_f16(c, a0, a1, a2, a3, p.b[0], p.b[1]);
        else mma_bf16(c, a0, a1, a2, a3, p.b[0], p.b[1]);
    }
};
