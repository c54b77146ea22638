import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { channelMax } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";

testOnDevices("channelMax goes on from what it holds, over strided rows, seed 6", (device) => {
  const random = new Random(6);
  for (const [rows, width, gap] of [[1, 1, 0], [70, 33, 5], [500, 128, 0]]) {
    const values = random.normals(rows * (width + gap)), before = random.normals(width, 2).map(Math.abs);
    using x = Tensor.from(device, values, [rows, width + gap]);
    using maxima = Tensor.from(device, before);
    channelMax(maxima, x);
    const expected = before.slice();
    for (let r = 0; r < rows; r++) {
      for (let i = 0; i < width; i++) expected[i] = Math.max(expected[i], Math.abs(values[r * (width + gap) + i]));
    }
    assertEquals(maxima.read(), expected);
  }
});

testOnDevices("channelMax names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 8]);
  using maxima = Tensor.zeros(device, "f32", [9]);
  assertThrows(() => channelMax(maxima, x), VecInferError, "channelMax: x: expected f32 [2, 9]");
});
