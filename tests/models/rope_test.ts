import { test } from "node:test";
import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { type RopeConfig, ropeFrequencies } from "../../lib/models/rope.ts";
import { assertAllClose } from "../support/close.ts";

test("ropeFrequencies, plain and linear", () => {
  assertAllClose(ropeFrequencies({ headDim: 4, ropeTheta: 100 }), [1, 0.1], { relative: 1e-7 });
  const ropeScaling = { type: "linear", factor: 4 } as const;
  assertAllClose(ropeFrequencies({ headDim: 4, ropeTheta: 100, ropeScaling }), [0.25, 0.025], { relative: 1e-7 });
});

test("ropeFrequencies, llama3: the three bands of Llama-3.1-8B", () => {
  const plain = { headDim: 128, ropeTheta: 500000 };
  const ropeScaling = {
    type: "llama3",
    factor: 8,
    lowFrequencyFactor: 1,
    highFrequencyFactor: 4,
    originalContextLength: 8192,
  } as const;
  const before = ropeFrequencies(plain), after = ropeFrequencies({ ...plain, ropeScaling });
  const bands = { kept: 0, between: 0, divided: 0 };
  // As in the method's definition: by wavelength, not by turns.
  const expected = Array.from(before, (frequency) => {
    const wavelength = 2 * Math.PI / frequency;
    if (wavelength < 8192 / 4) return bands.kept++, frequency;
    if (wavelength > 8192) return bands.divided++, frequency / 8;
    const smooth = (8192 / wavelength - 1) / (4 - 1);
    return bands.between++, (1 - smooth) * frequency / 8 + smooth * frequency;
  });
  assertAllClose(after, expected, { relative: 1e-6 });
  assertEquals(bands, { kept: 29, between: 6, divided: 29 });
});

test("ropeFrequencies refuses a scaling it does not know by name", () => {
  const config = { headDim: 64, ropeTheta: 10000, ropeScaling: { type: "yarn", factor: 4 } } as unknown as RopeConfig;
  assertThrows(
    () => ropeFrequencies(config),
    VecInferError,
    'expected linear, llama3 or factors, found "yarn"',
  );
});
