import { assert, assertAlmostEquals, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { randomNormal } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { testOnDevices } from "../support/device.ts";
import { allBf16 } from "../support/reference.ts";

testOnDevices("randomNormal has the moments of a normal distribution", (device) => {
  const count = 100_001;
  using x = Tensor.empty(device, "f32", [count]);
  randomNormal(x, { seed: 8, mean: 3, deviation: 2 });
  const z = Array.from(x.read(), (value) => (value - 3) / 2);
  const moment = (power: number) => z.reduce((sum, value) => sum + value ** power, 0) / count;
  // Five standard errors of each moment.
  assertAlmostEquals(moment(1), 0, 5 / Math.sqrt(count));
  assertAlmostEquals(moment(2), 1, 5 * Math.sqrt(2 / count));
  assertAlmostEquals(moment(3), 0, 5 * Math.sqrt(15 / count));
  assertAlmostEquals(moment(4), 3, 5 * Math.sqrt(96 / count));
  const neighbours = z.slice(1).reduce((sum, value, i) => sum + value * z[i], 0) / count;
  assertAlmostEquals(neighbours, 0, 5 / Math.sqrt(count));
  assert(z.every(Number.isFinite));
});

testOnDevices("randomNormal repeats for a seed, in f32 and in bf16", (device) => {
  using x = Tensor.empty(device, "f32", [1001]);
  using y = Tensor.empty(device, "bf16", [1001]);
  randomNormal(x, { seed: -5 });
  const first = x.read();
  randomNormal(y, { seed: -5 });
  assertEquals(y.toFloat32(), allBf16(first));
  randomNormal(x, { seed: -5 });
  assertEquals(x.read(), first);
  randomNormal(x, { seed: -4 });
  assertNotEquals(x.read(), first);
});

testOnDevices("randomNormal names what it refuses", (device) => {
  using ids = Tensor.zeros(device, "i32", [3]);
  using x = Tensor.zeros(device, "f32", [3]);
  assertThrows(() => randomNormal(ids), VecInferError, "randomNormal: out: expected f32 or bf16, found i32 [3]");
  assertThrows(() => randomNormal(x, { seed: 2 ** 31 }), VecInferError, "randomNormal: seed: expected a whole number");
});
