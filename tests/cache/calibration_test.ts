import { assert, assertEquals, assertThrows } from "@std/assert";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import { writeSafetensors } from "../../lib/weights/safetensors.ts";
import { EMBEDDED_MODEL, openModel, Tokenizer, WeightsError } from "../../mod.ts";
import {
  calibrate,
  loadCalibration,
  MethodCalibrator,
  methodOf,
  modelFingerprint,
  readText,
  textPassages,
} from "../../lib/calibration/mod.ts";
import {
  cacheBytes,
  type Calibration,
  Device,
  KvCache,
  kvConfig,
  type LayerCalibration,
  PRESETS,
  presetScheme,
  readCalibration,
  type Scheme,
  writeCalibration,
} from "../../lib/ops/mod.ts";
import { slow } from "../support/slow.ts";

const folder = fileURLToPath(EMBEDDED_MODEL), fingerprint = modelFingerprint(folder);
const shape = { layers: 8, kvHeads: 2, headDim: 64 };
const file = (preset: string) => `${folder}/calibration/${preset}.vecinfer.safetensors`;

/** A folder that is gone after `use`. */
function inFolder(use: (folder: string) => void): void {
  const temporary = mkdtempSync(join(tmpdir(), "vecinfer-"));
  try {
    use(temporary);
  } finally {
    rmSync(temporary, { recursive: true });
  }
}

test("every preset of the embedded model has a calibration", () => {
  for (const preset of Object.keys(PRESETS).filter((name) => name !== "bf16")) {
    const { keys, values } = readCalibration(file(preset), fingerprint, shape, kvConfig(preset));
    assertEquals([keys!.layers.length, values!.layers.length], [8, 8]);
    const scheme = presetScheme(preset),
      of = (side: typeof scheme.keys) => [side.transform, side.codebooks, side.tokenScale];
    assertEquals([of(keys!), of(values!)], [of(scheme.keys), of(scheme.values)]);
    assertEquals(keys!.layerFormats?.length, scheme.bits === undefined ? undefined : 8);
  }
});

test("a calibration of another model, shape or format is refused with the file's name", () => {
  const path = file("vq2"), config = kvConfig("vq2");
  assertThrows(
    () => readCalibration(path, "0".repeat(64), shape, config),
    WeightsError,
    `${path}: made for another model`,
  );
  assertThrows(
    () => readCalibration(path, fingerprint, shape, kvConfig("vq4")),
    WeightsError,
    "holds keys as d4b8, d2b8",
  );
  assertThrows(() => readCalibration(path, fingerprint, { ...shape, headDim: 128 }, config), WeightsError, "smooth");
  assertThrows(() => readCalibration(path, fingerprint, { ...shape, layers: 9 }, config), WeightsError, "layers.8");
});

test("truncated and altered calibration files end in an error that names them", () => {
  inFolder((temporary) => {
    const bytes = readFileSync(file("vq1")), path = join(temporary, "vq1.vecinfer.safetensors");
    const read = () => readCalibration(path, fingerprint, shape, kvConfig("vq1"));
    for (const length of [0, 7, 100, 3000, bytes.length - 1]) {
      writeFileSync(path, bytes.subarray(0, length));
      assertThrows(read, WeightsError, path);
    }
    const nan = Uint8Array.from(bytes), header = Number(new DataView(nan.buffer).getBigUint64(0, true));
    nan.fill(0xff, 8 + header, 8 + header + 64);
    writeFileSync(path, nan);
    assertThrows(read, WeightsError, "not finite");
    writeFileSync(path, bytes);
    assert(read().keys);
  });
});

