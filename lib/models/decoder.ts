/**
 * A decoder-only transformer over the native ops. A layer is written once, in `runLayer`, and serves decode steps and
 * prompts, which differ in how their rows attend.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { attention, attentionPrefill, embedding, type KvLayer, linear, rope, ropeRound } from "../ops/ops.ts";
import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import type { CacheShape } from "../cache/bytes.ts";
import type { ModelConfig } from "../weights/model_config.ts";
import type { AttentionPlan, FeedForwardPlan, ModelPlan } from "./architecture.ts";
import { type Chunk, type PrefillOptions, type PrefillPlan, prefillPlan, Prompt } from "./prompt.ts";
import { ropeFrequencies } from "./rope.ts";
import { Step, type StepObserver } from "./step.ts";
import type { DecoderWeights, LayerWeights, Product } from "./weights/decoder_weights.ts";

/** A layer: weights, and what the plan says of it. */
interface Layer extends LayerWeights {
  /** The queries' part of qkv. */
  readonly q: Product;
  /** The keys' and values' part. */
  readonly kv: Product;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Angles a position, f32 [headDim / 2]. */
  readonly frequencies: Tensor;
  /** Factor of the scores. */
  readonly scale: number;
  readonly activation: FeedForwardPlan["activation"];
  /** Of the norms. */
  readonly epsilon: number;
}

/** Rows that pass through a layer together: a decode step, or a chunk of a prompt. */
interface Rows {
  /** Residual stream, f32 [rows, hidden]. */
  readonly residual: Tensor;
  /** Output of attention, [rows, heads * headDim]. */
  readonly attention: Tensor;
  /** Inner channels of the feed-forward part, [rows, intermediate]. */
  readonly gated: Tensor;
}

/** From the residual stream of the first `count` of `rows` to `rows.attention`; `cached` is the layer's cache. */
type Attend<R extends Rows> = (layer: Layer, rows: R, count: number, cached: KvLayer) => void;

/** One layer: x += attention(norm(x)), then x += feedForward(norm(x)). */
function runLayer<R extends Rows>(layer: Layer, x: R, rows: number, cached: KvLayer, attend: Attend<R>): void {
  const { residual, attention, gated } = x, { output, gateUp, down, feedForwardNorm: norm, epsilon } = layer;
  attend(layer, x, rows, cached);
  linear(residual, attention, output.weight, { rows, output: "sum", bias: output.bias });
  linear(gated, residual, gateUp.weight, { rows, norm, epsilon, output: layer.activation, bias: gateUp.bias });
  linear(residual, gated, down.weight, { rows, output: "sum", bias: down.bias });
}

/** Queries, keys and values, or a part of them: to = part(norm(x)). */
function project(to: Tensor, x: Tensor, layer: Layer, part: Product, rows: number): void {
  linear(to, x, part.weight, { rows, norm: layer.attentionNorm, epsilon: layer.epsilon, bias: part.bias });
}

/** A decode step: one call rotates, encodes and stores; then the queries read the cache. */
function attendStep(layer: Layer, step: Step, rows: number, cached: KvLayer): void {
  const { qkv, keys, values, slots, positions } = step, { heads, scale } = layer, stride = qkv.width;
  project(qkv, step.residual, layer, layer.qkv, rows);
  cached.ropeQuantize(qkv, keys, values, slots, positions, layer.frequencies, { rows, heads, stride });
  attention(step.attention, qkv, cached, slots, positions, { rows, heads, scale, stride });
}

/** The same in two calls, as the one need not leave rotated keys behind. */
function attendObservedStep(layer: Layer, step: Step, rows: number, cached: KvLayer): void {
  const { qkv, keys, values, slots, positions } = step, { heads, headDim, scale } = layer, stride = qkv.width;
  project(qkv, step.residual, layer, layer.qkv, rows);
  rope(qkv, positions, layer.frequencies, { rows, heads: heads + layer.kvHeads, headDim, stride });
  cached.quantize(keys, values, slots, positions, { rows, stride });
  attention(step.attention, qkv, cached, slots, positions, { rows, heads, scale, stride });
}

/** A chunk of a prompt: over the keys and values of all its tokens, and over what the cache holds before them. */
function attendChunk(layer: Layer, chunk: Chunk, rows: number, cached: KvLayer): void {
  const { prompt, queries, first } = chunk, { keys, values, past, slot } = prompt;
  const { heads, kvHeads, headDim, scale } = layer;
  if (chunk.qkv !== null) queriesKeysAndValues(layer, chunk, chunk.qkv);
  else {
    project(queries, chunk.residual, layer, layer.q, rows);
    rope(queries, chunk.positions, layer.frequencies, { rows, heads, headDim });
  }
  attentionPrefill(chunk.attention, queries, keys, values, {
    layer: past > 0 ? cached : null,
    scale,
    slot,
    past,
    first,
    rows,
    heads,
    kvHeads,
    headDim,
    kvStride: keys.stride,
  });
}

