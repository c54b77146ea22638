/**
 * Scalar quantization with an f16 scale and zero a group, keys per channel and values per token: KIVI, and OTT, which
 * keeps outlier tokens besides.
 *
 * @module
 */

import type { CacheShape } from "../cache/bytes.ts";
import type { ExactTokens } from "../cache/scheme.ts";
import type { ReferenceMethod, TokenGroup } from "./method.ts";
import { settingsOf } from "./settings.ts";

const GROUPS = [32, 64, 128] as const, BITS = [1, 2, 3, 4, 8] as const;

/**
 * Rounds the elements x[at], at = begin + i stride for i < count where `keep` is not false, to 2^bits steps between
 * their least and largest: x = lo + s round((x - lo) / s), lo in f16, s = (hi - lo) / (2^bits - 1) in f16.
 */
function round(
  x: Float32Array,
  begin: number,
  stride: number,
  count: number,
  bits: number,
  keep?: readonly boolean[],
): void {
  const steps = 2 ** bits - 1;
  let low = Infinity, high = -Infinity;
  for (let i = 0, at = begin; i < count; i++, at += stride) {
    if (keep && !keep[i]) continue;
    low = Math.min(low, x[at]);
    high = Math.max(high, x[at]);
  }
  low = Math.f16round(low);
  const step = Math.f16round((high - low) / steps);
  for (let i = 0, at = begin; i < count; i++, at += stride) {
    if (keep && !keep[i]) continue;
    const code = step > 0 ? Math.min(steps, Math.max(0, Math.round((x[at] - low) / step))) : 0;
    x[at] = low + code * step;
  }
}

/** Quantizes a group in place; `keep` [kvHeads][count] is false for tokens that stay exact and out of the keys' ranges. */
function quantize(group: TokenGroup, shape: CacheShape, bits: number, run: number, keep?: readonly boolean[][]): void {
  const { kvHeads, headDim } = shape, width = kvHeads * headDim, { count, keys, values } = group;
  for (let channel = 0; channel < width; channel++) {
    round(keys, channel, width, count, bits, keep?.[Math.floor(channel / headDim)]);
  }
  for (let t = 0; t < count; t++) {
    for (let head = 0; head < kvHeads; head++) {
      if (keep && !keep[head][t]) continue;
      for (let d = 0; d < headDim; d += run) round(values, t * width + head * headDim + d, 1, run, bits);
    }
  }
}

/** Bytes of scalar codes, their scales and zeros, and exact tokens. */
function scalarBytes(shape: CacheShape, tokens: number, exact: ExactTokens, bits: number, group: number): number {
  const { layers, kvHeads, headDim } = shape, channels = layers * kvHeads * headDim;
  // A group is coded when it is complete: half a group more than the window is exact, on average, if the group is longer.
  const window = Math.max(exact.window, group / 2), kept = Math.min(tokens, exact.sinks + window);
  const perChannel = 2 * bits + 32 / group + 32 / Math.min(group, headDim);
  return channels * ((tokens - kept) * perChannel / 8 + kept * 4);
}

/**
 * KIVI (arXiv 2402.02750): 2 bits, keys per channel over groups of tokens, values per token over groups of channels, each
 * group with an f16 scale and zero. Settings: bits b, group g. Differs from the paper: the window is that of the run,
 * not 32 or 128 tokens by itself, and sinks, which KIVI has not, stay out of the first group where the run has any.
 */
export function kivi(settings: string): ReferenceMethod {
  const { b, g } = settingsOf("kivi", settings, { b: 2, g: 32 }, { b: BITS, g: GROUPS });
  return {
    name: `kivi:b${b}g${g}`,
    title: `KIVI int${b}, group ${g}`,
    paper: "arXiv 2402.02750",
    path: "reference",
    group: g,
    reconstructor: (shape) => (group) => quantize(group, shape, b, Math.min(g, shape.headDim)),
    bytes: (shape, tokens, exact) => scalarBytes(shape, tokens, exact, b, g),
  };
}

/** Tokens of OTT's pool of outliers, and those pushed out of it that stay exact too. */
const POOL = 3, EXTRA = 32;
/** First layers without outlier tracing. */
const UNTRACED = 2;

/**
 * Chooses a KV head's outliers among a group: the pool takes the tokens with the smallest keys of those it holds and the
 * group's. A token pushed out of the pool stays exact, until EXTRA of them are full and tracing ends.
 */
class OutlierPool {
  #norms: number[] = [];
  #extra = 0;

  /** Takes in the norms of a group's keys; returns false for the tokens that stay exact. */
  select(norms: readonly number[]): boolean[] {
    const keep = norms.map(() => true);
    if (this.#extra + POOL > EXTRA) return keep;
    const all = [...this.#norms.map((norm) => ({ norm, index: -1 })), ...norms.map((norm, index) => ({ norm, index }))];
    const chosen = all.sort((a, b) => a.norm - b.norm).slice(0, POOL);
    for (const { index } of chosen) if (index >= 0) keep[index] = false;
    this.#extra += this.#norms.length - chosen.filter(({ index }) => index < 0).length;
    this.#norms = chosen.map(({ norm }) => norm);
    return keep;
  }
}

/**
 * OTT, outlier tokens tracing (arXiv 2505.10938): KIVI's layout, and for each KV head the 3 tokens with the smallest keys,
 * which would widen every channel's range, in full precision; so are up to 32 that smaller ones pushed out. The first two
 * layers trace none. Settings: bits b, group g. Differs from the paper: it replaces an outlier by the group's mean before
 * it takes ranges, here it is left out of them, which is the same; the window is that of the run, not 32.
 */
export function ott(settings: string): ReferenceMethod {
  const { b, g } = settingsOf("ott", settings, { b: 2, g: 128 }, { b: BITS, g: GROUPS });
  return {
    name: `ott:b${b}g${g}`,
    title: `OTT int${b}, group ${g}, ${POOL} + ${EXTRA} outlier tokens`,
    paper: "arXiv 2505.10938",
    path: "reference",
    group: g,
    reconstructor(shape, layer) {
      const { kvHeads, headDim } = shape, pools = Array.from({ length: kvHeads }, () => new OutlierPool());
      return (group) => {
        const keep = layer < UNTRACED
          ? undefined
          : pools.map((pool, head) =>
            pool.select(Array.from({ length: group.count }, (_, t) => {
              const at = (t * kvHeads + head) * headDim;
              return group.keys.subarray(at, at + headDim).reduce((sum, x) => sum + x * x, 0);
            }))
          );
        quantize(group, shape, b, Math.min(g, headDim), keep);
      };
    },
    bytes(shape, tokens, exact) {
      const traced = Math.max(0, shape.layers - UNTRACED) * shape.kvHeads * Math.min(POOL + EXTRA, tokens);
      // A row of keys and one of values in bf16, and where they belong.
      return scalarBytes(shape, tokens, exact, b, g) + traced * (shape.headDim * 4 + 4);
    },
  };
}
