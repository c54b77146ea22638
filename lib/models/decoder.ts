/**
 * A decoder-only transformer over the native ops: its weights, and the two ways to run its layers, decode steps and prompts.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { embedding, linear, rope, scale, type ScoreOptions } from "../ops/ops.ts";
import type { KvCache } from "../cache/cache.ts";
import type { Sequence } from "../cache/sequence.ts";
import type { CacheShape } from "../cache/bytes.ts";
import { cacheShapeOf, type ModelConfig } from "../weights/model_config.ts";
import type { AttentionPlan, ModelPlan, Rotation } from "./architecture.ts";
import {
  attendChunk,
  attendObservedStep,
  attendStep,
  keysAndValues,
  type Layer,
  runLayer,
  type Turn,
} from "./layer.ts";
import {
  areAlike,
  hiddenStates,
  type PrefillOptions,
  type PrefillPlan,
  prefillPlan,
  Prompt,
  type PromptRead,
} from "./prompt.ts";
import { ropeFactor, ropeFrequencies } from "./rope.ts";
import { type RowSizes, rowSizes } from "./rows.ts";
import { Step, type StepObserver } from "./step.ts";
import type { DecoderWeights, Product } from "./weights/decoder_weights.ts";

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
  /** Factors of embedding and logits, and these' soft cap. */
  readonly #scales: { readonly embedding: number; readonly logits: number; readonly cap: number };
  readonly #sizes: RowSizes;
  /** One of each rotation that the layers have. */
  readonly #turns: Map<string, Turn> = new Map();

  /** Takes over the weights that the plan says. */
  constructor(device: Device, config: ModelConfig, plan: ModelPlan, weights: DecoderWeights) {
    this.device = device;
    this.config = config;
    this.cacheShape = cacheShapeOf(config);
    this.#weights = weights;
    this.#sizes = rowSizes(plan);
    this.#scales = { embedding: plan.embeddingScale ?? 1, logits: plan.logitScale ?? 1, cap: plan.logitCap ?? 0 };
    this.#layers = plan.layers.map(({ attention, feedForward, residualScale = 1 }, i): Layer => {
      const { heads, kvHeads, headDim, scale, softCap = 0, rotation, headNorms } = attention, own = weights.layers[i];
      const turn = rotation && this.#turnOf(rotation), { activation, router } = feedForward;
      const plain = turn && turn.rotaryDim === headDim && !turn.interleaved && turn.factor === 1 && !headNorms;
      return {
        ...own,
        ...parts(own.qkv, attention),
        heads,
        kvHeads,
        headDim,
        wholeNorms: headNorms?.whole ?? false,
        turn,
        plainFrequencies: plain ? turn.frequencies : null,
        scores: { scale, softCap, sinkLogits: own.sinkLogits ?? null },
        activation,
        route: router?.method,
        epsilon: config.rmsNormEps,
        residualScale,
      };
    });
  }

  #turnOf({ headDim, rotaryDim = headDim, ropeTheta, ropeScaling, interleaved = false }: Rotation): Turn {
    const key = JSON.stringify([headDim, rotaryDim, ropeTheta, ropeScaling, interleaved]), known = this.#turns.get(key);
    if (known) return known;
    const angles = ropeFrequencies({ headDim, rotaryDim, ropeTheta, ropeScaling });
    const frequencies = Tensor.from(this.device, angles), factor = ropeFactor(ropeScaling);
    const turn = { frequencies, rotaryDim, interleaved, factor };
    this.#turns.set(key, turn);
    return turn;
  }

  /** Attention's output projection of each layer, [hidden, heads * headDim]. */
  get outputs(): readonly Tensor[] {
    return this.#layers.map(({ output }) => output.weight);
  }

  /** Bytes of the weights on the device. */
  get weightBytes(): number {
    return this.#weights.bytes;
  }

  /**
   * Bytes of weights that a step of one row reads: all but the table of embeddings, of which it reads a row, unless it is the head
   * too, and of experts the chosen ones.
   */
  get stepBytes(): number {
    const { bytes, embedding, head, layers } = this.#weights, { experts } = this.#sizes;
    const matrices = layers.filter(({ router }) => router).flatMap(({ gateUp, down }) => [gateUp.weight, down.weight]);
    const unread = experts ? 1 - experts.top / experts.count : 0;
    const rest = matrices.reduce((sum, { byteLength }) => sum + unread * byteLength, 0);
    return bytes - Math.round(rest) - (head === embedding ? 0 : embedding.byteLength);
  }

  /** Memory of a decode step for up to `rows` rows. */
  step(rows: number): Step {
    return new Step(this.device, this.#sizes, rows);
  }

  /**
   * One step: row r is token `step.ids[r]` at `step.positions[r]` of the sequence in `step.slots[r]`, for which
   * `extend` has made room. Writes `step.logits`. Allocates nothing, reads nothing back, so that it can be recorded.
   */
  forward(step: Step, cache: KvCache, rows: number): void {
    const layers = this.#layers, cached = cache.layers;
    this.#embed(step.residual, step.ids, rows);
    for (let i = 0; i < layers.length; i++) runLayer(layers[i], step, rows, cached[i], attendStep);
    this.#head(step.logits, step.residual, rows);
  }

  /**
   * {@linkcode Decoder.forward} that shows each layer's queries, keys, values and attention. It is another sequence of ops: keys are
   * rotated and stored in two calls, and may differ from the fused call's by rounding.
   */
  forwardObserved(step: Step, cache: KvCache, rows: number, observe: StepObserver): void {
    this.#embed(step.residual, step.ids, rows);
    this.#layers.forEach((layer, i) => {
      runLayer(layer, step, rows, cache.layers[i], attendObservedStep);
      observe(i);
    });
    this.#head(step.logits, step.residual, rows);
  }

  #embed(residual: Tensor, ids: Tensor, rows: number): void {
    const { embedding: factor } = this.#scales;
    embedding(residual, ids, this.#weights.embedding, { rows });
    if (factor !== 1) scale(residual, factor, { rows });
  }

  #head(logits: Tensor, residual: Tensor, rows: number): void {
    const { head, norm } = this.#weights, { logits: factor, cap } = this.#scales;
    linear(logits, residual, head, { rows, norm, epsilon: this.config.rmsNormEps });
    if (factor !== 1 || cap !== 0) scale(logits, factor, { cap, rows });
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
   * generator is left early, by an error or by `return`, the sequence is as `Sequence.abandon` leaves it.
   * Without `logits` the model's head is left out.
   */
  prefillParts(
    logits: Tensor | null,
    sequence: Sequence,
    ids: ArrayLike<number>,
    options: PrefillOptions = {},
  ): Generator<void, void, void> {
    return this.prefillTogether([{ sequence, ids, logits }], options);
  }

  /**
   * {@linkcode Decoder.prefillParts} of several sequences of one cache in one pass: what short prompts gain by, since products are of all
   * their rows together. A sequence gets what it gets alone, bit for bit. Throws RangeError where it would not ({@linkcode areAlike}): on a GPU
   * prompts of less than 256 tokens and more than a chunk together.
   */
  *prefillTogether(reads: readonly PromptRead[], options: PrefillOptions = {}): Generator<void, void, void> {
    const layers = this.#layers, plan = this.#planOf(reads, options);
    const read = reads.map(({ sequence }) => ({ sequence, past: sequence.length, before: sequence.starts }));
    const { cache } = reads[0].sequence;
    let prompt: Prompt | undefined, complete = false;
    try {
      for (const { sequence, ids } of reads) sequence.extend(ids.length);
      const parts = reads.map(({ sequence: { slot }, ids }, i) => ({ ids, slot, past: read[i].past }));
      prompt = new Prompt(this.device, this.#sizes, parts, plan);
      for (const chunk of prompt.chunks) {
        this.#embed(chunk.residual, chunk.ids, chunk.rows);
        prompt.residual.store(chunk.first, chunk.rows);
      }
      for (let i = 0; i < layers.length; i++) {
        yield* this.#promptLayer(i, prompt, cache, options);
        for (const { sequence } of read) sequence.expose();
        for (const { first, rows, keys, values, slots, positions } of prompt.chunks) {
          prompt.kv.load(first, rows);
          cache.layers[i].quantize(keys, values, slots, positions, { rows, stride: keys.stride });
        }
        if (i + 1 < layers.length) {
          for (const { sequence, past, before } of read) if (past > 0) sequence.expose(before);
        }
        options.onProgress?.(i + 1, layers.length);
        if (i + 1 < layers.length) yield;
      }
      if (options.observeHidden) {
        yield* hiddenStates(prompt, this.#weights.norm, this.config.rmsNormEps, options.observeHidden);
      }
      let last = -1;
      for (const { ids, logits } of reads) {
        last += ids.length;
        if (!logits) continue;
        prompt.residual.load(last, 1);
        this.#head(logits, prompt.residual.at(last, 1), 1);
      }
      complete = true;
    } finally {
      if (!complete) { for (const { sequence, past } of read) sequence.abandon(past); }
      prompt?.[Symbol.dispose]();
    }
  }

  /** The plan for sequences that are read together. */
  #planOf(reads: readonly PromptRead[], { plan: chosen, observe, observeQueries }: PrefillOptions): PrefillPlan {
    const lengths = reads.map(({ ids }) => ids.length), cache = reads[0]?.sequence.cache;
    if (lengths.length === 0 || lengths.includes(0)) throw new RangeError("prefill: no tokens");
    if (reads.some(({ sequence }) => sequence.cache !== cache)) {
      throw new RangeError("prefill: sequences of several caches");
    }
    if (!areAlike(this.device, this.config, lengths)) {
      throw new RangeError(
        `prefill: prompts of ${lengths.join(", ")} tokens would get something else together than alone`,
      );
    }
    const plan = this.prefillPlan(lengths.reduce((sum, length) => sum + length, 0));
    // Who looks at queries, keys and values gets them before any rounding.
    return { ...plan, ...chosen, ...((observe || observeQueries) && { kv: "f32" }) };
  }

  /** One layer of a prompt: keys and values of all its tokens, where they have a product of their own, then chunk by chunk what is left. */
  *#promptLayer(
    i: number,
    prompt: Prompt,
    cache: Sequence["cache"],
    options: PrefillOptions,
  ): Generator<void, void, void> {
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
      runLayer(layer, chunk, rows, cache.layers[i], attendChunk);
      options.observeQueries?.(i, chunk.queries.rows(0, rows));
      residual.store(first, rows);
      if (chunk !== chunks[chunks.length - 1]) yield;
    }
  }

  /**
   * Moves the queries or keys of a layer, at the beginning of rows, f32 [rows, heads, headDim], by so many positions,
   * i32 [rows]: RoPE's rotations add up, and the factor is in already. Those of a layer that does not rotate stay.
   */
  rotate(x: Tensor, by: Tensor, heads: number, layer: number = 0): void {
    const { turn, headDim } = this.#layers[layer];
    if (turn === null) return;
    const { frequencies, rotaryDim, interleaved } = turn, rows = x.length, stride = x.stride;
    rope(x, by, frequencies, { rotaryDim, interleaved, rows, heads, headDim, stride });
  }

  /** What becomes of a layer's scores, as {@linkcode attention} takes it. */
  scores(layer: number): Required<ScoreOptions> {
    return this.#layers[layer].scores;
  }

  /** Frees the weights. */
  [Symbol.dispose](): void {
    for (const { frequencies } of this.#turns.values()) frequencies[Symbol.dispose]();
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
