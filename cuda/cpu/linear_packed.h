// Products with weights in blocks of 32: linear_packed.cpp.
#pragma once
#include "context.h"

// Bytes of a block of a packed format as GGUF has it.
constexpr int block_bytes(int32_t format) { return format == VI_Q8_0 ? 34 : format == VI_Q4_0 ? 18 : 20; }

// Rows of x as bytes, their scales and sums a block.
struct PackedRows {
    int8_t* values;  // [rows, ins]
    float* scales;   // [rows, blocks]
    int32_t* sums;   // [rows, blocks]

    PackedRows from(int row, int ins) const {
        const size_t at = size_t(row) * (ins / packed_inputs);
        return {values + size_t(row) * ins, scales + at, sums + at};
    }
};

struct PackedProduct {
    float* out;
    const uint8_t* weight;
    const vi_bf16* bias;
    PackedRows x;
    int outs, ins;
    bool accumulate;
    const int32_t* out_rows = nullptr; // where row r is in out; NULL: it is row r

    float* out_row(int r) const { return out + size_t(out_rows ? out_rows[r] : r) * outs; }
};

// Floats of memory for so many rounded rows.
size_t linear_packed_scratch(int rows, int ins);
// Rounds rows of x; row r is row x_rows[r] of it, or where that is NULL r itself.
PackedRows round_rows(vi_context* context, float* scratch, const float* x, const int32_t* x_rows, int rows, int ins);
// Panels that stay in the second-level cache while the rows pass: what a thread takes at a time.
int packed_step(int rows);
// The outputs of panels first .. last - 1, by one thread.
void multiply_packed(const PackedProduct& product, int32_t format, int rows, int first, int last);

// out [rows, outs] (+)= x weight^T + bias with the weight as vi_pack wrote it.
void linear_packed(vi_context* context, float* out, const float* x, const void* weight, const vi_bf16* bias, int32_t format, bool accumulate, int rows,
                   int outs, int ins, float* scratch);
