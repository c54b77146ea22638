/**
 * Transforms fitted to what an error costs and to what there is to code.
 *
 * @module
 */

import { cholesky, eigen, hadamard, product, transposed } from "../cache/matrix.ts";

/** Damping of a metric, in parts of its mean diagonal: no direction is free of cost because the calibration text had none of it. */
const DAMPING = 0.1;

/** The least second moment of a direction, likewise. */
const LEAST = 1e-4;

/** The matrix in parts of its mean diagonal, and `more` on its diagonal. */
function scaled(matrix: Float64Array, n: number, more: number): Float64Array {
  let trace = 0;
  for (let i = 0; i < n; i++) trace += matrix[i * n + i];
  const by = trace > 0 ? n / trace : 0;
  return matrix.map((x, i) => x * by + (Math.floor(i / n) === i % n ? more : 0));
}

/**
 * The transform x~ = x A, f64 [n, n], for vectors with second moment S = E[x^T x], `moment`, whose errors e cost e M e^T, M the `metric`, to
 * be cut into sub-vectors of `subDim` channels that share one codebook; n / subDim is a power of two. Both are damped, M by a tenth of its
 * mean diagonal.
 *
 * With M = L L^T the error of x L costs what it is long, whatever its direction. The eigenvectors U of L^T S L then part x L into channels
 * without correlation, of variances in falling order. The first n / subDim of these are mixed by a Hadamard matrix, and each sub-vector has
 * one of the results; so are the next, and so on. All sub-vectors thus hold alike shares of every level of variance: one codebook fits
 * them all, and gives its codewords to the channels that have something to say. At equal bits the error falls with the geometric
 * rather than the arithmetic mean of the variances; that is the gain of transform coding (Jayant and Noll, Digital Coding of Waveforms, 1984,
 * chapter 12), and the even share among sub-vectors is the aim of OPQ (Ge et al., CVPR 2013). Transforms for scalar
 * codes make all channels alike; vectors of several channels gain from their being unlike. x~ has a mean square of 1, but for the damping.
 */
export function fitTransform(metric: Float64Array, moment: Float64Array, n: number, subDim: number): Float64Array {
  const lower = cholesky(scaled(metric, n, DAMPING), n), second = scaled(moment, n, LEAST), groups = n / subDim;
  const { values, vectors } = eigen(product(product(transposed(lower, n), second, n), lower, n), n);
  const whole = product(vectors, transposed(lower, n), n), mix = hadamard(groups);
  // Of the vectors themselves, not of the scaled moment.
  let power = 0, trace = 0;
  for (let i = 0; i < n; i++) power += values[i] / n, trace += moment[i * n + i] / n;
  const unit = 1 / Math.sqrt(power * trace || 1), out = new Float64Array(n * n);
  for (let level = 0; level < subDim; level++) {
    for (let group = 0; group < groups; group++) {
      const channel = group * subDim + level;
      for (let k = 0; k < groups; k++) {
        const factor = mix[group * groups + k] * unit, row = (level * groups + k) * n;
        for (let i = 0; i < n; i++) out[i * n + channel] += factor * whole[row + i];
      }
    }
  }
  return out;
}

/** The sum of two metrics, each in parts of its own mean diagonal. */
export function mixedMetric(a: Float64Array, b: Float64Array, n: number): Float64Array {
  const right = scaled(b, n, 0);
  return scaled(a, n, 0).map((x, i) => x + right[i]);
}
