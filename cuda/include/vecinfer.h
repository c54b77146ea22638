/* vecinfer.h: the C ABI of VecInfer, implemented by vecinfer_cpu and by vecinfer_cuda.
 *
 * A dialect that a C11 compiler and scripts/chores/symbols.ts both read:
 *  - every function returns an int32_t status (the VI_* values below) and never throws, exits, aborts or prints;
 *  - the context comes first, then outputs, then inputs, sizes last;
 *  - parameters are int32_t, int64_t, float, or a pointer. `uint8_t*` is a host byte buffer of the caller; every other
 *    pointer is a device address (host memory in vecinfer_cpu) or an opaque handle. A parameter that may be NULL says so;
 *  - a handle or an address is returned by writing its 8 bytes to a host buffer `out`;
 *  - after a status other than VI_OK, vi_last_error tells what happened. The message lives in the context;
 *  - a context is used by one thread at a time. Calls are ordered; on CUDA they are asynchronous, and only
 *    vi_synchronize, vi_copy_to_host and vi_event_elapsed wait.
 *
 * Arrays are row-major. `stride` is the distance between rows, in elements.  Shapes are written [outer, ..., inner].
 * Activations and the weights of norms are f32, other weights bf16, on both libraries.
 *
 * The cache of one layer (VecInfer, arXiv 2510.06175, with attention sinks, a token scale and codebooks per KV head):
 *  - everything kept is in the transformed space: k~ = (k / smooth) H, v~ = v or v H, with H the orthonormal
 *    Walsh-Hadamard matrix. Queries meet it as q~ = (q * smooth) H, so that q~ . k~ = q . k. A quantizer may have matrices in their place;
 *  - tokens live in pages of VI_PAGE_TOKENS, found through page_table[slot][position / VI_PAGE_TOKENS]. The order of the codes inside a
 *    page belongs to the library; a page of all KV heads is one contiguous block of vi_page_bytes bytes;
 *  - the first `sinks` positions and the newest tokens are also kept as bf16: sinks[slot][kv_head][position][head_dim],
 *    recent[slot][kv_head][position % recent][head_dim], a ring;
 *  - a query at position p sees position j <= p exactly (bf16) where j < sinks, or p - j < window and j >= exact_from[slot];
 *    all other positions j < p are read from the pages. exact_from is the lowest position whose ring row is valid;
 *  - a layer with a sliding window has a ring and neither pages nor sinks: a query at position p sees positions p - j < window
 *    with j >= exact_from[slot] and no others; one that sees nothing has zeros. */
#ifndef VECINFER_H
#define VECINFER_H
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif
#if defined(VI_BUILD)
#define VI_API __attribute__((visibility("default")))
#else
#define VI_API
#endif

typedef uint16_t vi_bf16; /* the upper half of an IEEE float, rounded to nearest even */
typedef uint16_t vi_f16;  /* IEEE half precision */
typedef struct vi_context vi_context;
typedef struct vi_transform vi_transform;
typedef struct vi_quantizer vi_quantizer;
typedef struct vi_kv_layer vi_kv_layer;
typedef struct vi_graph vi_graph;

#define VI_OK 0
#define VI_INVALID_ARGUMENT 1 /* a shape, a size or a value that the function refuses */
#define VI_OUT_OF_MEMORY 2
#define VI_NO_DEVICE 3      /* no driver, no such device, or one that this build has no code for */
#define VI_DEVICE_ERROR 4   /* the device reported an error while launching or running */
#define VI_UNSUPPORTED 5    /* valid, but not built in this library; the message names what is */
#define VI_INTERNAL_ERROR 6

#define VI_F32 0
#define VI_BF16 1
#define VI_F16 2
#define VI_I32 3
#define VI_U8 4
#define VI_Q8_0 5 /* blocks of 32 weights, see vi_pack */
#define VI_Q4_0 6
#define VI_Q4_1 7

#define VI_OUTPUT_VALUES 0 /* what vi_linear does with its products */
#define VI_OUTPUT_SUM 1
#define VI_OUTPUT_SILU 2
#define VI_PACKED_ROWS 16

