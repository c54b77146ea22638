// vi_expert_linear of more than 8 rows: the pairs are counted and sorted by expert on the device, then multiplied in tiles of up to 64 or 128 pairs of one expert and
// 128 outputs, on the tensor cores, with activations (and packed weights) rounded to bf16. The sizes of all memory follow from the arguments alone: nothing is read back.
// The order of pairs inside an expert may change from run to run; a pair's sums don't depend on it.
#include "experts.h"
#include "packed_tile.cuh"
#include <algorithm>

namespace {

constexpr int tile_outputs = 128, tile_inputs = 64, stages = 3;
constexpr int row_bytes = tile_inputs * 2;
constexpr int sort_threads = 1024;

// Pairs first .. first + count - 1 of the sorted, all of one expert; expert_count: of none that exists. Tiles past the last have the count 0.
struct Tile {
    int32_t expert, first, count;
};

struct Many {
    Experts e;
    const vi_bf16* x;     // rounded, rows of `stride`, filled up with zeros
    int32_t* order;       // the pairs, sorted by expert
    Tile* tiles;
    int32_t stride, tile_count;
};

// Rows of `in_features` floats to rows of `stride` bf16, eight at a time.
template <bool VECTOR>
__global__ void __launch_bounds__(256) round_kernel(vi_bf16* out, const float* x, int64_t count, int32_t in_features, int32_t stride) {
    for (int64_t n = blockIdx.x * int64_t(256) + threadIdx.x; n < count; n += gridDim.x * int64_t(256)) {
        const int64_t row = n / (stride / 8);
        const int32_t column = static_cast<int32_t>(n % (stride / 8)) * 8;
        const float* from = x + row * in_features + column;
        float value[8];
        if (VECTOR && column < in_features) {
            const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
            value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
            value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) value[j] = column + j < in_features ? from[j] : 0.0f;
        }
        reinterpret_cast<uint4*>(out)[n] = make_uint4(pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3]), pack_bf16(value[4], value[5]),
            pack_bf16(value[6], value[7]));
    }
}

// One block. Lanes of a warp with the same expert count as one, so that a prompt of one expert is no slower.
__global__ void __launch_bounds__(sort_threads) sort_kernel(const __grid_constant__ Many m, int32_t tile_pairs) {
    __shared__ int32_t next[max_experts + 1]; // counts, then the next free place of each expert
    __shared__ int32_t first[max_experts + 2], first_tile[max_experts + 2];
    const int lane = threadIdx.x % 32;
    const int32_t kinds = m.e.expert_count + 1, pairs = m.e.pairs();
    for (int32_t k = threadIdx.x; k < kinds; k += sort_threads) next[k] = 0;
    __syncthreads();
    // Calls take(expert, lanes of it, whether this is the first of them) for each pair.
    const auto each = [&](auto take) {
        for (int32_t base = 0; base < pairs; base += sort_threads) {
            const int32_t pair = base + threadIdx.x, id = pair < pairs ? m.e.experts[pair] : -1;
            const int32_t expert = pair >= pairs ? -1 : m.e.exists(id) ? id : kinds - 1;
            const uint32_t same = __match_any_sync(0xffffffffu, expert);
            if (expert >= 0) take(pair, expert, same, __ffs(same) - 1 == lane);
            __syncwarp();
        }
    };
    each([&](int32_t, int32_t expert, uint32_t same, bool leads) {
        if (leads) atomicAdd(&next[expert], __popc(same));
    });
    __syncthreads();
    if (threadIdx.x < 32) { // both sums over experts
        int32_t before = 0, tiles_before = 0;
        for (int32_t base = 0; base < kinds; base += 32) {
            const int32_t count = base + lane < kinds ? next[base + lane] : 0, tiles = ceil_div(count, tile_pairs);
            int32_t sum = count, tile_sum = tiles;
            for (int offset = 1; offset < 32; offset *= 2) {
                const int32_t lower = __shfl_up_sync(0xffffffffu, sum, offset), lower_tiles = __shfl_up_sync(0xffffffffu, tile_sum, offset);
                if (lane >= offset) sum += lower, tile_sum += lower_tiles;
            }
            if (base + lane < kinds) {
                first[base + lane] = next[base + lane] = before + sum - count;
                first_tile[base + lane] = tiles_before + tile_sum - tiles;
            }
            before += __shfl_sync(0xffffffffu, sum, 31);
            tiles_before += __shfl_sync(0xffffffffu, tile_sum, 31);
        }
        if (lane == 0) first[kinds] = before, first_tile[kinds] = tiles_before;
    }
    __syncthreads();
    each([&](int32_t pair, int32_t expert, uint32_t same, bool leads) {
        int32_t place = leads ? atomicAdd(&next[expert], __popc(same)) : 0;
        place = __shfl_sync(same, place, __ffs(same) - 1);
        m.order[place + __popc(same & ((1u << lane) - 1))] = pair;
    });
    for (int32_t i = threadIdx.x; i < m.tile_count; i += sort_threads) {
        int32_t low = 0, high = kinds; // the last expert whose tiles begin at or before i; first_tile[kinds] is past the last
        while (high - low > 1) {
            const int32_t middle = (low + high) / 2;
            (first_tile[middle] <= i ? low : high) = middle;
        }
        const int32_t at = first[low] + (i - first_tile[low]) * tile_pairs;
        m.tiles[i] = i < first_tile[kinds] ? Tile{low, at, min(tile_pairs, first[low + 1] - at)} : Tile{0, 0, 0};
    }
}

