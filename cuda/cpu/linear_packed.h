// Products with weights in blocks of 32: linear_packed.cpp.
#pragma once
#include "context.h"

// Bytes of a block of a packed format as GGUF has it.
constexpr int block_bytes(int32_t format) { return format == VI_Q8_0 ? 34 : format == VI_Q4_0 ? 18 : 20; }

// Floats of memory that linear_packed needs.
size_t linear_packed_scratch(int rows, int ins);

// out [rows, outs] (+)= x weight^T + bias with the weight as vi_pack wrote it.
void linear_packed(vi_context* context, float* out, const float* x, const void* weight, const vi_bf16* bias, int32_t format, bool accumulate, int rows,
                   int outs, int ins, float* scratch);
