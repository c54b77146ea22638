import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { test } from "node:test";
import { transformMatrices } from "../../lib/cache/matrix.ts";
import { Device, VecInferError } from "../../lib/device.ts";
import { attention, KvLayer, Quantizer, Transform } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { cpu, testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { bf16 } from "../support/reference.ts";

/** Matrices of KV heads that turn and stretch, [kvHeads, n, n]. */
function transforms(random: Random, kvHeads: number, n: number): Float32Array {
  const out = random.normals(kvHeads * n * n, 0.5 / Math.sqrt(n));
  for (let head = 0; head < kvHeads; head++) {
    for (let i = 0; i < n; i++) out[(head * n + i) * n + i] += 0.3 + 2 * random.uniform();
  }
  return out;
}

/** x M in float64, M at `at` of `matrices`. */
function times(x: ArrayLike<number>, matrices: Float32Array, at: number): number[] {
  const n = x.length, out = new Array<number>(n).fill(0);
  for (let j = 0; j < n; j++) for (let i = 0; i < n; i++) out[i] += x[j] * matrices[at + j * n + i];
  return out;
}

const seed = Date.now() % 2 ** 31;

testOnDevices(`a fitted transform in its three directions is the product with its matrices, seed ${seed}`, (device) => {
  const random = new Random(seed), kvHeads = 3, group = 2;
  // Fewer vectors than a block takes, and more than all blocks take at once.
  for (const [headDim, rows] of [[64, 5], [128, 5], [128, 999], [256, 3]]) {
    const size = headDim * headDim, all = transformMatrices(transforms(random, kvHeads, headDim), headDim);
    using matrices = Tensor.from(device, all, [3, kvHeads, size]);
    using transform = new Transform(device, { kvHeads, headDim, matrices });
    for (const [direction, name] of (["forward", "query", "inverse"] as const).entries()) {
      const heads = name === "query" ? kvHeads * group : kvHeads, x = random.normals(rows * heads * headDim);
      using input = Tensor.from(device, x, [rows, heads * headDim]);
      transform.apply(input, input, name);
      const got = input.read<Float32Array>(), per = heads / kvHeads;
      const step = rows > 5 ? 41 : 1;
      for (let vector = 0; vector < rows * heads; vector += step) {
        const head = Math.floor(vector % heads / per), at = (direction * kvHeads + head) * size;
        const expected = times(x.subarray(vector * headDim, (vector + 1) * headDim), all, at);
        const own = got.subarray(vector * headDim, (vector + 1) * headDim);
        assertAllClose(own, expected, { absolute: 2e-5, relative: 1e-5 }, `${headDim} ${name} vector ${vector}`);
      }
    }
  }
});

const KV_HEADS = 2, SINKS = 3, WINDOW = 20, RECENT = 128;

/** What is kept in a case, and how. */
interface Case {
  headDim: number;
  subDim: number;
  bits: number;
  rows: number;
  /** Query heads a KV head. */
  group: number;
  /** Codebooks a head. */
  parts: number;
  /** Whether the keys alone have a transform. */
  alone: boolean;
}

/** Few rows and many, blocks that share a codebook, groups of more heads than a block takes, a codebook a sub-vector, one side alone. */
function cases(headDim: number): Case[] {
  return [
    { subDim: 4, bits: 8, rows: 40 },
    { subDim: 8, bits: 8, rows: 100, group: 6 },
    { subDim: 4, bits: 10, rows: 100 },
    { subDim: 4, bits: 10, rows: 26, alone: true },
    { subDim: 8, bits: 12, rows: 25 },
    { subDim: 2, bits: 8, rows: 70, alone: true },
    { subDim: 4, bits: 6, rows: 9 },
    { subDim: 4, bits: 8, rows: 90, parts: headDim / 4 },
  ].map((own) => ({ headDim, group: 3, parts: 1, alone: false, ...own }));
}

/** A side's matrices, [3, kvHeads, headDim, headDim], its quantizer, and the codebooks that this has. */
interface Coder {
  all: Float32Array;
  quantizer: Quantizer;
  codebook: Float32Array;
}

/** Draws a side; a plain one has no transform. */
function coder(device: Device, random: Random, shape: Case, plain: boolean): Coder {
  const { headDim, subDim, bits, parts } = shape, kvHeads = KV_HEADS, size = headDim * headDim, words = 2 ** bits;
  const unit = new Float32Array(kvHeads * size).map((_, i) => i % size % (headDim + 1) === 0 ? 1 : 0);
  const all = transformMatrices(plain ? unit : transforms(random, kvHeads, headDim), headDim);
  using matrices = Tensor.from(device, all, [3, kvHeads, size]);
  const drawn = random.normals(kvHeads * parts * words * subDim);
  using codebooks = Tensor.from(device, drawn, [kvHeads, parts, words, subDim]);
  using transform = plain ? null : new Transform(device, { kvHeads, headDim, matrices }); // the quantizer keeps what it holds
  const codes = { subDim, bits, codebooks, codebookParts: parts };
  const quantizer = new Quantizer(device, { kvHeads, headDim, ...codes, transform });
  using rounded = Tensor.empty(device, "f32", [kvHeads * parts * words, subDim]);
  quantizer.codebook(rounded);
  return { all, quantizer, codebook: rounded.read<Float32Array>() };
}

/** A layer of two pages with sinks and a ring. */
function layerOf(owned: DisposableStack, keys: Quantizer, values: Quantizer): KvLayer {
  const { device, headDim } = keys;
  const empty = (dtype: "u8" | "bf16", ...shape: number[]) => owned.use(Tensor.empty(device, dtype, shape));
  return owned.use(
    new KvLayer(device, {
      keys,
      values,
      keyPages: empty("u8", 2, keys.pageBytes),
      valuePages: empty("u8", 2, values.pageBytes),
      pageTable: owned.use(Tensor.from(device, Int32Array.of(1, 0), [1, 2])),
      exactFrom: owned.use(Tensor.zeros(device, "i32", [1])),
      keyRecent: empty("bf16", 1, KV_HEADS, RECENT, headDim),
      valueRecent: empty("bf16", 1, KV_HEADS, RECENT, headDim),
      keySinks: empty("bf16", 1, KV_HEADS, SINKS, headDim),
      valueSinks: empty("bf16", 1, KV_HEADS, SINKS, headDim),
      sinks: SINKS,
      window: WINDOW,
      recent: RECENT,
    }),
  );
}

/** The nearest codewords to a transformed vector of a head, and by how much the next ones are further away, at least. */
function nearest(x: readonly number[], codebook: Float32Array, head: number, shape: Case): [number[], number] {
  const { subDim, bits, parts } = shape, words = 2 ** bits, coded: number[] = [];
  let margin = 1;
  for (let begin = 0; begin < x.length; begin += subDim) {
    let [best, second, code] = [Infinity, Infinity, 0];
    const book = (head * parts + (parts > 1 ? begin / subDim : 0)) * words;
    for (let w = book; w < book + words; w++) {
      let distance = 0;
      for (let i = 0; i < subDim; i++) distance += (x[begin + i] - codebook[w * subDim + i]) ** 2;
      if (distance < best) [best, second, code] = [distance, best, w];
      else if (distance < second) second = distance;
    }
    margin = Math.min(margin, second - best);
    for (let i = 0; i < subDim; i++) coded.push(codebook[code * subDim + i]);
  }
  return [coded, margin];
}

/** Compares what is read back with the nearest codewords, back through the transform. Returns the vectors whose nearest was clear. */
function expectNearest(
  { all, codebook }: Coder,
  given: Float32Array,
  back: Float32Array,
  shape: Case,
  what: string,
): number {
  const { headDim } = shape, size = headDim * headDim;
  let compared = 0;
  for (let from = 0; from < given.length; from += headDim) {
    const head = from / headDim % KV_HEADS, there = times(given.subarray(from, from + headDim), all, head * size);
    const [coded, margin] = nearest(there, codebook, head, shape);
    if (margin < 1e-3) continue;
    compared++;
    const expected = times(coded, all, (2 * KV_HEADS + head) * size), tolerance = { absolute: 1e-3, relative: 1e-4 };
    assertAllClose(back.subarray(from, from + headDim), expected, tolerance, `${what} vector ${from / headDim}`);
  }
  return compared;
}

/** Position `t` of a KV head as attention reads it: sinks and window exactly, the others from their codes. */
function rowOf(
  all: Float32Array,
  given: Float32Array,
  back: Float32Array,
  t: number,
  head: number,
  shape: Case,
): ArrayLike<number> {
  const { headDim, rows } = shape, size = headDim * headDim, at = (t * KV_HEADS + head) * headDim;
  if (t >= SINKS && t < rows - WINDOW) return back.subarray(at, at + headDim);
  // Exact tokens are kept as bf16 of x A, and a random A may make much of that rounding on the way back.
  const there = times(given.subarray(at, at + headDim), all, head * size).map(bf16);
  return times(there, all, (2 * KV_HEADS + head) * size);
}

/** Attention of a query over rows of keys and values, in float64. */
function attended(q: Float32Array, keys: readonly ArrayLike<number>[], values: readonly ArrayLike<number>[]): number[] {
  const scores = keys.map((key) => q.reduce((sum, x, i) => sum + key[i] * x, 0) / Math.sqrt(q.length));
  const most = Math.max(...scores), p = scores.map((s) => Math.exp(s - most)), total = p.reduce((a, b) => a + b);
  const out = new Array<number>(q.length).fill(0);
  p.forEach((w, t) => out.forEach((_, i) => out[i] += w / total * values[t][i]));
  return out;
}

testOnDevices(`codes of a fitted transform are the nearest of x A, and attention undoes it, seed ${seed}`, (device) => {
  const random = new Random(seed), kvHeads = KV_HEADS;
  // Of 256 channels, whose matrices take long to invert, as few rows as leave some to the codes.
  const wide = cases(256).filter(({ subDim, bits, parts, alone }) =>
    subDim === 4 && bits >= 8 && parts === 1 && !alone
  );
  for (const shape of [...[64, 128].flatMap(cases), ...wide.map((own) => ({ ...own, rows: 26 }))]) {
    using owned = new DisposableStack();
    const { headDim, subDim, bits, rows, group } = shape, width = kvHeads * headDim, name = `d${subDim}b${bits}`;
    const sides = [false, shape.alone].map((plain) => coder(device, random, shape, plain));
    for (const { quantizer } of sides) owned.use(quantizer);
    const layer = layerOf(owned, sides[0].quantizer, sides[1].quantizer);
    using slots = Tensor.zeros(device, "i32", [rows]);
    using positions = Tensor.from(device, Int32Array.from({ length: rows }, (_, i) => i));
    const given = sides.map(() => random.normals(rows * width));
    const stored = given.map((x) => owned.use(Tensor.from(device, x, [rows, width])));
    layer.quantize(stored[0], stored[1], slots, positions);
    const read = sides.map(() => owned.use(Tensor.empty(device, "f32", [rows, width])));
    layer.dequantize(read[0], read[1], 0, 0, rows);
    const back = read.map((tensor) => tensor.read<Float32Array>());
    const compared = sides.map((one, side) =>
      expectNearest(one, given[side], back[side], shape, `${name} ${headDim} side ${side}`)
    );
    assert(compared[0] + compared[1] > 0, `${name}: no vector was clear`);
    // Attention of the newest position over what is kept.
    const heads = kvHeads * group, q = random.normals(heads * headDim, 0.5);
    using queries = Tensor.from(device, q, [1, heads * headDim]);
    using out = Tensor.empty(device, "f32", [1, heads * headDim]);
    attention(out, queries, layer, slots.rows(0, 1), positions.rows(rows - 1, 1));
    const found = out.read<Float32Array>();
    for (let h = 0; h < heads; h++) {
      const [keys, values] = sides.map(({ all }, side) =>
        Array.from({ length: rows }, (_, t) => rowOf(all, given[side], back[side], t, Math.floor(h / group), shape))
      );
      let error = 0, norm = 0;
      attended(q.subarray(h * headDim, (h + 1) * headDim), keys, values).forEach((x, i) => {
        error += (x - found[h * headDim + i]) ** 2;
        norm += x * x;
      });
      // Tables of attention hold keys and probabilities to some 2^-12.
      const relative = Math.sqrt(error / norm);
      assert(relative < 5e-3, `${name} ${headDim} head ${h}: relative error ${relative}`);
    }
  }
});

testOnDevices("Transform names what it refuses", (device) => {
  const kvHeads = 2, headDim = 64, size = kvHeads * headDim * headDim;
  using matrices = Tensor.zeros(device, "f32", [3, size]);
  using smooth = Tensor.zeros(device, "f32", [kvHeads, headDim]);
  const refused = (change: object, message: string): VecInferError =>
    assertThrows(() => new Transform(device, { kvHeads, headDim, ...change }), VecInferError, message);
  assertEquals(refused({ headDim: 96 }, "vi_transform_create: head_dim 96 is not supported").code, "UNSUPPORTED");
  refused({ kvHeads: 0 }, "Transform: kvHeads: expected a whole number from 1");
  refused({ smooth: matrices }, "Transform: smooth: expected f32 of 128 elements");
  refused({ matrices: smooth }, `Transform: matrices: expected f32 of ${3 * size} elements`);
  refused({ kvHeads: 1, matrices }, "Transform: matrices: expected f32");
  refused({ hadamard: true, matrices }, "matrices stand in place of smooth and hadamard");
  refused({ smooth, matrices }, "matrices stand in place of smooth and hadamard");
  using transform = new Transform(device, { kvHeads, headDim, hadamard: true });
  using x = Tensor.zeros(device, "f32", [2, 192]);
  assertThrows(() => transform.apply(x, x, "sideways" as "query"), VecInferError, '"sideways"');
  assertThrows(() => transform.apply(x, x, "query"), VecInferError, "vi_transform_apply: heads is 3, not a multiple");
  assertThrows(() => transform.apply(x, x, "query", { heads: 4 }), VecInferError, "Transform.apply: x: expected f32");
  transform.apply(x, x, "query", { heads: 2 });
});

test("Transform refuses numbers that are not finite, on the CPU", () => {
  const kvHeads = 1, headDim = 64, size = headDim * headDim, odd = Date.now() % 3;
  const values = new Float32Array(3 * size);
  values[odd * size + 77] = NaN;
  using matrices = Tensor.from(cpu, values, [3, size]);
  const element = `matrices hold NaN or infinity at element ${odd * size + 77}`;
  assertThrows(() => new Transform(cpu, { kvHeads, headDim, matrices }), VecInferError, element);
  using smooth = Tensor.from(cpu, new Float32Array(headDim).fill(Infinity), [kvHeads, headDim]);
  assertThrows(
    () => new Transform(cpu, { kvHeads, headDim, smooth }),
    VecInferError,
    "smooth factors hold NaN or infinity",
  );
});

testOnDevices("a Transform with nothing in it changes nothing, and belongs to its device", (device) => {
  const kvHeads = 2, headDim = 64, random = new Random(seed), values = random.normals(3 * kvHeads * headDim);
  using none = new Transform(device, { kvHeads, headDim });
  using x = Tensor.from(device, values, [3, kvHeads * headDim]);
  for (const direction of ["forward", "query", "inverse"] as const) none.apply(x, x, direction);
  assertEquals(x.read(), values);
  using elsewhere = Device.open({ device: "cpu" });
  using y = Tensor.from(elsewhere, values, [3, kvHeads * headDim]);
  assertThrows(() => none.apply(y, y, "forward"), VecInferError, "Transform.apply: x: expected a tensor on the op's");
  using codebooks = Tensor.zeros(elsewhere, "f32", [1, 256, 4]);
  const side = { kvHeads, headDim, subDim: 4, bits: 8, codebooks, transform: none };
  assertThrows(
    () => new Quantizer(elsewhere, side),
    VecInferError,
    "Quantizer: transform: expected a Transform on the op's",
  );
});

testOnDevices("a Quantizer keeps what its Transform holds, and takes one of its own heads alone", (device) => {
  const kvHeads = 2, headDim = 64, random = new Random(seed), width = kvHeads * headDim, rows = 70;
  using codebooks = Tensor.from(device, random.normals(256 * 4), [1, 256, 4]);
  using smooth = Tensor.from(device, Float32Array.from({ length: width }, () => 0.5 + random.uniform()), [
    kvHeads,
    headDim,
  ]);
  using k = Tensor.from(device, random.normals(rows * width), [rows, width]);
  const side = { kvHeads, headDim, subDim: 4, bits: 8, codebooks };
  // What a layer reads back, with the transform disposed before the layer is made, at the end, or given as none.
  const stored = (transform: Transform | null, early: boolean): Float32Array => {
    using quantizer = new Quantizer(device, { ...side, transform });
    if (early) transform?.[Symbol.dispose]();
    using keyPages = Tensor.empty(device, "u8", [2, quantizer.pageBytes]);
    using valuePages = Tensor.empty(device, "u8", [2, quantizer.pageBytes]);
    using pageTable = Tensor.from(device, Int32Array.of(1, 0), [1, 2]);
    using exactFrom = Tensor.zeros(device, "i32", [1]);
    const pages = { keyPages, valuePages, pageTable, exactFrom, sinks: 0, window: 0, recent: 0 };
    using layer = new KvLayer(device, { keys: quantizer, values: quantizer, ...pages });
    using slots = Tensor.zeros(device, "i32", [rows]);
    using positions = Tensor.from(device, Int32Array.from({ length: rows }, (_, i) => i));
    layer.quantize(k, k, slots, positions);
    using keys = Tensor.empty(device, "f32", [rows, width]);
    using values = Tensor.empty(device, "f32", [rows, width]);
    layer.dequantize(keys, values, 0, 0, rows);
    return keys.read();
  };
  using kept = new Transform(device, { kvHeads, headDim, smooth, hadamard: true });
  const early = new Transform(device, { kvHeads, headDim, smooth, hadamard: true }), expected = stored(kept, false);
  assertEquals(stored(early, true), expected);
  assertNotEquals(stored(null, false), expected);
  assert(!early.alive && kept.alive);
  early[Symbol.dispose]();
  assertThrows(() => early.apply(k, k, "forward"), VecInferError, "Transform was used after it was disposed");
  assertThrows(
    () => new Quantizer(device, { ...side, transform: early }),
    VecInferError,
    "Transform was used after it was disposed",
  );
  using odd = new Transform(device, { kvHeads: 1, headDim, hadamard: true });
  const heads = "the transform has 1 KV heads of 64 channels, the quantizer 2 of 64";
  assertThrows(() => new Quantizer(device, { ...side, transform: odd }), VecInferError, heads);
  const bf16 = { kvHeads, headDim, subDim: 1, bits: 16, transform: kept };
  assertThrows(
    () => new Quantizer(device, bf16),
    VecInferError,
    "16 bits go without codebooks, transform and token_scale",
  );
});