// Byte of a chunk of 8 bf16 in shared memory: rows of 128 bytes whose chunks are exchanged, so that neither 8 rows of a chunk nor a row share banks.
__device__ uint32_t place_of(int row, int chunk) { return row * row_bytes + (chunk ^ row & 7) * 16; }

__device__ void copy_async(uint32_t to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

__device__ void load_matrices(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address) : "memory");
}

__device__ void store_chunk(uint32_t to, uint4 value) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w) : "memory");
}

// The weights of 128 outputs from `first` on, 64 inputs at a time: load() asks for those from input k on, store() brings them to shared memory.
template <bool VECTOR> struct Bf16Weights {
    const Experts& e;
    const vi_bf16* matrix;
    int32_t first;
    uint4 chunks[VECTOR ? 1 : 4]; // those that can't be copied as they are

    __device__ Bf16Weights(const Experts& e, int32_t expert, int32_t first)
        : e(e), matrix(static_cast<const vi_bf16*>(e.weight) + static_cast<int64_t>(expert) * e.out_features * e.in_features), first(first) {}
    __device__ void load(uint32_t to, int32_t k) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int row = threadIdx.x / 8 + j * 32, chunk = threadIdx.x % 8;
            const vi_bf16* from = matrix + static_cast<int64_t>(min(first + row, e.out_features - 1)) * e.in_features; // past the end: not stored
            const int32_t i = k + chunk * 8;
            if constexpr (VECTOR) copy_async(to + place_of(row, chunk), i < e.in_features ? from + i : from, i < e.in_features);
            else chunks[j] = load_weight<false>(from, i, e.in_features);
        }
    }
    __device__ void store(uint32_t to) {
        if constexpr (!VECTOR)
#pragma unroll
            for (int j = 0; j < 4; ++j) store_chunk(to + place_of(threadIdx.x / 8 + j * 32, threadIdx.x % 8), chunks[j]);
    }
};

// A warp unpacks a panel, two blocks at a time.
template <int FORMAT> struct PackedWeights {
    const uint8_t* from;
    int32_t blocks; // of a row
    bool inside;
    Part<FORMAT> parts[2];

    __device__ PackedWeights(const Experts& e, int32_t expert, int32_t first) : blocks(e.in_features / block_inputs) {
        const int32_t own = first + static_cast<int32_t>(threadIdx.x / 32) * panel;
        inside = own < e.out_features;
        from = static_cast<const uint8_t*>(e.weight) + (static_cast<int64_t>(expert) * e.out_features + (inside ? own : 0)) / panel * blocks * bytes_of<FORMAT>;
    }
    __device__ void load(uint32_t, int32_t k) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
            const int32_t block = k / block_inputs + b;
            parts[b].load(from + static_cast<int64_t>(block) * bytes_of<FORMAT>, threadIdx.x % 32, inside && block < blocks);
        }
    }
    __device__ void store(uint32_t to) {
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int b = 0; b < 2; ++b)
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                const float d = __half2float(__ushort_as_half(parts[b].d[side])), m = FORMAT == VI_Q4_1 ? __half2float(__ushort_as_half(parts[b].m[side])) : 0.0f;
                uint32_t words[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const uint32_t whole = parts[b].pair(side, j);
                    words[j] = pack_bf16(fmaf(d, __uint_as_float(whole << 16), m), fmaf(d, __uint_as_float(whole & 0xffff0000u), m));
                }
                store_chunk(to + place_of(threadIdx.x / 32 * panel + side * 8 + g, b * 4 + t), make_uint4(words[0], words[1], words[2], words[3]));
            }
    }
};

