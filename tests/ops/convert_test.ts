import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { convert } from "../../lib/ops/ops.ts";
import { type DType, Tensor } from "../../lib/tensor.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { allBf16 } from "../support/reference.ts";

/** The nearest half-precision number, ties to even. */
function f16(x: number): number {
  const size = Math.abs(x);
  if (!(size < 65520)) return x * Infinity || x;
  const exponent = Math.max(-14, Math.floor(Math.log2(size || 1)));
  const unit = 2 ** (exponent - 10), steps = size / unit, floor = Math.floor(steps), rest = steps - floor;
  const rounded = rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
  return Math.sign(x) * rounded * unit;
}

testOnDevices("convert rounds to nearest even between f32, bf16 and f16, seed 7", (device) => {
  const random = new Random(7);
  const values = Float32Array.from([
    ...random.normals(999, 100),
    ...random.normals(99, 1e-6),
    ...[0, 1, 1 + 2 ** -11, 1 + 3 * 2 ** -11, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 65504, 65519, 65520, 1e30, 3e38, Infinity],
    ...[-Infinity, 2 ** -14, 2 ** -24, 2 ** -25, 3 * 2 ** -25],
  ]);
  using x = Tensor.from(device, values);
  const rounded: Record<string, Float32Array> = { f32: values, bf16: allBf16(values), f16: values.map(f16) };
  for (const dtype of ["f32", "bf16", "f16"] as DType[]) {
    using narrow = Tensor.empty(device, dtype, [values.length]);
    using back = Tensor.empty(device, "f32", [values.length]);
    convert(narrow, x);
    convert(back, narrow);
    assertEquals(back.read(), rounded[dtype], dtype);
    assertEquals(narrow.toFloat32(), rounded[dtype], dtype);
  }
});

testOnDevices("convert keeps NaN", (device) => {
  using x = Tensor.from(device, [NaN], [1]);
  for (const dtype of ["bf16", "f16"] as DType[]) {
    using narrow = Tensor.empty(device, dtype, [1]);
    convert(narrow, x);
    assertEquals(narrow.toFloat32()[0], NaN);
  }
});

testOnDevices("convert names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [3]);
  using short = Tensor.zeros(device, "bf16", [2]);
  using ids = Tensor.zeros(device, "i32", [3]);
  assertThrows(() => convert(short, x), VecInferError, "convert: out: expected bf16 of 3 elements");
  assertThrows(() => convert(x, ids), VecInferError, "convert: x: expected f32, bf16 or f16");
});