test("matrices that are singular, missing in a layer or beside smooth factors, and files of early forms, are refused", () => {
  const config = kvConfig("vq1+"), good = readCalibration(file("vq1+"), fingerprint, shape, config);
  const { keys, values } = { keys: good.keys!, values: good.values! };
  inFolder((temporary) => {
    const path = join(temporary, "vq1+.vecinfer.safetensors");
    const written = (layers: LayerCalibration[]) => {
      writeCalibration(path, { keys: { ...keys, layers }, values }, shape, fingerprint);
      return readCalibration(path, fingerprint, shape, config) as Calibration;
    };
    const changed = (change: (layer: LayerCalibration) => LayerCalibration) =>
      keys.layers.map((layer, i) => i === 3 ? change(layer) : layer);
    using device = Device.open({ device: "cpu" });
    const low = changed((layer) => {
      // Of rank 32, whose pivots are lost in rounding rather than zero.
      const matrix = layer.matrix!.map((x, i) => Math.floor(i / 64) % 64 < 32 ? x : layer.matrix![i - 32 * 64]);
      return { ...layer, matrix };
    });
    assertThrows(
      () => new KvCache(device, shape, config, written(low), { context: 64 }),
      WeightsError,
      `${path}: layers.3.keys.matrix: the transform of KV head 0 has no inverse`,
    );
    const needed = `${path}: keys need a matrix in every layer`, smooth = new Float32Array(128).fill(1);
    assertThrows(() => written(changed(({ codebook }) => ({ codebook }))), WeightsError, needed);
    assertThrows(() => written(changed((layer) => ({ ...layer, smooth }))), WeightsError, needed);
    const short = changed((layer) => ({ ...layer, matrix: layer.matrix!.subarray(0, 64) }));
    assertThrows(() => written(short), Error, "layers.3.keys.matrix");
    const early = { format: "vecinfer-calibration", version: "1", fingerprint, keys: "d8b8", values: "d8b8" };
    for (const tensor of ["layers.0.keys.feedback", "keys.d8b8.codebook"]) {
      writeSafetensors(path, { [tensor]: { dtype: "F16", shape: [2], data: new Uint8Array(4) } }, early);
      assertThrows(() => readCalibration(path, fingerprint, shape, config), WeightsError, "early form of vecinfer+");
    }
  });
});

test("calibration is deterministic for a seed, and what is written is what is read", async () => {
  using device = Device.open({ device: "cpu" });
  using model = await openModel(device, folder);
  const windows = textPassages(Tokenizer.open(folder), readText(`${folder}/calib.txt`), 256, 2),
    config = kvConfig("vq2");
  const side = { codebooks: "head", tokenScale: true } as const, training = { iterations: 3, samples: 4000 };
  const scheme: Scheme = {
    keys: { ...side, transform: "smooth hadamard" },
    values: { ...side, transform: "hadamard" },
  };
  const [first, again] = [
    await calibrate(model, config, windows, scheme, training),
    await calibrate(model, config, windows, scheme, training),
  ];
  assertEquals(first, again);
  const other = await calibrate(model, config, windows, scheme, { ...training, seed: 1 });
  assert(other.keys.layers[0].codebook.some((x, i) => x !== first.keys.layers[0].codebook[i]));
  inFolder((temporary) => {
    const path = join(temporary, "vq2.vecinfer.safetensors");
    writeCalibration(path, first, shape, fingerprint);
    const back = readCalibration(path, fingerprint, shape, config);
    for (const which of ["keys", "values"] as const) {
      const [wrote, read] = [first[which], back[which]!];
      assertEquals([read.codebooks, read.transform, read.tokenScale], ["head", scheme[which].transform, true]);
      wrote.layers.forEach((layer, i) => {
        assertEquals(read.layers[i].codebook, Float32Array.from(Float16Array.from(layer.codebook)));
        assertEquals(read.layers[i].smooth, layer.smooth);
      });
    }
  });
});

