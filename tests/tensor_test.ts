import { test } from "node:test";
import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Device, VecInferError } from "../lib/device.ts";
import { type DType, type HostArray, Tensor } from "../lib/tensor.ts";
import { cpu, testOnDevices } from "./support/device.ts";
import { Random } from "./support/random.ts";
import { allBf16 } from "./support/reference.ts";

testOnDevices("Tensor copies each type there and back, seed 60", (device) => {
  const random = new Random(60), bits = random.integers(77, 0, 65535);
  const arrays: [DType, HostArray][] = [
    ["f32", random.normals(77)],
    ["i32", random.integers(77, -1e9, 1e9)],
    ["u8", Uint8Array.from(bits)],
    ["bf16", Uint16Array.from(bits)],
    ["f16", Uint16Array.from(bits)],
  ];
  for (const [dtype, values] of arrays) {
    using tensor = Tensor.from(device, values, [7, 11], dtype);
    assertEquals(tensor.read(), values, dtype);
    assertEquals(tensor.toString(), `${dtype} [7, 11]`);
    assertEquals([tensor.size, tensor.length, tensor.width, tensor.byteLength], [77, 7, 11, values.byteLength]);
    const into = values.slice().fill(0);
    assert(tensor.read(into) === into);
    assertEquals(into, values, dtype);
  }
});

testOnDevices("Tensor rounds numbers to bf16, whole and in part, seed 61", (device) => {
  const values = new Random(61).normals(20);
  using tensor = Tensor.from(device, values, [20], "bf16");
  assertEquals(tensor.toFloat32(), allBf16(values));
  tensor.write([1, 2, 3], 4);
  const expected = allBf16(values);
  expected.set([1, 2, 3], 4);
  assertEquals(tensor.toFloat32(), expected);
});

testOnDevices("Tensor views share memory", (device) => {
  using tensor = Tensor.from(device, Int32Array.from({ length: 24 }, (_, i) => i), [4, 3, 2]);
  const rows = tensor.rows(1, 2), columns = tensor.columns(2, 3), square = tensor.view([2, 12]);
  assertEquals(rows.shape, [2, 3, 2]);
  assertEquals(Array.from(rows.read()), [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]);
  assertEquals([columns.shape, columns.stride, columns.extent], [[4, 3], 6, 21]);
  assertEquals(Array.from(columns.read()), [2, 3, 4, 8, 9, 10, 14, 15, 16, 20, 21, 22]);
  assertEquals(Array.from(columns.rows(1, 2).read()), [8, 9, 10, 14, 15, 16]);
  assertEquals(Array.from(columns.rows(2, 2).columns(1, 1).read()), [15, 21]);
  rows.write([-1, -2], 3);
  assertEquals(Array.from(square.rows(0, 1).read()), [0, 1, 2, 3, 4, 5, 6, 7, 8, -1, -2, 11]);
  rows.fill(0);
  assertEquals(Array.from(tensor.rows(0, 2).read()), [0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0]);
  rows.rows(1, 1).copyFrom(tensor.rows(3, 1));
  assertEquals(Array.from(tensor.rows(2, 1).read()), [18, 19, 20, 21, 22, 23]);
});

testOnDevices("Tensor.fill", (device) => {
  for (const [dtype, value] of [["f32", 1.5], ["bf16", -2], ["f16", 0.25], ["i32", -7], ["u8", 200]] as const) {
    using tensor = Tensor.zeros(device, dtype, [5]);
    assertEquals(Array.from(tensor.toFloat32()), [0, 0, 0, 0, 0]);
    assertEquals(Array.from(tensor.fill(value).toFloat32()), [value, value, value, value, value]);
  }
});

