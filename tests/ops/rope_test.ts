import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { ropeFrequencies } from "../../lib/models/rope.ts";
import { rope, type RopeOptions, ropeRound } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { half } from "../support/blocks.ts";
import { rope as reference } from "../support/reference.ts";

const seed = Date.now() & 0xffff;

testOnDevices(`rope rotates the first heads of strided rows, seed ${seed}`, (device) => {
  const random = new Random(seed);
  for (const [rows, heads, headDim, gap] of [[1, 1, 2, 0], [5, 3, 64, 17], [70, 9, 128, 0], [33, 2, 64, 64]]) {
    const stride = heads * headDim + gap, values = random.normals(rows * stride);
    const frequencies = ropeFrequencies({ headDim, ropeTheta: 10000 });
    const at = random.integers(rows, 0, 131072);
    using x = Tensor.from(device, values, [rows, stride]);
    using positions = Tensor.from(device, at);
    using table = Tensor.from(device, frequencies);
    const expected = rotated(values, stride, heads, headDim, at, frequencies);
    if (gap > 0) rope(x, positions, table, { heads });
    else rope(x, positions, table);
    assertAllClose(x.read(), expected, { absolute: 3e-6 }, `[${rows}, ${heads}, ${headDim}] + ${gap}`);
    // The same through a view of columns, back again.
    for (let r = 0; r < rows; r++) at[r] = -at[r];
    positions.write(at);
    rope(x.columns(0, heads * headDim), positions, table);
    assertAllClose(x.read(), values, { absolute: 6e-6 }, "back again");
  }
});

testOnDevices(`rope of a part of the channels, interleaved, with a factor, seed ${seed}`, (device) => {
  const random = new Random(seed + 1);
  const shapes = [[1, 1, 3, 2, 0], [7, 5, 128, 96, 0], [3, 40, 64, 32, 9], [20, 2, 80, 80, 1], [9, 3, 256, 64, 130]];
  for (const [rows, heads, headDim, rotaryDim, gap] of shapes) {
    for (const interleaved of [false, true]) {
      for (const factor of [1, Math.fround(1.19)]) {
        const stride = heads * headDim + gap, values = random.normals(rows * stride);
        const frequencies = ropeFrequencies({ headDim: rotaryDim, ropeTheta: 500000 });
        const at = random.integers(rows, 0, 131072);
        using x = Tensor.from(device, values, [rows, stride]);
        using positions = Tensor.from(device, at);
        using table = Tensor.from(device, frequencies);
        rope(x, positions, table, { heads, headDim, rotaryDim, interleaved, factor });
        const options = { rotaryDim, interleaved, factor };
        const expected = rotated(values, stride, heads, headDim, at, frequencies, options);
        const name = `[${rows}, ${heads}, ${headDim}, ${rotaryDim}] + ${gap}, ${interleaved}, ${factor}`;
        assertAllClose(x.read(), expected, { absolute: 4e-6 }, name);
      }
    }
  }
});

/** All heads of rows, rotated by the reference; what is not rotated stays. */
function rotated(
  values: Float32Array,
  stride: number,
  heads: number,
  headDim: number,
  positions: Int32Array,
  frequencies: Float32Array,
  options: RopeOptions = {},
): number[] {
  const { rotaryDim = headDim, interleaved = false, factor = 1 } = options, out = Array.from(values);
  const place = (i: number) => interleaved ? (i % (rotaryDim / 2)) * 2 + Math.floor(i / (rotaryDim / 2)) : i;
  positions.forEach((position, r) => {
    for (let h = 0; h < heads; h++) {
      const begin = r * stride + h * headDim;
      const halves = Array.from({ length: rotaryDim }, (_, i) => values[begin + place(i)]);
      reference(halves, position, frequencies).forEach((y, i) => out[begin + place(i)] = factor * y);
    }
  });
  return out;
}

