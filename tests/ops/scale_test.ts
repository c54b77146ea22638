import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { scale } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";

const seed = Date.now() & 0xffff;

testOnDevices(`scale multiplies, with and without a soft cap, seed ${seed}`, (device) => {
  const random = new Random(seed);
  for (const [rows, width] of [[1, 1], [3, 7], [5, 1000], [2, 70001]]) {
    for (const cap of [0, 1, 30]) {
      const values = random.normals(rows * width, cap + 1), factor = Math.fround(random.normal());
      using x = Tensor.from(device, values, [rows, width]);
      scale(x, factor, { cap });
      const expected = Array.from(values, (v) => cap > 0 ? cap * Math.tanh(v * factor / cap) : v * factor);
      assertAllClose(x.read(), expected, { relative: 1e-6, absolute: 1e-30 }, `[${rows}, ${width}], cap ${cap}`);
      const before = x.read<Float32Array>();
      scale(x, 2, { rows: rows - 1 });
      const half = (rows - 1) * width;
      assertEquals(x.read(), before.map((v, i) => i < half ? 2 * v : v), "the first rows alone");
    }
  }
});

testOnDevices("scale of numbers at the ends of f32: infinity becomes the cap, NaN stays", (device) => {
  const values = [Infinity, -Infinity, NaN, 3e38, -3e38, 0, -0, 1e-30, -1e-38, 1e5, 90, -30, 0.0625];
  using x = Tensor.from(device, values);
  scale(x, 1, { cap: 30 });
  const expected = values.map((v) => 30 * Math.tanh(Math.fround(v) / 30));
  assertAllClose(x.read(), expected, { relative: 1e-6, absolute: 1e-44 });
  x.write(Float32Array.from(values));
  scale(x, -2);
  assertAllClose(x.read(), values.map((v) => Math.fround(-2 * Math.fround(v))), { relative: 1e-7 });
});

testOnDevices("scale names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 8]);
  using halves = Tensor.zeros(device, "bf16", [2, 8]);
  assertThrows(() => scale(x, NaN), VecInferError, "scale: factor: expected a finite number");
  assertThrows(() => scale(x, 1, { cap: -1 }), VecInferError, "cap is -1, not a finite number from 0 on");
  assertThrows(() => scale(x, 1, { cap: Infinity }), VecInferError, "scale: cap: expected a finite number");
  assertThrows(() => scale(x, 1, { rows: 3 }), VecInferError, "scale: x: expected f32 [3, 8]");
  assertThrows(() => scale(halves, 1), VecInferError, "scale: x: expected f32 [2, 8]");
  assertThrows(() => scale(x.columns(0, 4), 1), VecInferError, "rows 8 elements apart");
});
