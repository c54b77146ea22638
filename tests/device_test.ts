import { test } from "node:test";
import { assert, assertEquals, assertGreater, assertGreaterOrEqual, assertThrows } from "@std/assert";
import { Device, VecInferError } from "../lib/device.ts";
import { advance, linear, rmsnorm } from "../lib/ops/ops.ts";
import { Tensor } from "../lib/tensor.ts";
import { cpu, testOnDevices } from "./support/device.ts";
import { Random } from "./support/random.ts";

testOnDevices("Device says what computes", (device) => {
  const backend = device.name.split(":")[0];
  assertEquals(device.info.library, `vecinfer_${backend}`);
  assertGreater(device.info.device.length, 0);
  assertGreater(device.library.length, 0);
  const { allocated, peak, free, total } = device.memory();
  assert(allocated >= 0 && peak >= allocated && free > 0 && total >= free);
});

test("Device.open takes threads, and chooses with a reason", () => {
  using one = Device.open({ device: "cpu", threads: 1 });
  assertEquals([one.name, one.info.threads, one.reason], ["cpu", 1, "cpu was asked for"]);
  using auto = Device.open();
  assert(["cpu", "cuda:0"].includes(auto.name));
  assert(auto.reason.startsWith("auto: "), auto.reason);
});

test("Device.open refuses what it does not have", () => {
  const code = (options: object) => assertThrows(() => Device.open(options), VecInferError).code;
  assertEquals(code({ device: "tpu" }), "INVALID_ARGUMENT");
  assertEquals(code({ device: "cuda:x" }), "INVALID_ARGUMENT");
  assertEquals(code({ device: "cpu", threads: -1 }), "INVALID_ARGUMENT");
  assertEquals(code({ device: "cpu", threads: 1.5 }), "INVALID_ARGUMENT");
  assert(["NO_DEVICE", "LIBRARY"].includes(code({ device: "cuda:999" })));
});

testOnDevices("Device measures memory", (device) => {
  const before = device.memory().allocated;
  const tensor = Tensor.empty(device, "u8", [12345]);
  assertEquals(device.memory().allocated, before + 12345);
  tensor[Symbol.dispose]();
  assertEquals(device.memory().allocated, before);
  assertGreaterOrEqual(device.memory().peak, before + 12345);
});

testOnDevices("Device measures time", (device) => {
  using x = Tensor.zeros(device, "f32", [64, 1024]);
  using weight = Tensor.zeros(device, "bf16", [1024, 1024]);
  using out = Tensor.zeros(device, "f32", [64, 1024]);
  const milliseconds = device.time(() => linear(out, x, weight));
  assert(milliseconds > 0 && milliseconds < 10000, `${milliseconds} ms`);
  device.recordEvent(0);
  device.recordEvent(1);
  assertGreaterOrEqual(device.elapsed(0, 1), 0);
  assertThrows(() => device.recordEvent(64), VecInferError, "vi_event_record");
});

testOnDevices(
  "Device.capture records, and a graph runs it again with what the tensors hold then, seed 70",
  (device) => {
    const random = new Random(70), values = random.normals(3 * 40);
    using x = Tensor.from(device, values, [3, 40]);
    using weight = Tensor.from(device, random.normals(40));
    using out = Tensor.zeros(device, "f32", [3, 40]);
    using positions = Tensor.from(device, Int32Array.of(5, 6, 7));
    rmsnorm(out, x, weight, 1e-5); // warm
    const expected = out.read();
    out.fill(0);
    using graph = device.capture(() => {
      rmsnorm(out, x, weight, 1e-5);
      advance(positions);
    });
    assertEquals(Array.from(positions.read()), [5, 6, 7]);
    assertEquals(Array.from(out.read()), new Array(120).fill(0));
    graph.launch();
    graph.launch();
    assertEquals(Array.from(positions.read()), [7, 8, 9]);
    assertEquals(out.read(), expected);
    x.fill(0);
    graph.launch();
    assertEquals(Array.from(out.read(), (value) => value + 0), new Array(120).fill(0));
  },
);

testOnDevices("Device.capture refuses what can't be recorded, and goes on", (device) => {
  using x = Tensor.zeros(device, "i32", [2]);
  const spare = Tensor.zeros(device, "i32", [2]);
  const refused = (call: () => unknown, message: string) =>
    assertThrows(() => device.capture(() => void call()), VecInferError, message);
  refused(() => x.read(), "graph");
  refused(() => x.write([1, 2]), "graph");
  refused(() => Tensor.empty(device, "f32", [2]), "graph");
  refused(() => device.synchronize(), "graph");
  refused(() => spare[Symbol.dispose](), "can't be disposed while a graph is recorded");
  refused(() => device.capture(() => {}), "a graph is being recorded already");
  refused(() => device[Symbol.dispose](), "Device");
  // An error of the caller's own ends the recording too.
  assertThrows(
    () =>
      device.capture(() => {
        advance(x);
        throw new RangeError("mine");
      }),
    RangeError,
    "mine",
  );
  // A refusal by the library that the recorded code swallowed is thrown at the end.
  const swallowed = () => {
    try {
      device.recordEvent(64);
    } catch { /* swallowed */ }
  };
  refused(swallowed, "vi_event_record");
  assertEquals(Array.from(x.read()), [0, 0]);
  assertEquals(Array.from(spare.read()), [0, 0]);
  spare[Symbol.dispose]();
  using graph = device.capture(() => advance(x));
  graph.launch();
  assertEquals(Array.from(x.read()), [1, 1]);
});

testOnDevices("Graph refuses to run after a dispose of what it uses", (device) => {
  const x = Tensor.zeros(device, "i32", [2], "positions");
  const other = Tensor.zeros(device, "i32", [2]);
  const graph = device.capture(() => advance(x.rows(0, 1)));
  other[Symbol.dispose]();
  graph.launch();
  assertEquals(Array.from(x.read()), [1, 0]);
  x[Symbol.dispose]();
  assertThrows(() => graph.launch(), VecInferError, "Graph: Tensor positions i32 [2] was used after it was disposed");
  graph[Symbol.dispose]();
  assertThrows(() => graph.launch(), VecInferError, "Graph was used after it was disposed");
});

test("Device dispose frees what is left and ends every use", () => {
  const device = Device.open({ device: "cpu" });
  const x = Tensor.zeros(device, "i32", [2]);
  const graph = device.capture(() => advance(x));
  device[Symbol.dispose]();
  device[Symbol.dispose]();
  assert(device.disposed);
  const uses = [
    () => graph.launch(),
    () => x.read(),
    () => advance(x),
    () => device.memory(),
    () => device.synchronize(),
  ];
  for (const use of uses) assertEquals(assertThrows(use, VecInferError, "was used after").code, "DISPOSED");
  graph[Symbol.dispose]();
  x[Symbol.dispose]();
  assertEquals(cpu.memory().allocated >= 0, true);
});

testOnDevices("an error of the library carries its status, its name and its message", (device) => {
  const { native } = device;
  const error = assertThrows(
    () => device.check("vi_allocate", native.vi_allocate(device.context, new Uint8Array(8), 0)),
    VecInferError,
    "vi_allocate: ",
  );
  assertEquals([error.name, error.code, error.status], ["VecInferError", "INVALID_ARGUMENT", 1]);
});
