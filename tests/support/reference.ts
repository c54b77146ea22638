/** What the ops should compute, in float64 and as plainly as possible. @module */

/** The nearest bf16, ties to even. */
export function bf16(x: number): number {
  if (!Number.isFinite(x)) return x;
  const bits = new DataView(new ArrayBuffer(4));
  bits.setFloat32(0, x);
  const u = bits.getUint32(0);
  bits.setUint32(0, (u + 0x7fff + ((u >>> 16) & 1)) & 0xffff0000);
  return bits.getFloat32(0);
}

/** bf16 of each element. */
export function allBf16(x: ArrayLike<number>): Float32Array {
  return Float32Array.from(x, bf16);
}

/** Row r of a matrix. */
export function row(x: ArrayLike<number>, r: number, width: number): number[] {
  return Array.from({ length: width }, (_, i) => x[r * width + i]);
}

/** Inner product. */
export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** RMSNorm of one row. */
export function rmsnorm(x: ArrayLike<number>, weight: ArrayLike<number>, epsilon: number): number[] {
  const scale = 1 / Math.sqrt(dot(x, x) / x.length + epsilon);
  return Array.from(x, (value, i) => value * scale * weight[i]);
}

/** One head at one position, rotated. */
export function rope(x: ArrayLike<number>, position: number, frequencies: ArrayLike<number>): number[] {
  const half = x.length / 2, out = Array.from(x);
  for (let i = 0; i < half; i++) {
    const angle = position * frequencies[i], cos = Math.cos(angle), sin = Math.sin(angle);
    out[i] = x[i] * cos - x[i + half] * sin;
    out[i + half] = x[i + half] * cos + x[i] * sin;
  }
  return out;
}

/** x / (1 + e^-x). */
export function silu(x: number): number {
  return x / (1 + Math.exp(-x));
}

/** An activation of the op `gate`: of a gate g, times u. */
export function gate(activation: "silu" | "gelu" | "swiglu clamped", g: number, u: number): number {
  const sigmoid = (x: number, z: number) => x === -Infinity ? 0 : x / (1 + Math.exp(-z));
  if (activation === "silu") return sigmoid(g, g) * u;
  if (activation === "gelu") return sigmoid(g, 2 * Math.sqrt(2 / Math.PI) * (g + 0.044715 * g ** 3)) * u;
  const most = Math.min(g, 7);
  return sigmoid(most, 1.702 * most) * (Math.min(Math.max(u, -7), 7) + 1);
}

/** x H with H orthonormal: H_2n = (H_n H_n; H_n -H_n) / sqrt(2), H_1 = 1. */
export function hadamard(x: ArrayLike<number>): number[] {
  if (x.length === 1) return [x[0]];
  const half = x.length / 2, sum: number[] = [], difference: number[] = [];
  for (let i = 0; i < half; i++) {
    sum.push((x[i] + x[i + half]) * Math.SQRT1_2);
    difference.push((x[i] - x[i + half]) * Math.SQRT1_2);
  }
  return [...hadamard(sum), ...hadamard(difference)];
}

/** Natural logarithm of softmax. */
export function logSoftmax(x: ArrayLike<number>): number[] {
  let most = -Infinity, sum = 0;
  for (let i = 0; i < x.length; i++) most = Math.max(most, x[i]);
  for (let i = 0; i < x.length; i++) sum += Math.exp(x[i] - most);
  return Array.from(x, (value) => value - most - Math.log(sum));
}

/** softmax(scale q K^T) V of one query. */
export function attention(q: ArrayLike<number>, keys: number[][], values: number[][], scale: number): number[] {
  const weights = logSoftmax(keys.map((key) => scale * dot(q, key))).map(Math.exp);
  return Array.from({ length: values[0].length }, (_, i) => weights.reduce((sum, w, j) => sum + w * values[j][i], 0));
}

/** Index of the nearest of codewords [n, dim], the lowest among equals, and how much closer it is than the next. */
export function nearest(point: ArrayLike<number>, codebook: ArrayLike<number>): { index: number; margin: number } {
  const dim = point.length;
  let index = 0, best = Infinity, second = Infinity;
  for (let c = 0; c * dim < codebook.length; c++) {
    let distance = 0;
    for (let i = 0; i < dim; i++) distance += (point[i] - codebook[c * dim + i]) ** 2;
    if (distance < best) [second, best, index] = [best, distance, c];
    else if (distance < second) second = distance;
  }
  return { index, margin: second - best };
}

/** What a coded vector is read back as, in the transformed space, and its least margin; `codebooks`: of each sub-vector. */
export function codedVector(
  x: ArrayLike<number>,
  codebooks: readonly ArrayLike<number>[],
  subDim: number,
  tokenScale: boolean,
): { values: number[]; margin: number } {
  const rms = tokenScale ? Math.sqrt(dot(x, x) / x.length) : 1;
  if (rms === 0) return { values: Array.from(x, () => 0), margin: Infinity };
  const values: number[] = [];
  let margin = Infinity;
  for (let at = 0; at < x.length; at += subDim) {
    const point = Array.from({ length: subDim }, (_, i) => x[at + i] / rms), codebook = codebooks[at / subDim];
    const found = nearest(point, codebook);
    for (let i = 0; i < subDim; i++) values.push(codebook[found.index * subDim + i]);
    margin = Math.min(margin, found.margin);
  }
  if (!tokenScale) return { values, margin };
  const s = dot(x, values) / dot(values, values);
  const u = s > 0 ? Math.min(255, Math.max(0, Math.round(16 * Math.log2(s)) + 128)) : 0;
  return { values: values.map((value) => value * 2 ** ((u - 128) / 16)), margin };
}

/** The number in [0, 1) that row (seed, position) of `sample` draws with: splitmix64. */
export function uniform(seed: number, position: number): number {
  const mask = (1n << 64n) - 1n;
  let x = (BigInt(seed >>> 0) << 32n) | BigInt(position >>> 0);
  x = (x + 0x9e3779b97f4a7c15n) & mask;
  x = ((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
  x = ((x ^ (x >> 27n)) * 0x94d049bb133111ebn) & mask;
  x ^= x >> 31n;
  return Number(x >> 40n) / 2 ** 24;
}
