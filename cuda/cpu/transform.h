// How a head's vectors are brought to the space in which they are coded.
#pragma once
#include "common/cache_rules.h"
#include "context.h"

struct Transform : TransformShape {
    bool hadamard = false;
    std::vector<float> smooth;   // [kv_heads, head_dim] or empty
    std::vector<float> matrices; // [3, kv_heads, head_dim, head_dim] or empty: the fitted transform, in place of the two above

    // `count` vectors of a head in a VI_TRANSFORM_* direction, strides apart; out may be x, with one stride.
    void apply(float* out, int out_stride, const float* x, int x_stride, int count, int kv_head, int direction) const;
    int work() const { return head_dim * (matrices.empty() ? 8 : head_dim); } // operations a vector
};

struct vi_transform {
    std::shared_ptr<const Transform> transform; // quantizers share it
};

inline const TransformShape* shape_of(const vi_transform* transform) { return transform ? transform->transform.get() : nullptr; }
