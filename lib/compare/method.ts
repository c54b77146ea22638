/**
 * The neighbouring systems as selectable schemes, all behind one interface: what is kept of keys and values, and what
 * it costs in bytes. A method runs on one of two paths:
 *
 * - "fused": product quantizers. They become a calibration (transforms and codebooks), and attention reads their codes.
 * - "reference": all others. Their pages hold the rows that the method would give back, as bf16, so that attention
 *   computes what the method's own kernel would, at the memory and speed of a bf16 cache. For quality alone.
 *
 * @module
 */

import { clustering } from "./clustering.ts";
import type { CacheShape } from "../cache/format.ts";
import { calibrated, coupled, dataFree, million, type ProductMethod, vecinfer, vecinferPlus } from "./product.ts";
import { kivi, ott } from "./scalar.ts";
import { turboquant } from "./turboquant.ts";

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

/** How many tokens of a sequence are kept in bf16 whatever the method. */
export interface ExactTokens {
  /** First positions. */
  readonly sinks: number;
  /** Newest positions. */
  readonly window: number;
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

/** Any method. */
export type Method = ProductMethod | ReferenceMethod;

/** Makes a method from the settings behind its name; throws RangeError that names what it takes. */
type Factory = (settings: string) => Method;

const factories: Readonly<Record<string, Factory>> = {
  calibrated,
  "data-free": dataFree,
  vecinfer,
  "vecinfer+": vecinferPlus,
  million,
  cq: coupled,
  kivi,
  ott,
  turboquant,
  clustering,
};

/** The names that {@linkcode methodOf} knows, without settings. */
export const METHODS: readonly string[] = Object.keys(factories);

/** The method of a name with settings, such as `kivi` or `kivi:g32`. Throws RangeError that names what is unknown. */
export function methodOf(name: string): Method {
  const [base, ...settings] = name.split(":");
  if (!Object.hasOwn(factories, base)) {
    throw new RangeError(`method "${base}" is unknown; methods are ${METHODS.join(", ")}`);
  }
  return factories[base](settings.join(":"));
}
