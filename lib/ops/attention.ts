/** Attention over the cache, and over a prompt. @module */
import type { Device } from "../device.ts";
import { dtypes, type Tensor } from "../tensor.ts";
import {
  expectInteger,
  expectNumber,
  expectRows,
  expectSize,
  expectStrided,
  mismatch,
  type StrideOptions,
} from "./check.ts";
import { expectLayer, type KvLayer } from "./kv_layer.ts";

/** What becomes of scores on their way to the softmax. */
export interface ScoreOptions {
  /** Factor of the scores. Default 1 / sqrt(headDim). */
  readonly scale?: number;
  /** Soft cap of the scaled scores: cap tanh(score / cap), as Gemma 2 has it. Default 0: none. */
  readonly softCap?: number;
  /** One more logit a query head in the softmax, which has no value, as gpt-oss has it: f32 [heads]. Default: none. */
  readonly sinkLogits?: Tensor | null;
}

/** Options of {@linkcode attention}. */
export interface AttentionOptions extends StrideOptions, ScoreOptions {
  /** Query heads; by default those of `out`. */
  readonly heads?: number;
}

/** Requires scores' options to fit. */
function expectScores(op: string, device: Device, heads: number, options: Required<ScoreOptions>): void {
  const { scale, softCap, sinkLogits } = options;
  expectNumber(op, "scale", scale);
  expectNumber(op, "softCap", softCap);
  if (sinkLogits !== null) expectSize(op, "sinkLogits", sinkLogits, device, "f32", heads);
}

/**
 * out[r] = softmax(scale q_r K^T) V over positions 0 to positions[r] of slot slots[r], whose own keys are stored already.
 * out f32 [rows, heads, headDim], q the same with a stride, slots and positions i32 [rows]; query head h reads KV head
 * h / (heads / kvHeads), and heads / kvHeads is 1 to 16. A row at a position below 0 is padding: zeros.
 */
export function attention(
  out: Tensor,
  q: Tensor,
  layer: KvLayer,
  slots: Tensor,
  positions: Tensor,
  options: AttentionOptions = {},
): void {
  const { device } = out, { headDim } = layer, { rows = q.length, stride = q.stride } = options;
  const { heads = out.width / headDim, scale = 1 / Math.sqrt(headDim), softCap = 0, sinkLogits = null } = options;
  expectLayer("attention", layer, device);
  expectInteger("attention", "rows", rows);
  expectInteger("attention", "heads", heads, 1);
  expectScores("attention", device, heads, { scale, softCap, sinkLogits });
  expectRows("attention", "out", out, device, "f32", rows, heads * headDim);
  expectStrided("attention", "q", q, device, rows, heads * headDim, stride);
  expectRows("attention", "slots", slots, device, "i32", rows, 1);
  expectRows("attention", "positions", positions, device, "i32", rows, 1);
  const status = device.native.vi_attention(
    device.context,
    out.pointer,
    q.pointer,
    layer.pointer,
    slots.pointer,
    positions.pointer,
    sinkLogits === null ? null : sinkLogits.pointer,
    scale,
    softCap,
    rows,
    heads,
    stride,
  );
  if (status !== 0) device.check("vi_attention", status);
}

/** Options of {@linkcode attentionPrefill}. */
export interface AttentionPrefillOptions extends ScoreOptions {
  /** Channels of a head. */
  readonly headDim: number;
  /** Key/value heads; by default those of `keys`. */
  readonly kvHeads?: number;
  /** Query heads; by default those of `out`. */
  readonly heads?: number;
  /** Query rows; by default those of `q`. */
  readonly rows?: number;
  /** A row sees the tokens less than so many positions before it, itself included. Default 0: all of them. */
  readonly slidingWindow?: number;
  /** The fresh token that the first query row is. Default 0. */
  readonly first?: number;
  /** Tokens of the sequence that are in the cache already. Default 0. */
  readonly past?: number;
  /** The cache of the layer; needed where `past` is not 0. */
  readonly layer?: KvLayer | null;
  /** The sequence's slot in it. Default 0. */
  readonly slot?: number;
  /** Distance between rows of q in elements; by default its own. */
  readonly qStride?: number;
  /** Distance between rows of keys and of values in elements; by default that of `keys`. */
  readonly kvStride?: number;
}

