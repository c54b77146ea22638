import { assert, assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { KvLayer, Quantizer, rope } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { type Side, TestLayer } from "../support/layer.ts";
import { Random } from "../support/random.ts";
import { bf16 } from "../support/reference.ts";

const plain: Side = { subDim: 1, bits: 16 };
const all = { hadamard: true, smooth: true, tokenScale: true, perHead: true };
const formats = [[2, 8], [4, 12], [4, 10], [4, 8], [4, 6], [8, 12], [8, 8]];

testOnDevices("KvLayer stores the nearest codewords of every format, seed 30", (device) => {
  const random = new Random(30);
  for (const headDim of [64, 128, 256]) {
    for (const [subDim, bits] of formats) {
      const shape = { kvHeads: 2, headDim, slots: 2, maxPages: 3, sinks: 2, window: 8, recent: 16 };
      // A codebook a sub-vector where the head dimension is 64, for keys of each head apart.
      const perPart = headDim === 64;
      const keys: Side = { subDim, bits, perPart, ...(bits % 4 ? {} : all) };
      const values: Side = { subDim, bits, tokenScale: true, perPart: perPart && bits !== 8 };
      using layer = new TestLayer(device, random, keys, values, shape, 2);
      // More than a page, but where the search of the reference is long.
      const count = headDim === 256 ? 8 : 67,
        width = 2 * headDim,
        k = random.normals(count * width),
        v = random.normals(count * width, 0.1);
      layer.store(1, k, v, 16);
      const read = layer.pages(1, 3, count - 3);
      let doubtful = 0;
      for (let token = 3; token < count; token++) {
        for (let head = 0; head < 2; head++) {
          const at = token * width + head * headDim, from = at - 3 * width;
          for (const [side, x, out] of [[layer.keys, k, read.keys], [layer.values, v, read.values]] as const) {
            const { values, margin } = side.coded(x.subarray(at, at + headDim), head);
            const found = out.subarray(from, from + headDim);
            if (margin < 1e-5) doubtful++; // float32 may choose the other one
            else assertScaled(found, values, `d${subDim}b${bits} token ${token} head ${head}`);
          }
        }
      }
      assert(doubtful < 0.2 * count * 4, `${doubtful} vectors were too close to call`);
    }
  }
});

/** Equal up to one step, 2^(1/16), of the token scale, where rounding may decide. */
function assertScaled(actual: Float32Array, expected: number[], name: string): void {
  const i = expected.reduce((best, x, j) => Math.abs(x) > Math.abs(expected[best]) ? j : best, 0);
  const steps = Math.round(16 * Math.log2(actual[i] / expected[i]));
  assert(Math.abs(steps) <= 1, `${name}: scale is ${actual[i] / expected[i]} times that expected`);
  assertAllClose(actual, expected.map((x) => x * 2 ** (steps / 16)), { absolute: 2e-5, relative: 1e-5 }, name);
}

testOnDevices("KvLayer without quantization keeps bf16, seed 31", (device) => {
  const random = new Random(31),
    shape = { kvHeads: 3, headDim: 64, slots: 1, maxPages: 2, sinks: 0, window: 0, recent: 0 };
  using layer = new TestLayer(device, random, plain, plain, shape, 2);
  const k = random.normals(100 * 192), v = random.normals(100 * 192);
  layer.store(0, k, v, 100);
  const read = layer.pages(0, 0, 100);
  assertEquals(read.keys, k.map(bf16));
  assertEquals(read.values, v.map(bf16));
});

testOnDevices("KvLayer.quantize reads strided rows of several slots, seed 32", (device) => {
  const random = new Random(32),
    shape = { kvHeads: 2, headDim: 64, slots: 3, maxPages: 1, sinks: 0, window: 4, recent: 8 };
  using layer = new TestLayer(device, random, plain, plain, shape, 1);
  const rows = 7, values = random.normals(rows * 300);
  using joint = Tensor.from(device, values, [rows, 300]);
  using slots = Tensor.from(device, Int32Array.of(0, 1, 2, 0, 1, 2, 0));
  using positions = Tensor.from(device, Int32Array.of(0, 0, 0, 1, 1, 1, 2));
  layer.native.quantize(joint.columns(20, 128), joint.columns(150, 128), slots, positions);
  const read = layer.pages(0, 1, 2);
  const expected = (row: number, column: number) =>
    values.slice(row * 300 + column, row * 300 + column + 128).map(bf16);
  assertEquals(read.keys, Float32Array.from([...expected(3, 20), ...expected(6, 20)]));
  assertEquals(read.values, Float32Array.from([...expected(3, 150), ...expected(6, 150)]));
});

testOnDevices("KvLayer.ropeQuantize rotates as rope does and stores what quantize stores, seed 33", (device) => {
  const random = new Random(33);
  for (const headDim of [64, 80, 96, 112, 128, 192, 256]) {
    const shape = { kvHeads: 2, headDim, slots: 2, maxPages: 1600, sinks: 2, window: 0, recent: 0 };
    const heads = 6, width = heads * headDim, kv = 2 * headDim, stride = width + 2 * kv;
    for (
      const [keys, values] of [[plain, plain], [{ subDim: 8, bits: 12, ...all }, {
        subDim: 4,
        bits: 8,
        hadamard: true,
      }], [{ subDim: 4, bits: 10, hadamard: true, smooth: true, asMatrices: true }, {
        subDim: 8,
        bits: 8,
        perHead: true,
        hadamard: true,
        asMatrices: true,
      }]]
    ) {
      if ((keys.bits < 16 || values.bits < 16) && ![64, 128, 256].includes(headDim)) continue;
      // A few rows, and those of a batch.
      const few = [0, 3, 17, 70, 99_991], many = [...few, ...Array.from({ length: 30 }, (_, i) => 100 + 97 * i)];
      for (const at of headDim === 64 || headDim === 128 ? [few, many] : [few]) {
        using layer = new TestLayer(device, random, keys, values, shape, 1600);
        const rows = at.length;
        using joint = Tensor.from(device, random.normals(rows * stride), [rows, stride]);
        using apart = Tensor.empty(device, "f32", [rows, stride]);
        apart.copyFrom(joint);
        using slots = Tensor.from(device, new Int32Array(rows).fill(1));
        using positions = Tensor.from(device, Int32Array.from(at));
        using frequencies = Tensor.from(
          device,
          Float32Array.from({ length: headDim / 2 }, (_, i) => 1e4 ** (-2 * i / headDim)),
        );
        const sides = (x: Tensor) => [x.columns(width, kv), x.columns(width + kv, kv)] as const;
        const read = () => at.map((position) => layer.pages(1, position, 1));
        rope(apart, positions, frequencies, { heads: heads + 2, headDim, stride });
        layer.native.quantize(...sides(apart), slots, positions);
        const expected = read();
        layer.native.ropeQuantize(joint, ...sides(joint), slots, positions, frequencies, { heads, stride });
        const found = read(), name = `${headDim} channels, ${keys.bits} bits, ${rows} rows`;
        assertAllClose(joint.columns(0, width).read(), [...apart.columns(0, width).read()], { absolute: 2e-6 }, name);
        for (let i = 0; i < rows; i++) {
          assertAllClose(found[i].keys, [...expected[i].keys], { absolute: 1e-6, relative: 2 ** -7 }, `${name}, keys`);
          assertAllClose(found[i].values, [...expected[i].values], { absolute: 1e-6 }, `${name}, values`);
        }
      }
    }
  }
});

testOnDevices("KvLayer names what it refuses, and outlives nothing it needs", (device) => {
  const sizes = { kvHeads: 2, headDim: 64, subDim: 1, bits: 16 };
  using keys = new Quantizer(device, sizes);
  using values = new Quantizer(device, sizes);
  using odd = new Quantizer(device, { ...sizes, headDim: 128 });
  using pages = Tensor.zeros(device, "u8", [2, keys.pageBytes]);
  using pageTable = Tensor.zeros(device, "i32", [1, 2]);
  using exactFrom = Tensor.zeros(device, "i32", [1]);
  const options = {
    keys,
    values,
    keyPages: pages,
    valuePages: pages,
    pageTable,
    exactFrom,
    sinks: 0,
    window: 0,
    recent: 0,
  };
  const refused = (change: object, message: string) =>
    assertThrows(() => new KvLayer(device, { ...options, ...change }), VecInferError, message);
  refused({ values: odd }, "KvLayer: values: expected 2 heads of 64 channels, as the keys, found 2 of 128");
  refused({ window: 1 }, "KvLayer: window: expected a whole number from 0 to 0, found 1");
  refused({ sinks: 4 }, "KvLayer: keySinks: expected bf16 [1, 2, 4, 64], found none");
  refused({ exactFrom: pageTable }, "KvLayer: exactFrom: expected i32 of 1 elements");
  refused({ keyPages: pageTable }, "KvLayer: keyPages: expected u8");
  const layer = new KvLayer(device, options);
  using x = Tensor.zeros(device, "f32", [2, 128]);
  using slots = Tensor.zeros(device, "i32", [2]);
  using positions = Tensor.from(device, Int32Array.of(0, 1));
  layer.quantize(x, x, slots, positions);
  assertThrows(() => layer.quantize(x, x, slots, x), VecInferError, "KvLayer.quantize: positions: expected i32 [2]");
  assertThrows(
    () => layer.dequantize(x, x, 1, 0),
    VecInferError,
    "KvLayer.dequantize: slot: expected a whole number from 0 to 0",
  );
  assertThrows(() => layer.dequantize(x, x, 0, 127), VecInferError, "KvLayer.dequantize: rows");
  exactFrom[Symbol.dispose]();
  assertThrows(
    () => layer.quantize(x, x, slots, positions),
    VecInferError,
    "Tensor i32 [1] was used after it was disposed",
  );
  layer[Symbol.dispose]();
  assertThrows(() => layer.quantize(x, x, slots, positions), VecInferError, "KvLayer was used after it was disposed");
});
