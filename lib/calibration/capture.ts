/**
 * The run of a model over text that {@linkcode Activations} are taken from.
 *
 * @module
 */

import { Tensor } from "../tensor.ts";
import { linear } from "../ops/ops.ts";
import { KvCache } from "../cache/cache.ts";
import { bf16Calibration } from "../cache/calibration.ts";
import { growingLayers } from "../cache/ring.ts";
import { kvConfig } from "../cache/scheme.ts";
import type { Model } from "../models/model.ts";
import { addImportance, addOuter, importancePositions, type ImportanceSums, type ScoreRule } from "./importance.ts";

/** Options of {@linkcode Activations.capture}. */
export interface CaptureOptions {
  /** First positions of each passage that are left out, as a cache keeps them exactly. Default 4. */
  skip?: number;
  /**
   * Tokens of context that the keys and queries are to stand for: where passages are shorter, each token is moved to a position anywhere in
   * it. Default: the longest passage's, so that all stay where they are.
   */
  context?: number;
  /** Newest positions that a cache keeps exactly, whose errors `importance` does not count. Default 0. */
  window?: number;
  /** Whether it is taken what each token counts for, which costs time; see {@linkcode needsImportance}. Default false. */
  importance?: boolean;
  /** Called with passages done and in all. */
  onProgress?: (done: number, total: number) => void;
  /** Stops between chunks of a layer. */
  signal?: AbortSignal;
}

/** What was taken, by layer; without an entry for a layer with a sliding window, which has no codes. */
export interface Captured {
  /** The layers. */
  readonly layers: readonly number[];
  /** Tokens kept of each layer. */
  readonly tokens: number;
  /** Keys after RoPE, then values, f32 [tokens, 2 * kvHeads * headDim]. */
  readonly stored: readonly Tensor[];
  /** E[q q^T] over tokens and the query heads of a KV head, [kvHeads, headDim, headDim]. */
  readonly queryMoments: readonly Float64Array[];
  /** Sums over queries; none where `importance` was not asked for. */
  readonly importance: readonly ImportanceSums[];
}

/**
 * How far tokens of a passage move, for them to be spread evenly over the positions from `skip` to `context`: by the golden ratio's sequence,
 * in which any stretch of tokens is even.
 */
function shifts(begin: number, length: number, skip: number, context: number): Int32Array {
  const place = (n: number) => skip + Math.floor(n * 0.6180339887498949 % 1 * (context - skip));
  return Int32Array.from({ length }, (_, i) => place(begin + i) - i);
}

/** One query row in so many goes into the moments. */
const QUERY_STEP = 8;

/** What one passage adds, as its prompt goes through the layers. */
class Passage implements Disposable {
  readonly #model: Model;
  readonly #into: Captured;
  readonly #begin: number;
  readonly #options: { skip: number; window: number };
  /** How far tokens move, i32 [tokens of the passage]; null where all stay. */
  readonly #shifts: Tensor | null;
  /** Positions of the queries that importance is estimated from. */
  readonly #asked: readonly number[];
  /** Keys and values of the layer at hand, [tokens of the passage, 2, kvHeads, headDim], where importance is taken. */
  #kv: Float32Array = new Float32Array(0);
  /** Position of the first query of the chunk at hand. */
  #first = 0;
  /** Query rows that went into the moments of a layer, times the query heads of a KV head. */
  counted = 0;
  /** Logits of sinks in a layer's softmax, on the host. */
  readonly #sinks = new Map<number, Float32Array>();

  /** `begin` is the place of the passage's first kept token among all. */
  constructor(
    model: Model,
    into: Captured,
    length: number,
    begin: number,
    options: { skip: number; window: number; context?: number },
  ) {
    this.#model = model;
    this.#into = into;
    this.#begin = begin;
    this.#options = options;
    const { skip, context } = options;
    this.#shifts = context === undefined ? null : Tensor.from(model.device, shifts(begin, length, skip, context));
    this.#asked = importancePositions(length);
  }

