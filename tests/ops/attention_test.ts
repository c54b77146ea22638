import { assertEquals, assertThrows } from "@std/assert";
import type { Device } from "../../lib/device.ts";
import { VecInferError } from "../../lib/device.ts";
import { attention, attentionPrefill } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { type LayerShape, type Side, TestLayer } from "../support/layer.ts";
import { Random } from "../support/random.ts";
import { allBf16, attention as reference, bf16 } from "../support/reference.ts";

const vq2: Side = { subDim: 4, bits: 8, hadamard: true, smooth: true, tokenScale: true, perHead: true };
const plain: Side = { subDim: 1, bits: 16 };

/** Keys and values of one head, a vector a position. */
interface Head {
  keys: number[][];
  values: number[][];
}

/** What a query at `position` should see of a slot's tokens: the first and newest ones exactly, the others as coded. */
function seen(
  layer: TestLayer,
  slot: number,
  k: Float32Array,
  v: Float32Array,
  position: number,
  exactFrom: number,
): Head[] {
  const { kvHeads, headDim, sinks, window } = layer.shape, width = kvHeads * headDim;
  const pages = layer.pages(slot, 0, position + 1);
  return Array.from({ length: kvHeads }, (_, head) => {
    const side = (of: "keys" | "values", fresh: Float32Array) =>
      Array.from({ length: position + 1 }, (_, j) => {
        const at = j * width + head * headDim;
        const exact = j < sinks || (position - j < window && j >= exactFrom);
        if (!exact) return Array.from(pages[of].subarray(at, at + headDim));
        return layer[of].inverse(layer[of].forward(fresh.subarray(at, at + headDim), head).map(bf16), head);
      });
    return { keys: side("keys", k), values: side("values", v) };
  });
}

/** Reference output of one row of queries. */
function expectedRow(heads: Head[], q: Float32Array, headDim: number, scale: number): number[] {
  const group = q.length / headDim / heads.length;
  return Array.from({ length: q.length / headDim }, (_, h) => {
    const { keys, values } = heads[Math.floor(h / group)];
    return reference(q.subarray(h * headDim, (h + 1) * headDim), keys, values, scale);
  }).flat();
}

function testAttention(
  device: Device,
  random: Random,
  keys: Side,
  values: Side,
  shape: LayerShape,
  group: number,
): void {
  const { kvHeads, headDim, recent, slots: slotCount } = shape, width = kvHeads * headDim, heads = kvHeads * group;
  const count = 150, step = 5, scale = 1 / Math.sqrt(headDim);
  using layer = new TestLayer(device, random, keys, values, shape, 3);
  const k: Float32Array[] = [], v: Float32Array[] = [];
  for (let slot = 0; slot < slotCount; slot++) {
    k.push(random.normals(count * width));
    v.push(random.normals(count * width));
    // One slot is written as decoding does, the others as a prompt.
    layer.store(slot, k[slot], v[slot], slot === 0 && recent > 0 ? step : count);
  }
  const exactFrom = layer.exactFrom.read<Int32Array>();
  // Earlier positions than the newest are still in the ring while window + their distance fits it.
  const at = [[0, count - 1], [1, count - 1], [1, count - 2], [0, count - 3], [1, -1]].filter(([slot]) =>
    slot < slotCount
  );
  const stride = heads * headDim + 12, q = random.normals(at.length * stride);
  using queries = Tensor.from(device, q, [at.length, stride]);
  using slots = Tensor.from(device, Int32Array.from(at, ([slot]) => slot));
  using positions = Tensor.from(device, Int32Array.from(at, ([_, position]) => position));
  using out = Tensor.empty(device, "f32", [at.length, heads * headDim]);
  attention(out, queries, layer.native, slots, positions, { heads });
  const expected = at.flatMap(([slot, position], r) => {
    const own = q.subarray(r * stride, r * stride + heads * headDim);
    if (position < 0) return new Array<number>(own.length).fill(0);
    return expectedRow(seen(layer, slot, k[slot], v[slot], position, exactFrom[slot]), own, headDim, scale);
  });
  const name = `d${keys.subDim}b${keys.bits} d${values.subDim}b${values.bits} ${headDim} group ${group}`;
  // bf16 of a transformed channel may round the other way in float32: up to 2^-9 of it, in a few of many.
  assertAllClose(out.read(), expected, { absolute: device.name === "cpu" ? 1e-3 : 4e-3 }, name);
}

for (const headDim of [64, 128, 256]) {
  testOnDevices(`attention over sinks, pages and ring, headDim ${headDim}, seed 40`, (device) => {
    const random = new Random(40),
      shape = { kvHeads: 2, headDim, slots: 2, maxPages: 5, sinks: 4, window: 24, recent: 40 };
    testAttention(device, random, vq2, vq2, shape, 4);
    testAttention(device, random, vq2, { subDim: 8, bits: 12 }, shape, 3);
    testAttention(device, random, plain, plain, shape, 1);
    testAttention(device, random, { subDim: 4, bits: 12, hadamard: true }, plain, shape, 2);
  });
}

