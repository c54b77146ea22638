import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { test } from "node:test";
import { EMBEDDED_MODEL, LanguageModel, VecInferError } from "../../mod.ts";
import { Tensor } from "../../lib/ops/mod.ts";
import { cpu } from "../support/device.ts";

test("a sequence is extended by whole numbers from 0 on alone, and is left as it was by others", async () => {
  using model = await LanguageModel.load(EMBEDDED_MODEL, { device: "cpu", context: 256 });
  using sequence = model.cache.sequence();
  sequence.extend(3);
  const free = model.cache.freePages;
  for (
    const count of [
      NaN,
      -5,
      0.5,
      -0.5,
      Infinity,
      -Infinity,
      2 ** 53,
      "5" as unknown as number,
      undefined as unknown as number,
    ]
  ) {
    assertThrows(() => sequence.extend(count), RangeError);
    assertEquals([sequence.length, model.cache.freePages], [3, free]);
  }
  sequence.extend(0);
  assertEquals(sequence.length, 3);
});

test("host arrays that say another length than they have are refused, in both directions", () => {
  using tensor = Tensor.zeros(cpu, "f32", [64]);
  const lying = (length: number, property = "length", elements = 4) =>
    Object.defineProperty(new Float32Array(elements), property, { value: length });
  for (const array of [lying(64), lying(1), lying(0.5), lying(64, "length", 1 << 16)]) {
    const error = assertThrows(() => tensor.write(array), VecInferError);
    assertStringIncludes(error.message, "write");
  }
  const grown = lying(4, "length", 256).fill(1), detached = new Float32Array(64);
  structuredClone(detached.buffer, { transfer: [detached.buffer] });
  for (const array of [grown]) assertThrows(() => tensor.write(array), VecInferError);
  tensor.write(detached);
  for (const array of [lying(64), lying(64, "length", 65)]) assertThrows(() => tensor.read(array), VecInferError);
  // What else is said of an array does not matter: its own memory is what is read.
  tensor.write(Object.defineProperty(new Float32Array(64).fill(2), "byteLength", { value: 1 << 20 }));
  tensor.write(Object.defineProperty(new Float32Array(64).fill(3), "byteOffset", { value: 1 << 20 }));
  assertEquals(tensor.read<Float32Array>(), new Float32Array(64).fill(3));
  assertThrows(() => Tensor.from(cpu, lying(64)), VecInferError);
});
