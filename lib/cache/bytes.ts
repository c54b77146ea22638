/**
 * The bytes of a cache: the one count, for plans and for caches that exist.
 *
 * @module
 */

import { PAGE_TOKENS } from "../ops/ops.ts";
import type { Format } from "./format.ts";
import { growingLayers, layerWindow, slidingRing } from "./ring.ts";
import type { CacheShape } from "./shape.ts";
import {
  codebookCounts,
  hasSmooth,
  type KvConfig,
  layerFormat,
  type Scheme,
  sharedByLayers,
  SIDES,
  type SideScheme,
} from "./scheme.ts";

export type { CacheShape } from "./shape.ts";

/** Bytes that a cache holds, by what they are for. */
export interface CacheBytes {
  /** Codes, or bf16 rows, in pages (whole pages). */
  pages: number;
  /** Token scales in pages. */
  scales: number;
  /** The ring of the newest tokens, of layers that see all. */
  window: number;
  /** All that layers with a sliding window keep. */
  sliding: number;
  /** The first tokens. */
  sinks: number;
  /** Codebooks, smooth factors and fitted transforms. */
  codebooks: number;
  /** All of them. */
  total: number;
}

/** The bytes of one side's token in one layer's pages: codes, then scales. */
function tokenBytes(shape: CacheShape, format: Format, tokenScale: boolean): { codes: number; scale: number } {
  return {
    codes: shape.kvHeads * (shape.headDim / format.subDim) * format.bits / 8,
    scale: tokenScale && format.bits < 16 ? shape.kvHeads : 0,
  };
}

/** Bytes of one side's codebooks and transforms: f16 and one of the three matrices, as they are kept in files. */
function sideBytes(shape: CacheShape, format: Format, side: SideScheme): number {
  const { kvHeads, headDim } = shape, shared = sharedByLayers(side.codebooks), seen = new Set<Format>();
  let bytes = 0;
  for (const layer of growingLayers(shape)) {
    const own = layerFormat(side, format, layer), { subDim, bits } = own;
    if (bits === 16) continue;
    const { heads, parts } = codebookCounts(side.codebooks, shape, own);
    // What layers share is kept, and counted, once.
    if (!shared || !seen.has(own)) bytes += heads * parts * 2 ** bits * subDim * 2;
    seen.add(own);
    if (side.transform === "fitted") bytes += kvHeads * headDim * headDim * 2;
    if (hasSmooth(side.transform)) bytes += kvHeads * headDim * 4;
  }
  return bytes;
}

/**
 * The exact bytes of a cache of `pages` pages in all, and rings and sinks for `sequences` sequences of up to `context` tokens. Layers with
 * a sliding window have a ring alone. A codebook that layers share counts once. Codebooks and matrices count as the calibration file has
 * them, f16 and one matrix; a device holds a matrix and its two inverses as f32.
 */
export function allocatedBytes(
  shape: CacheShape,
  config: KvConfig,
  scheme: Scheme,
  { pages, sequences, context }: { pages: number; sequences: number; context: number },
): CacheBytes {
  const bytes: CacheBytes = { pages: 0, scales: 0, window: 0, sliding: 0, sinks: 0, codebooks: 0, total: 0 };
  const tokens = pages * PAGE_TOKENS, row = shape.kvHeads * shape.headDim * 2 * sequences;
  for (const side of SIDES) {
    const own = scheme[side];
    for (let layer = 0; layer < shape.layers; layer++) {
      const window = layerWindow(shape, layer);
      if (window > 0) {
        bytes.sliding += row * slidingRing(window, context).recent;
        continue;
      }
      const token = tokenBytes(shape, layerFormat(own, config[side], layer), own.tokenScale);
      bytes.pages += tokens * token.codes;
      bytes.scales += tokens * token.scale;
      bytes.window += row * config.recent;
      bytes.sinks += row * config.sinks;
    }
    bytes.codebooks += sideBytes(shape, config[side], own);
  }
  bytes.total = bytes.pages + bytes.scales + bytes.window + bytes.sliding + bytes.sinks + bytes.codebooks;
  return bytes;
}

/** {@linkcode allocatedBytes} of a cache with whole pages for `sequences` sequences of `tokens` tokens each. */
export function cacheBytes(
  shape: CacheShape,
  config: KvConfig,
  scheme: Scheme,
  tokens: number,
  sequences: number = 1,
): CacheBytes {
  const pages = Math.ceil(tokens / PAGE_TOKENS) * sequences;
  return allocatedBytes(shape, config, scheme, { pages, sequences, context: tokens });
}

/**
 * Bits a channel that `bytes` come to over `sequences` sequences of `tokens` tokens: of keys and values of all tokens that a layer sees, which are those of
 * its window where it has one.
 */
export function effectiveBits(shape: CacheShape, bytes: number, tokens: number, sequences: number = 1): number {
  let seen = 0;
  for (let layer = 0; layer < shape.layers; layer++) seen += Math.min(tokens, layerWindow(shape, layer) || tokens);
  return bytes * 8 / (sequences * seen * shape.kvHeads * shape.headDim * 2);
}