/**
 * Exact causal attention of a prompt over its own keys and values, which are not in the cache yet, and over `past`
 * tokens that are. Query row r is fresh token first + r and sees fresh tokens 0 to first + r and all past ones. out and q
 * f32 [rows, heads, headDim], keys and values both f32, both bf16 or on CUDA both f16 [first + rows or more, kvHeads, headDim].
 * Rows of 16 bits begin at multiples of 16 bytes. CUDA multiplies f16: it reads f16 rows where they are and rounds others, all
 * of them on every call (beyond ±65504 to these). Beside f16 keys and values out may be bf16 there: the f32 results rounded. A row's bits don't depend on the rows beside it, so a prompt may be cut into calls anywhere. On cards of compute capability
 * 9.0 a kernel of their own does it, where q begins at a multiple of 16 bytes and `qStride` is a multiple of 4; then
 * `device.info.instructions` has "prompts by wgmma". VECINFER_WGMMA=off in the environment leaves it out.
 */
export function attentionPrefill(
  out: Tensor,
  q: Tensor,
  keys: Tensor,
  values: Tensor,
  options: AttentionPrefillOptions,
): void {
  const { device } = out, op = "attentionPrefill", { headDim, first = 0, past = 0, slot = 0, layer = null } = options;
  const { kvHeads = keys.width / headDim, heads = out.width / headDim, scale = 1 / Math.sqrt(headDim) } = options;
  const { rows = q.length, qStride = q.stride, kvStride = keys.stride } = options;
  const { softCap = 0, sinkLogits = null, slidingWindow = 0 } = options;
  expectInteger(op, "headDim", headDim, 1);
  expectInteger(op, "kvHeads", kvHeads, 1);
  expectInteger(op, "heads", heads, 1);
  expectInteger(op, "rows", rows);
  expectInteger(op, "first", first);
  expectInteger(op, "past", past);
  expectInteger(op, "slidingWindow", slidingWindow);
  expectScores(op, device, heads, { scale, softCap, sinkLogits });
  if (layer !== null) {
    expectLayer(op, layer, device);
    expectInteger(op, "slot", slot, 0, layer.slots - 1);
    if (layer.kvHeads !== kvHeads || layer.headDim !== headDim) {
      throw mismatch(op, "layer", `${kvHeads} heads of ${headDim} channels`, `${layer.kvHeads} of ${layer.headDim}`);
    }
  } else if (past > 0) {
    throw mismatch(op, "layer", `a KvLayer with the ${past} past tokens`, "none");
  }
  const outDtype = out.dtype === "bf16" ? "bf16" : "f32";
  expectRows(op, "out", out, device, outDtype, rows, heads * headDim);
  expectStrided(op, "q", q, device, rows, heads * headDim, qStride);
  const dtype = keys.dtype === "bf16" || keys.dtype === "f16" ? keys.dtype : "f32";
  expectStrided(op, "keys", keys, device, first + rows, kvHeads * headDim, kvStride, dtype);
  expectStrided(op, "values", values, device, first + rows, kvHeads * headDim, kvStride, dtype);
  const status = device.native.vi_attention_prefill(
    device.context,
    out.pointer,
    q.pointer,
    keys.pointer,
    values.pointer,
    layer === null ? null : layer.pointer,
    sinkLogits === null ? null : sinkLogits.pointer,
    scale,
    softCap,
    slot,
    past,
    first,
    rows,
    slidingWindow,
    heads,
    kvHeads,
    headDim,
    qStride,
    kvStride,
    dtypes[dtype].code,
    dtypes[outDtype].code,
  );
  if (status !== 0) device.check("vi_attention_prefill", status);
}
