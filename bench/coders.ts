/**
 * Coders that no kernel reads, behind the fitted transforms of `vecinfer+`: what two residual stages and trellis codes would
 * bring at 2 bits. They run on the reference path.
 *
 * @module
 */

import {
  type Activations,
  type CacheShape,
  type Device,
  type ExactTokens,
  FORMATS,
  kvConfig,
  type Recipe,
  type ReferenceMethod,
  train,
  trainCodebook,
  transformMatrices,
} from "../mod.ts";

/**
 * `residual`: a code of 8 bits for 8 channels, and one for what it leaves (RVQ), both refined together and found with a beam. `trellis`: a
 * code of 8 bits for 4 channels, whose codeword among 4096 the lower 4 bits of the code before it choose too; found by Viterbi's algorithm
 * over a vector (trellis-coded quantization, Marcellin and Fischer 1990; QTIP, arXiv 2406.11235).
 */
export type Coder = "residual" | "trellis";

/** Sub-vectors that k-means starts from, vectors that a coder is refined on, and rounds of that. */
const POINTS = 60000, REFINED = { residual: 4000, trellis: 3000 }, ROUNDS = { residual: 4, trellis: 5 };

/** Codewords kept of the first stage while the second is looked for. */
const BEAM = 4;

/** States of the trellis, and codewords that lead from one to another. */
const STATES = 16, PARALLEL = 16;

/** Old codewords count as so many points when they are moved. */
const INERTIA = 2;

/** Of one head: replaces a transformed vector by what its codes stand for, and tells which codewords were used. */
interface HeadCoder {
  code(vector: Float64Array, used?: Int32Array): void;
  /** To be called when `words` have changed. */
  update(): void;
  /** Codewords, dimension by dimension; `used` counts from 0 over all books. */
  readonly words: Float64Array;
  readonly subDim: number;
  /** Codewords that a sub-vector is the sum of. */
  readonly stages: number;
}

/** Squared lengths of codewords. */
function lengths(words: Float64Array, d: number): Float64Array {
  return Float64Array.from({ length: words.length / d }, (_, w) => {
    let sum = 0;
    for (let i = 0; i < d; i++) sum += words[w * d + i] ** 2;
    return sum;
  });
}

/** Codewords of both stages, [2, 256, 8]. */
export function residualCoder(words: Float64Array): HeadCoder {
  const d = 8, count = 256, target = new Float64Array(d), rest = new Float64Array(d);
  const scores = new Float64Array(count);
  let norms = lengths(words, d);
  const score = (x: Float64Array, w: number): number => {
    let dot = 0;
    for (let i = 0; i < d; i++) dot += x[i] * words[w * d + i];
    return norms[w] - 2 * dot;
  };
  return {
    words,
    subDim: d,
    stages: 2,
    update: () => norms = lengths(words, d),
    code(vector, used) {
      for (let begin = 0; begin < vector.length; begin += d) {
        for (let i = 0; i < d; i++) target[i] = vector[begin + i];
        for (let w = 0; w < count; w++) scores[w] = score(target, w);
        let least = Infinity, first = 0, second = count;
        for (let b = 0; b < BEAM; b++) {
          let near = 0;
          for (let w = 1; w < count; w++) if (scores[w] < scores[near]) near = w;
          const before = scores[near];
          scores[near] = Infinity;
          for (let i = 0; i < d; i++) rest[i] = target[i] - words[near * d + i];
          for (let w = count; w < 2 * count; w++) {
            // |x - a - c|^2 = |x - a|^2 + |c|^2 - 2 (x - a) c
            const total = before + score(rest, w);
            if (total < least) [least, first, second] = [total, near, w];
          }
        }
        for (let i = 0; i < d; i++) vector[begin + i] = words[first * d + i] + words[second * d + i];
        if (used) used.set([first, second], begin / d * 2);
      }
    },
  };
}