testOnDevices(`ropeRound turns as rope does and rounds keys and values, seed ${seed}`, (device) => {
  const random = new Random(seed + 2);
  const shapes: [number, number, number, RopeOptions & { headDim: number }][] = [
    [1, 1, 1, { headDim: 2 }],
    [70, 9, 3, { headDim: 64 }],
    [33, 8, 8, { headDim: 128 }],
    [20, 6, 2, { headDim: 128, rotaryDim: 96, factor: Math.fround(1.19) }],
    [9, 4, 2, { headDim: 80, rotaryDim: 40, interleaved: true }],
    [5, 3, 1, { headDim: 7, rotaryDim: 0 }],
  ];
  for (const [rows, heads, kvHeads, turn] of shapes) {
    const { headDim, rotaryDim = headDim } = turn;
    const q = heads * headDim, kv = kvHeads * headDim, stride = q + 2 * kv + 3, values = random.normals(rows * stride);
    values[q + kv] = -1e5; // beyond f16
    using x = Tensor.from(device, values, [rows, stride]);
    using wanted = Tensor.from(device, values, [rows, stride]);
    using positions = Tensor.from(device, random.integers(rows, 0, 131072));
    using table = rotaryDim > 0 ? Tensor.from(device, ropeFrequencies({ headDim: rotaryDim, ropeTheta: 10000 })) : null;
    using out = Tensor.zeros(device, "f16", [rows, 2 * kv + 1]);
    const to = { keys: out.columns(0, kv), values: out.columns(kv, kv) };
    const columns = [x.columns(0, q), x.columns(q, kv), x.columns(q + kv, kv)];
    ropeRound(columns[0], columns[1], columns[2], to, positions, table, turn);
    if (table) rope(wanted, positions, table, { ...turn, heads: heads + kvHeads });
    const turned = wanted.read<Float32Array>(), found = x.read<Float32Array>(), rounded = out.read<Uint16Array>();
    for (let r = 0; r < rows; r++) {
      const at = r * stride, row = turned.subarray(at, at + stride);
      assertAllClose(found.subarray(at, at + q), row.subarray(0, q), { absolute: 1e-6 }, `queries of row ${r}`);
      assertEquals(found.subarray(at + q, at + stride), values.subarray(at + q, at + stride), `what row ${r} keeps`);
      const kept = Array.from(rounded.subarray(r * (2 * kv + 1), r * (2 * kv + 1) + 2 * kv), half);
      const own = row.subarray(q, q + 2 * kv).map((y) => Math.max(y, -65504));
      assertAllClose(kept, own, { absolute: 2e-6, relative: 1 / 2000 }, `keys and values of row ${r}`);
    }
    assertThrows(
      () => ropeRound(columns[0], columns[1], positions, to, positions, table, turn),
      VecInferError,
      "ropeRound: values",
    );
    assertThrows(
      () => ropeRound(columns[0], columns[1], columns[2], { ...to, values: x }, positions, table, turn),
      VecInferError,
      "to.values",
    );
  }
});

testOnDevices("rope names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 128]);
  using positions = Tensor.zeros(device, "i32", [2]);
  using frequencies = Tensor.zeros(device, "f32", [32]);
  assertThrows(() => rope(x, positions, frequencies, { heads: 3 }), VecInferError, "rope: x: expected f32 [2, 192]");
  assertThrows(() => rope(x, positions, frequencies, { stride: 129 }), VecInferError, "rows 129 elements apart");
  assertThrows(() => rope(x, frequencies, frequencies), VecInferError, "rope: positions: expected i32 [2]");
  assertThrows(() => rope(x, positions, positions), VecInferError, "rope: frequencies: expected f32 of 2 elements");
  assertThrows(
    () => rope(x, positions, frequencies, { headDim: 128 }),
    VecInferError,
    "rope: frequencies: expected f32 of 64 elements",
  );
  assertThrows(
    () => rope(x, positions, frequencies, { headDim: 64, rotaryDim: 66 }),
    VecInferError,
    "rope: rotaryDim: expected a whole number from 2 to 64, found 66",
  );
  assertThrows(
    () => rope(x, positions, frequencies, { factor: NaN }),
    VecInferError,
    "rope: factor: expected a finite",
  );
});
