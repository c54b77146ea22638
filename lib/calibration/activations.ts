/**
 * What a model's attention sees on a text: keys after RoPE and values of every layer, the moments of its queries, and how much
 * each key and value counts for them. Taken once, and shared by every calibration that is made from it.
 *
 * @module
 */

import { Tensor } from "../tensor.ts";
import { linear, Transform } from "../ops/ops.ts";
import { KvCache } from "../cache/cache.ts";
import { exactSide } from "../cache/calibration.ts";
import { type CacheShape, kvConfig } from "../cache/format.ts";
import { transformMatrices } from "../cache/matrix.ts";
import type { Model } from "../models/model.ts";
import { addImportance, addOuter, importancePositions, type ImportanceSums, importanceWeights } from "./importance.ts";

/** Options of {@linkcode Activations.capture}. */
export interface CaptureOptions {
  /** First positions of each window that are left out, as a cache keeps them exactly. Default 4. */
  skip?: number;
  /**
   * Tokens of context that the keys and queries are to stand for: where windows are shorter, each token is moved to a position anywhere in it.
   * Default: the longest window's, so that all stay where they are.
   */
  context?: number;
  /** Newest positions that a cache keeps exactly, whose errors `weights` does not count. Default 0. */
  window?: number;
  /** Whether {@linkcode Activations.importance} and {@linkcode Activations.weightedMoments} are wanted, which cost time. Default false. */
  weights?: boolean;
  /** Called with windows done and in all. */
  onProgress?: (done: number, total: number) => void;
  /** Stops between chunks of a layer. */
  signal?: AbortSignal;
}

/**
 * How far tokens of a window move, for them to be spread evenly over the positions from `skip` to `context`: by the golden ratio's sequence, in
 * which any stretch of tokens is even.
 */
function shifts(begin: number, length: number, skip: number, context: number): Int32Array {
  const place = (n: number) => skip + Math.floor(n * 0.6180339887498949 % 1 * (context - skip));
  return Int32Array.from({ length }, (_, i) => place(begin + i) - i);
}

/** One query row in so many goes into the moments. */
const QUERY_STEP = 8;