testOnDevices("attention in every format, seed 41", (device) => {
  const random = new Random(41);
  for (const [subDim, bits] of [[2, 8], [4, 12], [4, 10], [4, 8], [4, 6], [8, 12], [8, 8]]) {
    const shape = { kvHeads: 1, headDim: 64, slots: 2, maxPages: 3, sinks: 0, window: 0, recent: 0 };
    testAttention(device, random, { subDim, bits, smooth: true }, { subDim, bits, tokenScale: true }, shape, 16);
    testAttention(device, random, { subDim, bits, tokenScale: true }, { subDim, bits }, { ...shape, sinks: 1 }, 1);
  }
});

testOnDevices("attention in every format, headDim 256, seed 49", (device) => {
  const random = new Random(49);
  for (const [subDim, bits] of [[2, 8], [4, 12], [4, 10], [4, 8], [4, 6], [8, 12], [8, 8]]) {
    const shape = { kvHeads: 2, headDim: 256, slots: 1, maxPages: 3, sinks: 0, window: 0, recent: 0 };
    // All channels and tokens go through tables where they are most: 16 query heads.
    const keys: Side = {
      subDim,
      bits,
      tokenScale: true,
      perHead: true,
      smooth: true,
      hadamard: true,
      asMatrices: bits > 8,
    };
    const values: Side = { subDim, bits, perHead: true, hadamard: true, asMatrices: bits < 12 };
    testAttention(device, random, keys, values, shape, bits === 8 ? 16 : 2);
    if (bits === 10) continue; // codebooks of 1024 words for each of 64 sub-vectors
    testAttention(device, random, { subDim, bits, perPart: true }, { subDim, bits, perPart: true }, {
      ...shape,
      kvHeads: 1,
    }, 3);
  }
});

testOnDevices("attention with a codebook a sub-vector, seed 46", (device) => {
  const random = new Random(46);
  for (const [subDim, bits] of [[2, 8], [4, 12], [4, 8], [4, 6], [8, 12], [8, 8]]) {
    const shape = {
      kvHeads: 2,
      headDim: bits === 6 ? 128 : 64,
      slots: 2,
      maxPages: 3,
      sinks: 4,
      window: 24,
      recent: 40,
    };
    const part: Side = { subDim, bits, perPart: true, perHead: bits === 8, tokenScale: bits === 12 };
    testAttention(device, random, part, { ...part, hadamard: true }, shape, 3);
    testAttention(device, random, vq2, part, shape, 1);
    testAttention(device, random, part, plain, { ...shape, sinks: 0, window: 0, recent: 0 }, 5);
  }
});

testOnDevices("attention with a window and no sinks, seed 42", (device) => {
  const shape = { kvHeads: 3, headDim: 64, slots: 2, maxPages: 3, sinks: 0, window: 7, recent: 12 };
  testAttention(device, new Random(42), vq2, vq2, shape, 3);
});

testOnDevices("attention with a scale, seed 43", (device) => {
  const random = new Random(43),
    shape = { kvHeads: 1, headDim: 64, slots: 1, maxPages: 1, sinks: 0, window: 0, recent: 0 };
  using layer = new TestLayer(device, random, plain, plain, shape, 1);
  const k = random.normals(30 * 64).map(bf16), v = random.normals(30 * 64).map(bf16), q = random.normals(64);
  layer.store(0, k, v, 30);
  using queries = Tensor.from(device, q, [1, 64]);
  using slots = Tensor.zeros(device, "i32", [1]);
  using positions = Tensor.from(device, Int32Array.of(29));
  using out = Tensor.empty(device, "f32", [1, 64]);
  attention(out, queries, layer.native, slots, positions, { scale: 0.7 });
  assertAllClose(out.read(), expectedRow(seen(layer, 0, k, v, 29, 0), q, 64, 0.7), { absolute: 1e-4 });
});

/** Rows of a matrix, cut into heads. */
function headsOf(x: Float32Array, rows: number, kvHeads: number, headDim: number, head: number): number[][] {
  return Array.from({ length: rows }, (_, j) => {
    const at = (j * kvHeads + head) * headDim;
    return Array.from(x.subarray(at, at + headDim));
  });
}

