// Which rows' pages a block of decode attention reads. Everything is computed in the kernel from the positions in device memory.
//
// A row of the call has units of work for each KV head (and each group of 4 of its query heads, a `line` of rows): its coded pages, then its exact
// tokens in tiles of 16. A fixed number of blocks shares the work in one of three ways, whichever is estimated to end first:
//  - split: each row of a line has its own blocks, in proportion to its units;
//  - whole: each block has the same number of rows;
//  - even: all units in one line, cut into equal parts. This balances any mix of lengths, but a block whose part crosses from one row to the next
//    prepares twice.
#pragma once
#include "attention.h"

// Where a row's tokens are read: sinks 0 .. coded_begin - 1, pages coded_begin .. coded_end - 1, ring coded_end .. tokens - 1. Of a layer with a sliding window the
// ring's alone.
struct AttentionRow {
    int slot, tokens, coded_begin, coded_end, pages; // pages < 0: no such slot or position, or with tokens < 1 nothing to see

    AttentionRow() = default;
    __device__ AttentionRow(const AttentionArguments& a, int row) {
        const Cache& c = a.cache;
        slot = a.slots[row];
        tokens = a.positions[row] + 1;
        coded_begin = coded_end = 0;
        pages = -1;
        if (tokens < 1 || !c.valid(slot, tokens - 1)) return;
        if (c.sliding()) {
            coded_end = max(max(0, tokens - c.window), c.exact_from[slot]);
            if (coded_end < tokens) pages = 0;
            else tokens = 0; // it sees nothing: zeros, as padding
            return;
        }
        coded_begin = min(c.sinks, tokens);
        coded_end = max(coded_begin, min(tokens, max(tokens - c.window, c.exact_from[slot])));
        pages = coded_begin < coded_end ? (coded_end - 1) / page_tokens - coded_begin / page_tokens + 1 : 0;
    }
    __device__ int first(const Cache& c) const { return c.sliding() ? coded_end : 0; } // token that is read
    __device__ int exact_tiles() const { return (coded_begin + tokens - coded_end + 15) / 16; }
    __device__ int units() const { return pages < 0 ? 1 : pages + exact_tiles(); }
};

// What a block does of one row and group of query heads: units from .. to - 1.
struct AttentionSegment {
    AttentionRow row;
    int index, kv_head, first_head, heads; // of the row, of the query heads: heads 0 ends the block's work
    int from, to;
    bool begins, whole;                    // has the row's first unit, all of them
    int first_block, last_block;           // of the row and heads
};

// In shared memory; its functions are for one whole warp.
struct AttentionPlan {
    AttentionRow rows[attention_rows];
    int begin[attention_rows + 1];  // units before a row, on its line
    int blocks[attention_rows + 1]; // split: blocks before a row, on its line; else the last is 0
    int each;                       // whole: rows of a block; even: units of a block
    bool even;

    // warps: of a block, which should have a unit for each. setup: what a row costs a block besides, in units.
    __device__ void make(const AttentionArguments& a, int warps, int setup) {
        constexpr int own = attention_rows / 32; // rows of a lane
        const int lane = threadIdx.x % 32, lines = a.cache.kv_heads * a.parts, blocks_most = gridDim.x;
        if (a.rows == 1 && lines <= blocks_most) { // as below, without the ways of it that one row does not need
            const AttentionRow r(a, 0);
            if (lane == 0) {
                rows[0] = r;
                begin[0] = blocks[0] = 0;
                begin[1] = r.units();
                blocks[1] = min(up(r.units(), warps), blocks_most / lines);
            }
            __syncwarp();
            return;
        }
        int units[own], sum = 0, most = 0;
#pragma unroll
        for (int i = 0; i < own; ++i) {
            const int row = lane * own + i;
            units[i] = 0;
            if (row < a.rows) {
                const AttentionRow r(a, row);
                rows[row] = r;
                units[i] = r.units();
            }
            sum += units[i];
            most = max(most, units[i]);
        }
        int before = prefix(begin, units, sum, a.rows);
        const int line = __shfl_sync(0xffffffffu, before, 31);
        most = __reduce_max_sync(0xffffffffu, most);
        const int pairs = a.rows * lines, total = line * lines;
        int wanted = 0; // blocks of a line that give each warp a unit
#pragma unroll
        for (int i = 0; i < own; ++i) wanted += up(units[i], warps);
        wanted = __reduce_add_sync(0xffffffffu, wanted);
        const int grid = min(blocks_most, wanted * lines), even_cost = up(total, grid) + setup * (pairs / grid + 2);
        if (pairs <= blocks_most) {
            int count = 0, load = 0;
#pragma unroll
            for (int i = 0; i < own; ++i) {
                if (units[i] == 0) continue;
                const int share = static_cast<int>(static_cast<float>(units[i]) / line * (grid / lines) + 1e-3f);
                const int n = wanted * lines <= blocks_most ? up(units[i], warps) : max(1, share);
                load = max(load, up(units[i], n));
                units[i] = n;
                count += n;
            }
            before = prefix(blocks, units, count, a.rows);
            load = __reduce_max_sync(0xffffffffu, load);
            count = __shfl_sync(0xffffffffu, before, 31);
            even = count * lines > blocks_most || load + setup > even_cost;
            if (!even) return;
        } else {
            each = up(pairs, grid);
            even = each * (most + setup) > even_cost;
        }
        __syncwarp();
        if (lane == 0) {
            blocks[a.rows] = 0;
            if (even) each = up(total, grid);
        }
    }

