/**
 * LlamaForCausalLM over the native ops: RMSNorm, RoPE, grouped-query attention, SwiGLU.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import * as ops from "../ops/mod.ts";
import type { KvCache, Sequence } from "../cache/cache.ts";
import type { CacheShape } from "../cache/format.ts";
import type { LlamaConfig } from "../weights/config.ts";
import { type LlamaWeights, loadLlama } from "./llama_weights.ts";

/** Rows of a prompt that pass through a layer at a time; bounds the memory for activations. */
const PREFILL_ROWS = 512;

/** Called with one layer's keys (after RoPE) and values: f32 [tokens, 2, kvHeads, headDim]. */
export type KvObserver = (layer: number, keysAndValues: Tensor) => void;

/** Options of {@linkcode Llama.prefill}. */
export interface PrefillOptions {
  /** Called as layers are done. */
  onProgress?: (done: number, total: number) => void;
  /** Stops between chunks of rows. The sequence is then as `truncate` to its former length leaves it. */
  signal?: AbortSignal;
  /** Sees keys and values before they are encoded. */
  observe?: KvObserver;
}

/** A Llama model: weights on a device, and the two ways to run them. */
export class Llama implements Disposable {
  /** Sizes and settings from config.json. */
  readonly config: LlamaConfig;
  /** Where the weights are. */
  readonly device: Device;
  /** The weights. */
  readonly weights: LlamaWeights;
  /** Widths of the query, of the keys (or values), and of all three in one row. */
  readonly sizes: { readonly q: number; readonly kv: number; readonly qkv: number };
  readonly #frequencies: Tensor;
  readonly #scale: number;

  /** Takes over loaded weights; see {@linkcode Llama.load}. */
  constructor(device: Device, config: LlamaConfig, weights: LlamaWeights) {
    this.device = device;
    this.config = config;
    this.weights = weights;
    this.#frequencies = Tensor.from(device, ops.ropeFrequencies(config), [config.headDim / 2]);
    const q = config.heads * config.headDim, kv = config.kvHeads * config.headDim;
    this.sizes = { q, kv, qkv: q + 2 * kv };
    this.#scale = 1 / Math.sqrt(config.headDim);
  }

  /** Reads config and weights of a model folder in Hugging Face layout. Throws WeightsError naming file and cause. */
  static async load(
    device: Device,
    folder: string,
    options: { onProgress?: (bytes: number, total: number) => void; signal?: AbortSignal } = {},
  ): Promise<Llama> {
    const { config, weights } = await loadLlama(device, folder, options);
    return new Llama(device, config, weights);
  }

  /** The sizes that a cache for this model needs. */
  get cacheShape(): CacheShape {
    const { layers, kvHeads, headDim } = this.config;
    return { layers, kvHeads, headDim };
  }

  /** Bytes of the weights on the device. */
  get weightBytes(): number {
    return this.weights.bytes;
  }

