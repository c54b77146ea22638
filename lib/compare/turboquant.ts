/**
 * TurboQuant (arXiv 2504.19874): vectors are normalized and rotated at random, after which every channel is close to
 * N(0, 1) whatever the data, and one scalar codebook that is best for N(0, 1) (Lloyd-Max) serves all.
 *
 * @module
 */

import type { ReferenceMethod } from "./method.ts";
import { settingsOf } from "./settings.ts";

const density = (x: number): number => Math.exp(-x * x / 2);

/** The integral of the density from a to b, by Simpson's rule. */
function mass(a: number, b: number): number {
  const intervals = 64, h = (b - a) / intervals;
  let sum = density(a) + density(b);
  for (let i = 1; i < intervals; i++) sum += (i % 2 ? 4 : 2) * density(a + i * h);
  return sum * h / 3;
}

/**
 * The 2^bits levels of least squared error for N(0, 1), ascending. Lloyd's iteration: a level is the mean of what is nearest
 * to it, from a to b, where the integral of x e^(-x^2/2) is e^(-a^2/2) - e^(-b^2/2).
 */
export function lloydMax(bits: number): Float64Array {
  const count = 2 ** bits, most = 9;
  let levels = Float64Array.from({ length: count }, (_, i) => (2 * i + 1 - count) * 3 / count);
  for (let iteration = 0; iteration < 500; iteration++) {
    levels = levels.map((level, i) => {
      const a = i === 0 ? -most : (levels[i - 1] + level) / 2, b = i === count - 1 ? most : (level + levels[i + 1]) / 2;
      return (density(a) - density(b)) / mass(a, b);
    });
  }
  return levels;
}

/** Numbers of N(0, 1), the same ones for a seed: Box and Muller over mulberry32. */
function* normals(seed: number): Generator<number, never, void> {
  let state = seed | 0;
  const uniform = (): number => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x = (x + Math.imul(x ^ (x >>> 7), x | 61)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  while (true) yield Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** A random rotation, rows orthonormal, uniform among all: Gram-Schmidt over normal vectors. */
export function randomRotation(dim: number, seed: number): Float64Array[] {
  const source = normals(seed), rows: Float64Array[] = [];
  while (rows.length < dim) {
    const row = Float64Array.from({ length: dim }, () => source.next().value);
    for (let pass = 0; pass < 2; pass++) { // once more, for orthogonality to the last bits
      for (const other of rows) {
        const dot = row.reduce((sum, x, i) => sum + x * other[i], 0);
        for (let i = 0; i < dim; i++) row[i] -= dot * other[i];
      }
    }
    const norm = Math.sqrt(row.reduce((sum, x) => sum + x * x, 0));
    rows.push(row.map((x) => x / norm));
  }
  return rows;
}

/** Index of the nearest of ascending levels. */
function nearest(levels: Float64Array, x: number): number {
  let code = 0;
  while (code + 1 < levels.length && x > (levels[code] + levels[code + 1]) / 2) code++;
  return code;
}

/**
 * TurboQuant without its 1-bit stage for the residual, which its users leave out as harmful. Each vector keeps its root
 * mean square in f16. Settings: bits b. Differs from the paper: one bit width for all channels.
 */
export function turboquant(settings: string): ReferenceMethod {
  const { b } = settingsOf("turboquant", settings, { b: 2 }, { b: [1, 2, 3, 4, 8] }), levels = lloydMax(b);
  return {
    name: `turboquant:b${b}`,
    title: `TurboQuant, ${b} bits: random rotation, Lloyd-Max`,
    paper: "arXiv 2504.19874",
    path: "reference",
    group: 1,
    reconstructor({ headDim }) {
      const rotation = randomRotation(headDim, 1), rotated = new Float64Array(headDim);
      return ({ keys, values }) => {
        for (const x of [keys, values]) {
          for (let at = 0; at < x.length; at += headDim) {
            const vector = x.subarray(at, at + headDim);
            const rms = Math.f16round(Math.sqrt(vector.reduce((sum, v) => sum + v * v, 0) / headDim));
            if (rms === 0) {
              vector.fill(0);
              continue;
            }
            for (let i = 0; i < headDim; i++) {
              let sum = 0;
              for (let j = 0; j < headDim; j++) sum += rotation[i][j] * vector[j];
              rotated[i] = rms * levels[nearest(levels, sum / rms)];
            }
            for (let j = 0; j < headDim; j++) {
              let sum = 0;
              for (let i = 0; i < headDim; i++) sum += rotation[i][j] * rotated[i];
              vector[j] = sum;
            }
          }
        }
      };
    },
    bytes({ layers, kvHeads, headDim }, tokens, { sinks, window }) {
      const kept = Math.min(tokens, sinks + window), rows = 2 * layers * kvHeads;
      return rows * ((tokens - kept) * (headDim * b / 8 + 2) + kept * headDim * 2);
    },
  };
}
