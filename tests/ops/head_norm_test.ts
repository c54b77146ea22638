import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { headNorm, rmsnorm } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { rmsnorm as reference } from "../support/reference.ts";

const seed = Date.now() & 0xffff;

testOnDevices(`headNorm norms the first heads of strided rows, seed ${seed}`, (device) => {
  const random = new Random(seed);
  const shapes = [[1, 1, 1, 0], [5, 3, 64, 17], [70, 9, 128, 64], [33, 2, 80, 0], [3, 7, 37, 1], [4, 40, 256, 512]];
  shapes.push([2, 1, 16384, 0], [3, 1, 2047, 5], [2, 3, 1028, 4]);
  for (const [rows, heads, headDim, gap] of shapes) {
    const stride = heads * headDim + gap, values = random.normals(rows * stride, 3), weights = random.normals(headDim);
    using x = Tensor.from(device, values, [rows, stride]);
    using weight = Tensor.from(device, weights);
    const expected = Array.from(values);
    for (let r = 0; r < rows; r++) {
      for (let h = 0; h < heads; h++) {
        const begin = r * stride + h * headDim, head = values.subarray(begin, begin + headDim);
        reference(head, weights, 1e-4).forEach((y, i) => expected[begin + i] = y);
      }
    }
    const shape = `[${rows}, ${heads}, ${headDim}] + ${gap}`;
    headNorm(x, weight, { epsilon: 1e-4, heads });
    assertAllClose(x.read(), expected, { absolute: 1e-6, relative: 3e-6 }, shape);
    // Through a view of columns, and at an address that vectors don't fit.
    if (gap > 0 && gap < heads * headDim) {
      x.write(values);
      headNorm(x.columns(gap, heads * headDim), weight, { epsilon: 1e-4 });
      const [first] = [gap], row = x.read<Float32Array>().subarray(first, first + headDim);
      assertAllClose(row, reference(values.subarray(first, first + headDim), weights, 1e-4), {
        absolute: 1e-6,
        relative: 3e-6,
      }, `${shape}, view`);
      assertEquals(x.read().subarray(0, gap), values.subarray(0, gap), "columns before the view");
    }
  }
});

testOnDevices(`headNorm of one head is rmsnorm, huge values and NaN included, seed ${seed}`, (device) => {
  const random = new Random(seed + 1), rows = 6, width = 260;
  const values = random.normals(rows * width);
  for (let i = 0; i < width; i++) values[i] *= 1e15;
  for (let i = 0; i < width; i++) values[width + i] *= 3e37; // whose squares are infinite
  values[2 * width + 5] = NaN;
  values[3 * width + 7] = -Infinity;
  values.fill(0, 4 * width, 5 * width);
  using x = Tensor.from(device, values, [rows, width]);
  using weight = Tensor.from(device, random.normals(width));
  using out = Tensor.empty(device, "f32", [rows, width]);
  rmsnorm(out, x, weight, 1e-6);
  headNorm(x, weight, { epsilon: 1e-6 });
  const found = x.read<Float32Array>(), rowOf = (r: number) => [...found.subarray(r * width, (r + 1) * width)];
  assertAllClose(found, out.read(), { relative: 1e-6, absolute: 1e-30 });
  assertAllClose(rowOf(0), reference(values.subarray(0, width), weight.read<Float32Array>(), 1e-6), {
    absolute: 1e-6,
    relative: 3e-6,
  });
  for (const r of [1, 4]) assertEquals(rowOf(r).map(Math.abs), new Array(width).fill(0), `row ${r}`);
  assertEquals(rowOf(2), new Array(width).fill(NaN));
  assertEquals(rowOf(3).map(Math.abs), Array.from({ length: width }, (_, i) => i === 7 ? NaN : 0));
});

testOnDevices("headNorm names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 128]);
  using weight = Tensor.zeros(device, "f32", [64]);
  using halves = Tensor.zeros(device, "bf16", [64]);
  using wide = Tensor.zeros(device, "f32", [2, 16385]);
  assertThrows(() => headNorm(x, weight, { heads: 3 }), VecInferError, "headNorm: x: expected f32 [2, 192]");
  assertThrows(() => headNorm(x, weight, { stride: 129 }), VecInferError, "rows 129 elements apart");
  assertThrows(() => headNorm(x, weight, { headDim: 32 }), VecInferError, "headNorm: weight: expected f32 of 32");
  assertThrows(() => headNorm(x, halves), VecInferError, "headNorm: weight: expected f32 of 64");
  assertThrows(() => headNorm(x, weight, { epsilon: -1 }), VecInferError, "epsilon is -1");
  assertThrows(
    () => headNorm(wide, wide.rows(0, 1)),
    VecInferError,
    "headNorm: headDim: expected a whole number from 1",
  );
});
