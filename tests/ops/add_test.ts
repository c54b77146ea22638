import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { add } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { rmsnorm, row } from "../support/reference.ts";

const seed = Date.now() & 0xffff;

testOnDevices(`add, plain and normed, with a factor and without, seed ${seed}`, (device) => {
  const random = new Random(seed);
  for (const [rows, width] of [[1, 1], [3, 31], [17, 576], [70, 257], [2, 16384]]) {
    const values = random.normals(rows * width, 3), weights = random.normals(width);
    using x = Tensor.from(device, values, [rows, width]);
    using norm = Tensor.from(device, weights);
    for (const factor of [1, Math.fround(0.22), -3]) {
      const before = random.normals(rows * width);
      using residual = Tensor.from(device, before, [rows, width]);
      add(residual, x, { factor });
      const sum = before.map((b, i) => b + factor * values[i]);
      assertAllClose(residual.read(), sum, { absolute: 1e-6, relative: 1e-6 }, `[${rows}, ${width}] ${factor}`);
      residual.write(before);
      add(residual, x, { norm, epsilon: 1e-3, factor });
      const normed = Array.from({ length: rows }, (_, r) => rmsnorm(row(values, r, width), weights, 1e-3)).flat();
      const wanted = normed.map((n, i) => before[i] + factor * n);
      assertAllClose(
        residual.read(),
        wanted,
        { absolute: 3e-6, relative: 3e-6 },
        `[${rows}, ${width}] ${factor} normed`,
      );
      assertEquals(x.read(), values, "x is changed");
    }
    const before = random.normals(rows * width);
    using residual = Tensor.from(device, before, [rows, width]);
    add(residual, x, { rows: rows - 1 });
    const split = (rows - 1) * width;
    assertEquals(residual.read(), before.map((b, i) => i < split ? b + values[i] : b), "the first rows alone");
  }
});

testOnDevices("add keeps NaN and infinity in their row", (device) => {
  using x = Tensor.from(device, [1, NaN, 1, 1, 1, Infinity, 1, 1, 1, 1, 1, 1], [3, 4]);
  using norm = Tensor.from(device, [1, 1, 1, 1]);
  using residual = Tensor.zeros(device, "f32", [3, 4]);
  add(residual, x);
  assertEquals([...residual.read()], [1, NaN, 1, 1, 1, Infinity, 1, 1, 1, 1, 1, 1]);
  residual.fill(0);
  add(residual, x, { norm });
  assertEquals([...residual.read()], [NaN, NaN, NaN, NaN, 0, NaN, 0, 0, 1, 1, 1, 1]);
});

testOnDevices("add names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 8]);
  using residual = Tensor.zeros(device, "f32", [2, 8]);
  using wide = Tensor.zeros(device, "f32", [2, 16]);
  using halves = Tensor.zeros(device, "bf16", [8]);
  assertThrows(() => add(wide, x), VecInferError, "add: residual: expected f32 [2, 8]");
  assertThrows(() => add(residual, wide.columns(0, 8)), VecInferError, "rows 16 elements apart");
  assertThrows(() => add(residual, x, { norm: halves }), VecInferError, "add: norm: expected f32 of 8");
  assertThrows(() => add(residual, x, { factor: Infinity }), VecInferError, "add: factor: expected a finite number");
  assertThrows(() => add(residual, x, { epsilon: -1 }), VecInferError, "epsilon is -1, not at least 0");
  assertThrows(() => add(x, x), VecInferError, "residual and x overlap");
});