#define VI_SILU 0 /* activations of vi_gate */
#define VI_GELU 1
#define VI_SWIGLU_CLAMPED 2

#define VI_TRANSFORM_FORWARD 0 /* of keys and values, see vi_transform_create */
#define VI_TRANSFORM_QUERY 1
#define VI_TRANSFORM_INVERSE 2

#define VI_ROUTE_SOFTMAX 0 /* the weights that vi_route gives */
#define VI_ROUTE_NORMALIZED 1
#define VI_ROUTE_TOP_SOFTMAX 2

#define VI_PAGE_TOKENS 64
#define VI_SAMPLE_SETTINGS 8 /* floats a row in the settings of vi_sample */

/* ---------------------------------------------------------------- library */

/* Writes the SHA-256 of this header, 64 hexadecimal digits and a NUL, as the library was built with it. capacity >= 65. */
VI_API int32_t vi_abi_hash(uint8_t* out, int32_t capacity);
/* Writes the number of usable devices (int32) to `out` and, where it is 0, the reason as text of at most capacity bytes with its NUL. */
VI_API int32_t vi_device_count(uint8_t* out, uint8_t* reason, int32_t capacity);

/* ---------------------------------------------------------------- context and memory */

/* Makes a context on device `device` (0 for the CPU). threads: CPU threads, 0 = all; the CUDA library ignores it.
 * A context is written to `out` even on an error other than out of memory, so that vi_last_error can be asked; destroy it then too. */
VI_API int32_t vi_context_create(uint8_t* out, int32_t device, int32_t threads);
/* Waits for the device and frees the context. Tensors, transforms, quantizers, layers and graphs of it must be gone. */
VI_API int32_t vi_context_destroy(vi_context* context);
/* Copies the last error's message, at most capacity bytes with its NUL. */
VI_API int32_t vi_last_error(vi_context* context, uint8_t* out, int32_t capacity);
/* Writes a JSON object as text: {"library","device","compute","threads","instructions"}: what computes, for reports. */
VI_API int32_t vi_device_info(vi_context* context, uint8_t* out, int32_t capacity);
/* Waits until the device has run everything asked for so far, and reports errors that arose on the way. */
VI_API int32_t vi_synchronize(vi_context* context);
/* Allocates bytes >= 1, aligned to 256, contents undefined; writes the address to out. */
VI_API int32_t vi_allocate(vi_context* context, uint8_t* out, int64_t bytes);
/* Frees an address of vi_allocate, after the device is done with it. NULL is ignored; an unknown address is VI_INVALID_ARGUMENT. */
VI_API int32_t vi_free(vi_context* context, void* address);
/* Writes four int64 to out: bytes now allocated by this context, their peak, bytes free on the device, bytes in all. */
VI_API int32_t vi_memory_info(vi_context* context, uint8_t* out);
/* Copies from a host buffer. On return the buffer may be changed. */
VI_API int32_t vi_copy_to_device(vi_context* context, void* out, const uint8_t* in, int64_t bytes);
/* Copies to a host buffer; waits. */
VI_API int32_t vi_copy_to_host(vi_context* context, uint8_t* out, const void* in, int64_t bytes);
/* Copies between device addresses that do not overlap. */
VI_API int32_t vi_copy(vi_context* context, void* out, const void* in, int64_t bytes);
/* Sets each byte to value (0..255). */
VI_API int32_t vi_fill(vi_context* context, void* out, int32_t value, int64_t bytes);
/* out[i] = in[i] between VI_F32, VI_BF16 and VI_F16, rounding to nearest even. */
VI_API int32_t vi_convert(vi_context* context, void* out, const void* in, int32_t out_dtype, int32_t in_dtype, int64_t count);
/* out[i] = mean + deviation * N(0,1), VI_F32 or VI_BF16: Box-Muller over a counter-based generator, so equal for equal seeds on both libraries up to rounding. */
VI_API int32_t vi_random_normal(vi_context* context, void* out, int32_t dtype, int32_t seed, float mean, float deviation, int64_t count);
/* Records event `index` (0..63) in the order of calls. */
VI_API int32_t vi_event_record(vi_context* context, int32_t index);
/* Waits for event `last` and writes the milliseconds (float) from event `first` to it. */
VI_API int32_t vi_event_elapsed(vi_context* context, uint8_t* out, int32_t first, int32_t last);
/* From here to vi_graph_end calls are recorded, not run. Calls that wait, allocate or free are refused meanwhile. */
VI_API int32_t vi_graph_begin(vi_context* context);
/* Ends the recording and writes a graph handle to out. After an error in between: that error, and no graph. */
VI_API int32_t vi_graph_end(vi_context* context, uint8_t* out);
/* Runs the recorded calls with the same addresses and sizes; what the addresses hold may have changed. */
VI_API int32_t vi_graph_launch(vi_context* context, vi_graph* graph);
VI_API int32_t vi_graph_destroy(vi_context* context, vi_graph* graph);