/** Of each layer the sums of W^T W, from the output projection's columns; of a large one every few channels. */
function outputMetrics(model: Model): Float64Array[] {
  const { kvHeads, headDim } = model.cacheShape, { hiddenSize, heads } = model.config, group = heads / kvHeads;
  const q = heads * headDim, step = Math.ceil(hiddenSize / 512), identity = new Float32Array(q * q);
  for (let i = 0; i < q; i++) identity[i * q + i] = 1;
  using units = Tensor.from(model.device, identity, [q, q]);
  using columns = Tensor.empty(model.device, "f32", [q, hiddenSize]);
  return model.outputs.map((output) => {
    linear(columns, units, output, { rows: q });
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

/** Keys, values, second moments of the queries and importance weights of a model on some windows of text. */
export class Activations implements Disposable {
  /** The model's sizes. */
  readonly shape: CacheShape;
  /** Tokens kept of each layer. */
  readonly tokens: number;
  /** Second moment E[q q^T] over tokens and the query heads of a KV head: [layers][kvHeads, headDim, headDim]. */
  readonly queryMoments: readonly Float64Array[];
  /** What an error of the values is worth, the sum of W^T W over the query heads, W a head's part of the output projection: same shape. */
  readonly outputMetrics: readonly Float64Array[];
  readonly #stored: readonly Tensor[];
  readonly #moments: Map<string, Float64Array> = new Map();
  readonly #importance: readonly ImportanceSums[];

  private constructor(
    shape: CacheShape,
    tokens: number,
    stored: Tensor[],
    queryMoments: Float64Array[],
    outputMetrics: Float64Array[],
    importance: ImportanceSums[],
  ) {
    this.shape = shape;
    this.tokens = tokens;
    this.queryMoments = queryMoments;
    this.outputMetrics = outputMetrics;
    this.#stored = stored;
    this.#importance = importance;
  }

  /** Runs the windows. Throws RangeError where no window is longer than `skip`. */
  static async capture(
    model: Model,
    windows: readonly Int32Array[],
    options: CaptureOptions = {},
  ): Promise<Activations> {
    const { skip = 4, window: newest = 0, weights = false, onProgress, signal } = options,
      shape = model.cacheShape,
      { kvHeads, headDim } = shape;
    const width = 2 * kvHeads * headDim, group = model.config.heads / kvHeads;
    const tokens = windows.reduce((sum, window) => sum + Math.max(0, window.length - skip), 0);
    if (tokens === 0) {
      throw new RangeError(`calibration: no window is longer than the ${skip} first positions left out`);
    }
    const stored = Array.from({ length: shape.layers }, () => Tensor.empty(model.device, "f32", [tokens, width]));
    const moments = stored.map(() => new Float64Array(kvHeads * headDim * headDim));
    const sums = () => new Float64Array(tokens * kvHeads);
    const importance = stored.slice(0, weights ? undefined : 0).map((_, layer): ImportanceSums => ({
      keys: sums(),
      values: sums(),
      queries: new Float64Array(moments[layer].length),
    }));
    const exact = kvConfig("bf16"), context = Math.max(...windows.map((window) => window.length));
    const moves = options.context !== undefined && options.context > context;
    try {
      using cache = new KvCache(model.device, shape, exact, { keys: exactSide(), values: exactSide() }, { context });
      let begin = 0, counted = 0;
      for (const [index, window] of windows.entries()) {
        const count = window.length - skip;
        if (count > 0) {
          using by = moves ? Tensor.from(model.device, shifts(begin, window.length, skip, options.context!)) : null;
          using sequence = cache.sequence();
          const asked = importancePositions(window.length);
          let all = new Float32Array(0), first = 0; // keys and values of the layer, position of the chunk's first query
          for (
            const _ of model.prefillParts(null, sequence, window, {
              signal,
              observe: (layer, kv) => {
                const own = stored[layer].rows(begin, count);
                own.copyFrom(kv.rows(skip, count));
                if (by) model.rotate(own, by.rows(skip, count), kvHeads);
                if (weights) all = kv.read();
                first = 0;
              },
              observeQueries: (layer, queries) => {
                const heads = kvHeads * group, q = queries.read() as Float32Array;
                let moved = q;
                if (by) {
                  using copy = Tensor.from(model.device, q, queries.shape);
                  model.rotate(copy, by.rows(first, queries.length), heads);
                  moved = copy.read() as Float32Array;
                }
                const sampled = Math.ceil(queries.length / QUERY_STEP), wide = heads * headDim;
                for (let i = 0; i < sampled; i++) {
                  for (let head = 0; head < heads; head++) {
                    const at = i * QUERY_STEP * wide + head * headDim;
                    addOuter(moments[layer], Math.floor(head / group) * headDim * headDim, moved, at, headDim);
                  }
                }
                if (layer === 0) counted += sampled * group;
                if (weights) {
                  const { keys, values, queries: sums } = importance[layer], from = begin * kvHeads;
                  const own = { keys: keys.subarray(from), values: values.subarray(from), queries: sums };
                  for (const t of asked) {
                    if (t < first || t >= first + queries.length) continue;
                    const row = (all: Float32Array) => all.subarray((t - first) * wide, (t - first + 1) * wide);
                    addImportance(own, all, row(q), t, { skip, window: newest }, shape, row(moved));
                  }
                }
                first += queries.length;
              },
            })
          ) await new Promise((resolve) => setTimeout(resolve, 0));
          begin += count;
        }
        onProgress?.(index + 1, windows.length);
        await new Promise((resolve) => setTimeout(resolve, 0));
        signal?.throwIfAborted();
      }
      for (const sum of moments) sum.forEach((value, i) => sum[i] = value / counted);
      return new Activations(shape, tokens, stored, moments, outputMetrics(model), importance);
    } catch (error) {
      for (const tensor of stored) tensor[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * One side's vectors of a layer after a cache's transform, f32 [tokens, kvHeads, headDim] on the host: divided by `smooth`,
   * [kvHeads, headDim], where given, then multiplied by the Walsh-Hadamard matrix where asked for; or multiplied by `matrix`, [kvHeads,
   * headDim, headDim], in their place.
   */
  rows(
    layer: number,
    which: "keys" | "values",
    transform: { hadamard?: boolean; smooth?: Float32Array; matrix?: Float32Array } = {},
  ): Float32Array {
    const { hadamard = false, smooth, matrix } = transform;
    const { kvHeads, headDim } = this.shape,
      width = kvHeads * headDim,
      stored = this.#stored[layer],
      { device } = stored;
    const rows = stored.columns(which === "keys" ? 0 : width, width).read() as Float32Array;
    if (hadamard || smooth || matrix) {
      using factors = smooth && Tensor.from(device, smooth, [kvHeads, headDim]);
      using matrices = matrix && Tensor.from(device, transformMatrices(matrix, headDim), [3, matrix.length]);
      using transform = new Transform(device, { kvHeads, headDim, smooth: factors, matrices, hadamard });
      using part = Tensor.from(device, rows, [this.tokens, width]);
      transform.apply(part, part, "forward", { heads: kvHeads });
      part.read(rows);
    }
    return rows;
  }

  /** Second moment E[x^T x] of one side's vectors of a layer over the tokens, [kvHeads, headDim, headDim]; computed once. */
  moments(layer: number, which: "keys" | "values"): Float64Array {
    const name = `${which} ${layer}`, known = this.#moments.get(name);
    if (known) return known;
    const { kvHeads, headDim } = this.shape, rows = this.rows(layer, which), count = rows.length / (kvHeads * headDim);
    const sum = new Float64Array(kvHeads * headDim * headDim);
    for (let at = 0; at < rows.length; at += headDim) {
      addOuter(sum, at / headDim % kvHeads * headDim * headDim, rows, at, headDim, 1 / count);
    }
    this.#moments.set(name, sum);
    return sum;
  }

  /**
   * Sum of w q^T q over the queries that {@linkcode importance} looks at, w what a unit of error in the scores of coded tokens costs the
   * query's output: [kvHeads, headDim, headDim]. Throws RangeError where it was captured without `weights`.
   */
  weightedMoments(layer: number): Float64Array {
    return this.#sums(layer).queries;
  }

  #sums(layer: number): ImportanceSums {
    if (this.#importance.length === 0) {
      throw new RangeError("activations: importance was not captured; capture with `weights: true`");
    }
    return this.#importance[layer];
  }

  /**
   * How much an error of one side's vectors of a layer counts, f32 [tokens, kvHeads]: for keys the sum of p_t^2 |v_t - o|^2, for
   * values of p_t^2, over the query heads and 64 positions of each window (all, where it has fewer) that it is not among the newest of, p the attention's
   * probabilities and o its output. In parts of the mean, and at least a hundredth of it. Throws RangeError where it was
   * captured without `weights`.
   */
  importance(layer: number, which: "keys" | "values"): Float32Array {
    return importanceWeights(this.#sums(layer)[which]);
  }

  /** Frees the memory. */
  [Symbol.dispose](): void {
    for (const tensor of this.#stored) tensor[Symbol.dispose]();
  }
}