test("codebooks of sub-vectors are read as they were written, and a file with the wrong number of them is refused", {
  skip: slow,
}, async () => {
  using device = Device.open({ device: "cpu" });
  using model = await openModel(device, folder);
  const windows = textPassages(Tokenizer.open(folder), readText(`${folder}/calib.txt`), 256, 2),
    config = kvConfig("vq2");
  using calibrator = new MethodCalibrator(model, windows);
  const method = methodOf("cq:plain");
  assert(method.path === "fused");
  const made = await calibrator.calibrate(method, config);
  inFolder((temporary) => {
    const path = join(temporary, "vq2.vecinfer.safetensors");
    writeCalibration(path, made, shape, fingerprint);
    const { keys } = readCalibration(path, fingerprint, shape, config);
    assertEquals(keys!.codebooks, "head and sub-vector");
    assertEquals(keys!.layers[5].codebook, Float32Array.from(Float16Array.from(made.keys.layers[5].codebook)));
    const half = {
      ...made.keys,
      layers: made.keys.layers.map(({ codebook }) => ({ codebook: codebook.subarray(0, codebook.length / 2) })),
    };
    // As a model with half as many channels has them.
    writeCalibration(path, { keys: half, values: half }, { ...shape, headDim: 32 }, fingerprint);
    assertThrows(
      () => readCalibration(path, fingerprint, shape, config),
      WeightsError,
      "layers.0.keys.codebook is F16 [2,8,256,4]",
    );
  });
});

test("vecinfer+ spreads its bits over layers, is deterministic, and what is written is what is read", async () => {
  using device = Device.open({ device: "cpu" });
  using model = await openModel(device, folder);
  const windows = textPassages(Tokenizer.open(folder), readText(`${folder}/calib.txt`), 160, 2),
    config = kvConfig("vq2+");
  const scheme = presetScheme("vq2+"), training = { iterations: 2, samples: 5000 }, progress: number[] = [];
  const onProgress = (done: number) => progress.push(done);
  const first = await calibrate(model, config, windows, scheme, { ...training, onProgress });
  assertEquals(first, await calibrate(model, config, windows, scheme, training));
  assertEquals(progress.at(-1), 32);
  assert(progress.every((done, i) => i === 0 || done >= progress[i - 1]));
  const formats = [...first.keys.layerFormats!, ...first.values.layerFormats!];
  const bits = formats.reduce((sum, format) => sum + format.bits / format.subDim, 0) / formats.length;
  assert(bits <= 1.95 && bits > 1.85, `mean of ${bits} bits`);
  assert(new Set(formats).size > 1);
  using cache = new KvCache(device, model.cacheShape, config, first, { context: 1024 });
  assertEquals(cache.bytes(), cacheBytes(model.cacheShape, config, first, 1024));
  inFolder((temporary) => {
    const path = join(temporary, "vq2+.vecinfer.safetensors");
    writeCalibration(path, first, shape, fingerprint);
    const back = readCalibration(path, fingerprint, shape, config);
    for (const which of ["keys", "values"] as const) {
      const [wrote, read] = [first[which], back[which]!];
      assertEquals(read.layerFormats, wrote.layerFormats);
      assertEquals([read.transform, read.codebooks], ["fitted", "head"]);
      wrote.layers.forEach((layer, i) => {
        const half = (x: Float32Array | undefined) => x && Float32Array.from(Float16Array.from(x));
        assertEquals(read.layers[i].codebook, half(layer.codebook));
        assertEquals(read.layers[i].matrix, layer.matrix);
      });
    }
  });
});

test("without a file the data-free scheme is taken, side by side where only one has a file", async () => {
  using device = Device.open({ device: "cpu" });
  using model = await openModel(device, folder);
  const { keys, values } = loadCalibration(folder, model, kvConfig({ keys: "d4b10", values: "vq2" }));
  assertEquals(keys.origin, "data-free");
  assertEquals([keys.transform, keys.codebooks, keys.tokenScale], ["hadamard", "model", true]);
  assert(values.origin.endsWith("vq2.vecinfer.safetensors"));
  assertThrows(
    () => loadCalibration(folder, model, kvConfig("vq2"), "missing.safetensors"),
    WeightsError,
    "missing.safetensors",
  );
});