  /**
   * One step: row r is token `step.ids[r]` at `step.positions[r]` of the sequence in `step.slots[r]`, for which
   * `extend` has made room. Writes `step.logits`. Allocates nothing, reads nothing back, so that it can be recorded.
   */
  forward(step: LlamaStep, cache: KvCache, rows: number): void {
    const { config, weights } = this, stride = this.sizes.qkv;
    ops.embedding(step.residual, step.ids, weights.embedding, { rows });
    ops.rmsnorm(step.normed, step.residual, weights.layers[0].inputNorm, config.rmsNormEps, { rows });
    for (let i = 0; i < config.layers; i++) {
      const layer = weights.layers[i];
      ops.linear(step.qkv, step.normed, layer.qkv, { rows, bias: layer.qkvBias });
      ops.rope(step.qkv, step.positions, this.#frequencies, {
        rows,
        heads: config.heads + config.kvHeads,
        headDim: config.headDim,
        stride,
      });
      cache.layers[i].quantize(step.keys, step.values, step.slots, step.positions, { rows, stride });
      ops.attention(step.attention, step.qkv, cache.layers[i], step.slots, step.positions, {
        rows,
        heads: config.heads,
        scale: this.#scale,
        stride,
      });
      ops.linear(step.hidden, step.attention, layer.output, { rows, bias: layer.outputBias });
      this.#feedForward(step, i, rows);
    }
    ops.linear(step.logits, step.normed, weights.head, { rows });
  }

  /** From the attention's output in `step.hidden` to the next layer's (or the head's) input in `step.normed`. */
  #feedForward(step: LlamaActivations, i: number, rows: number): void {
    const { config, weights } = this, layer = weights.layers[i];
    ops.rmsnorm(step.normed, step.hidden, layer.postNorm, config.rmsNormEps, { rows, residual: step.residual });
    ops.linear(step.gateUp, step.normed, layer.gateUp, { rows, bias: layer.gateUpBias });
    ops.siluMul(step.gated, step.gateUp, { rows });
    ops.linear(step.hidden, step.gated, layer.down, { rows, bias: layer.downBias });
    const norm = weights.layers[i + 1]?.inputNorm ?? weights.norm;
    ops.rmsnorm(step.normed, step.hidden, norm, config.rmsNormEps, { rows, residual: step.residual });
  }

  /**
   * Reads a prompt into a sequence: layer by layer, attention exact over the prompt's own tokens (and over what the
   * sequence already holds, from its cache), each layer's keys and values encoded once its attention is done. So one
   * layer of uncompressed keys and values exists at a time. Writes the last token's logits, f32 [vocabulary], to `logits`.
   */
  prefill(logits: Tensor, sequence: Sequence, ids: ArrayLike<number>, options: PrefillOptions = {}): void {
    for (const _ of this.prefillParts(logits, sequence, ids, options));
    this.device.synchronize();
  }

  /**
   * {@linkcode Llama.prefill} in parts: yields after every {@linkcode PREFILL_ROWS} rows of a layer, so that other work can
   * run in between. Where the generator is left early, by an error or by `return`, the sequence is as `truncate` to its
   * former length leaves it. Without `logits` the model's head is left out.
   */
  *prefillParts(
    logits: Tensor | null,
    sequence: Sequence,
    ids: ArrayLike<number>,
    options: PrefillOptions = {},
  ): Generator<void, void, void> {
    const { config, weights, device, sizes } = this, tokens = ids.length, past = sequence.length;
    if (tokens === 0) throw new RangeError("prefill: no tokens");
    const before = sequence.exactFrom;
    sequence.extend(tokens);
    const owned: Disposable[] = [];
    let complete = false;
    const empty = (dtype: "f32" | "i32", ...shape: number[]): Tensor => {
      const tensor = Tensor.empty(device, dtype, shape);
      owned.push(tensor);
      return tensor;
    };
    try {
      const kvStride = 2 * sizes.kv, chunk = Math.min(tokens, PREFILL_ROWS);
      const idTensor = empty("i32", tokens), slots = empty("i32", tokens), positions = empty("i32", tokens);
      idTensor.write(Int32Array.from(ids));
      slots.write(new Int32Array(tokens).fill(sequence.slot));
      positions.write(Int32Array.from({ length: tokens }, (_, i) => past + i));
      const residual = empty("f32", tokens, config.hiddenSize), normed = empty("f32", tokens, config.hiddenSize);
      const kv = empty("f32", tokens, kvStride), q = empty("f32", chunk, sizes.q);
      const attention = empty("f32", chunk, sizes.q), hidden = empty("f32", chunk, config.hiddenSize);
      const gateUp = empty("f32", chunk, 2 * config.intermediateSize),
        gated = empty("f32", chunk, config.intermediateSize);
      const keys = kv.columns(0, sizes.kv), values = kv.columns(sizes.kv, sizes.kv);
      ops.embedding(residual, idTensor, weights.embedding);
      ops.rmsnorm(normed, residual, weights.layers[0].inputNorm, config.rmsNormEps);
      for (let i = 0; i < config.layers; i++) {
        const layer = weights.layers[i];
        const qWeight = layer.qkv.rows(0, sizes.q), kvWeight = layer.qkv.rows(sizes.q, kvStride);
        const qBias = layer.qkvBias?.rows(0, sizes.q), kvBias = layer.qkvBias?.rows(sizes.q, kvStride);
        ops.linear(kv, normed, kvWeight, { bias: kvBias });
        ops.rope(kv, positions, this.#frequencies, {
          heads: config.kvHeads,
          headDim: config.headDim,
          stride: kvStride,
        });
        options.observe?.(i, kv);
        for (let first = 0; first < tokens; first += chunk) {
          options.signal?.throwIfAborted();
          const rows = Math.min(chunk, tokens - first);
          const input = normed.rows(first, rows);
          ops.linear(q, input, qWeight, { rows, bias: qBias });
          ops.rope(q, positions.rows(first, rows), this.#frequencies, {
            rows,
            heads: config.heads,
            headDim: config.headDim,
          });
          ops.attentionPrefill(attention, q, keys, values, {
            layer: past > 0 ? cacheLayer(sequence, i) : null,
            scale: this.#scale,
            slot: sequence.slot,
            past,
            first,
            rows,
            heads: config.heads,
            kvHeads: config.kvHeads,
            headDim: config.headDim,
            kvStride,
          });
          ops.linear(hidden, attention, layer.output, { rows, bias: layer.outputBias });
          this.#feedForward({ residual: residual.rows(first, rows), normed: input, hidden, gateUp, gated }, i, rows);
          if (first + rows < tokens) yield;
        }
        sequence.expose(sequence.exactFrom);
        cacheLayer(sequence, i).quantize(keys, values, slots, positions, { rows: tokens, stride: kvStride });
        if (past > 0 && i + 1 < config.layers) sequence.expose(before);
        options.onProgress?.(i + 1, config.layers);
        if (i + 1 < config.layers) yield;
      }
      if (logits) ops.linear(logits, normed.rows(tokens - 1, 1), weights.head, { rows: 1 });
      complete = true;
    } finally {
      if (!complete) sequence.truncate(past);
      for (const tensor of owned) tensor[Symbol.dispose]();
    }
  }

  /** Frees the weights. */
  [Symbol.dispose](): void {
    this.#frequencies[Symbol.dispose]();
    this.weights[Symbol.dispose]();
  }
}

