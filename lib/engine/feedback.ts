/**
 * Error feedback for the codes of a vector: sub-vectors are coded in order, and each makes up for what the errors of
 * those before it do to the product with a query. The method is LDLQ of QuIP (arXiv 2307.13304), there for weights; here the
 * metric of a key's error is the second moment of the queries that meet it.
 *
 * @module
 */

/** Damping of a metric, in parts of its mean diagonal. */
const DAMPING = 0.05;

/** In place, x <- x H for `rows` rows of `width` numbers, H the orthonormal Walsh-Hadamard matrix. */
function hadamardRows(x: Float64Array, width: number): void {
  for (let begin = 0; begin < x.length; begin += width) {
    for (let half = 1; half < width; half *= 2) {
      for (let i = 0; i < width; i += 2 * half) {
        for (let j = begin + i; j < begin + i + half; j++) {
          const a = x[j], b = x[j + half];
          x[j] = (a + b) * Math.SQRT1_2;
          x[j + half] = (a - b) * Math.SQRT1_2;
        }
      }
    }
  }
}

function transpose(x: Float64Array, n: number): void {
  for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) [x[i * n + j], x[j * n + i]] = [x[j * n + i], x[i * n + j]];
}

/**
 * The metric of errors in a cache's transformed space, H diag(smooth) M diag(smooth) H: with x~ = (x / smooth) H an error e~ is
 * e = smooth (e~ H). M is symmetric, [n, n].
 */
export function transformedMetric(
  metric: Float64Array,
  n: number,
  transform: { hadamard: boolean; smooth?: Float32Array },
): Float64Array {
  const { hadamard, smooth } = transform, out = Float64Array.from(metric);
  if (smooth) { for (let i = 0; i < n * n; i++) out[i] *= smooth[Math.floor(i / n)] * smooth[i % n]; }
  if (hadamard) {
    for (let pass = 0; pass < 2; pass++) {
      hadamardRows(out, n);
      transpose(out, n);
    }
  }
  return out;
}

/**
 * The feedback matrix of a metric M, [n, n], for sub-vectors of `subDim` channels, as `vi_quantizer_feedback` takes it. With
 * M = G^T G, G lower triangular, row block j of G gives (y - c)^T M (y - c) = sum_j |G_jj (t_j - c_j)|^2 with
 * t_j = y_j + G_jj^-1 sum_{i<j} G_ji (y_i - c_i): each term is made small by the nearest codeword to t_j.
 */
export function errorFeedback(metric: Float64Array, n: number, subDim: number): Float64Array {
  let trace = 0;
  for (let i = 0; i < n; i++) trace += metric[i * n + i];
  const damping = Math.max(DAMPING * trace / n, 1e-12), lower = new Float64Array(n * n);
  // M = G^T G from the last row up: G_kk^2 = M_kk - sum_{r>k} G_rk^2, G_kj = (M_kj - sum_{r>k} G_rk G_rj) / G_kk for j < k.
  for (let k = n - 1; k >= 0; k--) {
    for (let j = k; j >= 0; j--) {
      let sum = metric[k * n + j] + (j === k ? damping : 0);
      for (let r = k + 1; r < n; r++) sum -= lower[r * n + k] * lower[r * n + j];
      lower[k * n + j] = j === k ? Math.sqrt(Math.max(sum, 1e-12)) : sum / lower[k * n + k];
    }
  }
  const out = new Float64Array(n * n);
  for (let block = 0; block < n; block += subDim) {
    for (let i = 0; i < block; i++) {
      // Forward substitution: the diagonal block G_jj is lower triangular.
      for (let row = block; row < block + subDim; row++) {
        let value = lower[row * n + i];
        for (let k = block; k < row; k++) value -= lower[row * n + k] * out[i * n + k];
        out[i * n + row] = value / lower[row * n + row];
      }
    }
  }
  return out;
}