// Eight warps, 2 x 4, make PAIRS pairs x 128 outputs of one expert, a warp PAIRS / 2 x 32. Two stages are on their way while one is multiplied.
template <class Weights, int PAIRS> __global__ void __launch_bounds__(256, 2) many_kernel(const __grid_constant__ Many m) {
    extern __shared__ __align__(128) uint8_t memory[];
    __shared__ int32_t places[PAIRS];
    constexpr int stage_bytes = (PAIRS + tile_outputs) * row_bytes, own_rows = PAIRS / 2, row_tiles = own_rows / 16;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const Experts& e = m.e;
    const int32_t blocks = ceil_div(e.out_features, tile_outputs), first = static_cast<int32_t>(blockIdx.x % blocks) * tile_outputs;
    const Tile tile = m.tiles[blockIdx.x / blocks];
    if (tile.count == 0) return;
    if (tile.expert == e.expert_count) {
        for (int i = threadIdx.x; i < tile.count * tile_outputs; i += 256) {
            const int32_t output = first + i % tile_outputs;
            if (output < e.out_features) e.out[static_cast<int64_t>(m.order[tile.first + i / tile_outputs]) * e.out_features + output] = __uint_as_float(0x7fffffffu);
        }
        return;
    }
    // Rows past the last are the last again and are not stored.
    for (int i = threadIdx.x; i < PAIRS; i += 256) places[i] = m.order[tile.first + min(i, tile.count - 1)];
    __syncthreads();
    const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
    Weights weights(e, tile.expert, first);
    const vi_bf16* from[PAIRS / 32];
#pragma unroll
    for (int j = 0; j < PAIRS / 32; ++j) from[j] = m.x + static_cast<int64_t>(e.x_row(places[threadIdx.x / 8 + j * 32])) * m.stride + threadIdx.x % 8 * 8;
    const auto inputs_at = [&](int stage) { return shared + stage * stage_bytes; };
    const auto weights_at = [&](int stage) { return shared + stage * stage_bytes + PAIRS * row_bytes; };
    const auto load = [&](int stage, int32_t k) {
#pragma unroll
        for (int j = 0; j < PAIRS / 32; ++j) copy_async(inputs_at(stage) + place_of(threadIdx.x / 8 + j * 32, threadIdx.x % 8), from[j] + k, true);
        weights.load(weights_at(stage), k);
    };
    const int32_t steps_in_all = m.stride / tile_inputs;
#pragma unroll
    for (int s = 0; s < stages - 1; ++s) {
        if (s < steps_in_all) {
            load(s, s * tile_inputs);
            weights.store(weights_at(s));
        }
        asm volatile("cp.async.commit_group;");
    }
    const int at_row = warp % 2 * own_rows, at_output = warp / 2 * 32;
    float c[row_tiles][4][4] = {};
    for (int32_t i = 0; i < steps_in_all; ++i) {
        asm volatile("cp.async.wait_group %0;" ::"n"(stages - 2) : "memory");
        __syncthreads(); // this stage is here, and nobody reads the one before it any more
        const int32_t ahead = i + stages - 1;
        if (ahead < steps_in_all) load(ahead % stages, ahead * tile_inputs);
        asm volatile("cp.async.commit_group;");
        const uint32_t inputs = inputs_at(i % stages), matrix = weights_at(i % stages);
#pragma unroll
        for (int s = 0; s < tile_inputs / 8; s += 2) {
            uint32_t a[row_tiles][4], b[2][4];
#pragma unroll
            for (int r = 0; r < row_tiles; ++r) load_matrices(a[r], inputs + place_of(at_row + r * 16 + lane % 16, s + lane / 16));
#pragma unroll
            for (int n = 0; n < 2; ++n) load_matrices(b[n], matrix + place_of(at_output + n * 16 + lane / 16 * 8 + lane % 8, s + lane / 8 % 2));
#pragma unroll
            for (int r = 0; r < row_tiles; ++r)
#pragma unroll
                for (int n = 0; n < 4; ++n) mma_bf16(c[r][n], a[r][0], a[r][1], a[r][2], a[r][3], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
        if (ahead < steps_in_all) weights.store(weights_at(ahead % stages));
    }
    const bool two = e.out_features % 2 == 0 && reinterpret_cast<uintptr_t>(e.out) % 8 == 0;
    const vi_bf16* bias = e.bias ? e.bias + static_cast<int64_t>(tile.expert) * e.out_features : nullptr;
#pragma unroll
    for (int r = 0; r < row_tiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = at_row + r * 16 + half * 8 + g;
            if (row >= tile.count) continue;
            float* const out = e.out + static_cast<int64_t>(places[row]) * e.out_features;
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const int32_t output = first + at_output + n * 8 + 2 * t;
                const auto sum = [&](int j) { return c[r][n][half * 2 + j] + (bias ? bf16_to_f32(bias[output + j]) : 0.0f); };
                if (two && output < e.out_features) *reinterpret_cast<float2*>(out + output) = make_float2(sum(0), sum(1));
                else if (output < e.out_features) {
                    out[output] = sum(0);
                    if (output + 1 < e.out_features) out[output + 1] = sum(1);
                }
            }
        }
}

template <class Weights, int PAIRS> int32_t multiply(vi_context* context, const char* name, const Many& m) {
    constexpr size_t shared = size_t(stages) * (PAIRS + tile_outputs) * row_bytes;
    VI_SHARED(context, name, (many_kernel<Weights, PAIRS>), shared);
    const int64_t blocks = int64_t(m.tile_count) * ceil_div(m.e.out_features, tile_outputs);
    VI_REQUIRE(context, blocks <= INT32_MAX, "%s: rows is %d, too many for one product", name, m.e.rows);
    many_kernel<Weights, PAIRS><<<static_cast<uint32_t>(blocks), 256, shared, context->stream>>>(m);
    VI_LAUNCHED(context, name);
    return VI_OK;
}

template <int PAIRS> int32_t multiply(vi_context* context, const char* name, const Many& m) {
    switch (m.e.format) {
        case VI_Q8_0: return multiply<PackedWeights<VI_Q8_0>, PAIRS>(context, name, m);
        case VI_Q4_0: return multiply<PackedWeights<VI_Q4_0>, PAIRS>(context, name, m);
        case VI_Q4_1: return multiply<PackedWeights<VI_Q4_1>, PAIRS>(context, name, m);
    }
    return m.e.aligned() ? multiply<Bf16Weights<true>, PAIRS>(context, name, m) : multiply<Bf16Weights<false>, PAIRS>(context, name, m);
}

} // namespace