/* ---------------------------------------------------------------- layers of a model */

/* out[r] = table[ids[r]]; out f32 [rows, width], table bf16 [vocabulary, width]. An id outside the vocabulary gives a row of NaN. */
VI_API int32_t vi_embedding(vi_context* context, float* out, const int32_t* ids, const vi_bf16* table, int32_t rows, int32_t width, int32_t vocabulary);
/* With residual (may be NULL): residual += x, out = norm(residual); without: out = norm(x).
 * norm(x) = x / sqrt(mean(x^2) + epsilon) * weight (arXiv 1910.07467). All [rows, width]; out may be x. Sums are f32: where that of x^2 passes its range, norm(x) is 0
 * (NaN where x is infinite); a row that holds NaN becomes NaN. */
VI_API int32_t vi_rmsnorm(vi_context* context, float* out, float* residual, const float* x, const float* weight, float epsilon, int32_t rows, int32_t width);
/* vi_rmsnorm's norm of each head of each row, in place: x [rows, heads, head_dim] with a row stride, weight [head_dim]. With one head that is the norm
 * of a whole row. head_dim 1..16384. */
VI_API int32_t vi_head_norm(vi_context* context, float* x, const float* weight, float epsilon, int32_t rows, int32_t heads, int32_t head_dim, int32_t stride);
/* residual += factor * n; n = x, or where norm [width] is not NULL n = norm(x) as vi_rmsnorm has it. residual and x [rows, width], not overlapping. */
VI_API int32_t vi_add(vi_context* context, float* residual, const float* x, const float* norm, float epsilon, float factor, int32_t rows, int32_t width);
/* x[i] = c(factor * x[i]); c(y) = y where cap is 0, otherwise a soft cap, cap tanh(y / cap): an infinity becomes the cap, NaN stays NaN. cap >= 0. */
VI_API int32_t vi_scale(vi_context* context, float* x, float factor, float cap, int64_t count);
/* Products y[r, o] = sum_i n[r, i] weight[o, i] + bias[o]; x [rows, in_features], bias [out_features] or NULL.
 * n = x, or where norm [in_features] is not NULL n = x / sqrt(mean(x^2) + epsilon) * norm, as vi_rmsnorm. output says what becomes of them:
 *  - VI_OUTPUT_VALUES: out = y, out [rows, out_features];
 *  - VI_OUTPUT_SUM: out += y;
 *  - VI_OUTPUT_SILU: out[r, o] = silu(y[r, o]) * y[r, out_features / 2 + o], out [rows, out_features / 2], out_features even, as vi_gate with VI_SILU.
 * format is the weight's: VI_BF16 [out_features, in_features], or VI_Q8_0, VI_Q4_0, VI_Q4_1 as vi_pack wrote it. out and x don't overlap.
 * x_dtype and out_dtype are VI_F32 or, on CUDA alone, VI_BF16: what a prompt's products take from each other. x is f32 where there is a norm, out where output is
 * VI_OUTPUT_SUM. With VI_BF16 CUDA rounds as for many rows: x, y before a gate, and out.
 * A row's bits don't depend on the rows beside it (CUDA: among up to 8 rows). */
