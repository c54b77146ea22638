/**
 * Token merging: Chelsea, now CentroidKV (arXiv 2506.11418). Tokens of a chunk with similar keys become one cluster with
 * one key and one value, the means, and the cluster counts as often as it has tokens: its score gets log n.
 *
 * A cluster of n tokens with centroid (k, v) and log n added to its score weighs e^(q.k + log n) = n e^(q.k), which is
 * what n tokens weigh that each have the row (k, v). So the reference path writes the centroid to the row of every member.
 *
 * @module
 */

import type { ReferenceMethod } from "./method.ts";
import { settingsOf } from "./settings.ts";

/** Tokens that are merged among themselves. */
const CHUNK = 64;

interface Cluster {
  members: number[];
  key: Float64Array;
  value: Float64Array;
}

function similarity(a: Float64Array, b: Float64Array): number {
  let dot = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return dot / (Math.sqrt(aa * bb) || 1);
}

/** The mean of all members of two clusters. */
function merge(a: Cluster, b: Cluster): Cluster {
  const n = a.members.length, m = b.members.length;
  const mean = (x: Float64Array, y: Float64Array) => x.map((v, i) => (v * n + y[i] * m) / (n + m));
  return { members: [...a.members, ...b.members], key: mean(a.key, b.key), value: mean(a.value, b.value) };
}

/**
 * Clusters in the order of tokens, merged until `target` are left. A round is a soft bipartite matching: every second cluster
 * looks for the most similar key among the others, and the most similar pairs are merged, as many as are still to go.
 */
function cluster(clusters: Cluster[], target: number): Cluster[] {
  while (clusters.length > target) {
    const others = clusters.filter((_, i) => i % 2 === 0);
    const pairs = clusters.filter((_, i) => i % 2 === 1).map((from) => {
      let to = 0, best = -Infinity;
      others.forEach((other, i) => {
        const s = similarity(from.key, other.key);
        if (s > best) [best, to] = [s, i];
      });
      return { from, to, best };
    }).sort((a, b) => b.best - a.best);
    const count = Math.min(pairs.length, clusters.length - target);
    for (const { from, to } of pairs.slice(0, count)) others[to] = merge(others[to], from);
    // In the order of first tokens again, for the next round's halves.
    clusters = [...others, ...pairs.slice(count).map(({ from }) => from)]
      .sort((a, b) => Math.min(...a.members) - Math.min(...b.members));
  }
  return clusters;
}

/**
 * Chunks of 64 tokens, a KV head by itself, 1 in `r` clusters kept in bf16 with a byte for its size. Settings: ratio r.
 * Differs from the paper: rounds are repeated up to the ratio, and the order of merges of equal similarity is that of tokens.
 */
export function clustering(settings: string): ReferenceMethod {
  const { r } = settingsOf("clustering", settings, { r: 4 }, { r: [1, 2, 4, 8, 16] });
  return {
    name: `clustering:r${r}`,
    title: `token merging, 1 in ${r} kept`,
    paper: "arXiv 2506.11418",
    path: "reference",
    group: CHUNK,
    reconstructor({ kvHeads, headDim }) {
      return ({ count, keys, values }) => {
        for (let head = 0; head < kvHeads; head++) {
          const at = (t: number) => (t * kvHeads + head) * headDim;
          const single = Array.from({ length: count }, (_, t): Cluster => ({
            members: [t],
            key: Float64Array.from(keys.subarray(at(t), at(t) + headDim)),
            value: Float64Array.from(values.subarray(at(t), at(t) + headDim)),
          }));
          for (const { members, key, value } of cluster(single, Math.ceil(count / r))) {
            for (const t of members) {
              keys.set(key, at(t));
              values.set(value, at(t));
            }
          }
        }
      };
    },
    bytes({ layers, kvHeads, headDim }, tokens, exact) {
      const kept = Math.min(tokens, exact.sinks + Math.max(exact.window, CHUNK / 2)), row = headDim * 4;
      return layers * kvHeads * ((tokens - kept) / r * (row + 1) + kept * row);
    },
  };
}