/** Codewords [4096, 4]; number w leads from state w >> 8 to state w % 16, and a vector begins in state 0. */
export function trellisCoder(words: Float64Array): HeadCoder {
  const d = 4;
  let norms = lengths(words, d), costs = new Float64Array(STATES), next = new Float64Array(STATES);
  const from = new Int32Array(64 * STATES); // [sub-vector, state]: the codeword that leads there
  return {
    words,
    subDim: d,
    stages: 1,
    update: () => norms = lengths(words, d),
    code(vector, used) {
      const count = vector.length / d;
      costs.fill(Infinity);
      costs[0] = 0;
      for (let sub = 0; sub < count; sub++) {
        const first = sub * d;
        const x = 2 * vector[first], y = 2 * vector[first + 1], z = 2 * vector[first + 2], u = 2 * vector[first + 3];
        next.fill(Infinity);
        for (let state = 0; state < STATES; state++) {
          const before = costs[state];
          if (before === Infinity) continue;
          for (let k = 0; k < PARALLEL; k++) {
            for (let to = 0; to < STATES; to++) {
              const w = (state * PARALLEL + k) * STATES + to, at = w * d;
              const cost = before + norms[w] - x * words[at] - y * words[at + 1] - z * words[at + 2] -
                u * words[at + 3];
              if (cost < next[to]) {
                next[to] = cost;
                from[sub * STATES + to] = w;
              }
            }
          }
        }
        [costs, next] = [next, costs];
      }
      let state = 0;
      for (let to = 1; to < STATES; to++) if (costs[to] < costs[state]) state = to;
      for (let sub = count - 1; sub >= 0; sub--) {
        const w = from[sub * STATES + state];
        for (let i = 0; i < d; i++) vector[sub * d + i] = words[w * d + i];
        if (used) used[sub] = w;
        state = Math.floor(w / (PARALLEL * STATES));
      }
    },
  };
}

/** Moves the codewords to the weighted means of what they stand for, the other stage taken off. */
function refine(coder: HeadCoder, vectors: Float64Array[], weights: Float64Array): void {
  const { words, subDim: d, stages } = coder, sums = words.map((x) => x * INERTIA);
  const masses = new Float64Array(words.length / d).fill(INERTIA);
  const unit = weights.reduce((sum, x) => sum + x, 0) / weights.length || 1;
  vectors.forEach((given, index) => {
    const vector = given.slice(), used = new Int32Array(given.length / d * stages), weight = weights[index] / unit;
    coder.code(vector, used);
    used.forEach((w, place) => {
      const begin = Math.floor(place / stages) * d;
      masses[w] += weight;
      for (let i = 0; i < d; i++) {
        const error = given[begin + i] - vector[begin + i];
        sums[w * d + i] += weight * (words[w * d + i] + error / stages);
      }
    });
  });
  words.set(sums.map((x, i) => x / masses[Math.floor(i / d)]));
  coder.update();
}

/** Every `step`-th vector of a head, and its importance. */
function sample(
  rows: Float32Array,
  importance: Float32Array,
  { kvHeads, headDim }: CacheShape,
  head: number,
  most: number,
): { vectors: Float64Array[]; weights: Float64Array } {
  const tokens = rows.length / (kvHeads * headDim), count = Math.min(tokens, most);
  const picked = Array.from({ length: count }, (_, i) => Math.floor((i + 0.5) * tokens / count) * kvHeads + head);
  return {
    vectors: picked.map((v) => Float64Array.from(rows.subarray(v * headDim, (v + 1) * headDim))),
    weights: Float64Array.from(picked, (v) => importance[v]),
  };
}