testOnDevices("attentionPrefill over fresh and past tokens, seed 44", (device) => {
  const random = new Random(44);
  for (
    const [headDim, kvHeads, group, past, fresh, first] of [
      [64, 1, 1, 0, 1, 0],
      [64, 3, 3, 0, 70, 0],
      [128, 2, 4, 0, 33, 20],
      [64, 2, 2, 90, 19, 0],
      [128, 1, 8, 130, 40, 25],
    ]
  ) {
    const width = kvHeads * headDim, heads = kvHeads * group, rows = fresh - first, scale = 1 / Math.sqrt(headDim);
    const shape = { kvHeads, headDim, slots: 2, maxPages: 3, sinks: 4, window: 24, recent: 40 };
    using layer = new TestLayer(device, random, vq2, vq2, shape, 3);
    const k = random.normals(fresh * width),
      v = random.normals(fresh * width),
      q = random.normals(rows * heads * headDim);
    let before: Head[] = Array.from({ length: kvHeads }, () => ({ keys: [], values: [] }));
    if (past > 0) {
      const pastKeys = random.normals(past * width), pastValues = random.normals(past * width);
      layer.store(1, pastKeys, pastValues, past);
      const exactFrom = layer.exactFrom.read<Int32Array>()[1];
      before = seen(layer, 1, pastKeys, pastValues, past - 1, exactFrom);
    }
    using keys = Tensor.from(device, k, [fresh, width]);
    using values = Tensor.from(device, v, [fresh, width]);
    using queries = Tensor.from(device, q, [rows, heads * headDim]);
    using out = Tensor.empty(device, "f32", [rows, heads * headDim]);
    const options = { headDim, past, first, slot: 1, layer: past > 0 ? layer.native : null };
    const close = { absolute: device.name === "cpu" ? 1e-3 : 1e-2 };
    const name = `${headDim} ${kvHeads} x ${group}, ${past} + ${fresh} from ${first}`;
    attentionPrefill(out, queries, keys, values, options);
    const result = out.read();
    // The same rows as bf16 that lie in wider ones, beside NaN.
    const token = (x: Float32Array, t: number) => Array.from(x.subarray(t * width, (t + 1) * width));
    const gap = new Array<number>(8).fill(NaN);
    const wide = Array.from({ length: fresh }, (_, t) => [...token(k, t), ...token(v, t), ...gap]).flat();
    using both = Tensor.from(device, wide, [fresh, 2 * width + 8], "bf16");
    attentionPrefill(out, queries, both.columns(0, width), both.columns(width, width), options);
    const rounded = out.read();
    const expected = (k: Float32Array, v: Float32Array) =>
      Array.from({ length: rows }, (_, r) => {
        const all = before.map((head, h) => ({
          keys: [...head.keys, ...headsOf(k, first + r + 1, kvHeads, headDim, h)],
          values: [...head.values, ...headsOf(v, first + r + 1, kvHeads, headDim, h)],
        }));
        return expectedRow(all, q.subarray(r * heads * headDim, (r + 1) * heads * headDim), headDim, scale);
      }).flat();
    assertAllClose(result, expected(k, v), close, name);
    assertAllClose(rounded, expected(allBf16(k), allBf16(v)), close, `${name}, bf16`);
  }
});

testOnDevices("attention and attentionPrefill name what they refuse, seed 45", (device) => {
  const random = new Random(45),
    shape = { kvHeads: 2, headDim: 64, slots: 1, maxPages: 1, sinks: 0, window: 0, recent: 0 };
  using layer = new TestLayer(device, random, plain, plain, shape, 1);
  using x = Tensor.zeros(device, "f32", [2, 128]);
  using half = Tensor.zeros(device, "bf16", [2, 128]);
  using slots = Tensor.zeros(device, "i32", [2]);
  using positions = Tensor.zeros(device, "i32", [2]);
  const { native } = layer;
  assertThrows(() => attention(x, x, native, slots, x), VecInferError, "attention: positions: expected i32 [2]");
  assertThrows(
    () => attention(x, x, native, slots, positions, { heads: 3 }),
    VecInferError,
    "attention: out: expected f32 [2, 192]",
  );
  assertThrows(
    () => attention(x, x, native, slots, positions, { heads: 1 }),
    VecInferError,
    "attention: out: expected f32 [2, 64]",
  );
  const three = x.view([1, 256]).columns(0, 192);
  assertThrows(
    () => attention(x, three, native, slots, positions, { rows: 2 }),
    VecInferError,
    "attention: q: expected",
  );
  assertThrows(
    () => attentionPrefill(x, x, half, x, { headDim: 64 }),
    VecInferError,
    "attentionPrefill: values: expected bf16",
  );
  assertThrows(
    () => attentionPrefill(x, x, half.columns(1, 64), half.columns(1, 64), { headDim: 64 }),
    VecInferError,
    "rows of bf16 keys and values begin at multiples of 16 bytes",
  );
  assertThrows(
    () => attentionPrefill(x, x, x, x, { headDim: 64, past: 3 }),
    VecInferError,
    "expected a KvLayer with the 3 past tokens",
  );
  assertThrows(
    () => attentionPrefill(x, x, x, x, { headDim: 64, first: 1 }),
    VecInferError,
    "keys: expected f32 [3, 128]",
  );
  assertEquals(native.slots, 1);
});
