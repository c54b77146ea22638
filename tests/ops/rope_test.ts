import { assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { ropeFrequencies } from "../../lib/models/rope.ts";
import { rope, type RopeOptions } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
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