/** Queries, keys and values of a chunk by one product. Rows attend to their own chunk's keys and values and to those before. */
function queriesKeysAndValues(layer: Layer, { prompt, residual, positions, first, rows }: Chunk, qkv: Tensor): void {
  const q = layer.heads * layer.headDim, kv = layer.kvHeads * layer.headDim;
  const to = { keys: prompt.keys.rows(first, rows), values: prompt.values.rows(first, rows) };
  project(qkv, residual, layer, layer.qkv, rows);
  ropeRound(qkv.columns(0, q), qkv.columns(q, kv), qkv.columns(q + kv, kv), to, positions, layer.frequencies, { rows });
}

/** Keys and values of a chunk in one layer, before any row of the prompt attends: where queries have a product of their own. */
function keysAndValues(layer: Layer, chunk: Chunk): void {
  const { kv, rows } = chunk, { kvHeads: heads, headDim } = layer;
  project(kv, chunk.residual, layer, layer.kv, rows);
  rope(kv, chunk.positions, layer.frequencies, { rows, heads, headDim, stride: kv.width });
}

/** A model: weights on a device, and the ways to run them. */
export class Decoder implements Disposable {
  /** Sizes and settings of config.json. */
  readonly config: ModelConfig;
  /** Where the weights are. */
  readonly device: Device;
  /** The sizes that a cache for this model needs. */
  readonly cacheShape: CacheShape;
  readonly #weights: DecoderWeights;
  readonly #layers: readonly Layer[];
  /** One of each rotation that the layers have. */
  readonly #frequencies: Map<string, Tensor> = new Map();

