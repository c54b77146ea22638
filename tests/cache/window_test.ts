import { assert, assertEquals, assertThrows } from "@std/assert";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { WeightsError } from "../../mod.ts";
import { allocate } from "../../lib/calibration/sensitivity.ts";
import {
  bf16Calibration,
  cacheBytes,
  type Calibration,
  checkHeadDim,
  dataFreeSide,
  defaultKv,
  effectiveBits,
  FORMATS,
  KvCache,
  kvConfig,
  readCalibration,
  Safetensors,
  SCHEMES,
  WindowError,
  writeCalibration,
} from "../../lib/ops/mod.ts";
import { cpu, testOnDevices } from "../support/device.ts";

// Layers 1 and 4 see all, the others windows of two sizes.
const shape = { layers: 5, kvHeads: 2, headDim: 64, windows: [32, 0, 200, 32, 0] }, row = 2 * 64 * 2;
const config = kvConfig("vq2", { sinks: 4, window: 16 }), side = dataFreeSide(config.keys, shape.layers);
const dataFree: Calibration = { keys: side, values: side };

test("a layer with a window is counted by its window, and by no pages, sinks and codebooks", () => {
  const { pages, window, sliding, sinks, codebooks, scales, total } = cacheBytes(shape, config, dataFree, 1000, 3);
  const tokens = 1024 * 3, codes = 2 * 16;
  assertEquals(pages, 2 * 2 * tokens * codes);
  assertEquals(scales, 2 * 2 * tokens * 2);
  assertEquals(window, 2 * 2 * 3 * (16 + 64) * row);
  assertEquals(sinks, 2 * 2 * 3 * 4 * row);
  assertEquals(sliding, 2 * 3 * (2 * (32 + 64) + 200 + 64) * row);
  assertEquals(codebooks, 2 * 256 * 4 * 2);
  assertEquals(total, pages + scales + window + sliding + sinks + codebooks);
  // Nothing is kept beyond the context.
  assertEquals(cacheBytes(shape, config, dataFree, 50).sliding, 2 * 3 * 50 * row);
  const fitted = cacheBytes(shape, config, SCHEMES["vecinfer+"], 1024).codebooks;
  assertEquals(fitted, 2 * 2 * 2 * (256 * 4 * 2 + 64 * 64 * 2));
});

test("bits a channel are of what layers see", () => {
  const bits = (kv: string, tokens: number) =>
    effectiveBits(shape, cacheBytes(shape, kvConfig(kv), SCHEMES.bf16, tokens).total, tokens);
  assertEquals(bits("bf16", 32), 16 * (2 * 64 + 3 * 32) / (5 * 32)); // whole pages
  const kept = 2 * 4096 + 2 * (32 + 64) + 200 + 64, seen = 2 * 4096 + 2 * 32 + 200;
  assertEquals(bits("bf16", 4096), 16 * kept / seen);
  assertEquals(effectiveBits({ ...shape, windows: undefined }, 5 * 4096 * 2 * row, 4096), 16);
});

testOnDevices("a cache allocates what is counted, and steps are as long as its shortest surplus allows", (device) => {
  const before = device.memory().allocated;
  for (
    const [windows, steps] of [[shape.windows, 64], [[0, 0, 0, 0, 0], Infinity], [
      [300, 0, 300, 0, 0],
      Infinity,
    ]] as const
  ) {
    using cache = new KvCache(device, { ...shape, windows }, kvConfig("bf16"), bf16Calibration(), {
      context: 300,
      sequences: 2,
    });
    assertEquals(cache.stepTokens, steps);
    const { pages, sliding } = cache.bytes(), tables = 4 * 2 * 5 + 4 * 2 * cache.rings.length;
    // The CUDA library has counters of its own for each layer.
    if (device.name === "cpu") assertEquals(device.memory().allocated - before, pages + sliding + tables);
    assertEquals(cache.bytesPerToken, windows.filter((window) => window === 0).length * 2 * row);
    assertEquals(cache.exactBytes(40), windows.filter((window) => window > 0).length * 40 * 2 * row);
  }
  assertEquals(device.memory().allocated, before);
});

test("a cache whose layers all have windows has pages of no bytes, and enough of them", () => {
  const windows = Array<number>(5).fill(7);
  using cache = new KvCache(cpu, { ...shape, windows }, config, dataFree, { context: 500, sequences: 2, tokens: 64 });
  assertEquals([cache.bytesPerToken, cache.bytes().pages, cache.bytes().codebooks, cache.pageCount], [0, 0, 0, 16]);
  using first = cache.sequence();
  using second = cache.sequence();
  for (const sequence of [first, second]) sequence.extend(500);
});