VI_API int32_t vi_linear(vi_context* context, void* out, const void* x, const void* weight, const vi_bf16* bias, const float* norm, float epsilon, int32_t format, int32_t output, int32_t x_dtype, int32_t out_dtype, int32_t rows, int32_t out_features, int32_t in_features);
/* Brings rows of GGUF blocks to the order in which vi_linear reads them. blocks: out_features rows of in_features / 32 blocks without gaps, a block being
 * VI_Q8_0 { f16 d; int8 q[32] }, w[i] = d q[i]; VI_Q4_0 { f16 d; uint8 q[16] }, w[i] = d (q[i] % 16 - 8), w[i + 16] = d (q[i] / 16 - 8);
 * VI_Q4_1 { f16 d, m; uint8 q[16] }, w[i] = d (q[i] % 16) + m, w[i + 16] = d (q[i] / 16) + m.
 * out: panels of VI_PACKED_ROWS rows, each as many bytes as its blocks, one after the other, so that rows from a multiple of VI_PACKED_ROWS on are a weight
 * of their own; the last panel is filled up with zeros. The order inside a panel belongs to the library. in_features is a multiple of 32; out is not blocks. */
VI_API int32_t vi_pack(vi_context* context, void* out, const void* blocks, int32_t format, int32_t out_features, int32_t in_features);
/* Rotates the first rotary_dim channels of each head in place (arXiv 2104.09864): for i < rotary_dim / 2, angle = positions[r] * frequencies[i] and the pair (a, b),
 * which is channels i and i + rotary_dim / 2, or where interleaved is 1 channels 2 i and 2 i + 1: (a, b) <- factor * (a cos - b sin, b cos + a sin). The other
 * channels stay as they are. x [rows, heads, head_dim] with a row stride; frequencies f32 [rotary_dim / 2], already scaled (llama3, YaRN, longrope) by the caller;
 * factor: YaRN's and longrope's attention factor, 1 otherwise. Angles are reduced in double precision. rotary_dim is even, 2..head_dim. */
VI_API int32_t vi_rope(vi_context* context, float* x, const int32_t* positions, const float* frequencies, float factor, int32_t rows, int32_t heads, int32_t head_dim, int32_t rotary_dim, int32_t interleaved, int32_t stride);
/* vi_rope of queries [rows, heads, head_dim], in place, and of keys [rows, kv_heads, head_dim], then those keys and the values rounded to f16 (beyond +-65504 to these),
 * in one pass: what a prompt does between its products and its attention. queries, keys and values have one row stride, keys_out and values_out [rows, kv_heads, head_dim]
 * another. keys are not changed. Where rotary_dim is 0, nothing is rotated, and positions and frequencies may be NULL. */
VI_API int32_t vi_rope_round(vi_context* context, float* queries, const float* keys, const float* values, vi_f16* keys_out, vi_f16* values_out, const int32_t* positions, const float* frequencies, float factor, int32_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t rotary_dim, int32_t interleaved, int32_t stride, int32_t out_stride);
/* out[r, i] = gate of g = gate_up[r, i] and u = gate_up[r, width + i]; gate_up [rows, 2 width], out [rows, width], sigmoid(x) = 1 / (1 + e^-x):
 *  - VI_SILU: g sigmoid(g) u (arXiv 2002.05202);
 *  - VI_GELU: GELU's approximation with tanh (arXiv 1606.08415) of g, times u: g/2 (1 + tanh(z)) = g sigmoid(2 z), z = sqrt(2 / pi) (g + 0.044715 g^3);
 *  - VI_SWIGLU_CLAMPED (gpt-oss): g' = min(g, 7), u' = min(max(u, -7), 7): g' sigmoid(1.702 g') (u' + 1).
 * A g so far below 0 that the sigmoid is under 2^-125, minus infinity included, counts as 0; NaN stays NaN. */
