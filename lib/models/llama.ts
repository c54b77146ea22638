/**
 * LlamaForCausalLM over the native ops: RMSNorm, RoPE, grouped-query attention, SwiGLU.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import * as ops from "../ops/ops.ts";
import type { KvCache, Sequence } from "../cache/cache.ts";
import type { CacheShape } from "../cache/format.ts";
import type { ModelConfig } from "../weights/config.ts";
import { type LlamaWeights, loadLlama } from "./llama_weights.ts";

/** Called once a layer's attention is in `step.attention`, and its queries, keys (after RoPE) and values in `step.qkv`. */
export type StepObserver = (layer: number) => void;

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
  /** Sees a layer's queries after RoPE, f32 [rows, heads, headDim], a chunk at a time. */
  observeQueries?: (layer: number, queries: Tensor) => void;
  /** Replaces parts of what {@linkcode Llama.prefillPlan} says. */
  plan?: Partial<PrefillPlan>;
}

/** The sizes and types that a prompt passes through the layers with. */
export interface PrefillPlan {
  /** Tokens of a chunk: the f32 activations of this many exist at a time. */
  readonly rows: number;
  /** Type of the prompt's keys and values of one layer, [tokens, 2, kvHeads, headDim]. */
  readonly kv: "f32" | "bf16";
  /** Type of the residual stream between two layers, [tokens, hidden]; inside a layer it is f32. */
  readonly residual: "f32" | "bf16";
}

/** Bytes of residual stream that may be f32 on a GPU: 65536 tokens of 4096 channels. */
const RESIDUAL_BYTES = 2 ** 30;

/** A Llama model: weights on a device, and the two ways to run them. */
export class Llama implements Disposable {
  /** Sizes and settings from config.json. */
  readonly config: ModelConfig;
  /** Where the weights are. */
  readonly device: Device;
  /** The weights. */
  readonly weights: LlamaWeights;
  /** Widths of the query, of the keys (or values), and of all three in one row. */
  readonly sizes: { readonly q: number; readonly kv: number; readonly qkv: number };
  readonly #frequencies: Tensor;
  readonly #scale: number;

