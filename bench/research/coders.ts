/**
 * Coders that no kernel reads, behind the fitted transforms of `vecinfer+`: what two residual stages and trellis codes would
 * bring at each rate and under formats a layer. They run on the reference path.
 *
 * @module
 */

import { transformMatrices } from "../../lib/cache/matrix.ts";
import { train } from "../../lib/calibration/train.ts";
import {
  type Activations,
  type ReferenceMethod,
  type SideActivations,
  type TokenGroup,
  trainCodebook,
  type TrainingOptions,
  withLayerFormats,
} from "../../lib/calibration/mod.ts";
import {
  type Calibration,
  type Device,
  type ExactTokens,
  type Format,
  type KvConfig,
  kvConfig,
  type LayerCalibration,
  PAGE_TOKENS,
  type Scheme,
  type Side,
  SIDES,
} from "../../lib/ops/mod.ts";

/**
 * In place of a format of b bits for d channels:
 *
 * - `residual`: a code of b bits for 2 d channels, and one for what it leaves (RVQ), both refined together and found with a beam;
 * - `trellis`: a code of b bits for d channels, whose codeword among {@linkcode BOOK} / d the lower bits of the code before it choose too:
 *   16 states at d4b8. Found by Viterbi's algorithm over a vector (trellis-coded quantization, Marcellin and Fischer 1990; QTIP, arXiv
 *   2406.11235).
 */
export type Coder = "residual" | "trellis";

/** Numbers of a trellis's codebook: 32 KB as f16, of which shared memory holds one for keys and one for values. */
const BOOK = 16384;

/** Sub-vectors that k-means starts from, vectors that a coder is refined on, and rounds of that. */
const POINTS = 60000, REFINED = { residual: 4000, trellis: 3000 }, ROUNDS = { residual: 4, trellis: 5 };

/** Codewords kept of the first stage while the second is looked for. */
const BEAM = 4;

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

/** |x - w|^2 of all codewords, but for |x|^2; x is given twofold. A function of its own, as it takes all the time and compiles best so. */
function distances(out: Float64Array, x: Float64Array, words: Float64Array, norms: Float64Array): void {
  const d = x.length;
  for (let w = 0, at = 0; w < out.length; w++) {
    let sum = norms[w];
    for (let i = 0; i < d; i++, at++) sum -= x[i] * words[at];
    out[w] = sum;
  }
}