function cacheLayer(sequence: Sequence, layer: number): ops.KvLayer {
  return sequence.cache.layers[layer];
}

/** Activations between attention and the next layer, [rows, ...] in f32. */
interface LlamaActivations {
  residual: Tensor;
  normed: Tensor;
  hidden: Tensor;
  gateUp: Tensor;
  gated: Tensor;
}

/** Preallocated memory of {@linkcode Llama.forward} for up to `rows` rows; addresses stay fixed. */
export class LlamaStep implements Disposable {
  /** Rows at most. */
  readonly rows: number;
  /** Token ids, i32 [rows]. */
  readonly ids: Tensor;
  /** Slots of the rows' sequences, i32 [rows]. */
  readonly slots: Tensor;
  /** Positions, i32 [rows]; below 0 for padding. */
  readonly positions: Tensor;
  /** Logits, f32 [rows, vocabulary]. */
  readonly logits: Tensor;
  /** @internal */
  readonly residual: Tensor;
  /** @internal */
  readonly normed: Tensor;
  /** @internal */
  readonly hidden: Tensor;
  /** @internal */
  readonly qkv: Tensor;
  /** @internal A view of qkv. */
  readonly keys: Tensor;
  /** @internal A view of qkv. */
  readonly values: Tensor;
  /** @internal */
  readonly attention: Tensor;
  /** @internal */
  readonly gateUp: Tensor;
  /** @internal */
  readonly gated: Tensor;
  readonly #owned: Tensor[] = [];

  /** Allocates memory for `rows` rows of `model`. */
  constructor(model: Llama, rows: number) {
    const { config, device, sizes } = model;
    const make = (dtype: "f32" | "i32", ...shape: number[]): Tensor => {
      const tensor = Tensor.zeros(device, dtype, shape);
      this.#owned.push(tensor);
      return tensor;
    };
    this.rows = rows;
    this.ids = make("i32", rows);
    this.slots = make("i32", rows);
    this.positions = make("i32", rows);
    this.logits = make("f32", rows, config.vocabularySize);
    this.residual = make("f32", rows, config.hiddenSize);
    this.normed = make("f32", rows, config.hiddenSize);
    this.hidden = make("f32", rows, config.hiddenSize);
    this.qkv = make("f32", rows, sizes.qkv);
    this.keys = this.qkv.columns(sizes.q, sizes.kv);
    this.values = this.qkv.columns(sizes.q + sizes.kv, sizes.kv);
    this.attention = make("f32", rows, sizes.q);
    this.gateUp = make("f32", rows, 2 * config.intermediateSize);
    this.gated = make("f32", rows, config.intermediateSize);
  }

  /** Frees the memory. */
  [Symbol.dispose](): void {
    for (const tensor of this.#owned) tensor[Symbol.dispose]();
  }
}
