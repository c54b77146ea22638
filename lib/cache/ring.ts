/**
 * Which layers keep all tokens and which the newest alone, and how many rows the rings of newest tokens have.
 *
 * @module
 */

import { RING_SURPLUS } from "./scheme.ts";
import type { CacheShape } from "./shape.ts";

/** Rows of newest tokens that layers keep in bf16. */
export interface Ring {
  /** Newest positions that are read from it. */
  readonly window: number;
  /** Its rows. The surplus over the window bounds what one step may add and what `truncate` can take back; 0: there is none. */
  readonly recent: number;
}

/** The sliding window of a layer, in tokens; 0 where it sees all of a sequence. */
export function layerWindow({ windows }: Pick<CacheShape, "windows">, layer: number): number {
  return windows?.[layer] ?? 0;
}

/** The layers whose cache grows with a sequence: those that pages hold, and that are coded. */
export function growingLayers(shape: Pick<CacheShape, "layers" | "windows">): number[] {
  return Array.from({ length: shape.layers }, (_, layer) => layer).filter((layer) => layerWindow(shape, layer) === 0);
}

/** The ring of layers with a sliding window, in a cache of sequences up to `context` tokens. */
export function slidingRing(window: number, context: number): Ring {
  return { window: Math.min(window, context), recent: Math.min(window + RING_SURPLUS, context) };
}