VI_API int32_t vi_gate(vi_context* context, float* out, const float* gate_up, int32_t activation, int32_t rows, int32_t width);
/* positions[r] += 1: lets a recorded decode step move on without the host. */
VI_API int32_t vi_advance(vi_context* context, int32_t* positions, int32_t rows);

/* ---------------------------------------------------------------- mixtures of experts */

/* The `top` experts of each row by their logits [rows, expert_count], best first, the lowest index among equals; NaN counts as the least of all. Weights by method:
 *  - VI_ROUTE_SOFTMAX: softmax over all logits, as it is at the chosen;
 *  - VI_ROUTE_NORMALIZED: the same divided by its sum over the chosen;
 *  - VI_ROUTE_TOP_SOFTMAX: softmax over the logits of the chosen, which is the same number.
 * experts and weights [rows, top]; expert_count 1..1024, top 1..32 and no more than expert_count. */
VI_API int32_t vi_route(vi_context* context, int32_t* experts, float* weights, const float* logits, int32_t method, int32_t rows, int32_t expert_count, int32_t top);
/* Products with the matrices of chosen experts: out[r, k, o] = sum_i x[r, k or 0, i] weight[experts[r, k], o, i] + bias[experts[r, k], o].
 * out [rows, top, out_features]; x [rows, x_top, in_features], x_top 1 (all experts of a row read the same) or top; experts [rows, top]; bias
 * [expert_count, out_features] or NULL. format is the weight's: VI_BF16 [expert_count, out_features, in_features], or a packed one, [expert_count * out_features,
 * in_features] as vi_pack wrote it, out_features a multiple of VI_PACKED_ROWS. Only the weights of chosen experts are read. An expert outside expert_count gives NaN.
 * out and x don't overlap. Precision and a row's bits are as with vi_linear (CUDA: among up to 8 rows). */
VI_API int32_t vi_expert_linear(vi_context* context, float* out, const float* x, const void* weight, const vi_bf16* bias, const int32_t* experts, int32_t format, int32_t rows, int32_t top, int32_t expert_count, int32_t out_features, int32_t in_features, int32_t x_top);
/* residual[r] += sum_k weights[r, k] x[r, k], in the order of k; residual [rows, width], x [rows, top, width], weights [rows, top]. */
VI_API int32_t vi_expert_sum(vi_context* context, float* residual, const float* x, const float* weights, int32_t rows, int32_t top, int32_t width);

/* ---------------------------------------------------------------- codebooks */

/* codes[n] = argmin_c |points[n] - codebook[c]|^2, the lowest index among equals; points [count, dim], codebook [codewords, dim].
 * dim 1..16, codewords 1..65536. */
VI_API int32_t vi_codebook_assign(vi_context* context, int32_t* codes, const float* points, const float* codebook, int32_t count, int32_t dim, int32_t codewords);
/* Start of k-means: codewords drawn from the points by k-means++ (D^2 sampling, Arthur and Vassilvitskii 2007) or an equivalent
 * that is as spread. weights [count] or NULL. count >= codewords. The same seed gives the same codebook. */
VI_API int32_t vi_kmeans_start(vi_context* context, float* codebook, const float* points, const float* weights, int32_t seed, int32_t count, int32_t dim, int32_t codewords);
/* One Lloyd iteration in place: assign, then codebook[c] = weighted mean of its points. An empty codeword is moved next to the one
 * with the largest distortion and splits it. distortion (f32 [1], may be NULL) = weighted mean squared distance before the move.
 * iteration is mixed into the seed. Sums are in a fixed order: the same inputs give the same bits. */
VI_API int32_t vi_kmeans_step(vi_context* context, float* codebook, float* distortion, const float* points, const float* weights, int32_t seed, int32_t iteration, int32_t count, int32_t dim, int32_t codewords);
/* maxima[i] = max(maxima[i], max_r |x[r, i]|) for i < width: the statistic behind smooth = sqrt(maxima). */
VI_API int32_t vi_channel_max(vi_context* context, float* maxima, const float* x, int32_t rows, int32_t width, int32_t stride);

/* ---------------------------------------------------------------- cache */

