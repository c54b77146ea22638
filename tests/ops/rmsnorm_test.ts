import { assertEquals, assertThrows } from "@std/assert";
import { Device, VecInferError } from "../../lib/device.ts";
import { rmsnorm } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { rmsnorm as reference, row } from "../support/reference.ts";

const close = { absolute: 1e-6, relative: 2e-6 };

testOnDevices("rmsnorm, with and without residual, in place, seed 2", (device) => {
  const random = new Random(2);
  for (const [rows, width] of [[1, 1], [3, 31], [17, 576], [70, 257]]) {
    const values = random.normals(rows * width, 3),
      factors = random.normals(width),
      before = random.normals(rows * width);
    const sum = values.map((value, i) => value + before[i]);
    const normed = (x: Float32Array) =>
      Array.from({ length: rows }, (_, r) => reference(row(x, r, width), factors, 1e-5)).flat();
    using x = Tensor.from(device, values, [rows, width]);
    using weight = Tensor.from(device, factors, [width]);
    using residual = Tensor.from(device, before, [rows, width]);
    using out = Tensor.empty(device, "f32", [rows, width]);
    rmsnorm(out, x, weight, 1e-5);
    assertAllClose(out.read(), normed(values), close, `[${rows}, ${width}]`);
    rmsnorm(out, x, weight, 1e-5, { residual });
    assertAllClose(out.read(), normed(sum), close, `[${rows}, ${width}] with residual`);
    assertEquals(residual.read(), sum);
    rmsnorm(x, x, weight, 1e-5);
    assertAllClose(x.read(), normed(values), close, `[${rows}, ${width}] in place`);
  }
});

testOnDevices("rmsnorm of zeros is zeros", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 8]);
  using weight = Tensor.from(device, new Float32Array(8).fill(1), [8]);
  rmsnorm(x, x, weight, 1e-5);
  assertEquals(Array.from(x.read()), new Array(16).fill(0));
});

testOnDevices("rmsnorm names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 8]);
  using weight = Tensor.zeros(device, "f32", [8]);
  using short = Tensor.zeros(device, "f32", [7]);
  using wide = Tensor.zeros(device, "f32", [2, 16]);
  assertThrows(
    () => rmsnorm(x, x, short, 1e-5),
    VecInferError,
    "rmsnorm: weight: expected f32 of 8 elements, found f32 [7]",
  );
  assertThrows(() => rmsnorm(wide, x, weight, 1e-5), VecInferError, "rmsnorm: out: expected f32 [2, 8]");
  assertThrows(() => rmsnorm(x, wide.columns(0, 8), weight, 1e-5), VecInferError, "rows 16 elements apart");
  assertThrows(() => rmsnorm(x, x, weight, NaN), VecInferError, "rmsnorm: epsilon: expected a finite number");
  using other = Device.open({ device: "cpu" });
  using foreign = Tensor.zeros(other, "f32", [8]);
  assertThrows(() => rmsnorm(x, x, foreign, 1e-5), VecInferError, "rmsnorm: weight: expected a tensor on the op's");
  const gone = Tensor.zeros(device, "f32", [8], "norm.weight");
  gone[Symbol.dispose]();
  const error = assertThrows(() => rmsnorm(x, x, gone, 1e-5), VecInferError, "norm.weight");
  assertEquals(error.code, "DISPOSED");
});
