/**
 * What a method is: a scheme, or a reference coder, that is compared with others. A method says what is kept of keys and values, and what
 * it costs in bytes. It runs on one of two paths:
 *
 * - "fused": product quantizers. They become a calibration (transforms and codebooks), and attention reads their codes.
 * - "reference": all others. Their pages hold the rows that the method would give back, as bf16, so that attention
 *   computes what the method's own kernel would, at the memory and speed of a bf16 cache. For quality alone.
 *
 * @module
 */

import type { CacheShape } from "../cache/bytes.ts";
import type { ExactTokens, SchemeName } from "../cache/scheme.ts";

/** What every method tells of itself. */
export interface MethodInfo {
  /** Its name with its settings, as `--method` takes it: `kivi:g32`. */
  readonly name: string;
  /** What it is, in a few words. */
  readonly title: string;
  /** Where it is published. */
  readonly paper: string;
}

/** Rows of complete tokens of one layer, exact at first; a method replaces them by what it would give back. */
export interface TokenGroup {
  /** Position of the first row. */
  readonly first: number;
  /** Rows. */
  readonly count: number;
  /** After RoPE, [count, kvHeads, headDim]. */
  readonly keys: Float32Array;
  /** [count, kvHeads, headDim]. */
  readonly values: Float32Array;
}

/** A method on the reference path. */
export interface ReferenceMethod extends MethodInfo {
  /** Its path. */
  readonly path: "reference";
  /**
   * Tokens that are coded together: positions n group to (n + 1) group - 1 (without the sinks). Until a group is complete
   * its tokens stay exact, as a method that works on groups must keep them.
   */
  readonly group: number;
  /** A function that reconstructs the groups of one layer and sequence in place; called in the order of positions. */
  reconstructor(shape: CacheShape, layer: number): (group: TokenGroup) => void;
  /** Bytes that the method keeps of a sequence of `tokens` tokens: all layers, with scales, outliers and exact tokens. */
  bytes(shape: CacheShape, tokens: number, exact: ExactTokens): number;
}

/** A product quantizer, at whatever formats the cache has. */
export interface ProductMethod extends MethodInfo {
  /** Its path. */
  readonly path: "fused";
  /** The scheme that is trained, or "data-free", which needs no training; "file": what the model comes with. */
  readonly scheme: SchemeName | "file";
}

/** Any method. */
export type Method = ProductMethod | ReferenceMethod;