/* How the vectors of kv_heads heads are brought to the space in which they are coded. smooth f32 [kv_heads, head_dim] or NULL and hadamard 0 or 1:
 *  - VI_TRANSFORM_FORWARD, of keys and values: x~ = (x / smooth) H;
 *  - VI_TRANSFORM_QUERY: (x * smooth) H;
 *  - VI_TRANSFORM_INVERSE: x of x~.
 * Or in place of both a fitted transform, matrices f32 [3, kv_heads, head_dim, head_dim] (otherwise NULL), as row vectors take them, in the order of the directions:
 * x~ = x matrices[direction, head]. With A = matrices[0] scores stay what they are where matrices[1] is the transposed inverse of A, and matrices[2] is the
 * inverse; the library takes them as they are given. With none of the three x~ = x. All is copied. VI_INVALID_ARGUMENT for matrices beside smooth or hadamard, and on
 * the CPU where a number is not finite. head_dim 64, 128 or 256; others are VI_UNSUPPORTED, by name. */
VI_API int32_t vi_transform_create(vi_context* context, uint8_t* out, const float* smooth, const float* matrices, int32_t kv_heads, int32_t head_dim, int32_t hadamard);
/* Quantizers made with the transform keep what it holds: it may be destroyed before them. */
VI_API int32_t vi_transform_destroy(vi_context* context, vi_transform* transform);
/* Applies a transform to x [rows, heads, head_dim] in one of the VI_TRANSFORM_* directions; head h of `heads` is transformed as KV head h / (heads / kv_heads).
 * x and out have the row stride; out may be x. */
VI_API int32_t vi_transform_apply(vi_context* context, float* out, const float* x, const vi_transform* transform, int32_t direction, int32_t rows, int32_t heads, int32_t stride);

/* How one side (keys or values) of a layer is kept. codebooks f32 [codebook_heads, codebook_parts, 2^bits, sub_dim]: codebook_heads 1 or kv_heads,
 * codebook_parts 1 or head_dim / sub_dim, a codebook for each sub-vector of a head (of which the CUDA library is slower to read; the others are tuned). They are
 * copied, each rounded to whole multiples of max |c| / 127 (sub_dim 2: 2047), so that both libraries hold the same. transform: of the same heads, or NULL for none; the quantizer
 * keeps what it holds, the handle may be destroyed. token_scale 0 or 1. Formats, as (sub_dim,bits), are
 * bf16 (1,16), d2b8 (2,8), d4b12 (4,12), d4b10 (4,10), d4b8 (4,8), d4b6 (4,6), d8b12 (8,12), d8b8 (8,8);
 * bf16 keeps rows as they are, without codebooks, transform and token_scale. head_dim 64, 128 or 256, and 80, 96, 112 or 192 with bf16; others are
 * VI_UNSUPPORTED, by name.
 * With token_scale each vector x~ is coded as s c: r = rms(x~), c = nearest(x~ / r), s = <x~, c> / <c, c>, kept in 8 bits as
 * u = clamp(round(16 log2 s) + 128, 0, 255), s = 2^((u - 128) / 16). A vector of zeros has u = 0. Without it c = nearest(x~), s = 1. */
VI_API int32_t vi_quantizer_create(vi_context* context, uint8_t* out, const float* codebooks, const vi_transform* transform, int32_t kv_heads, int32_t head_dim, int32_t sub_dim, int32_t bits, int32_t codebook_heads, int32_t codebook_parts, int32_t token_scale);
/* Layers made with the quantizer keep what it holds: it may be destroyed before them. */
VI_API int32_t vi_quantizer_destroy(vi_context* context, vi_quantizer* quantizer);
/* The codebooks as they were rounded, f32 [codebook_heads, codebook_parts, 2^bits, sub_dim]. */
VI_API int32_t vi_quantizer_codebook(vi_context* context, float* out, const vi_quantizer* quantizer);
/* Writes (int64) the bytes of one page of all KV heads: the codes and token scales of VI_PAGE_TOKENS tokens. */
VI_API int32_t vi_page_bytes(vi_context* context, uint8_t* out, const vi_quantizer* quantizer);

