/**
 * What an error in a key or a value does to the output of attention: how much each token counts in training codebooks, and each
 * query in what a key's error costs.
 *
 * With probabilities p_t = softmax(q . k_t / sqrt(headDim)) of a query and its output o = sum p_t v_t, small errors give
 * do = sum_t p_t (v_t - o) ds_t + p_t dv_t. So to first order the squared error of the output gets p_t^2 |v_t - o|^2 from one unit
 * of error in a score, which a key's error makes, and p_t^2 from one unit in a value.
 *
 * @module
 */

import type { CacheShape } from "../cache/format.ts";

/** Queries of a window that importance is estimated from. */
const QUERIES = 64;

/** The least importance, in parts of the mean: no token is left to chance because few queries were looked at. */
const FLOOR = 0.01;

/** Sums over queries. */
export interface ImportanceSums {
  /** Of p_t^2 |v_t - o|^2, [tokens, kvHeads]. */
  readonly keys: Float64Array;
  /** Of p_t^2, [tokens, kvHeads]. */
  readonly values: Float64Array;
  /** Of w q^T q with w the sum over t of p_t^2 |v_t - o|^2, what a unit of error in the scores costs this query: [kvHeads, headDim, headDim]. */
  readonly queries: Float64Array;
}

/** Adds weight * x^T x for x = from[begin .. begin + n) to sum[to ..]. */
export function addOuter(
  sum: Float64Array,
  to: number,
  from: Float32Array,
  begin: number,
  n: number,
  weight = 1,
): void {
  for (let i = 0; i < n; i++) {
    const x = weight * from[begin + i], row = to + i * n;
    for (let j = 0; j < n; j++) sum[row + j] += x * from[begin + j];
  }
}

/** The positions of a window of `length` tokens whose queries are looked at: all, or QUERIES of them evenly spread. */
export function importancePositions(length: number): number[] {
  const queries = Math.min(QUERIES, length);
  return Array.from({ length: queries }, (_, i) => Math.floor((i + 0.5) * length / queries));
}

/**
 * Adds what the query at position `t` of a window says, over its heads: `q` is [heads, headDim], `kv` the window's keys and values
 * [length, 2, kvHeads, headDim]. The first of `sums` is the token at position `skip`; those before it are seen but not counted, and
 * so are the newest `window` tokens.
 */
export function addImportance(
  sums: ImportanceSums,
  kv: Float32Array,
  q: Float32Array,
  t: number,
  { skip, window }: { skip: number; window: number },
  { kvHeads, headDim }: CacheShape,
): void {
  const heads = q.length / headDim, group = heads / kvHeads, width = kvHeads * headDim, scale = 1 / Math.sqrt(headDim);
  const p = new Float64Array(t + 1), o = new Float64Array(headDim);
  for (let head = 0; head < heads; head++) {
    const kvHead = Math.floor(head / group), from = head * headDim;
    let most = -Infinity, total = 0;
    for (let j = 0; j <= t; j++) {
      const key = 2 * j * width + kvHead * headDim;
      let score = 0;
      for (let i = 0; i < headDim; i++) score += q[from + i] * kv[key + i];
      p[j] = score * scale;
      most = Math.max(most, p[j]);
    }
    for (let j = 0; j <= t; j++) total += p[j] = Math.exp(p[j] - most);
    o.fill(0);
    for (let j = 0; j <= t; j++) {
      const value = (2 * j + 1) * width + kvHead * headDim;
      p[j] /= total;
      for (let i = 0; i < headDim; i++) o[i] += p[j] * kv[value + i];
    }
    let weight = 0;
    for (let j = skip; j <= t - window; j++) {
      const value = (2 * j + 1) * width + kvHead * headDim, to = (j - skip) * kvHeads + kvHead, p2 = p[j] * p[j];
      let distance = 0;
      for (let i = 0; i < headDim; i++) distance += (kv[value + i] - o[i]) ** 2;
      sums.keys[to] += p2 * distance;
      sums.values[to] += p2;
      weight += p2 * distance;
    }
    addOuter(sums.queries, kvHead * headDim * headDim, q, from, headDim, weight);
  }
}

/** Sums in parts of their mean, and not less than FLOOR of it; all 1 where nothing counts. */
export function importanceWeights(sums: Float64Array): Float32Array {
  const mean = sums.reduce((total, x) => total + x, 0) / sums.length;
  return Float32Array.from(sums, (x) => mean > 0 ? Math.max(x / mean, FLOOR) : 1);
}
