import { assert, assertEquals } from "@std/assert";
import { test } from "node:test";
import { DISTORTION } from "../../lib/calibration/sensitivity.ts";
import {
  cacheBytes,
  type Codebooks,
  dataFreeSide,
  FORMATS,
  gaussianCodebook,
  kvConfig,
  PRESETS,
  presetScheme,
  SCHEMES,
  SIDES,
} from "../../lib/ops/mod.ts";

const shape = { layers: 5, kvHeads: 3, headDim: 64 };

test("each format with codes has a Gaussian codebook of its size, and a distortion", () => {
  for (const { name, subDim, bits } of Object.values(FORMATS).filter((format) => format.bits < 16)) {
    assertEquals(gaussianCodebook(name).length, 2 ** bits * subDim);
    assert(DISTORTION[name as keyof typeof DISTORTION] > 0, name);
  }
});

test("codebooks are counted once for what shares them", () => {
  const config = kvConfig("vq1"), book = 2 ** 8 * 8 * 2, { layers, kvHeads } = shape, parts = 8;
  const expected: Record<Codebooks, number> = {
    "model": 1,
    "sub-vector": parts,
    "layer": layers,
    "layer and sub-vector": layers * parts,
    "head": layers * kvHeads,
    "head and sub-vector": layers * kvHeads * parts,
  };
  for (const [codebooks, count] of Object.entries(expected) as [Codebooks, number][]) {
    const side = { ...SCHEMES["vecinfer:plain"].keys, codebooks };
    const bytes = cacheBytes(shape, config, { keys: side, values: side }, 1024);
    assertEquals(bytes.codebooks, 2 * count * book, codebooks);
  }
});

test("a data-free cache holds one codebook a side, which all layers read", () => {
  const config = kvConfig("vq2"), side = dataFreeSide(config.keys, shape.layers);
  assertEquals(new Set(side.layers.map(({ codebook }) => codebook)).size, 1);
  assertEquals(cacheBytes(shape, config, { keys: side, values: side }, 64).codebooks, 2 * 256 * 4 * 2);
});

test("transforms are counted by layer: smooth factors in f32, one fitted matrix in f16; layers of bf16 have none", () => {
  const config = kvConfig("vq2"), { layers, kvHeads, headDim } = shape, book = 256 * 4 * 2;
  const count = (scheme: typeof SCHEMES.vecinfer) => cacheBytes(shape, config, scheme, 64).codebooks;
  assertEquals(count(SCHEMES.vecinfer), layers * (2 * book + kvHeads * headDim * 4));
  assertEquals(count(SCHEMES["vecinfer+"]), 2 * layers * kvHeads * (book + headDim * headDim * 2));
  const layerFormats = Array.from({ length: layers }, (_, i) => i === 1 ? FORMATS.d4b8 : FORMATS.bf16);
  const { keys, values } = SCHEMES["vecinfer+"];
  const alone = { keys: { ...keys, layerFormats }, values: { ...values, layerFormats } };
  assertEquals(count(alone), 2 * kvHeads * (book + headDim * headDim * 2));
});

test("a preset is a name for a scheme at two formats; other names have the paper's", () => {
  for (const [name, preset] of Object.entries(PRESETS)) {
    const { bits, ...scheme } = presetScheme(name), config = kvConfig(name);
    assertEquals(scheme, SCHEMES[preset.scheme]);
    assertEquals(bits, preset.bits);
    assertEquals(SIDES.map((side) => config[side].name), [preset.keys, preset.values]);
  }
  for (const name of ["d4b10+d8b12", "constructor"]) assertEquals(presetScheme(name), SCHEMES.vecinfer);
});