  /** Takes over the weights that the plan says. */
  constructor(device: Device, config: ModelConfig, plan: ModelPlan, weights: DecoderWeights) {
    const { layers, kvHeads, headDim } = config;
    this.device = device;
    this.config = config;
    this.cacheShape = { layers, kvHeads, headDim };
    this.#weights = weights;
    this.#layers = plan.layers.map(({ attention, feedForward }, i) => {
      const { heads, kvHeads, headDim, scale } = attention, own = weights.layers[i];
      const { q, kv } = parts(own.qkv, attention), frequencies = this.#frequenciesOf(attention);
      const { activation } = feedForward, epsilon = config.rmsNormEps;
      return { ...own, q, kv, heads, kvHeads, headDim, frequencies, scale, activation, epsilon };
    });
  }

  #frequenciesOf({ rotation: { headDim, ropeTheta, ropeScaling } }: AttentionPlan): Tensor {
    const key = JSON.stringify([headDim, ropeTheta, ropeScaling]);
    let frequencies = this.#frequencies.get(key);
    if (!frequencies) {
      frequencies = Tensor.from(this.device, ropeFrequencies({ headDim, ropeTheta, ropeScaling }));
      this.#frequencies.set(key, frequencies);
    }
    return frequencies;
  }

  /** Attention's output projection of each layer, [hidden, heads * headDim]. */
  get outputs(): readonly Tensor[] {
    return this.#layers.map(({ output }) => output.weight);
  }

  /** Bytes of the weights on the device. */
  get weightBytes(): number {
    return this.#weights.bytes;
  }

  /** Bytes of weights that a step reads: all but the table of embeddings, of which it reads a row, unless it is the head too. */
  get stepBytes(): number {
    const { bytes, embedding, head } = this.#weights;
    return bytes - (head === embedding ? 0 : embedding.byteLength);
  }

  /** Memory of a decode step for up to `rows` rows. */
  step(rows: number): Step {
    return new Step(this.device, this.config, rows);
  }

  /**
   * One step: row r is token `step.ids[r]` at `step.positions[r]` of the sequence in `step.slots[r]`, for which
   * `extend` has made room. Writes `step.logits`. Allocates nothing, reads nothing back, so that it can be recorded.
   */
  forward(step: Step, cache: KvCache, rows: number): void {
    const layers = this.#layers, cached = cache.layers;
    embedding(step.residual, step.ids, this.#weights.embedding, { rows });
    for (let i = 0; i < layers.length; i++) runLayer(layers[i], step, rows, cached[i], attendStep);
    this.#head(step.logits, step.residual, rows);
  }

  /**
   * {@linkcode Decoder.forward} that shows each layer's queries, keys, values and attention. It is another sequence of ops: keys are
   * rotated and stored in two calls, and may differ from the fused call's by rounding.
   */
  forwardObserved(step: Step, cache: KvCache, rows: number, observe: StepObserver): void {
    embedding(step.residual, step.ids, this.#weights.embedding, { rows });
    this.#layers.forEach((layer, i) => {
      runLayer(layer, step, rows, cache.layers[i], attendObservedStep);
      observe(i);
    });
    this.#head(step.logits, step.residual, rows);
  }

  #head(logits: Tensor, residual: Tensor, rows: number): void {
    const { head, norm } = this.#weights;
    linear(logits, residual, head, { rows, norm, epsilon: this.config.rmsNormEps });
  }

  /** How a prompt of `tokens` tokens is read, see `prompt.ts`. */
  prefillPlan(tokens: number): PrefillPlan {
    return prefillPlan(this.device, this.config, tokens);
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
   * {@linkcode Decoder.prefill} in parts: yields after every chunk of a layer, so that other work can run in between. Where the
   * generator is left early, by an error or by `return`, the sequence is as `truncate` to its former length leaves it.
   * Without `logits` the model's head is left out.
   */
  *prefillParts(
    logits: Tensor | null,
    sequence: Sequence,
    ids: ArrayLike<number>,
    options: PrefillOptions = {},
  ): Generator<void, void, void> {
    const tokens = ids.length, past = sequence.length, layers = this.#layers;
    if (tokens === 0) throw new RangeError("prefill: no tokens");
    const before = sequence.exactFrom, chosen = { ...this.prefillPlan(tokens), ...options.plan };
    // Who looks at queries, keys and values gets them before any rounding.
    const seen = options.observe || options.observeQueries,
      plan: PrefillPlan = seen ? { ...chosen, kv: "f32" } : chosen;
    sequence.extend(tokens);
    let prompt: Prompt | undefined, complete = false;
    try {
      prompt = new Prompt(this.device, this.config, ids, past, sequence.slot, plan);
      for (const chunk of prompt.chunks) {
        embedding(chunk.residual, chunk.ids, this.#weights.embedding, { rows: chunk.rows });
        prompt.residual.store(chunk.first, chunk.rows);
      }
      for (let i = 0; i < layers.length; i++) {
        yield* this.#promptLayer(i, prompt, sequence, options);
        sequence.expose(sequence.exactFrom);
        for (const { first, rows, keys, values, positions } of prompt.chunks) {
          prompt.kv.load(first, rows);
          sequence.cache.layers[i].quantize(keys, values, prompt.slots, positions, { rows, stride: keys.stride });
        }
        if (past > 0 && i + 1 < layers.length) sequence.expose(before);
        options.onProgress?.(i + 1, layers.length);
        if (i + 1 < layers.length) yield;
      }
      if (logits) {
        const { first, rows, residual } = prompt.chunks[prompt.chunks.length - 1];
        prompt.residual.load(first, rows);
        this.#head(logits, residual.rows(rows - 1, 1), 1);
      }
      complete = true;
    } finally {
      if (!complete) sequence.truncate(past);
      prompt?.[Symbol.dispose]();
    }
  }

  /** One layer of a prompt: keys and values of all its tokens, where they have a product of their own, then chunk by chunk what is left. */
  *#promptLayer(i: number, prompt: Prompt, sequence: Sequence, options: PrefillOptions): Generator<void, void, void> {
    const layer = this.#layers[i], { chunks, residual, kv } = prompt;
    for (const chunk of prompt.joint ? [] : chunks) {
      residual.load(chunk.first, chunk.rows);
      keysAndValues(layer, chunk);
      kv.store(chunk.first, chunk.rows);
    }
    options.observe?.(i, kv.all);
    for (const chunk of chunks) {
      const { first, rows } = chunk;
      options.signal?.throwIfAborted();
      residual.load(first, rows);
      runLayer(layer, chunk, rows, sequence.cache.layers[i], attendChunk);
      options.observeQueries?.(i, chunk.queries.rows(0, rows));
      residual.store(first, rows);
      if (chunk !== chunks[chunks.length - 1]) yield;
    }
  }

  /**
   * Moves the queries or keys of a layer, at the beginning of rows, f32 [rows, heads, headDim], by so many positions,
   * i32 [rows]: RoPE's rotations add up.
   */
  rotate(x: Tensor, by: Tensor, heads: number, layer: number = 0): void {
    const { frequencies, headDim } = this.#layers[layer];
    rope(x, by, frequencies, { rows: x.length, heads, headDim, stride: x.stride });
  }

  /** Frees the weights. */
  [Symbol.dispose](): void {
    for (const frequencies of this.#frequencies.values()) frequencies[Symbol.dispose]();
    this.#weights[Symbol.dispose]();
  }
}

/** Views of the queries' and of the keys' and values' part of a joint projection. */
function parts({ weight, bias }: Product, { heads, kvHeads, headDim }: AttentionPlan): { q: Product; kv: Product } {
  const q = heads * headDim, kv = 2 * kvHeads * headDim;
  return {
    q: { weight: weight.rows(0, q), bias: bias?.rows(0, q) },
    kv: { weight: weight.rows(q, kv), bias: bias?.rows(q, kv) },
  };
}
