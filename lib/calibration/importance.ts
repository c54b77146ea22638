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

import type { CacheShape } from "../cache/bytes.ts";

/** Queries of a passage that importance is estimated from. */
const QUERIES = 64;

/** The least importance, in parts of the mean: no token is left to chance because few queries were looked at. */
const FLOOR = 0.01;

/** Probabilities below it are taken for 0: most are, and the 4096 of a passage together move an output by less than a hundredth. */
const NEGLIGIBLE = 1e-6;

/** Sums over queries. */
export interface ImportanceSums {
  /** Of p_t^2 |v_t - o|^2, [tokens, kvHeads]. */
  readonly keys: Float64Array;
  /** Of p_t^2, [tokens, kvHeads]. */
  readonly values: Float64Array;
  /** Of w q^T q with w the sum over t of p_t^2 |v_t - o|^2, what a unit of error in the scores costs this query: [kvHeads, headDim, headDim]. */
  readonly queries: Float64Array;
}

/** What becomes of scores on their way to the softmax. */
export interface ScoreRule {
  /** Their factor. */
  readonly scale: number;
  /** Soft cap, cap tanh(score / cap); 0: none. */
  readonly softCap: number;
  /** One more logit a query head, which has no value. */
  readonly sinkLogits?: Float32Array;
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

/** The product of n numbers from a[i] and b[j] on, n a multiple of 4: in four sums, as one would wait for itself. */
function dot(a: Float32Array, i: number, b: Float32Array, j: number, n: number): number {
  let s = 0, t = 0, u = 0, v = 0;
  for (const end = i + n; i < end; i += 4, j += 4) {
    s += a[i] * b[j];
    t += a[i + 1] * b[j + 1];
    u += a[i + 2] * b[j + 2];
    v += a[i + 3] * b[j + 3];
  }
  return s + t + (u + v);
}

/** |a[i ..] - b|^2 of n numbers, likewise. */
function squaredDistance(a: Float32Array, i: number, b: Float64Array, n: number): number {
  let s = 0, t = 0, u = 0, v = 0;
  for (let k = 0; k < n; k += 4) {
    const w = a[i + k] - b[k], x = a[i + k + 1] - b[k + 1], y = a[i + k + 2] - b[k + 2], z = a[i + k + 3] - b[k + 3];
    s += w * w;
    t += x * x;
    u += y * y;
    v += z * z;
  }
  return s + t + (u + v);
}

/** The positions of a passage of `length` tokens whose queries are looked at: all, or QUERIES of them evenly spread. */
export function importancePositions(length: number): number[] {
  const queries = Math.min(QUERIES, length);
  return Array.from({ length: queries }, (_, i) => Math.floor((i + 0.5) * length / queries));
}

/**
 * Adds what the query at position `t` of a passage says, over its heads: `q` is [heads, headDim], `kv` the passage's keys and values
 * [length, 2, kvHeads, headDim]. The first of `sums` is the token at position `skip`; those before it are seen but not counted, and
 * so are the newest `window` tokens. The moments are those of `moved`, where the query is to stand for another position; `rule` says
 * what becomes of the scores. Behind a soft cap a score moves by 1 - (score / cap)^2 of what it moves by before.
 */
export function addImportance(
  sums: ImportanceSums,
  kv: Float32Array,
  q: Float32Array,
  t: number,
  { skip, window }: { skip: number; window: number },
  { kvHeads, headDim }: CacheShape,
  moved: Float32Array = q,
  { scale, softCap, sinkLogits }: ScoreRule = { scale: 1 / Math.sqrt(headDim), softCap: 0 },
): void {
  const heads = q.length / headDim, group = heads / kvHeads, width = kvHeads * headDim;
  // All query heads of a KV head at a time, so that its keys and values come from memory once: [token, head of the group].
  const p = new Float64Array((t + 1) * group), o = Array.from({ length: group }, () => new Float64Array(headDim));
  const slope = softCap > 0 ? new Float64Array(p.length) : undefined!;
  const most = new Float64Array(group), total = new Float64Array(group), weight = new Float64Array(group);
  for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
    const first = kvHead * group;
    for (let h = 0; h < group; h++) most[h] = sinkLogits?.[first + h] ?? -Infinity;
    total.fill(0);
    weight.fill(0);
    for (let j = 0; j <= t; j++) {
      const key = 2 * j * width + kvHead * headDim;
      for (let h = 0; h < group; h++) {
        const plain = dot(q, (first + h) * headDim, kv, key, headDim) * scale;
        const score = softCap > 0 ? softCap * Math.tanh(plain / softCap) : plain;
        if (softCap > 0) slope[j * group + h] = 1 - (score / softCap) ** 2;
        p[j * group + h] = score;
        if (score > most[h]) most[h] = score;
      }
    }
    for (let h = 0; sinkLogits && h < group; h++) total[h] = Math.exp(sinkLogits[first + h] - most[h]);
    for (let i = 0; i < p.length; i++) total[i % group] += p[i] = Math.exp(p[i] - most[i % group]);
    for (const sum of o) sum.fill(0);
    for (let j = 0; j <= t; j++) {
      const value = (2 * j + 1) * width + kvHead * headDim;
      for (let h = 0; h < group; h++) {
        const probability = p[j * group + h] /= total[h];
        if (probability < NEGLIGIBLE) continue;
        const sum = o[h];
        for (let i = 0; i < headDim; i++) sum[i] += probability * kv[value + i];
      }
    }
    for (let j = skip; j <= t - window; j++) {
      const value = (2 * j + 1) * width + kvHead * headDim, to = (j - skip) * kvHeads + kvHead;
      for (let h = 0; h < group; h++) {
        const probability = p[j * group + h];
        if (probability < NEGLIGIBLE) continue;
        const p2 = probability * probability, moves = softCap > 0 ? slope[j * group + h] ** 2 : 1;
        const cost = p2 * moves * squaredDistance(kv, value, o[h], headDim);
        sums.keys[to] += cost;
        sums.values[to] += p2;
        weight[h] += cost;
      }
    }
    for (let h = 0; h < group; h++) {
      addOuter(sums.queries, kvHead * headDim * headDim, moved, (first + h) * headDim, headDim, weight[h]);
    }
  }
}

/** Sums in parts of their mean, and not less than FLOOR of it; all 1 where nothing counts. */
export function importanceWeights(sums: Float64Array): Float32Array {
  const mean = sums.reduce((total, x) => total + x, 0) / sums.length;
  return Float32Array.from(sums, (x) => mean > 0 ? Math.max(x / mean, FLOOR) : 1);
}
