// A prompt's attention: what its kernels are asked for, and which of them there are.
//
// Two kernels do the same. That of attention_prefill_wgmma.cu runs where the card has compute capability 9.0, the library holds code for sm_90a, q begins at a
// multiple of 16 bytes with q_stride a multiple of 4, and VECINFER_WGMMA is not "off"; that of attention_prefill.cu runs everywhere else. Both round alike
// (q times the scale, keys, values and weights to f16, at most 65504; sums f32), but their bits differ. vi_device_info says "prompts by wgmma" where the first is in use.
//
// With either a row's result depends on its query and on the keys and values it sees, and not on the rows beside it: a prompt may be cut into calls anywhere.
#pragma once
#include "context.h"
#include <cuda_fp16.h>

// Attention over a chunk of keys. Row r sees keys 0 .. diagonal + r of it, those before `count` at most; with a window only those after diagonal + r - window.
struct Prompt {
    float* out;       // [rows, heads, D]; read, too, where `resume`
    vi_bf16* rounded; // [rows, heads, D], in place of out where it is not NULL: the last chunk's
    float* lse; // [rows, heads]: log2 of the sum of 2^score
    const float* q;
    const float* sink_logits;          // [heads] or NULL; a row's counts in the chunk that has the row's own token
    const __half *keys, *values;       // token t of KV head h at h * head_stride + t * token_stride
    int64_t head_stride, token_stride; // in elements
    float scale;                       // times log2 e
    float cap;                         // soft cap times log2 e; 0: none
    int count, rows, heads, kv_heads, head_dim;
    int window;   // 0: none
    int diagonal; // below 0 where the first rows see nothing of this chunk
    int64_t q_stride;
    bool resume; // go on from out and lse
};

// What the wgmma kernel keeps between launches.
struct vi_wgmma {
    int32_t* counters = nullptr;      // device memory, [2]: tiles handed out, blocks that ended; zeros between launches
    volatile int32_t* lost = nullptr; // host memory, [4]: the wait that took too long: barrier + 1, parity, block, thread; 0: none did
    void* encode = nullptr;           // the driver's cuTensorMapEncodeTiled
    ~vi_wgmma();
    std::string lost_wait() const; // for messages; "" where there was none
};

// name is in all of these the function's, for messages.

// Makes context->wgmma where the kernel can run; on other cards, in builds without sm_90a and with VECINFER_WGMMA=off it stays empty.
int32_t wgmma_open(vi_context* context, const char* name);
// Whether the wgmma kernel takes a prompt with these queries.
bool wgmma_takes(const vi_context* context, const float* q, int64_t q_stride);
// One launch of it. head_dim is a multiple of 16 and 256 at most.
int32_t prefill_wgmma(vi_context* context, const char* name, const Prompt& prompt);