/* Binds one layer's memory; the addresses must outlive the handle. key_pages, value_pages: page_count blocks of vi_page_bytes.
 * key_recent, value_recent bf16 [slots, kv_heads, recent, head_dim] (NULL if recent is 0); key_sinks, value_sinks bf16
 * [slots, kv_heads, sinks, head_dim] (NULL if sinks is 0); page_table int32 [slots, max_pages]; exact_from int32 [slots].
 * window <= recent. A layer with a sliding window of the model has page_count 0, max_pages 0, sinks 0, window >= 1 and NULL for pages and page_table; both
 * quantizers are bf16 then. Page indices past a sequence's end are never followed. An index outside page_count is never read (VI_INVALID_ARGUMENT on the CPU, NaN on CUDA). */
VI_API int32_t vi_kv_layer_create(vi_context* context, uint8_t* out, const vi_quantizer* keys, const vi_quantizer* values, void* key_pages, void* value_pages, vi_bf16* key_recent, vi_bf16* value_recent, vi_bf16* key_sinks, vi_bf16* value_sinks, const int32_t* page_table, const int32_t* exact_from, int32_t page_count, int32_t slots, int32_t max_pages, int32_t sinks, int32_t window, int32_t recent);
VI_API int32_t vi_kv_layer_destroy(vi_context* context, vi_kv_layer* layer);
/* Encodes and stores rows of keys (after RoPE) and values, [rows, kv_heads, head_dim] with one row stride each: row r belongs to slots[r], positions[r].
 * Smooth, Hadamard, nearest codeword, token scale and the write into the page, in one pass. Rows with position < sinks go to the sinks too,
 * rows with position >= exact_from[slot] to the ring; rows of one call that share a slot must span at most `recent` such positions. */
VI_API int32_t vi_quantize(vi_context* context, vi_kv_layer* layer, const float* keys, const float* values, const int32_t* slots, const int32_t* positions, int32_t rows, int32_t stride);
/* vi_rope (all channels, in halves, factor 1) of queries [rows, heads, head_dim], in place, and of keys, then vi_quantize of those keys and the values, in one pass: what a decode step does between its
 * products and its attention. queries, keys and values have one row stride; keys are not changed, or rotated in place, as the library likes. */
VI_API int32_t vi_rope_quantize(vi_context* context, vi_kv_layer* layer, float* queries, float* keys, const float* values, const int32_t* slots, const int32_t* positions, const float* frequencies, int32_t rows, int32_t heads, int32_t stride);
/* Reads positions first .. first + count - 1 of a slot back from the pages, transforms undone: keys and values f32 [count, kv_heads, head_dim]. */
VI_API int32_t vi_dequantize(vi_context* context, float* keys, float* values, const vi_kv_layer* layer, int32_t slot, int32_t first, int32_t count);
/* out[r] = softmax(scale q_r K^T) V over positions 0 .. positions[r] of slots[r], read as the head of this file says (sinks, pages, ring).
 * The rows' own keys are already stored. q and out [rows, heads, head_dim]; q with row stride, out contiguous. Query head h reads KV head h / (heads / kv_heads);
 * heads / kv_heads is 1..16. Rows may share a slot. A row with position < 0 is padding: its output is zeros.
 * sink_logits f32 [heads] or NULL: one more logit a head in the softmax, which has no value (attention sinks of gpt-oss): out = sum_j e^(s_j) v_j / (e^(sink_logits[h]) + sum_j e^(s_j)).
 * soft_cap > 0: s = soft_cap tanh(scale q k / soft_cap) in place of s = scale q k (Gemma 2); 0: none. */