test("sequences go back as far as the windows hold what the next token sees, and no further", () => {
  using cache = new KvCache(cpu, shape, config, dataFree, { context: 1000, sequences: 2 });
  using sequence = cache.sequence();
  sequence.extend(500); // as one prompt: rings hold the newest 80, 96 and 264
  assertEquals(sequence.starts, [420, 404, 236]);
  // A window of 32 needs tokens from 435 - 31 on.
  sequence.truncate(435);
  assertThrows(
    () => sequence.truncate(434),
    WindowError,
    "layers with a window of 32 tokens need those from 403 on and hold",
  );
  assertEquals([sequence.length, sequence.pages.length], [435, 7]);
  using fork = sequence.fork();
  assertThrows(() => fork.truncate(300), WindowError);
  fork.truncate(0);
  assertEquals(fork.starts, [0, 0, 0]);
  for (let i = 0; i < 60; i++) fork.extend(1); // nothing has left a ring
  for (const length of [59, 31, 1, 0]) fork.truncate(length);
  fork.extend(97);
  assertEquals(fork.starts, [17, 1, 0]);
  assertThrows(() => fork.truncate(31), WindowError, "need those from 0 on and hold those from 1");
  fork.truncate(32);
});

test("a sequence whose prompt was interrupted is as before it, or says that its windows are lost", () => {
  using cache = new KvCache(cpu, shape, config, dataFree, { context: 1000, sequences: 2 });
  using sequence = cache.sequence();
  sequence.extend(100);
  sequence.abandon(0);
  sequence.extend(100);
  sequence.extend(40);
  sequence.abandon(100);
  sequence.extend(500);
  sequence.abandon(100);
  assertEquals([sequence.length, sequence.pages.length], [100, 2]);
  for (const use of [() => sequence.extend(1), () => sequence.fork(), () => sequence.truncate(0)]) {
    assertThrows(use, WindowError, "600 tokens cannot go back to 100");
  }
});

test("calibration files hold the coded layers and say which", () => {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-")), path = join(folder, "file.safetensors");
  try {
    const layers = side.layers.filter((_, layer) => shape.windows[layer] === 0), own: typeof side.layers = [];
    own[1] = layers[0];
    own[4] = layers[1];
    const layerFormats = [FORMATS.bf16, FORMATS.d4b8, FORMATS.bf16, FORMATS.bf16, FORMATS.d4b8];
    const keys = { ...side, layers: own, layerFormats };
    writeCalibration(path, { keys, values: { ...side, layers: own } }, shape, "print");
    {
      using file = Safetensors.open(path);
      assertEquals(file.metadata.coded_layers, "1,4");
      assertEquals(file.names.map((name) => name.split(".")[1]), ["1", "1", "4", "4"]);
    }
    const read = readCalibration(path, "print", shape, config);
    assertEquals(Object.keys(read.keys!.layers), ["1", "4"]);
    assertEquals(read.keys!.layerFormats, layerFormats);
    using _ = new KvCache(cpu, shape, config, read as Calibration, { context: 64 });
    const refused = (windows: number[] | undefined, layers: string) =>
      assertThrows(
        () => readCalibration(path, "print", { ...shape, windows }, config),
        WeightsError,
        `${path}: coded_layers: holds layers "1,4", this model codes "${layers}"`,
      );
    refused([32, 0, 200, 0, 0], "1,3,4");
    refused(undefined, "0,1,2,3,4");
    writeCalibration(path, { keys: { ...keys, layerFormats: undefined }, values: side }, {
      ...shape,
      windows: undefined,
    }, "print");
    assertThrows(() => readCalibration(path, "print", shape, config), WeightsError, 'holds layers "0,1,2,3,4"');
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("bits are spread over the coded layers", () => {
  const measured = { keys: [9, 1, 9, 9, 1], values: [9, 1, 9, 9, 1] };
  const { keys, values } = allocate(shape, measured, FORMATS.d4b8, 2, [FORMATS.d8b8, FORMATS.d4b8, FORMATS.d2b8]);
  for (const formats of [keys, values]) {
    assertEquals(formats.map(({ name }) => name), ["bf16", "d4b8", "bf16", "bf16", "d4b8"]);
  }
});

test("heads that have no codes are kept in bf16 by default, and codes of them are refused with what to take", () => {
  for (const headDim of [64, 128, 256]) {
    assertEquals(defaultKv(headDim), "vq2+");
    checkHeadDim(config, headDim);
  }
  for (const headDim of [80, 96, 112, 192]) {
    assertEquals(defaultKv(headDim), "bf16");
    checkHeadDim(kvConfig("bf16"), headDim);
    using cache = new KvCache(cpu, { ...shape, headDim }, kvConfig("bf16"), bf16Calibration(), { context: 64 });
    assert(cache.bytes().pages > 0);
    for (const kv of ["vq2+", "vq4", { keys: "bf16", values: "vq1" }]) {
      const make = () => new KvCache(cpu, { ...shape, headDim }, kvConfig(kv), dataFree, { context: 64 });
      assertThrows(make, RangeError, `codes heads of 64, 128, 256 channels; this model's have ${headDim}: take bf16`);
    }
  }
});
