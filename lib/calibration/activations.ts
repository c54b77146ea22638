/**
 * What a model's attention sees on a text: keys after RoPE and values of every layer, the moments of its queries, and how much
 * each key and value counts for them. Taken once, and shared by every calibration that is made from it.
 *
 * @module
 */

import { Tensor } from "../tensor.ts";
import { Transform } from "../ops/ops.ts";
import type { CacheShape } from "../cache/bytes.ts";
import { transformMatrices } from "../cache/matrix.ts";
import type { Side } from "../cache/scheme.ts";
import type { Model } from "../models/model.ts";
import { capture, type Captured, type CaptureOptions, outputMetrics } from "./capture.ts";
import { mixedMetric } from "./fit.ts";
import { addOuter, type ImportanceSums, importanceWeights } from "./importance.ts";

export type { CaptureOptions } from "./capture.ts";

/** What {@linkcode SideActivations.rows} does to vectors. */
export interface RowTransform {
  /** Whether they are multiplied by the Walsh-Hadamard matrix, after the smooth factors. */
  readonly hadamard?: boolean;
  /** They are divided by these, [kvHeads, headDim]. */
  readonly smooth?: Float32Array;
  /** They are multiplied by these, [kvHeads, headDim, headDim], in place of both. */
  readonly matrix?: Float32Array;
}

/** The keys or the values of one layer. */
export class SideActivations {
  /** Which of the two. */
  readonly side: Side;
  /** The layer. */
  readonly layer: number;
  /** The model's sizes. */
  readonly shape: CacheShape;
  readonly #stored: Tensor;
  readonly #of: LayerActivations;
  #moments: Float64Array | undefined;

  /** @internal Of an {@linkcode Activations}. */
  constructor(side: Side, layer: number, shape: CacheShape, stored: Tensor, of: LayerActivations) {
    this.side = side;
    this.layer = layer;
    this.shape = shape;
    this.#stored = stored;
    this.#of = of;
  }

  /** The vectors, transformed where asked for, f32 [tokens, kvHeads, headDim] on the host. */
  rows({ hadamard = false, smooth, matrix }: RowTransform = {}): Float32Array {
    const { kvHeads, headDim } = this.shape,
      width = kvHeads * headDim,
      stored = this.#stored,
      { device } = stored;
    const rows = stored.columns(this.side === "keys" ? 0 : width, width).read() as Float32Array;
    if (hadamard || smooth || matrix) {
      using factors = smooth && Tensor.from(device, smooth, [kvHeads, headDim]);
      using matrices = matrix && Tensor.from(device, transformMatrices(matrix, headDim), [3, matrix.length]);
      using transform = new Transform(device, { kvHeads, headDim, smooth: factors, matrices, hadamard });
      using part = Tensor.from(device, rows, [stored.length, width]);
      transform.apply(part, part, "forward", { heads: kvHeads });
      part.read(rows);
    }
    return rows;
  }

  /** Second moment E[x^T x] of the vectors over the tokens, f64 [kvHeads, headDim, headDim]; computed once. */
  moments(): Float64Array {
    if (this.#moments) return this.#moments;
    const { kvHeads, headDim } = this.shape, rows = this.rows(), count = rows.length / (kvHeads * headDim);
    const sum = new Float64Array(kvHeads * headDim * headDim);
    for (let at = 0; at < rows.length; at += headDim) {
      addOuter(sum, at / headDim % kvHeads * headDim * headDim, rows, at, headDim, 1 / count);
    }
    return this.#moments = sum;
  }

  /**
   * What an error costs in one KV head, f64 [headDim, headDim]: of keys what it does to the products with the queries, half by the
   * queries' second moment and half by that of the queries that coded tokens count for; of values its square after the output projection.
   * Of keys it throws RangeError where importance was not captured.
   */
  metric(head: number): Float64Array {
    const { headDim } = this.shape, size = headDim * headDim, layer = this.#of;
    const own = (all: Float64Array) => all.subarray(head * size, (head + 1) * size);
    if (this.side === "values") return own(layer.outputMetric);
    return mixedMetric(own(layer.queryMoments), own(layer.weightedMoments()), headDim);
  }

  /**
   * How much an error of each vector counts, f32 [tokens, kvHeads]: for keys the sum of p_t^2 |v_t - o|^2, for values of p_t^2, over the
   * query heads and 64 positions of each passage (all, where it has fewer) that it is not among the newest of, p the attention's
   * probabilities and o its output. In parts of the mean, and at least a hundredth of it. Throws RangeError where importance was not
   * captured.
   */
  importance(): Float32Array {
    return importanceWeights(this.#of.sums()[this.side]);
  }
}

/** What attention sees in one layer. */
export class LayerActivations {
  /** Keys after RoPE. */
  readonly keys: SideActivations;
  /** Values. */
  readonly values: SideActivations;
  /** Second moment E[q q^T] over tokens and the query heads of a KV head: [kvHeads, headDim, headDim]. */
  readonly queryMoments: Float64Array;
  /** What an error of the values is worth, the sum of W^T W over the query heads, W a head's part of the output projection: same shape. */
  readonly outputMetric: Float64Array;
  readonly #importance: ImportanceSums | undefined;

  /** @internal Of an {@linkcode Activations}. */
  constructor(shape: CacheShape, layer: number, captured: Captured, outputMetric: Float64Array) {
    this.keys = new SideActivations("keys", layer, shape, captured.stored[layer], this);
    this.values = new SideActivations("values", layer, shape, captured.stored[layer], this);
    this.queryMoments = captured.queryMoments[layer];
    this.outputMetric = outputMetric;
    this.#importance = captured.importance[layer];
  }

  /**
   * Sum of w q^T q over the queries that importance looks at, w what a unit of error in the scores of coded tokens costs the query's output:
   * [kvHeads, headDim, headDim]. Throws RangeError where importance was not captured.
   */
  weightedMoments(): Float64Array {
    return this.sums().queries;
  }

  /** @internal The one place that misses what was not captured. */
  sums(): ImportanceSums {
    if (this.#importance) return this.#importance;
    throw new RangeError("activations: importance was not captured; capture with `importance: true`");
  }
}

/** Keys, values, second moments of the queries and importance of a model on some passages of text. */
export class Activations implements Disposable {
  /** The model's sizes. */
  readonly shape: CacheShape;
  /** Tokens kept of each layer. */
  readonly tokens: number;
  /** By layer; without an entry for one with a sliding window, which has no codes. */
  readonly layers: readonly LayerActivations[];
  readonly #stored: readonly Tensor[];

  private constructor(model: Model, captured: Captured) {
    this.shape = model.cacheShape;
    this.tokens = captured.tokens;
    this.#stored = captured.stored;
    const layers: LayerActivations[] = this.layers = [];
    outputMetrics(model, captured.layers).forEach((metric, i) => {
      const layer = captured.layers[i];
      layers[layer] = new LayerActivations(this.shape, layer, captured, metric);
    });
  }

  /** Runs the passages. Throws RangeError where none is longer than `skip`. */
  static async capture(
    model: Model,
    passages: readonly Int32Array[],
    options: CaptureOptions = {},
  ): Promise<Activations> {
    const captured = await capture(model, passages, options);
    try {
      return new Activations(model, captured);
    } catch (error) {
      captured.stored.forEach((tensor) => tensor[Symbol.dispose]());
      throw error;
    }
  }

  /** Frees the memory. */
  [Symbol.dispose](): void {
    this.#stored.forEach((tensor) => tensor[Symbol.dispose]());
  }
}
