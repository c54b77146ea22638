// The ways of vi_expert_linear: few rows stream the weights of their experts once, many rows are grouped by expert and go through the tensor cores.
#pragma once
#include "common/expert_rules.h"
#include "context.h"

// Arguments of vi_expert_linear. A pair is a row with one of its choices, row * top + choice.
struct Experts {
    float* out;
    const float* x;
    const void* weight;
    const vi_bf16* bias;
    const int32_t* experts;
    int32_t format, rows, top, expert_count, out_features, in_features, x_top;
    bool fresh; // the ids may come from the kernel ahead, see few_kernel

    VI_BOTH int32_t pairs() const { return rows * top; }
    VI_BOTH int32_t x_row(int32_t pair) const { return x_top == 1 ? pair / top : pair; }
    VI_BOTH bool exists(int32_t expert) const { return expert >= 0 && expert < expert_count; }
    // Whether rows of bf16 weights can be read in 16 bytes.
    bool aligned() const { return in_features % 8 == 0 && aligned_16(weight); }
};

// rows > 8: activations are rounded to bf16, packed weights too; sums are f32.
int32_t experts_many(vi_context* context, const char* name, const Experts& e);