testOnDevices("Tensor names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [4, 6]);
  using ids = Tensor.zeros(device, "i32", [4]);
  const refused = (call: () => unknown, message: string) =>
    assertEquals(assertThrows(call, VecInferError, message).code, "INVALID_ARGUMENT");
  refused(() => Tensor.empty(device, "f32", [3, 0]), "shape [3,0] has the dimension 0");
  refused(() => Tensor.empty(device, "f32", [2.5]), "dimension 2.5");
  refused(() => Tensor.empty(device, "f64" as "f32", [2]), 'there is no dtype "f64"');
  refused(() => Tensor.empty(device, "f32", [2 ** 40, 2 ** 20]), "more elements than can be counted");
  refused(() => Tensor.from(device, [1, 2, 3], [2, 2]), "shape [2,2] has 4 elements, values 3");
  refused(() => Tensor.from(device, new Int32Array(3), [3], "f32"), "Int32Array has not the elements of f32 [3]");
  refused(() => x.write([1, 2], 23), "2 values from element 23 on do not fit f32 [4, 6]");
  refused(() => x.write(new Int32Array(2)), "write: Int32Array");
  refused(() => x.read(new Float32Array(23)), "read: Float32Array of 23");
  refused(() => x.rows(3, 2), "rows: 2 from 3 on are not in f32 [4, 6], which has 4");
  refused(() => x.columns(-1, 2), "columns: 2 from -1 on");
  refused(() => x.view([5, 5]), "view: [5,5] has not the 24 elements of f32 [4, 6]");
  refused(() => x.columns(0, 2).write([1]), "are 6 elements apart");
  refused(() => x.columns(0, 2).view([8]), "are 6 elements apart");
  refused(() => x.copyFrom(ids), "copyFrom: i32 [4] on");
  using other = Device.open({ device: "cpu" });
  using foreign = Tensor.zeros(other, "f32", [4, 6]);
  refused(() => x.copyFrom(foreign), "can't be copied");
});

testOnDevices("Tensor throws after dispose, and so do its views", (device) => {
  const tensor = Tensor.zeros(device, "f32", [4], "norm.weight"), view = tensor.rows(1, 2);
  view[Symbol.dispose]();
  assertEquals(view.read().length, 2);
  const before = device.memory().allocated;
  tensor[Symbol.dispose]();
  tensor[Symbol.dispose]();
  assertEquals(device.memory().allocated, before - 16);
  for (const call of [() => tensor.read(), () => view.read(), () => view.rows(0, 1), () => tensor.fill(0)]) {
    const error = assertThrows(call, VecInferError, "Tensor norm.weight f32 [4] was used after it was disposed");
    assertEquals([error.code, error.status], ["DISPOSED", -1]);
  }
});

testOnDevices("Tensor: out of memory is an error, and the device goes on", (device) => {
  const before = device.memory().allocated;
  const error = assertThrows(() => Tensor.empty(device, "f32", [2 ** 20, 2 ** 25]), VecInferError, "vi_allocate");
  assertEquals([error.code, error.status], ["OUT_OF_MEMORY", 2]);
  assertEquals(device.memory().allocated, before);
  using tensor = Tensor.from(device, [1, 2]);
  assertEquals(Array.from(tensor.read()), [1, 2]);
});

const runtime = globalThis as { Bun?: { gc(force: boolean): void }; gc?: () => void };
const gc = runtime.Bun ? () => runtime.Bun!.gc(true) : runtime.gc;
const skip = gc ? false : "Deno needs --v8-flags=--expose-gc";

test("Tensor memory that nothing refers to is freed, but not under a view", { skip }, async () => {
  using device = Device.open({ device: "cpu" });
  const make = () => {
    for (let i = 0; i < 50; i++) Tensor.zeros(device, "u8", [1000]);
    return Tensor.from(device, Int32Array.of(1, 2, 3)).rows(1, 2);
  };
  const view = make();
  assertEquals(device.memory().allocated, 50012);
  for (let i = 0; i < 50 && device.memory().allocated > 5012; i++) {
    gc!();
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert(device.memory().allocated <= 5012, `${device.memory().allocated} bytes are left`); // the stack may hold some
  assertEquals(Array.from(view.read()), [2, 3]);
});

test("Tensor of a disposed device throws", () => {
  const device = Device.open({ device: "cpu" });
  const tensor = Tensor.zeros(device, "f32", [4]);
  device[Symbol.dispose]();
  const error = assertThrows(() => tensor.read(), VecInferError, "used after");
  assertStringIncludes(error.message, "Device cpu");
  tensor[Symbol.dispose]();
  assertThrows(() => Tensor.zeros(device, "f32", [4]), VecInferError, "Device cpu was used after it was disposed");
  assert(!cpu.disposed);
});
