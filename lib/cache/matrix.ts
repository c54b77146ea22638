/**
 * Small dense matrices in float64, row-major, and the transforms that a cache makes of them.
 *
 * @module
 */

/** A transform that cannot be undone. */
export class SingularError extends RangeError {
  /** Always "SingularError". */
  override readonly name: string = "SingularError";
}

/** A B of square matrices. */
export function product(a: Float64Array, b: Float64Array, n: number): Float64Array {
  const out = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < n; k++) {
      const x = a[i * n + k];
      for (let j = 0; j < n; j++) out[i * n + j] += x * b[k * n + j];
    }
  }
  return out;
}

/** The transpose. */
export function transposed(a: Float64Array, n: number): Float64Array {
  return a.map((_, i) => a[i % n * n + Math.floor(i / n)]);
}

/** The inverse, by Gauss-Jordan elimination with partial pivoting; undefined where the matrix is singular, or nearly. */
export function inverse(matrix: Float64Array, n: number): Float64Array | undefined {
  const a = matrix.slice(),
    out = new Float64Array(n * n),
    largest = a.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  for (let i = 0; i < n; i++) out[i * n + i] = 1;
  for (let column = 0; column < n; column++) {
    let pivot = column;
    for (let row = column + 1; row < n; row++) {
      if (Math.abs(a[row * n + column]) > Math.abs(a[pivot * n + column])) pivot = row;
    }
    const scale = a[pivot * n + column];
    if (!(Math.abs(scale) > 1e-10 * largest)) return undefined; // what rounding leaves of nothing is some 1e-16
    for (const x of [a, out]) {
      for (let j = 0; j < n; j++) {
        const moved = x[pivot * n + j];
        x[pivot * n + j] = x[column * n + j];
        x[column * n + j] = moved / scale;
      }
    }
    for (let row = 0; row < n; row++) {
      const factor = a[row * n + column];
      if (row === column || factor === 0) continue;
      for (let j = 0; j < n; j++) {
        a[row * n + j] -= factor * a[column * n + j];
        out[row * n + j] -= factor * out[column * n + j];
      }
    }
  }
  return out;
}

/** L with matrix = L L^T, lower triangular, of a positive definite matrix. */
export function cholesky(matrix: Float64Array, n: number): Float64Array {
  const out = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = matrix[i * n + j];
      for (let k = 0; k < j; k++) sum -= out[i * n + k] * out[j * n + k];
      out[i * n + j] = i === j ? Math.sqrt(Math.max(sum, 1e-30)) : sum / out[j * n + j];
    }
  }
  return out;
}

/**
 * Eigenvalues of a symmetric matrix, the largest first, and its eigenvectors as rows, by Jacobi's cyclic rotations (Golub and
 * Van Loan, Matrix Computations, 8.5).
 */
export function eigen(matrix: Float64Array, n: number): { values: Float64Array; vectors: Float64Array } {
  const a = matrix.slice(), v = new Float64Array(n * n);
  for (let i = 0; i < n; i++) v[i * n + i] = 1;
  const norm = a.reduce((sum, x) => sum + x * x, 0);
  for (let sweep = 0; sweep < 60; sweep++) {
    let off = 0;
    for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) off += 2 * a[i * n + j] ** 2;
    if (off <= 1e-24 * norm) break;
    for (let p = 0; p < n - 1; p++) {
      for (let q = p + 1; q < n; q++) {
        const apq = a[p * n + q];
        if (apq === 0) continue;
        const theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const c = 1 / Math.sqrt(t * t + 1), s = t * c;
        for (let k = 0; k < n; k++) {
          const x = a[k * n + p], y = a[k * n + q];
          a[k * n + p] = c * x - s * y;
          a[k * n + q] = s * x + c * y;
        }
        for (const rows of [a, v]) {
          for (let k = 0; k < n; k++) {
            const x = rows[p * n + k], y = rows[q * n + k];
            rows[p * n + k] = c * x - s * y;
            rows[q * n + k] = s * x + c * y;
          }
        }
      }
    }
  }
  const order = Array.from({ length: n }, (_, i) => i).sort((i, j) => a[j * n + j] - a[i * n + i]);
  const vectors = new Float64Array(n * n);
  order.forEach((from, to) => vectors.set(v.subarray(from * n, (from + 1) * n), to * n));
  return { values: Float64Array.from(order, (i) => a[i * n + i]), vectors };
}

/** The orthonormal Walsh-Hadamard matrix, n a power of two. */
export function hadamard(n: number): Float64Array {
  const ones = (x: number): number => x === 0 ? 0 : (x & 1) + ones(x >> 1);
  return Float64Array.from(
    { length: n * n },
    (_, i) => (ones(Math.floor(i / n) & i % n) % 2 ? -1 : 1) / Math.sqrt(n),
  );
}

/**
 * The matrices of a `Transform` for the transforms x~ = x A of KV heads, `matrix` [heads, n, n]: A for keys and values, the
 * transposed inverse for queries, so that products stay what they are, and the inverse, f32 [3, heads, n, n]. Throws SingularError
 * where a matrix has no inverse.
 */
export function transformMatrices(matrix: Float32Array, n: number): Float32Array {
  const size = n * n, heads = matrix.length / size, out = new Float32Array(3 * matrix.length);
  out.set(matrix);
  for (let head = 0; head < heads; head++) {
    const back = inverse(Float64Array.from(matrix.subarray(head * size, (head + 1) * size)), n);
    if (!back) throw new SingularError(`the transform of KV head ${head} has no inverse`);
    out.set(transposed(back, n), (heads + head) * size);
    out.set(back, (2 * heads + head) * size);
  }
  return out;
}
