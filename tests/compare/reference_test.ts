import { assert, assertEquals } from "@std/assert";
import { attention } from "../../lib/ops/ops.ts";
import type { Device } from "../../lib/device.ts";
import { methodOf, ReferenceCache, type ReferenceMethod } from "../../lib/calibration/mod.ts";
import { type CacheShape, type Sequence, Tensor } from "../../lib/ops/mod.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { allBf16, attention as reference, bf16 } from "../support/reference.ts";

const shape: CacheShape = { layers: 2, kvHeads: 2, headDim: 64 }, width = 128, group = 32;

/** Stores rows of keys and values in all layers, `step` tokens at a time. */
function store(
  device: Device,
  cache: ReferenceCache,
  sequence: Sequence,
  keys: Float32Array,
  values: Float32Array,
  step = 16,
): void {
  for (let first = 0; first * width < keys.length; first += step) {
    const rows = Math.min(step, keys.length / width - first), begin = sequence.length;
    const part = (x: Float32Array) =>
      Tensor.from(device, x.subarray(first * width, (first + rows) * width), [rows, width]);
    using k = part(keys);
    using v = part(values);
    using slots = Tensor.from(device, new Int32Array(rows).fill(sequence.slot));
    using positions = Tensor.from(device, Int32Array.from({ length: rows }, (_, i) => begin + i));
    sequence.extend(rows);
    for (const layer of cache.layers) layer.quantize(k, v, slots, positions);
    cache.settle(sequence, begin);
  }
}

function pages(device: Device, cache: ReferenceCache, sequence: Sequence, layer: number) {
  using keys = Tensor.empty(device, "f32", [sequence.length, width]);
  using values = Tensor.empty(device, "f32", [sequence.length, width]);
  cache.layers[layer].dequantize(keys, values, sequence.slot, 0);
  return { keys: keys.read<Float32Array>(), values: values.read<Float32Array>() };
}

/** What pages should hold: complete groups as the method gives them back, without the sinks, and all else in bf16. */
function expected(method: ReferenceMethod, keys: Float32Array, values: Float32Array, sinks: number, layer: number) {
  const out = { keys: allBf16(keys), values: allBf16(values) }, run = method.reconstructor(shape, layer);
  for (let end = group; end * width <= keys.length; end += group) {
    const first = Math.max(sinks, end - group);
    if (first >= end) continue;
    const part = (x: Float32Array) => x.subarray(first * width, end * width);
    run({ first, count: end - first, keys: part(out.keys), values: part(out.values) });
  }
  return { keys: allBf16(out.keys), values: allBf16(out.values) };
}

testOnDevices("a reference cache holds exact sinks and window, and reconstructed pages, seed 80", (device) => {
  for (const [name, sinks, window] of [["kivi:g32", 4, 40], ["ott:g32", 0, 16], ["kivi:b4g32", 35, 0]] as const) {
    const method = methodOf(name) as ReferenceMethod, random = new Random(80), count = 150;
    using cache = new ReferenceCache(device, shape, method, { sinks, window }, { context: 256, sequences: 2 });
    const keys = random.normals(count * width), values = random.normals(count * width);
    using other = cache.sequence();
    store(device, cache, other, values.subarray(0, 70 * width), keys.subarray(0, 70 * width));
    using sequence = cache.sequence();
    store(device, cache, sequence, keys, values);
    for (let layer = 0; layer < shape.layers; layer++) {
      const want = expected(method, keys, values, sinks, layer), found = pages(device, cache, sequence, layer);
      assertAllClose(found.keys, want.keys, { relative: 2 ** -7 }, `${name} keys`);
      assertAllClose(found.values, want.values, { relative: 2 ** -7 }, `${name} values`);
      assert(found.keys.some((x, i) => Math.abs(x - keys[i]) > 0.1), "nothing was reconstructed");
      // Attention of the newest token: sinks and window as they were, the others from the pages.
      const q = random.normals(4 * 64), out = Tensor.empty(device, "f32", [1, 4 * 64]);
      using queries = Tensor.from(device, q, [1, 4 * 64]);
      using slots = Tensor.from(device, Int32Array.of(sequence.slot));
      using positions = Tensor.from(device, Int32Array.of(count - 1));
      attention(out, queries, cache.layers[layer], slots, positions);
      const seen = (exact: Float32Array, coded: Float32Array, head: number) =>
        Array.from({ length: count }, (_, j) => {
          const from = j < sinks || count - 1 - j < window ? exact : coded, at = j * width + head * 64;
          return Array.from(from.subarray(at, at + 64), bf16);
        });
      const result = Array.from({ length: 4 }, (_, h) => {
        const head = Math.floor(h / 2), k = seen(keys, found.keys, head), v = seen(values, found.values, head);
        return reference(q.subarray(h * 64, (h + 1) * 64), k, v, 1 / 8);
      }).flat();
      assertAllClose(out.read(), result, { absolute: device.name === "cpu" ? 1e-4 : 4e-3 }, `${name} attention`);
      out[Symbol.dispose]();
    }
    const apart = pages(device, cache, other, 1);
    const want = expected(method, values.subarray(0, 70 * width), keys.subarray(0, 70 * width), sinks, 1);
    assertAllClose(apart.keys, want.keys, { relative: 2 ** -7 }, `${name}, the other sequence`);
  }
});

testOnDevices("a truncated reference sequence grows again from exact tokens, seed 81", (device) => {
  const method = methodOf("kivi:g32") as ReferenceMethod, random = new Random(81);
  using cache = new ReferenceCache(device, shape, method, { sinks: 0, window: 0 }, { context: 256 });
  const keys = random.normals(128 * width), values = random.normals(128 * width);
  using sequence = cache.sequence();
  store(device, cache, sequence, keys, values);
  const before = pages(device, cache, sequence, 0);
  // In small steps, and in one that goes to where it was at once.
  for (const step of [16, 64]) {
    sequence.truncate(64);
    store(device, cache, sequence, keys.subarray(64 * width), values.subarray(64 * width), step);
    assertEquals(pages(device, cache, sequence, 0), before);
  }
});