    // The block's segment at `at` (0: the first), which moves behind it.
    __device__ void next(AttentionSegment& s, int& at, const AttentionArguments& a) const {
        const int lines = a.cache.kv_heads * a.parts, line = begin[a.rows], split = blocks[a.rows], block = blockIdx.x;
        int row = 0, part = 0, heads = 0, first_block = block, last_block = block, from = 0, to = 0, units = 0;
        if (split) {
            if (at == 0 && block < split * lines) {
                part = block / split;
                row = search(blocks, block - part * split, a.rows);
                const int n = blocks[row + 1] - blocks[row], i = block - part * split - blocks[row];
                units = begin[row + 1] - begin[row];
                const int quotient = units / n, rest = units % n;
                from = i * quotient + min(i, rest);
                to = from + quotient + (i < rest);
                first_block = block - i;
                last_block = first_block + n - 1;
                heads = 1;
            }
            at = 1;
        } else if (even) {
            const int64_t unit = static_cast<int64_t>(block) * each + at;
            const int end = static_cast<int>(min(static_cast<int64_t>(line) * lines, static_cast<int64_t>(block + 1) * each));
            if (unit < end) {
                part = static_cast<int>(unit) / line;
                const int on_line = static_cast<int>(unit) - part * line;
                row = search(begin, on_line, a.rows);
                units = begin[row + 1] - begin[row];
                from = on_line - begin[row];
                const int row_begin = part * line + begin[row];
                to = min(units, end - row_begin);
                first_block = row_begin / each;
                last_block = (row_begin + units - 1) / each;
                heads = 1;
                at += to - from;
            }
        } else {
            const int64_t pair = static_cast<int64_t>(block) * each + at;
            if (at < each && pair < static_cast<int64_t>(a.rows) * lines) {
                part = static_cast<int>(pair) / a.rows;
                row = static_cast<int>(pair) - part * a.rows;
                to = units = begin[row + 1] - begin[row];
                heads = 1;
                ++at;
            }
        }
        if (threadIdx.x % 32) return;
        const int first_head = part % a.parts * attention_heads;
        s.heads = heads ? min(attention_heads, a.group - first_head) : 0;
        s.row = rows[row];
        s.index = row;
        s.kv_head = part / a.parts;
        s.first_head = s.kv_head * a.group + first_head;
        s.from = from;
        s.to = to;
        s.begins = from == 0;
        s.whole = from == 0 && to == units;
        s.first_block = first_block;
        s.last_block = last_block;
    }

  private:
    static __device__ int up(int x, int y) { return (x + y - 1) / y; }
    // out[0] = 0, out[row + 1] = the sum up to row; sum: of the lane. Returns the sum up to the lane.
    template <int own> static __device__ int prefix(int* out, const int (&values)[own], int sum, int count) {
        const int lane = threadIdx.x % 32;
        int before = sum;
        for (int offset = 1; offset < 32; offset *= 2) {
            const int other = __shfl_up_sync(0xffffffffu, before, offset);
            if (lane >= offset) before += other;
        }
        int value = before - sum;
        if (lane == 0) out[0] = 0;
#pragma unroll
        for (int i = 0; i < own; ++i) {
            value += values[i];
            if (lane * own + i < count) out[lane * own + i + 1] = value;
        }
        __syncwarp();
        return before;
    }
    // The last row whose entry is not above x.
    static __device__ int search(const int* entries, int x, int count) {
        int found = 0;
        for (int first = 0; first < count; first += 32) {
            const int row = first + threadIdx.x % 32;
            found += __popc(__ballot_sync(0xffffffffu, row < count && entries[row] <= x));
        }
        return found - 1;
    }
};
