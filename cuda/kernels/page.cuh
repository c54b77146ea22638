// The order of a page of one KV head, and where a codeword stands in the table that attention reads.
//
// A page is two halves of 32 tokens; a half is two tiles of 16 tokens. A warp reads a half with one vector load per lane and 16 bytes, and
// finds in its own registers exactly what it feeds to the tensor cores (lane = 4 g + t):
//  - keys: lane (g, t) has, for the tokens g and g + 8 of both tiles, the sub-vectors of channels t D/4 .. (t + 1) D/4 - 1;
//  - values: lane (g, t) has, for the tokens 2t, 2t + 8, 2t + 1, 2t + 9 of both tiles, the sub-vectors g, g + 8, g + 16, ...
// Each lane has D/d codes of b bits a half, packed from the lowest bit up into D b / (32 d) words; words go in chunks of 4, then 2, then 1,
// stored [chunk][lane][word]. With a token scale 64 bytes follow, [token of the tile][tile]. With 16 bits the same holds for bf16: keys as sub-vectors
// of one channel, values as sub-vectors of 8.
#pragma once
#include "common/cache.h"
#include <cstdint>
#include <cuda_fp16.h>

static_assert(page_tokens == 64 && formats_have({2, 4, 8}, {6, 8, 10, 12}), "the layout, the search for codes and the products are written for these sizes");

// sub_dim d and bits b: one side's format at head dimension D.
template <int D_, int SubDim, int Bits> struct Format {
    static constexpr int D = D_, d = SubDim, b = Bits;
    static constexpr bool coded = b < 16;
    static constexpr bool integer = coded && d >= 4;                 // int8 codewords; those of 2 channels are f16
    static constexpr int n = D / d;                                  // sub-vectors of a token
    static constexpr int words = n * b / 32;                         // of a lane and half page
    static constexpr int code_bytes = 128 * words * 2;               // of a page
    static constexpr int codewords = coded ? 1 << b : 0;
    static constexpr int entry_bytes = d == 8 ? 8 : 4;               // of a codeword
    static constexpr int value_d = coded ? d : 8;                    // channels that stand together in a value lane
};

// Chunk and lane order -> byte offset of a word of a half page.
__host__ __device__ constexpr int word_offset(int words, int lane, int word) {
    int begin = 0;
    for (int size = 4; size; size /= 2)
        while (words - begin >= size) {
            if (word < begin + size) return (begin * 32 + lane * size + word - begin) * 4;
            begin += size;
        }
    return 0;
}

// The same formats when known at run time only.
struct PageFormat {
    int D, d, b, token_scale;

    __host__ __device__ int n() const { return D / d; }
    __host__ __device__ int words() const { return n() * b / 32; }
    __host__ __device__ int head_bytes() const { return 256 * words() + (token_scale ? 64 : 0); }

    // The lane that holds a sub-vector (16 bits: a channel) of a token of a half page, and its place among the lane's codes.
    __host__ __device__ void place(bool value, int token, int sub, int& lane, int& index) const {
        const int tile = token / 16, row = token % 16;
        if (!value || D % 64) { // values of other head dimensions as keys are: no tensor core reads them
            const int own = n() / 4; // sub-vectors of a lane and token
            lane = row % 8 * 4 + sub / own;
            index = (tile * 2 + row / 8) * own + sub % own;
        } else {
            const int width = b == 16 ? 8 : 1; // channels of a bf16 sub-vector
            const int vector = sub / width, own = n() / width / 8;
            const int k = (row / 8) + row % 2 * 2;
            lane = vector % 8 * 4 + row % 8 / 2;
            index = ((tile * 4 + k) * own + vector / 8) * width + sub % width;
        }
    }
    // Byte offset in the page of the 32-bit word, and the bit in it, where the code begins.
    __host__ __device__ void locate(bool value, int token, int sub, int& word, int& bit, int& lane) const {
        int index;
        place(value, token % 32, sub, lane, index);
        word = index * b / 32;
        bit = index * b % 32;
    }
    __host__ __device__ int offset(int token, int lane, int word) const { return token / 32 * 128 * words() + word_offset(words(), lane, word); }
    __host__ __device__ int scale_offset(int token) const { return 256 * words() + token % 16 * 4 + token / 16; }
};

// The code of a sub-vector (bits < 16) in a page.
__device__ inline int read_code(const PageFormat& f, const uint8_t* page, bool value, int token, int sub) {
    int word, bit, lane;
    f.locate(value, token, sub, word, bit, lane);
    uint32_t low = *reinterpret_cast<const uint32_t*>(page + f.offset(token, lane, word)), high = 0;
    if (bit + f.b > 32) high = *reinterpret_cast<const uint32_t*>(page + f.offset(token, lane, word + 1));
    return static_cast<int>(__funnelshift_r(low, high, bit) & ((1u << f.b) - 1));
}
