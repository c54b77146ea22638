import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { gate, type GateActivation } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { gate as reference, row } from "../support/reference.ts";

const activations: readonly GateActivation[] = ["silu", "gelu", "swiglu clamped"];
const seed = Date.now() & 0xffff;

for (const activation of activations) {
  testOnDevices(`gate, ${activation}, seed ${seed}`, (device) => {
    const random = new Random(seed);
    for (const [rows, width] of [[1, 1], [3, 33], [70, 129], [2, 1536]]) {
      const values = random.normals(rows * 2 * width, 4);
      using gateUp = Tensor.from(device, values, [rows, 2 * width]);
      using out = Tensor.empty(device, "f32", [rows, width]);
      gate(out, gateUp, { activation });
      const expected = Array.from({ length: rows }, (_, r) => row(values, r, 2 * width))
        .flatMap((both) => both.slice(0, width).map((g, i) => reference(activation, g, both[width + i])));
      assertAllClose(out.read(), expected, { absolute: 1e-6, relative: 3e-6 }, `[${rows}, ${width}]`);
    }
  });

  testOnDevices(`gate, ${activation}, of numbers at the ends of f32`, (device) => {
    const gates = [-Infinity, -3e38, -1e30, -200, -20, -1e-30, 0, 1e-30, 20, 200, 1e13, 3e38, Infinity, NaN, NaN, 1];
    const ups = [1, -1, 1e5, 1, 1e6, 1, 1, 1, 1, 1, -1, 1, 1, 1, 0, NaN];
    using gateUp = Tensor.from(device, [...gates, ...ups], [1, 32]);
    using out = Tensor.empty(device, "f32", [1, 16]);
    gate(out, gateUp, { activation });
    const expected = gates.map((g, i) => reference(activation, Math.fround(g), ups[i]));
    assertAllClose(out.read(), expected, { absolute: 1e-30, relative: 1e-5 });
    // The same where the width does not fit vectors.
    using odd = Tensor.from(device, [...gates.slice(0, 15), ...ups.slice(0, 15)], [1, 30]);
    using part = Tensor.empty(device, "f32", [1, 15]);
    gate(part, odd, { activation });
    assertAllClose(part.read(), expected.slice(0, 15), { absolute: 1e-30, relative: 1e-5 });
  });
}

testOnDevices("gate is silu by default, and leaves the rows behind alone", (device) => {
  using gateUp = Tensor.from(device, [-200, 200, 1, 1, 5, 5, 5, 5], [2, 4]);
  using out = Tensor.from(device, [9, 9, 9, 9], [2, 2]);
  gate(out, gateUp, { rows: 1 });
  assertEquals(Array.from(out.read()), [0, 200, 9, 9]);
});

testOnDevices("gate names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 8]);
  assertThrows(
    () => gate(x, x),
    VecInferError,
    "gate: gateUp: expected f32 [2, 16] or more rows, found f32 [2, 8]",
  );
  assertThrows(
    () => gate(x, x, { activation: "relu" as never }),
    VecInferError,
    "gate: activation: expected one of silu,gelu,swiglu clamped, found relu",
  );
});