  /** Takes over loaded weights; see {@linkcode Llama.load}. */
  constructor(device: Device, config: ModelConfig, weights: LlamaWeights) {
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

  /** Attention's output projection of each layer, [hidden, heads * headDim]. */
  get outputs(): readonly Tensor[] {
    return this.weights.layers.map(({ output }) => output);
  }

  /** Memory of a decode step for up to `rows` rows. */
  step(rows: number): Step {
    return new Step(this, rows);
  }

  /** Bytes of the weights on the device. */
  get weightBytes(): number {
    return this.weights.bytes;
  }

  /**
   * One step: row r is token `step.ids[r]` at `step.positions[r]` of the sequence in `step.slots[r]`, for which
   * `extend` has made room. Writes `step.logits`. Allocates nothing, reads nothing back, so that it can be recorded.
   * Between this and the next step `cache.settle` lets a cache that codes tokens in groups do so.
   */
  forward(step: Step, cache: KvCache, rows: number, observe?: StepObserver): void {
    const { config, weights } = this, stride = this.sizes.qkv;
    ops.embedding(step.residual, step.ids, weights.embedding, { rows });
    const epsilon = config.rmsNormEps;
    for (let i = 0; i < config.layers; i++) {
      const layer = weights.layers[i];
      ops.linear(step.qkv, step.residual, layer.qkv, { rows, norm: layer.inputNorm, epsilon, bias: layer.qkvBias });
      const queries = step.qkv, { keys, values, slots, positions } = step, { heads, kvHeads, headDim } = config;
      const cached = cache.layers[i];
      if (observe) { // in two calls, as the one need not leave rotated keys behind
        ops.rope(queries, positions, this.#frequencies, { rows, heads: heads + kvHeads, headDim, stride });
        cached.quantize(keys, values, slots, positions, { rows, stride });
      } else {
        cached.ropeQuantize(queries, keys, values, slots, positions, this.#frequencies, { rows, heads, stride });
      }
      ops.attention(step.attention, step.qkv, cache.layers[i], step.slots, step.positions, {
        rows,
        heads: config.heads,
        scale: this.#scale,
        stride,
      });
      observe?.(i);
      ops.linear(step.residual, step.attention, layer.output, { rows, output: "sum", bias: layer.outputBias });
      ops.linear(step.gated, step.residual, layer.gateUp, {
        rows,
        output: "silu",
        norm: layer.postNorm,
        epsilon,
        bias: layer.gateUpBias,
      });
      ops.linear(step.residual, step.gated, layer.down, { rows, output: "sum", bias: layer.downBias });
    }
    ops.linear(step.logits, step.residual, weights.head, { rows, norm: weights.norm, epsilon });
  }

  /**
   * How a prompt of `tokens` tokens is read.
   *
   * On the CPU: chunks of 512 tokens, everything in f32. On a GPU keys and values of the layer are bf16, which is what the
   * attention there multiplies. The residual stream of all tokens is f32 up to 1 GiB of it and bf16 above, rounded once a layer;
   * chunks have 2048 tokens, and 1024 beside a bf16 residual. So a prompt of 196608 tokens through layers of 4096
   * channels, 8 KV heads of 128 and 14336 inner channels needs 1.61 GB (residual) + 0.81 GB (keys, values) + 0.3 to 0.4 GB (chunk and
   * scratch memory): below 3 GB beside weights and codes.
   */
  prefillPlan(tokens: number): PrefillPlan {
    if (this.device.name === "cpu") return { rows: 512, kv: "f32", residual: "f32" };
    if (tokens * this.config.hiddenSize * 4 <= RESIDUAL_BYTES) return { rows: 2048, kv: "bf16", residual: "f32" };
    return { rows: 1024, kv: "bf16", residual: "bf16" };
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
   * {@linkcode Llama.prefill} in parts: yields after every chunk of a layer, so that other work can run in between. Where the
   * generator is left early, by an error or by `return`, the sequence is as `truncate` to its former length leaves it.
   * Without `logits` the model's head is left out.
   */
  *prefillParts(
    logits: Tensor | null,
    sequence: Sequence,
    ids: ArrayLike<number>,
    options: PrefillOptions = {},
  ): Generator<void, void, void> {
    const { config, weights } = this, tokens = ids.length, past = sequence.length;
    if (tokens === 0) throw new RangeError("prefill: no tokens");
    const before = sequence.exactFrom, chosen = { ...this.prefillPlan(tokens), ...options.plan };
    // Who looks at keys and values gets them before any rounding.
    const plan: PrefillPlan = options.observe ? { ...chosen, kv: "f32" } : chosen;
    sequence.extend(tokens);
    let prompt: Prompt | undefined, complete = false;
    try {
      prompt = new Prompt(this, ids, past, sequence.slot, plan);
      const { chunk } = prompt;
      for (let first = 0; first < tokens; first += chunk) {
        const rows = Math.min(chunk, tokens - first), to = prompt.residual.at(first, rows);
        ops.embedding(to, prompt.ids.rows(first, rows), weights.embedding, { rows });
        prompt.residual.store(first, rows);
      }
      for (let i = 0; i < config.layers; i++) {
        for (let first = 0; first < tokens; first += chunk) this.#keysAndValues(prompt, i, first);
        options.observe?.(i, prompt.kv.all);
        for (let first = 0; first < tokens; first += chunk) {
          options.signal?.throwIfAborted();
          this.#layer(prompt, i, first, sequence, past, options.observeQueries);
          if (first + chunk < tokens) yield;
        }
        sequence.expose(sequence.exactFrom);
        for (let first = 0; first < tokens; first += chunk) {
          const rows = Math.min(chunk, tokens - first), [keys, values] = this.#sides(prompt.kv.load(first, rows));
          const positions = prompt.positions.rows(first, rows);
          sequence.cache.layers[i].quantize(keys, values, prompt.slots, positions, { rows, stride: keys.stride });
        }
        if (past > 0 && i + 1 < config.layers) sequence.expose(before);
        options.onProgress?.(i + 1, config.layers);
        if (i + 1 < config.layers) yield;
      }
      if (logits) {
        const last = prompt.residual.load(tokens - 1, 1), { norm } = weights;
        ops.linear(logits, last, weights.head, { rows: 1, norm, epsilon: config.rmsNormEps });
      }
      complete = true;
    } finally {
      if (!complete) sequence.truncate(past);
      prompt?.[Symbol.dispose]();
    }
  }

  /** Views of the keys and of the values in [rows, 2, kvHeads, headDim]. */
  #sides(kv: Tensor): [Tensor, Tensor] {
    return [kv.columns(0, this.sizes.kv), kv.columns(this.sizes.kv, this.sizes.kv)];
  }

  /**
   * Moves the queries or keys at the beginning of rows, f32 [rows, heads, headDim], by so many positions, i32 [rows]: RoPE's rotations
   * add up.
   */
  rotate(x: Tensor, by: Tensor, heads: number): void {
    ops.rope(x, by, this.#frequencies, { rows: x.length, heads, headDim: this.config.headDim, stride: x.stride });
  }

  /** Keys and values of one layer for the chunk of a prompt that begins at token `first`. */
  #keysAndValues(prompt: Prompt, i: number, first: number): void {
    const { config, sizes } = this, { inputNorm: norm, qkv, qkvBias } = this.weights.layers[i];
    const rows = Math.min(prompt.chunk, prompt.tokens - first), x = prompt.residual.load(first, rows);
    const kv = prompt.kv.at(first, rows), stride = 2 * sizes.kv;
    const bias = qkvBias?.rows(sizes.q, stride), epsilon = config.rmsNormEps;
    ops.linear(kv, x, qkv.rows(sizes.q, stride), { rows, norm, epsilon, bias });
    const { kvHeads: heads, headDim } = config;
    ops.rope(kv, prompt.positions.rows(first, rows), this.#frequencies, { rows, heads, headDim, stride });
    prompt.kv.store(first, rows);
  }

  /** One layer for the chunk of a prompt that begins at token `first`, over the keys and values of all its tokens. */
  #layer(
    prompt: Prompt,
    i: number,
    first: number,
    sequence: Sequence,
    past: number,
    observeQueries?: PrefillOptions["observeQueries"],
  ): void {
    const { config, sizes } = this, layer = this.weights.layers[i], { heads, kvHeads, headDim } = config;
    const rows = Math.min(prompt.chunk, prompt.tokens - first), x = prompt.residual.load(first, rows);
    const epsilon = config.rmsNormEps, { q, attention, gated } = prompt;
    const qWeight = layer.qkv.rows(0, sizes.q), qBias = layer.qkvBias?.rows(0, sizes.q);
    ops.linear(q, x, qWeight, { rows, norm: layer.inputNorm, epsilon, bias: qBias });
    ops.rope(q, prompt.positions.rows(first, rows), this.#frequencies, { rows, heads, headDim });
    observeQueries?.(i, q.rows(0, rows));
    const [keys, values] = this.#sides(prompt.kv.all);
    ops.attentionPrefill(attention, q, keys, values, {
      layer: past > 0 ? sequence.cache.layers[i] : null,
      scale: this.#scale,
      slot: sequence.slot,
      past,
      first,
      rows,
      heads,
      kvHeads,
      headDim,
      kvStride: keys.stride,
    });
    ops.linear(x, attention, layer.output, { rows, output: "sum", bias: layer.outputBias });
    ops.linear(gated, x, layer.gateUp, {
      rows,
      norm: layer.postNorm,
      epsilon,
      output: "silu",
      bias: layer.gateUpBias,
    });
    ops.linear(x, gated, layer.down, { rows, output: "sum", bias: layer.downBias });
    prompt.residual.store(first, rows);
  }

  /** Bytes of weights that a step reads: all but the table of embeddings, of which it reads a row, unless it is the head too. */
  get stepBytes(): number {
    const { bytes, embedding, head } = this.weights;
    return bytes - (head === embedding ? 0 : embedding.byteLength);
  }

  /** Frees the weights. */
  [Symbol.dispose](): void {
    this.#frequencies[Symbol.dispose]();
    this.weights[Symbol.dispose]();
  }
}

/** Rows of all tokens of a prompt, kept as f32 or rounded to bf16, and worked on as f32 a chunk at a time. */
class PromptRows implements Disposable {
  /** [tokens, width]. */
  readonly all: Tensor;
  /** f32 [chunk, width], where the rows themselves are not f32. */
  readonly #chunk: Tensor | null;

  constructor(device: Device, dtype: "f32" | "bf16", tokens: number, chunk: number, width: number) {
    this.all = Tensor.empty(device, dtype, [tokens, width]);
    this.#chunk = dtype === "f32" ? null : Tensor.empty(device, "f32", [chunk, width]);
  }

  /** Memory for `rows` rows from `first` on in f32; its contents are undefined. */
  at(first: number, rows: number): Tensor {
    return this.#chunk === null ? this.all.rows(first, rows) : this.#chunk.rows(0, rows);
  }

  /** The rows in f32. */
  load(first: number, rows: number): Tensor {
    const to = this.at(first, rows);
    if (this.#chunk !== null) ops.convert(to, this.all.rows(first, rows));
    return to;
  }

  /** Keeps what was written to the memory of `at` or `load`. */
  store(first: number, rows: number): void {
    if (this.#chunk !== null) ops.convert(this.all.rows(first, rows), this.#chunk.rows(0, rows));
  }

  [Symbol.dispose](): void {
    this.all[Symbol.dispose]();
    this.#chunk?.[Symbol.dispose]();
  }
}

/** Memory of {@linkcode Llama.prefillParts}: of all tokens residual stream, keys and values of one layer; the rest a chunk. */
class Prompt implements Disposable {
  readonly tokens: number;
  readonly chunk: number;
  readonly ids: Tensor;
  readonly positions: Tensor;
  readonly slots: Tensor;
  readonly residual: PromptRows;
  readonly kv: PromptRows;
  readonly q: Tensor;
  readonly attention: Tensor;
  readonly gated: Tensor;
  readonly #owned: DisposableStack = new DisposableStack();

  constructor(model: Llama, ids: ArrayLike<number>, past: number, slot: number, plan: PrefillPlan) {
    const { device, config, sizes } = model, tokens = ids.length, chunk = Math.min(tokens, plan.rows);
    if (!Number.isInteger(chunk) || chunk < 1) {
      throw new RangeError(`prefill: rows is ${plan.rows}; at least 1 is needed`);
    }
    const keep = <T extends Disposable>(owned: T): T => this.#owned.use(owned);
    const rows = (width: number) => keep(Tensor.empty(device, "f32", [chunk, width]));
    this.tokens = tokens;
    this.chunk = chunk;
    try {
      this.ids = keep(Tensor.from(device, Int32Array.from(ids)));
      this.positions = keep(Tensor.from(device, Int32Array.from({ length: tokens }, (_, i) => past + i)));
      this.slots = keep(Tensor.from(device, new Int32Array(chunk).fill(slot)));
      this.residual = keep(new PromptRows(device, plan.residual, tokens, chunk, config.hiddenSize));
      this.kv = keep(new PromptRows(device, plan.kv, tokens, chunk, 2 * sizes.kv));
      this.q = rows(sizes.q);
      this.attention = rows(sizes.q);
      this.gated = rows(config.intermediateSize);
    } catch (error) {
      this.#owned.dispose();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    this.#owned.dispose();
  }
}

/** Preallocated memory of {@linkcode Llama.forward} for up to `rows` rows; addresses stay fixed. */
export class Step implements Disposable {
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
  readonly qkv: Tensor;
  /** @internal A view of qkv. */
  readonly keys: Tensor;
  /** @internal A view of qkv. */
  readonly values: Tensor;
  /** @internal */
  readonly attention: Tensor;
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
    this.qkv = make("f32", rows, sizes.qkv);
    this.keys = this.qkv.columns(sizes.q, sizes.kv);
    this.values = this.qkv.columns(sizes.q + sizes.kv, sizes.kv);
    this.attention = make("f32", rows, sizes.q);
    this.gated = make("f32", rows, config.intermediateSize);
  }

  /** Frees the memory. */
  [Symbol.dispose](): void {
    for (const tensor of this.#owned) tensor[Symbol.dispose]();
  }
}
