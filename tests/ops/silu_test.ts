import { assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { siluMul } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { row, silu } from "../support/reference.ts";

testOnDevices("siluMul, seed 5", (device) => {
  const random = new Random(5);
  for (const [rows, width] of [[1, 1], [3, 33], [70, 129], [2, 1536]]) {
    const values = random.normals(rows * 2 * width, 4);
    using gateUp = Tensor.from(device, values, [rows, 2 * width]);
    using out = Tensor.empty(device, "f32", [rows, width]);
    siluMul(out, gateUp);
    const expected = Array.from({ length: rows }, (_, r) => row(values, r, 2 * width))
      .flatMap((both) => both.slice(0, width).map((gate, i) => silu(gate) * both[width + i]));
    assertAllClose(out.read(), expected, { absolute: 1e-6, relative: 3e-6 }, `[${rows}, ${width}]`);
  }
});

testOnDevices("siluMul of large gates", (device) => {
  using gateUp = Tensor.from(device, [-200, 200, 1, 1], [1, 4]);
  using out = Tensor.empty(device, "f32", [1, 2]);
  siluMul(out, gateUp);
  assertAllClose(out.read(), [0, 200], { absolute: 1e-30 });
});

testOnDevices("siluMul names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 8]);
  assertThrows(
    () => siluMul(x, x),
    VecInferError,
    "siluMul: gateUp: expected f32 [2, 16] or more rows, found f32 [2, 8]",
  );
});
