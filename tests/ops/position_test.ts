import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { advance } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { testOnDevices } from "../support/device.ts";

testOnDevices("advance adds 1 to the given rows", (device) => {
  using positions = Tensor.from(device, Int32Array.of(-1, 0, 41, 5));
  advance(positions);
  assertEquals(Array.from(positions.read()), [0, 1, 42, 6]);
  advance(positions, { rows: 2 });
  assertEquals(Array.from(positions.read()), [1, 2, 42, 6]);
});

testOnDevices("advance names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2]);
  assertThrows(() => advance(x), VecInferError, "advance: positions: expected i32 [2] or more rows, found f32 [2]");
});