int32_t experts_many(vi_context* context, const char* name, const Experts& e) {
    const int64_t pairs = e.pairs(), x_rows = int64_t(e.rows) * e.x_top;
    // Tall tiles where an expert has enough pairs on the average to fill one.
    const int32_t tile_pairs = pairs >= int64_t(128) * e.expert_count ? 128 : 64;
    const int32_t stride = ceil_div(e.in_features, tile_inputs) * tile_inputs;
    const int32_t tile_count = static_cast<int32_t>(pairs / tile_pairs + std::min<int64_t>(pairs, e.expert_count + 1));
    const size_t order_bytes = align_256(pairs * sizeof(int32_t)), tile_bytes = align_256(tile_count * sizeof(Tile));
    VI_WORKSPACE(context, uint8_t, scratch, order_bytes + tile_bytes + static_cast<size_t>(x_rows) * stride * 2, name);
    vi_bf16* const rounded = reinterpret_cast<vi_bf16*>(scratch + order_bytes + tile_bytes);
    const Many m = {e, rounded, reinterpret_cast<int32_t*>(scratch), reinterpret_cast<Tile*>(scratch + order_bytes), stride, tile_count};
    sort_kernel<<<1, sort_threads, 0, context->stream>>>(m, tile_pairs);
    VI_LAUNCHED(context, name);
    const int64_t chunks = x_rows * (stride / 8);
    const uint32_t blocks = static_cast<uint32_t>(std::min<int64_t>(ceil_div<int64_t>(chunks, 256), context->multiprocessors * 8));
    (e.in_features % 8 == 0 && aligned_16(e.x) ? round_kernel<true> : round_kernel<false>)<<<blocks, 256, 0, context->stream>>>(rounded, e.x, chunks,
        e.in_features, stride);
    VI_LAUNCHED(context, name);
    return tile_pairs == 128 ? multiply<128>(context, name, m) : multiply<64>(context, name, m);
}