/** Codewords of both stages, [2, codewords, d]. */
export function residualCoder(words: Float64Array, d: number): HeadCoder {
  const count = words.length / (2 * d), target = new Float64Array(d), rest = new Float64Array(d);
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

/**
 * Codewords [codewords, d] for codes of `bits`: number w is code w % 2^bits from state w >> bits, and leads to state w % states. A vector
 * begins in state 0.
 */
export function trellisCoder(words: Float64Array, d: number, bits: number): HeadCoder {
  // Cut to whole numbers for the compiler: a quotient makes what is computed with it ten times as slow.
  const total = words.length / d | 0, states = total >> bits, parallel = 2 ** bits / states | 0;
  const scores = new Float64Array(total), x = new Float64Array(d);
  let norms = lengths(words, d), costs = new Float64Array(states), next = new Float64Array(states);
  const from = new Int32Array(128 * states); // [sub-vector, state]: the codeword that leads there
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
        for (let i = 0; i < d; i++) x[i] = 2 * vector[sub * d + i];
        distances(scores, x, words, norms);
        next.fill(Infinity);
        for (let state = 0; state < states; state++) {
          const before = costs[state];
          if (before === Infinity) continue;
          for (let k = 0; k < parallel; k++) {
            const begin = (state * parallel + k) * states;
            for (let to = 0; to < states; to++) {
              const cost = before + scores[begin + to];
              if (cost < next[to]) {
                next[to] = cost;
                from[sub * states + to] = begin + to;
              }
            }
          }
        }
        [costs, next] = [next, costs];
      }
      let state = 0;
      for (let to = 1; to < states; to++) if (costs[to] < costs[state]) state = to;
      for (let sub = count - 1; sub >= 0; sub--) {
        const w = from[sub * states + state];
        for (let i = 0; i < d; i++) vector[sub * d + i] = words[w * d + i];
        if (used) used[sub] = w;
        state = w >> bits;
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

/** Transformed vectors of a side of a layer, and their importance. */
interface Vectors {
  readonly rows: Float32Array;
  readonly importance: Float32Array;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** Vectors of a head, and their importance: `most` evenly spread ones, where there are more. */
function sample(
  { rows, importance, kvHeads, headDim }: Vectors,
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

/** The codebook of a trellis for `format`. */
function trellisFormat({ name, subDim }: Format): Format {
  return { name: `${name}, trellis`, subDim, bits: Math.log2(BOOK / subDim) };
}

/** What each stage of two is, in place of `format`. */
function stageFormat({ name, subDim, bits }: Format): Format {
  return { name: `${name}, a stage of two`, subDim: 2 * subDim, bits };
}

/** What a coder is trained from. */
export interface CoderSource {
  /** Where k-means runs. */
  readonly device: Device;
  /** Captured with importance. */
  readonly activations: Activations;
  /** Of the formats that the coder takes the place of. */
  readonly config: KvConfig;
  /** Of fitted transforms and a codebook a head; with the formats of the layers, where they have their own. */
  readonly scheme: Scheme;
}

/** Trains a coder in place of formats, behind fitted transforms. Deterministic. */
export async function coderMethod(
  coder: Coder,
  { device, activations, config, scheme }: CoderSource,
  options: TrainingOptions = {},
): Promise<ReferenceMethod> {
  const { shape } = activations, { layers } = shape;
  const formats = SIDES.map((side) => scheme[side].layerFormats ?? new Array<Format>(layers).fill(config[side]));
  const [keys, values] = coder === "trellis" ? formats : formats.map((side) => side.map(stageFormat));
  const layerFormats = { keys, values }, quiet = { ...options, onProgress: undefined };
  const base = await train(device, activations, config, withLayerFormats(scheme, layerFormats), quiet);
  const coders: Record<Side, HeadCoder[][]> = { keys: [], values: [] };
  let done = 0;
  for (const side of SIDES) {
    for (const [layer, format] of layerFormats[side].entries()) {
      const from = { device, source: activations.layers[layer][side], trained: base[side].layers[layer] };
      coders[side].push(await trainCoders(coder, from, format, options));
      options.onProgress?.(++done, 2 * layers);
    }
  }
  return {
    name: coder,
    title: coder === "residual" ? "two residual stages" : "trellis codes",
    paper: coder === "residual" ? "RVQ" : "arXiv 2406.11235",
    path: "reference",
    group: 64,
    reconstructor: ({ headDim }, layer) => reconstructor(coders, base, layer, headDim),
    bytes({ kvHeads, headDim }, tokens, { sinks, window }: ExactTokens) {
      // As cacheBytes has it for a coded cache: codes of all tokens, the ring, sinks, codebooks and matrices as f16.
      const { recent } = kvConfig({ keys: "d4b8", values: "d4b8", sinks, window });
      const coded = Math.ceil(tokens / PAGE_TOKENS) * PAGE_TOKENS, exact = (recent + sinks) * headDim * 2;
      return formats.flat().reduce((sum, { subDim, bits }) => {
        const words = coder === "residual" ? 2 * 2 ** bits * 2 * subDim : BOOK;
        return sum + kvHeads * (coded * headDim * bits / subDim / 8 + exact + (words + headDim * headDim) * 2);
      }, 0);
    },
  };
}

/** The coders of the heads of one side of a layer. */
async function trainCoders(
  coder: Coder,
  { device, source, trained }: { device: Device; source: SideActivations; trained: LayerCalibration },
  format: Format,
  options: TrainingOptions,
): Promise<HeadCoder[]> {
  const { kvHeads, headDim } = source.shape, size = trained.codebook.length / kvHeads, parts = headDim / format.subDim;
  const rows = source.rows({ matrix: trained.matrix }), importance = source.importance();
  const all = { rows, importance, kvHeads, headDim }, coders: HeadCoder[] = [];
  for (let head = 0; head < kvHeads; head++) {
    const sampled = sample(all, head, Math.ceil(POINTS / parts));
    const first = trained.codebook.subarray(head * size, (head + 1) * size);
    const made = coder === "residual"
      ? await startResidual(device, first, format, sampled, options)
      : await startTrellis(device, format, sampled, options);
    const refined = sample(all, head, REFINED[coder]);
    for (let round = 0; round < ROUNDS[coder]; round++) {
      refine(made, refined.vectors, refined.weights);
      await new Promise((resolve) => setTimeout(resolve, 0));
      options.signal?.throwIfAborted();
    }
    coders.push(made);
  }
  return coders;
}

/** Sub-vectors of `subDim` channels, and the weights of their vectors. */
function pointsOf(vectors: readonly Float64Array[], weights: Float64Array, subDim: number) {
  const points = Float32Array.from(vectors.flatMap((vector) => [...vector])), parts = vectors[0].length / subDim;
  const of = Float32Array.from({ length: points.length / subDim }, (_, i) => weights[Math.floor(i / parts)]);
  return { points, weights: of };
}

/** A second stage for what the first leaves. */
async function startResidual(
  device: Device,
  first: Float32Array,
  format: Format,
  { vectors, weights }: ReturnType<typeof sample>,
  options: TrainingOptions,
): Promise<HeadCoder> {
  const { subDim } = format, none = new Array<number>(first.length).fill(0);
  const alone = residualCoder(Float64Array.from([...first, ...none]), subDim);
  const { points: left, weights: counted } = pointsOf(vectors, weights, subDim);
  vectors.forEach((vector, v) => {
    const coded = vector.slice();
    alone.code(coded);
    coded.forEach((x, i) => left[v * vector.length + i] -= x);
  });
  const second = await trainCodebook(device, format, left, counted, options);
  return residualCoder(Float64Array.from([...first, ...second]), subDim);
}

async function startTrellis(
  device: Device,
  format: Format,
  { vectors, weights }: ReturnType<typeof sample>,
  options: TrainingOptions,
): Promise<HeadCoder> {
  const { subDim, bits } = format, { points, weights: counted } = pointsOf(vectors, weights, subDim);
  const words = await trainCodebook(device, trellisFormat(format), points, counted, options);
  // Codewords that share a state must lie apart: any order but that of k-means will do. 1597 is odd, their number a power of two.
  const place = (i: number) => Math.floor(i / subDim) * 1597 % (BOOK / subDim) * subDim + i % subDim;
  return trellisCoder(Float64Array.from(words, (_, i) => words[place(i)]), subDim, bits);
}

/** What replaces vectors by what their codes stand for: there by the fitted transform, and back. */
function reconstructor(
  coders: Readonly<Record<Side, readonly HeadCoder[][]>>,
  base: Calibration,
  layer: number,
  headDim: number,
): (group: TokenGroup) => void {
  const size = headDim * headDim, vector = new Float64Array(headDim), back = new Float64Array(headDim);
  const both = SIDES.map((side) => {
    const own = coders[side][layer], all = transformMatrices(base[side].layers[layer].matrix!, headDim);
    const of = (direction: number, head: number) =>
      all.subarray((direction * own.length + head) * size).subarray(0, size);
    return { side, own, matrices: own.map((_, head) => ({ there: of(0, head), home: of(2, head) })) };
  });
  return (group) => {
    for (const { side, own, matrices } of both) {
      const rows = group[side];
      for (let at = 0; at < rows.length; at += headDim) {
        const head = at / headDim % own.length, { there, home } = matrices[head];
        times(vector, rows.subarray(at, at + headDim), there);
        own[head].code(vector);
        times(back, vector, home);
        rows.set(back, at);
      }
    }
  };
}

/** out = x M. */
function times(out: Float64Array, x: ArrayLike<number>, matrix: Float32Array): void {
  const n = out.length;
  out.fill(0);
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) out[j] += x[i] * matrix[i * n + j];
}