VI_API int32_t vi_attention(vi_context* context, float* out, const float* q, const vi_kv_layer* layer, const int32_t* slots, const int32_t* positions, const float* sink_logits, float scale, float soft_cap, int32_t rows, int32_t heads, int32_t stride);
/* Exact causal attention of a prompt over fresh keys and values (kv_dtype VI_F32, VI_BF16 or, on CUDA alone, VI_F16; not in the cache yet), and over `past` tokens of `slot` that are.
 * Query row r is fresh token first + r; it sees fresh tokens 0 .. first + r and all past ones (the last `window` of the layer's and the sinks exactly).
 * sliding_window > 0: of all these only those less than sliding_window positions before its own, itself included; 0: none. Where the layer has a sliding window it is
 * the same, and its ring holds the last sliding_window - 1 past tokens. sink_logits and soft_cap as in vi_attention.
 * q [rows, heads, head_dim] with q_stride, starting at row `first`; keys, values [first + rows, kv_heads, head_dim] with kv_stride; out contiguous.
 * CUDA multiplies f16: it reads f16 rows where they are, and rounds others to f16 on every call (beyond +-65504 to these). Rows of 16 bits are read in 16 bytes at a
 * time: their addresses and kv_stride * 2 are multiples of 16.
 * out_dtype is VI_F32 or, on CUDA alone and where kv_dtype is VI_F16, VI_BF16: the f32 results rounded.
 * layer may be NULL where past is 0; then kv_heads and head_dim alone describe the shapes. */
VI_API int32_t vi_attention_prefill(vi_context* context, void* out, const float* q, const void* keys, const void* values, const vi_kv_layer* layer, const float* sink_logits, float scale, float soft_cap, int32_t slot, int32_t past, int32_t first, int32_t rows, int32_t sliding_window, int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t q_stride, int32_t kv_stride, int32_t kv_dtype, int32_t out_dtype);

/* ---------------------------------------------------------------- sampling */

/* Draws one id a row. settings f32 [rows, 8]: temperature (0 = greedy), top_k (0 = all), top_p, min_p, repetition, presence, frequency penalty, unused.
 * counts int32 [rows, vocabulary] or NULL: 2 * (times generated) + (1 if in the prompt); the drawn id's count grows by 2.
 * bias f32 [rows, vocabulary] or NULL is added to the logits (-infinity forbids). Then, where counts says seen: repetition (x > 0 ? x / p : x * p),
 * x -= presence * (generated > 0) + frequency * generated. Then x / temperature, softmax; keep the top_k largest (ties: lowest id), of them the
 * smallest set of largest with mass >= top_p, and those with p >= min_p * p_max; draw by inverse CDF in order of id with
 * u = uniform(seeds[r], positions[r]). logprobs f32 [rows] (may be NULL): log softmax of the raw logits at the drawn id. Logits [rows, vocabulary] are not changed.
 * uniform(seed, position): x = (uint64)(uint32)seed << 32 | (uint32)position; x += 0x9e3779b97f4a7c15; x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
 * x = (x ^ x >> 27) * 0x94d049bb133111eb; x ^= x >> 31 (splitmix64); u = (x >> 40) * 2^-24. A row with a NaN, or with no finite largest x,
 * gets id -1 and logprob NaN, and its counts stay; the others do not notice. */
VI_API int32_t vi_sample(vi_context* context, int32_t* ids, float* logprobs, const float* logits, int32_t* counts, const float* bias, const float* settings, const int32_t* seeds, const int32_t* positions, int32_t rows, int32_t vocabulary);
/* Log-probabilities: of targets[r] to out_targets [rows] (both may be NULL), and the `top` most probable, in order, to out_values and out_ids [rows, top] (NULL if top is 0). */
VI_API int32_t vi_log_probabilities(vi_context* context, float* out_targets, float* out_values, int32_t* out_ids, const float* logits, const int32_t* targets, int32_t rows, int32_t vocabulary, int32_t top);
/* out f32 [rows, 3]: KL(softmax(reference) || softmax(logits)) in nats; 1 if the two argmaxes agree, else 0; -log softmax(logits)[targets[r]]. */
VI_API int32_t vi_compare(vi_context* context, float* out, const float* logits, const float* reference, const int32_t* targets, int32_t rows, int32_t vocabulary);

#if defined(__cplusplus)
}
#endif
#endif