  /** Takes a layer's keys and values. */
  keysAndValues(layer: number, kv: Tensor): void {
    if (!(layer in this.#into.stored)) return;
    const { skip } = this.#options, count = kv.length - skip;
    const own = this.#into.stored[layer].rows(this.#begin, count);
    own.copyFrom(kv.rows(skip, count));
    if (this.#shifts) this.#model.rotate(own, this.#shifts.rows(skip, count), this.#model.cacheShape.kvHeads, layer);
    if (this.#into.importance.length > 0) this.#kv = kv.read();
    this.#first = 0;
  }

  /** Takes the queries of a layer's next chunk. */
  queries(layer: number, queries: Tensor): void {
    if (!(layer in this.#into.stored)) return;
    const q = queries.read() as Float32Array, moved = this.#moved(layer, q, queries);
    this.#addMoments(layer, moved, queries.length);
    if (this.#into.importance.length > 0) this.#addImportance(layer, q, moved, queries.length);
    this.#first += queries.length;
  }

  /** The queries where they are to stand for. */
  #moved(layer: number, q: Float32Array, queries: Tensor): Float32Array {
    if (!this.#shifts) return q;
    using copy = Tensor.from(this.#model.device, q, queries.shape);
    this.#model.rotate(copy, this.#shifts.rows(this.#first, queries.length), this.#model.config.heads, layer);
    return copy.read();
  }

  #addMoments(layer: number, moved: Float32Array, rows: number): void {
    const { heads, kvHeads, headDim } = this.#model.config, group = heads / kvHeads;
    const sampled = Math.ceil(rows / QUERY_STEP), sum = this.#into.queryMoments[layer];
    for (let i = 0; i < sampled; i++) {
      for (let head = 0; head < heads; head++) {
        const at = (i * QUERY_STEP * heads + head) * headDim;
        addOuter(sum, Math.floor(head / group) * headDim * headDim, moved, at, headDim);
      }
    }
    if (layer === this.#into.layers[0]) this.counted += sampled * group;
  }

  #addImportance(layer: number, q: Float32Array, moved: Float32Array, rows: number): void {
    const { cacheShape: shape, config } = this.#model, wide = config.heads * config.headDim;
    const { keys, values, queries } = this.#into.importance[layer], from = this.#begin * shape.kvHeads;
    const own = { keys: keys.subarray(from), values: values.subarray(from), queries };
    for (const t of this.#asked) {
      const at = t - this.#first;
      if (at < 0 || at >= rows) continue;
      const row = (of: Float32Array) => of.subarray(at * wide, (at + 1) * wide);
      addImportance(own, this.#kv, row(q), t, this.#options, shape, row(moved), this.#scores(layer));
    }
  }

  #scores(layer: number): ScoreRule {
    const { scale, softCap, sinkLogits } = this.#model.scores(layer);
    if (sinkLogits === null) return { scale, softCap };
    const known = this.#sinks.get(layer) ?? sinkLogits.read() as Float32Array;
    this.#sinks.set(layer, known);
    return { scale, softCap, sinkLogits: known };
  }

  [Symbol.dispose](): void {
    this.#shifts?.[Symbol.dispose]();
  }
}

/** Runs the passages. Throws RangeError where none is longer than `skip`. What it returns is the caller's to dispose. */
export async function capture(
  model: Model,
  passages: readonly Int32Array[],
  options: CaptureOptions,
): Promise<Captured> {
  const { skip = 4, window = 0, onProgress, signal } = options, longest = Math.max(...passages.map((p) => p.length));
  const context = options.context !== undefined && options.context > longest ? options.context : undefined;
  const into = empty(model, passages.reduce((sum, { length }) => sum + Math.max(0, length - skip), 0), options);
  try {
    using cache = new KvCache(model.device, model.cacheShape, kvConfig("bf16"), bf16Calibration(), {
      context: longest,
    });
    let begin = 0, counted = 0;
    for (const [index, tokens] of passages.entries()) {
      if (tokens.length > skip) {
        using passage = new Passage(model, into, tokens.length, begin, { skip, window, context });
        using sequence = cache.sequence();
        const parts = model.prefillParts(null, sequence, tokens, {
          signal,
          observe: (layer, kv) => passage.keysAndValues(layer, kv),
          observeQueries: (layer, queries) => passage.queries(layer, queries),
        });
        for (const _ of parts) await new Promise((resolve) => setTimeout(resolve, 0));
        begin += tokens.length - skip;
        counted += passage.counted;
      }
      onProgress?.(index + 1, passages.length);
      await new Promise((resolve) => setTimeout(resolve, 0));
      signal?.throwIfAborted();
    }
    into.queryMoments.forEach((sum) => sum.forEach((value, i) => sum[i] = value / counted));
    return into;
  } catch (error) {
    into.stored.forEach((tensor) => tensor[Symbol.dispose]());
    throw error;
  }
}

/** Room for what is taken of `tokens` tokens, all sums 0. */
function empty(model: Model, tokens: number, { skip = 4, importance = false }: CaptureOptions): Captured {
  if (tokens === 0) {
    throw new RangeError(`calibration: no passage is longer than the ${skip} first positions left out`);
  }
  const { kvHeads, headDim } = model.cacheShape, size = kvHeads * headDim * headDim;
  const layers = growingLayers(model.cacheShape);
  const each = <T>(of: readonly number[], make: () => T): T[] => {
    const out: T[] = [];
    for (const layer of of) out[layer] = make();
    return out;
  };
  return {
    layers,
    tokens,
    stored: each(layers, () => Tensor.empty(model.device, "f32", [tokens, 2 * kvHeads * headDim])),
    queryMoments: each(layers, () => new Float64Array(size)),
    importance: each(importance ? layers : [], () => ({
      keys: new Float64Array(tokens * kvHeads),
      values: new Float64Array(tokens * kvHeads),
      queries: new Float64Array(size),
    })),
  };
}

/**
 * Of each of `layers` the sums of W^T W over the query heads of a KV head, [kvHeads, headDim, headDim], from the output projection's columns; of a
 * large one every few channels.
 */
export function outputMetrics(model: Model, layers: readonly number[]): Float64Array[] {
  const { kvHeads, headDim } = model.cacheShape, { hiddenSize, heads } = model.config, group = heads / kvHeads;
  const q = heads * headDim, step = Math.ceil(hiddenSize / 512), identity = new Float32Array(q * q);
  for (let i = 0; i < q; i++) identity[i * q + i] = 1;
  using units = Tensor.from(model.device, identity, [q, q]);
  using columns = Tensor.empty(model.device, "f32", [q, hiddenSize]);
  return layers.map((layer) => {
    linear(columns, units, model.outputs[layer], { rows: q });
    const all = columns.read() as Float32Array, sum = new Float64Array(kvHeads * headDim * headDim);
    const part = new Float32Array(headDim);
    for (let channel = 0; channel < hiddenSize; channel += step) {
      for (let head = 0; head < heads; head++) {
        for (let i = 0; i < headDim; i++) part[i] = all[(head * headDim + i) * hiddenSize + channel];
        addOuter(sum, Math.floor(head / group) * headDim * headDim, part, 0, headDim);
      }
    }
    return sum;
  });
}
