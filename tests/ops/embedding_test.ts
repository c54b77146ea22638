import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { embedding } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { allBf16, row } from "../support/reference.ts";

testOnDevices("embedding gathers rows, seed 1", (device) => {
  const random = new Random(1);
  for (const [rows, width, vocabulary] of [[1, 1, 1], [7, 33, 50], [70, 128, 300]]) {
    const values = random.normals(vocabulary * width), chosen = random.integers(rows, 0, vocabulary - 1);
    using table = Tensor.from(device, values, [vocabulary, width], "bf16");
    using ids = Tensor.from(device, chosen);
    using out = Tensor.zeros(device, "f32", [rows, width]);
    embedding(out, ids, table);
    const rounded = allBf16(values), expected = Array.from(chosen).flatMap((id) => row(rounded, id, width));
    assertEquals(out.read(), Float32Array.from(expected));
  }
});

testOnDevices("embedding gives NaN for an id outside of the vocabulary", (device) => {
  using table = Tensor.from(device, [1, 2, 3, 4], [2, 2], "bf16");
  using ids = Tensor.from(device, Int32Array.of(-1, 1, 2));
  using out = Tensor.zeros(device, "f32", [3, 2]);
  embedding(out, ids, table);
  assertEquals(Array.from(out.read()), [NaN, NaN, 3, 4, NaN, NaN]);
});

testOnDevices("embedding with rows leaves the rows after them alone", (device) => {
  using table = Tensor.from(device, [1, 2, 3, 4], [2, 2], "bf16");
  using ids = Tensor.from(device, Int32Array.of(1, 0, 99));
  using out = Tensor.zeros(device, "f32", [3, 2]);
  embedding(out, ids, table, { rows: 2 });
  assertEquals(Array.from(out.read()), [3, 4, 1, 2, 0, 0]);
});

testOnDevices("embedding names what it refuses", (device) => {
  using table = Tensor.from(device, [1, 2, 3, 4], [2, 2], "bf16");
  using ids = Tensor.from(device, Int32Array.of(1, 0));
  using wrong = Tensor.from(device, [1, 0]);
  using out = Tensor.zeros(device, "f32", [2, 2]);
  assertThrows(() => embedding(out, wrong, table), VecInferError, "embedding: ids: expected i32 [2]");
  assertThrows(() => embedding(out, ids, out), VecInferError, "embedding: table: expected bf16");
  assertThrows(() => embedding(out, ids, table, { rows: 3 }), VecInferError, "embedding: out: expected f32 [3, 2]");
  assertThrows(
    () => embedding(out, ids, table, { rows: 0.5 }),
    VecInferError,
    "embedding: rows: expected a whole number",
  );
});
