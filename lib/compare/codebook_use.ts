/**
 * What the codebooks of a cache see: channels before and after the transform, and how often each codeword is chosen.
 *
 * @module
 */

import { Tensor } from "../tensor.ts";
import { codebookAssign, type Quantizer } from "../ops/ops.ts";
import type { KvCache } from "../cache/cache.ts";
import { growingLayers } from "../cache/ring.ts";
import { type Side, SIDES } from "../cache/scheme.ts";
import type { Activations } from "../calibration/activations.ts";

/** Codewords of one side of one layer. */
export interface CodebookUse {
  /** Keys or values. */
  side: Side;
  /** Of the model. */
  layer: number;
  /** Bits of a code. */
  bits: number;
  /** Entropy of the codes, in bits: how many of them are used. */
  entropy: number;
  /** Times that each codeword was chosen, the most used first; codebooks of heads and sub-vectors summed by rank. */
  counts: number[];
}

/** max |k_i| of each channel of each KV head of one layer. */
export interface KeyOutliers {
  /** Of the model. */
  layer: number;
  /** Keys as they are. */
  before: number[];
  /** Keys after the cache's transform. */
  after: number[];
}

/** Rows after a quantizer's transform, [tokens, kvHeads, headDim]. */
function transformed(quantizer: Quantizer, rows: Float32Array): Float32Array {
  const { device, kvHeads, headDim } = quantizer, width = kvHeads * headDim;
  using x = Tensor.from(device, rows, [rows.length / width, width]);
  quantizer.transform?.apply(x, x, "forward", { heads: kvHeads });
  return x.read();
}

function channelMaxima(rows: Float32Array, width: number): number[] {
  const out = new Array<number>(width).fill(0);
  for (let i = 0; i < rows.length; i++) out[i % width] = Math.max(out[i % width], Math.abs(rows[i]));
  return out;
}

/** The largest magnitude of each channel of the keys, before and after the transform of a cache. */
export function keyOutliers(cache: KvCache, activations: Activations): KeyOutliers[] {
  const { kvHeads, headDim } = cache.shape, width = kvHeads * headDim;
  return growingLayers(cache.shape).map((layer) => {
    const keys = activations.layers[layer].keys.rows();
    return {
      layer,
      before: channelMaxima(keys, width),
      after: channelMaxima(transformed(cache.quantizers(layer)[0], keys), width),
    };
  });
}

/** How the codebooks of a product quantizer's cache are used for a text. Sides without codebooks are left out. */
export function codebookUse(cache: KvCache, activations: Activations): CodebookUse[] {
  const out: CodebookUse[] = [];
  for (const [s, side] of SIDES.entries()) {
    for (const layer of growingLayers(cache.shape)) {
      const quantizer = cache.quantizers(layer)[s], { codebookHeads, codebookParts, bits, subDim, headDim } = quantizer;
      if (codebookHeads === 0) continue;
      const rows = transformed(quantizer, activations.layers[layer][side].rows());
      const words = 2 ** bits, books = codebookHeads * codebookParts;
      if (cache.calibration[side].tokenScale) normalize(rows, headDim);
      using codebooks = Tensor.empty(quantizer.device, "f32", [books * words, subDim]);
      quantizer.codebook(codebooks);
      const counts = new Array<number>(words).fill(0);
      let entropy = 0;
      for (let book = 0; book < books; book++) {
        const points = pointsOf(rows, quantizer, book), count = points.length / subDim;
        using x = Tensor.from(quantizer.device, points, [count, subDim]);
        using codes = Tensor.empty(quantizer.device, "i32", [count]);
        codebookAssign(codes, x, codebooks.rows(book * words, words));
        const own = new Array<number>(words).fill(0);
        for (const code of codes.read<Int32Array>()) own[code]++;
        for (const n of own) if (n > 0) entropy -= n / count * Math.log2(n / count) / books;
        own.sort((a, b) => b - a).forEach((n, i) => counts[i] += n);
      }
      out.push({ side, layer, bits, entropy, counts });
    }
  }
  return out;
}

/** Divides each vector by its root mean square, as before coding with a token scale. */
function normalize(rows: Float32Array, dim: number): void {
  for (let at = 0; at < rows.length; at += dim) {
    const vector = rows.subarray(at, at + dim), rms = Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0) / dim);
    if (rms > 0) { for (let i = 0; i < dim; i++) vector[i] /= rms; }
  }
}

/** The sub-vectors that codebook `book` codes. */
function pointsOf(rows: Float32Array, quantizer: Quantizer, book: number): Float32Array {
  const { kvHeads, headDim, subDim, codebookHeads, codebookParts } = quantizer, parts = headDim / subDim;
  const head = Math.floor(book / codebookParts), part = book % codebookParts, out: number[] = [];
  for (let at = 0, sub = 0; at < rows.length; at += subDim, sub++) {
    if (codebookHeads > 1 && Math.floor(sub / parts) % kvHeads !== head) continue;
    if (codebookParts > 1 && sub % parts !== part) continue;
    for (let i = 0; i < subDim; i++) out.push(rows[at + i]);
  }
  return Float32Array.from(out);
}