/** Trains a coder behind the fitted transforms of `recipe`. Deterministic. */
export async function coderMethod(
  device: Device,
  activations: Activations,
  coder: Coder,
  recipe: Recipe,
  options: { signal?: AbortSignal; onProgress?: (done: number, total: number) => void } = {},
): Promise<ReferenceMethod> {
  const { shape } = activations, { layers, kvHeads, headDim } = shape, { signal } = options, size = headDim * headDim;
  const format = FORMATS[coder === "residual" ? "d8b8" : "d4b8"], { subDim } = format, parts = headDim / subDim;
  const base = await train(device, activations, kvConfig(format.name), recipe, { signal });
  const sides: Record<"keys" | "values", HeadCoder[][]> = { keys: [], values: [] };
  let done = 0;
  for (const which of ["keys", "values"] as const) {
    for (let layer = 0; layer < layers; layer++) {
      const rows = activations.rows(layer, which, { matrix: base[which].layers[layer].matrix });
      const importance = activations.importance(layer, which), coders: HeadCoder[] = [];
      for (let head = 0; head < kvHeads; head++) {
        const { vectors, weights } = sample(rows, importance, shape, head, Math.ceil(POINTS / parts));
        const points = Float32Array.from(vectors.flatMap((vector) => [...vector]));
        const pointWeights = Float32Array.from(
          { length: points.length / subDim },
          (_, i) => weights[Math.floor(i / parts)],
        );
        let made: HeadCoder;
        if (coder === "residual") {
          const first = base[which].layers[layer].codebook.subarray(head * 256 * subDim, (head + 1) * 256 * subDim);
          const alone = residualCoder(Float64Array.from([...first, ...new Array(256 * subDim).fill(0)]));
          const left = points.slice();
          vectors.forEach((vector, v) => {
            const coded = vector.slice();
            alone.code(coded);
            coded.forEach((x, i) => left[v * headDim + i] -= x);
          });
          const second = await trainCodebook(device, format, left, pointWeights, recipe, { signal });
          made = residualCoder(Float64Array.from([...first, ...second]));
        } else {
          const words = await trainCodebook(device, FORMATS.d4b12, points, pointWeights, recipe, { signal });
          // Codewords that share a state must lie apart: any order but that of k-means will do. 1597 has no divisor in common with 4096.
          made = trellisCoder(Float64Array.from(words, (_, i) => words[Math.floor(i / 4) * 1597 % 4096 * 4 + i % 4]));
        }
        const refined = sample(rows, importance, shape, head, REFINED[coder]);
        for (let round = 0; round < ROUNDS[coder]; round++) {
          refine(made, refined.vectors, refined.weights);
          await new Promise((resolve) => setTimeout(resolve, 0));
          signal?.throwIfAborted();
        }
        coders.push(made);
      }
      sides[which].push(coders);
      options.onProgress?.(++done, 2 * layers);
    }
  }
  const vector = new Float64Array(headDim), back = new Float64Array(headDim);
  const matricesOf = (which: "keys" | "values", layer: number) => {
    const all = transformMatrices(base[which].layers[layer].matrix!, headDim);
    const of = (direction: number, head: number) => all.subarray((direction * kvHeads + head) * size).subarray(0, size);
    return Array.from({ length: kvHeads }, (_, head) => ({ there: of(0, head), back: of(2, head) }));
  };
  return {
    name: coder,
    title: coder === "residual" ? "two residual stages" : "trellis codes of 16 states",
    paper: coder === "residual" ? "RVQ" : "arXiv 2406.11235",
    path: "reference",
    group: 64,
    reconstructor(_, layer) {
      const both = (["keys", "values"] as const).map((which) => ({
        which,
        coders: sides[which][layer],
        matrices: matricesOf(which, layer),
      }));
      return (group) => {
        for (const { which, coders, matrices } of both) {
          const rows = group[which];
          for (let at = 0; at < rows.length; at += headDim) {
            const head = at / headDim % kvHeads, { there, back: home } = matrices[head];
            vector.fill(0);
            for (let i = 0; i < headDim; i++) {
              const x = rows[at + i], row = i * headDim;
              for (let j = 0; j < headDim; j++) vector[j] += x * there[row + j];
            }
            coders[head].code(vector);
            back.fill(0);
            for (let i = 0; i < headDim; i++) {
              const x = vector[i], row = i * headDim;
              for (let j = 0; j < headDim; j++) back[j] += x * home[row + j];
            }
            rows.set(back, at);
          }
        }
      };
    },
    bytes(_, tokens, { sinks, window }: ExactTokens) {
      // As cacheBytes has it for a coded cache: codes of all tokens, the ring, sinks, codebooks and matrices as f16.
      const { recent } = kvConfig({ keys: format.name, values: format.name, sinks, window });
      const heads = 2 * layers * kvHeads, words = coder === "residual" ? 512 * 8 : 4096 * 4;
      return heads * (Math.ceil(tokens / 64) * 64 * headDim / 4 + (recent + sinks) * headDim * 2 + (words + size) * 2);
    },
  };
}
