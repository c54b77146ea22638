import { test } from "node:test";
import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { atContext, type RopeConfig, ropeFactor, ropeFrequencies } from "../../lib/models/rope.ts";
import { syntheticConfig } from "../../lib/ops/mod.ts";
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

test("ropeFrequencies, YaRN: high frequencies kept, low ones divided, between them a ramp by pair", () => {
  const plain = { headDim: 128, ropeTheta: 1e6 };
  const yarn = {
    type: "yarn",
    factor: 4,
    originalContextLength: 32768,
    betaFast: 32,
    betaSlow: 1,
    attentionFactor: 1,
  } as const;
  const before = ropeFrequencies(plain);
  const turns = (frequency: number) => 32768 * frequency / (2 * Math.PI);
  for (const truncate of [true, false]) {
    const after = ropeFrequencies({ ...plain, ropeScaling: { ...yarn, truncate } });
    // Qwen's YaRN: pairs 23 (32 turns) to 40 (1 turn), rounded outwards where truncated.
    before.forEach((frequency, i) => {
      const kept = after[i] / frequency;
      if (turns(frequency) > 33 && i <= 23) assertAllClose([kept], [1], { relative: 1e-6 }, `pair ${i}`);
      if (turns(frequency) < 0.8) assertAllClose([kept], [0.25], { relative: 1e-6 }, `pair ${i}`);
      if (i > 0) assertEquals(kept <= after[i - 1] / before[i - 1] + 1e-6, true);
    });
  }
});

test("LongRoPE divides by its short factors where the context is that of pre-training, else by its long ones", () => {
  const scaling = { type: "longrope", shortFactors: [1, 2], longFactors: [4, 8], originalContextLength: 64 } as const;
  const config = { ...syntheticConfig("tiny-llama"), headDim: 4, ropeTheta: 100 };
  const longrope = { ...config, ropeScaling: { ...scaling, attentionFactor: 1.5 } };
  assertAllClose(ropeFrequencies(atContext(longrope, 64)), [1, 0.05], { relative: 1e-6 });
  assertAllClose(ropeFrequencies(atContext(longrope, 65)), [0.25, 0.0125], { relative: 1e-6 });
  assertAllClose(ropeFrequencies(atContext(longrope)), [0.25, 0.0125], { relative: 1e-6 });
  assertEquals(ropeFactor(atContext(longrope, 64).ropeScaling), 1.5);
});

test("ropeFrequencies of a part of the channels", () => {
  assertAllClose(ropeFrequencies({ headDim: 64, rotaryDim: 4, ropeTheta: 100 }), [1, 0.1], { relative: 1e-7 });
  assertThrows(() => ropeFrequencies({ headDim: 64, rotaryDim: 3, ropeTheta: 100 }), VecInferError, "rotaryDim");
});

test("ropeFrequencies refuses a scaling it does not know by name", () => {
  const config = { headDim: 64, ropeTheta: 10000, ropeScaling: { type: "other", factor: 4 } } as unknown as RopeConfig;
  assertThrows(
    () => ropeFrequencies(config),
    VecInferError,
    'expected linear, llama3, yarn, longrope or factors, found "other"',
  );
});
