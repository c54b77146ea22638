// How one side (keys or values) of a layer is kept, and a layer's memory bound to two of them.
#pragma once
#include "common/cache_rules.h"
#include "context.h"
#include "page.cuh"

// What kernels see of a transform; see transform.cuh. Pointers in device memory, or nullptr.
struct Transform {
    const float* smooth;   // [kv_heads, head_dim]
    const float* matrices; // [3, kv_heads, head_dim, head_dim]: in place of smooth and hadamard
    int32_t kv_heads, hadamard;

    __device__ const float* matrix(int direction, int head, int head_dim) const {
        return matrices + (static_cast<int64_t>(direction) * kv_heads + head) * head_dim * head_dim;
    }
};

// A transform's arrays, in one allocation of `memory`; shared by its handle and the quantizers made with it.
struct TransformArrays : TransformShape {
    bool hadamard = false;
    void* memory = nullptr;
    float* smooth = nullptr;
    float* matrices = nullptr;
    vi_context* context = nullptr;

    TransformArrays(vi_context* context, const TransformShape& shape, bool hadamard) : TransformShape(shape), hadamard(hadamard), context(context) {}
    ~TransformArrays();
    Transform view() const { return {smooth, matrices, kv_heads, hadamard}; }
};

struct vi_transform {
    std::shared_ptr<const TransformArrays> arrays;
};

inline const TransformShape* shape_of(const vi_transform* transform) { return transform ? transform->arrays.get() : nullptr; }

struct Quantizer : QuantizerShape {
    std::shared_ptr<const TransformArrays> transform; // or nullptr
    // Device memory, in one allocation of `memory`. codebooks f32 [codebook_heads, codebook_parts, 2^bits, sub_dim] as attention reads
    // them; table: the same as int8 or f16, 4 or 8 bytes each; table_scales of each codebook: codebook = table * scale.
    void* memory = nullptr;
    float* codebooks = nullptr;
    uint8_t* table = nullptr;
    float* table_scales = nullptr;
    vi_context* context = nullptr;
    const int place; // of its format in the list

    Quantizer(vi_context* context, const QuantizerShape& shape) : QuantizerShape(shape), context(context), place(format_index(shape.sub_dim, shape.bits)) {}
    ~Quantizer();
    PageFormat format() const { return {head_dim, sub_dim, bits, token_scale}; }
    int64_t page_bytes() const { return static_cast<int64_t>(format().head_bytes()) * kv_heads; }
};

// vi_transform_apply after its checks, with a stride for out of its own. heads at most 65535; the caller checks the launch.
void launch_transform(cudaStream_t stream, float* out, const float* x, const Transform& transform, int direction, int rows, int heads, int kv_heads, int head_dim,
                      int64_t out_stride, int64_t stride);

struct vi_quantizer {
    std::shared_ptr<const Quantizer> quantizer; // layers share it
};

inline const QuantizerShape* shape_of(const vi_quantizer* quantizer) { return quantizer ? quantizer->quantizer.get() : nullptr; }

// What kernels see of one side of a layer.
struct Side {
    PageFormat format;
    uint8_t* pages;
    vi_bf16 *recent, *sinks;
    const float* codebooks;
    const uint8_t* table;
    const float* table_scales;
    Transform transform;
    int32_t codebook_heads, codebook_parts;

    __device__ uint8_t* page(int index, int head, int kv_heads) const {
        return pages + (static_cast<int64_t>(index) * kv_heads + head) * format.head_bytes();
    }
    __device__ int codebook_head(int head) const { return codebook_heads == 1 ? 0 : head; } // where a head has one codebook
    __device__ const float* codebook(int head, int sub) const {
        const int book = codebook_head(head) * codebook_parts + (codebook_parts == 1 ? 0 : sub);
        return codebooks + (static_cast<int64_t>(book) * format.d << format.b);
    }
};

// What kernels see of a layer.
struct Cache : LayerShape {
    Side keys, values;
    const int32_t *page_table, *exact_from;

    // Bad positions and slots must not be followed: device memory holds them, and the host can't look.
    __device__ bool valid(int slot, int position) const { return slot >= 0 && slot < slots && position < capacity(); }
    __device__ int page_index(int slot, int page) const { return page_table[static_cast<int64_t>(slot) * max_pages + page]; }
};

struct vi_kv_layer {
    std::shared_ptr<const Quantizer> keys, values;
    Cache cache;
    int32_t* counters = nullptr; // zeros, one for each block of attention; a block that merges sets its own back
};

inline const LayerShape* shape_of(const vi_kv_layer* layer) { return layer ? &layer->cache : nullptr; }
