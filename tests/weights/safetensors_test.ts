import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { chmodSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import {
  DTYPE_BYTES,
  openModel,
  Safetensors,
  type SafetensorsType,
  type TensorData,
  WeightsError,
  writeSafetensors,
} from "../../lib/weights/safetensors.ts";
import { Random } from "../support/random.ts";
import { safetensorsFile, tinyLlama, withFolder } from "./fixture.ts";

const F32 = (shape: number[], begin: number, end: number) => ({ dtype: "F32", shape, data_offsets: [begin, end] });

/** Runs `work`, which must fail with a WeightsError that names `file` and holds `cause`. */
function refuses(work: () => unknown, file: string, cause: string): void {
  const error = assertThrows(work, WeightsError);
  assertStringIncludes(error.message, file);
  assertStringIncludes(error.message, cause);
}

test("safetensors: the embedded model's tensors are the bytes that its header points at", () => {
  using weights = openModel(tinyLlama);
  assertEquals(weights.names.length, 74);
  assertEquals(weights.metadata.format, "pt");
  const file = readFileSync(join(tinyLlama, "model.safetensors"));
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, 8 + headerBytes).toString());
  for (const name of weights.names) {
    const { dtype, shape, data_offsets: [begin, end] } = header[name];
    assertEquals(weights.info(name), { dtype, shape, byteLength: end - begin });
    assert(file.subarray(8 + headerBytes + begin, 8 + headerBytes + end).equals(weights.read(name)), name);
  }
});

test("safetensors: what is written is read back, for every dtype, aligned to its elements", () =>
  withFolder((folder) => {
    const random = new Random(20261);
    const tensors: Record<string, TensorData> = {};
    for (const [dtype, bytes] of Object.entries(DTYPE_BYTES) as [SafetensorsType, number][]) {
      for (const shape of [[], [3], [2, 5], [0, 7]]) {
        const length = shape.reduce((a, b) => a * b, bytes);
        tensors[`${dtype}.${shape.join("x")}`] = {
          dtype,
          shape,
          data: Uint8Array.from({ length }, () => random.integer(0, 255)),
        };
      }
    }
    const path = join(folder, "all.safetensors");
    writeSafetensors(path, tensors, { note: 'ünï "quoted"', empty: "" });
    assertEquals(readdirSync(folder), ["all.safetensors"]);
    using file = Safetensors.open(path);
    assertEquals({ ...file.metadata }, { note: 'ünï "quoted"', empty: "" });
    assertEquals(file.names.sort(), Object.keys(tensors).sort());
    for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
      assertEquals(file.expect(name, dtype, shape), { dtype, shape: [...shape], byteLength: data.byteLength });
      assertEquals([...file.read(name)], [...data]);
    }
    const raw = readFileSync(path);
    const headerBytes = Number(raw.readBigUInt64LE(0));
    const header = JSON.parse(raw.subarray(8, 8 + headerBytes).toString());
    for (const [name, { dtype }] of Object.entries(tensors)) {
      assertEquals((8 + headerBytes + header[name].data_offsets[0]) % DTYPE_BYTES[dtype], 0, name);
    }
  }));

test("safetensors: a tensor is read in pieces, and not past its end", () =>
  withFolder((folder) => {
    const path = join(folder, "a.safetensors");
    writeFileSync(path, safetensorsFile({ a: F32([3], 0, 12), b: F32([2], 12, 20) }, 20));
    using file = Safetensors.open(path);
    const piece = new Uint8Array(5);
    file.readInto("b", 3, piece);
    assertEquals([...piece], [15, 16, 17, 18, 19]);
    assertThrows(() => file.readInto("b", 4, piece), RangeError);
    assertThrows(() => file.readInto("b", -1, piece), RangeError);
    assertThrows(() => file.readInto("b", 0.5, piece), RangeError);
  }));

test("safetensors: a missing tensor, another dtype or shape, and use after close say so", () =>
  withFolder((folder) => {
    const path = join(folder, "a.safetensors");
    writeFileSync(path, safetensorsFile({ a: F32([3], 0, 12) }, 12));
    const file = Safetensors.open(path);
    refuses(() => file.read("b"), path, "no tensor b");
    refuses(() => file.info("toString"), path, "no tensor toString");
    refuses(() => file.expect("a", ["BF16", "F16"]), path, "a is F32, expected BF16 or F16");
    refuses(() => file.expect("a", "F32", [4]), path, "shape [3], expected [4]");
    truncateSync(path, 70);
    refuses(() => file.read("a"), path, "cut while it was open");
    file.close();
    file.close();
    refuses(() => file.read("a"), path, "used after close");
  }));

const malformed: [name: string, file: Uint8Array, cause: string][] = [
  ["empty file", new Uint8Array(0), "0 bytes"],
  ["seven bytes", new Uint8Array(7), "7 bytes"],
  ["header past the end", safetensorsFile({ a: F32([1], 0, 4) }, 4).subarray(0, 30), "truncated"],
  ["header over the limit", Uint8Array.of(0, 0, 0, 0, 1, 0, 0, 0, 0x7b), "over the limit"],
  ["header of 2^64 - 1 bytes", new Uint8Array(16).fill(255), "over the limit"],
  ["invalid UTF-8", Uint8Array.of(3, 0, 0, 0, 0, 0, 0, 0, 0x7b, 0xff, 0x7d), "UTF-8"],
  ["empty header", safetensorsFile("", 0), "not valid JSON"],
  ["invalid JSON", safetensorsFile("{a}", 0), "not valid JSON"],
  ["a list", safetensorsFile("[]", 0), "not a JSON object"],
  ["null", safetensorsFile("null", 0), "not a JSON object"],
  ["brackets without end", safetensorsFile("[".repeat(100000), 0), "not valid JSON"],
  ["a tensor that is a number", safetensorsFile({ a: 1 }, 0), "not an object"],
  ["no dtype", safetensorsFile({ a: { shape: [1], data_offsets: [0, 4] } }, 4), "dtype is missing"],
  ["dtype of Object", safetensorsFile({ a: { ...F32([1], 0, 4), dtype: "toString" } }, 4), "unknown dtype toString"],
  ["no shape", safetensorsFile({ a: { dtype: "F32", data_offsets: [0, 4] } }, 4), "shape is missing"],
  ["negative size", safetensorsFile({ a: F32([-1], 0, 4) }, 4), "whole number"],
  ["fractional size", safetensorsFile({ a: F32([1.5], 0, 6) }, 6), "whole number"],
  ["size over 2^53", safetensorsFile('{"a":{"dtype":"U8","shape":[1e300],"data_offsets":[0,4]}}', 4), "whole number"],
  ["sizes that overflow", safetensorsFile({ a: F32(Array(40).fill(2 ** 50), 0, 4) }, 4), "data_offsets span 4"],
  ["no offsets", safetensorsFile({ a: { dtype: "F32", shape: [1] } }, 4), "data_offsets"],
  ["one offset", safetensorsFile({ a: { ...F32([1], 0, 4), data_offsets: [0] } }, 4), "data_offsets"],
  ["negative offset", safetensorsFile({ a: F32([1], -4, 0) }, 4), "data_offsets"],
  ["offsets as text", safetensorsFile({ a: { ...F32([1], 0, 4), data_offsets: ["0", "4"] } }, 4), "data_offsets"],
  ["begin after end", safetensorsFile({ a: F32([1], 8, 4) }, 8), "ends before"],
  ["end past the file", safetensorsFile({ a: F32([2], 0, 8) }, 4), "truncated"],
  ["offsets of another size", safetensorsFile({ a: F32([2], 0, 4) }, 4), "takes 8 bytes, data_offsets span 4"],
  ["overlap", safetensorsFile({ a: F32([2], 0, 8), b: F32([2], 4, 12) }, 12), "overlap"],
  ["the same bytes twice", safetensorsFile({ a: F32([2], 0, 8), b: F32([2], 0, 8) }, 8), "overlap"],
  ["a hole", safetensorsFile({ a: F32([1], 0, 4), b: F32([1], 8, 12) }, 12), "belong to no tensor"],
  ["a hole at the start", safetensorsFile({ a: F32([1], 4, 8) }, 8), "belong to no tensor"],
  ["bytes after the last tensor", safetensorsFile({ a: F32([1], 0, 4) }, 5), "last 1 bytes belong to no tensor"],
  [
    "a name twice",
    safetensorsFile(`{"a":${JSON.stringify(F32([1], 0, 4))},"\\u0061":${JSON.stringify(F32([1], 0, 4))}}`, 4),
    'twice the key "a"',
  ],
  [
    "a field twice",
    safetensorsFile('{"a":{"dtype":"I32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    "twice",
  ],
  ["__proto__", safetensorsFile(`{"__proto__":${JSON.stringify(F32([1], 0, 4))}}`, 4), "forbidden key"],
  ["__proto__ in a tensor", safetensorsFile('{"a":{"__proto__":{"dtype":"U8"}}}', 4), "forbidden key"],
  ["metadata that is a list", safetensorsFile({ __metadata__: [] }, 0), "__metadata__"],
  ["metadata with a number", safetensorsFile({ __metadata__: { a: 1 } }, 0), 'no text at "a"'],
];
for (const [name, bytes, cause] of malformed) {
  test(`safetensors: refused: ${name}`, () =>
    withFolder((folder) => {
      const path = join(folder, "bad.safetensors");
      writeFileSync(path, bytes);
      refuses(() => Safetensors.open(path), path, cause);
    }));
}

test("safetensors: files that cannot be opened say why", () =>
  withFolder((folder) => {
    refuses(() => Safetensors.open(join(folder, "none.safetensors")), "none.safetensors", "no such file");
    mkdirSync(join(folder, "model.safetensors"));
    refuses(() => openModel(folder), "model.safetensors", "is a folder");
    refuses(() => openModel(join(folder, "nowhere")), "nowhere", "no such folder");
    mkdirSync(join(folder, "empty"));
    refuses(() => openModel(join(folder, "empty")), "empty", "neither model.safetensors nor");
  }));

const isRoot = process.getuid?.() === 0;
test(
  "safetensors: a file without permission says so",
  { skip: isRoot ? "root may read everything" : false },
  () =>
    withFolder((folder) => {
      const path = join(folder, "secret.safetensors");
      writeFileSync(path, safetensorsFile({}, 0));
      chmodSync(path, 0);
      refuses(() => Safetensors.open(path), path, "permission denied");
    }),
);

test("safetensors: a truncated or corrupted file is refused or read, and nothing else", () =>
  withFolder((folder) => {
    const random = new Random(7301);
    const good = join(folder, "good.safetensors");
    const bad = join(folder, "bad.safetensors");
    const tensors = Object.fromEntries(
      Array.from({ length: 20 }, (_, i): [string, TensorData] => {
        const shape = [random.integer(1, 4), random.integer(1, 8)];
        return [`layers.${i}.weight`, { dtype: "F32", shape, data: new Uint8Array(shape[0] * shape[1] * 4) }];
      }),
    );
    writeSafetensors(good, tensors, { format: "pt" });
    const bytes = readFileSync(good);
    const headerBytes = Number(bytes.readBigUInt64LE(0));
    for (let i = 0; i < 50; i++) {
      writeFileSync(bad, bytes.subarray(0, Math.floor(bytes.byteLength * i / 50)));
      refuses(() => Safetensors.open(bad), bad, "");
    }
    let refused = 0;
    const rounds = 500;
    for (let round = 0; round < rounds; round++) {
      const copy = Buffer.from(bytes);
      for (let flips = random.integer(1, 3); flips > 0; flips--) {
        copy[random.integer(0, 7 + headerBytes)] ^= 1 << random.integer(0, 7);
      }
      writeFileSync(bad, copy);
      try {
        using file = Safetensors.open(bad);
        for (const name of file.names) assertEquals(file.read(name).byteLength, file.info(name).byteLength);
      } catch (error) {
        assert(error instanceof WeightsError, `round ${round}: ${error}`);
        assertStringIncludes(error.message, bad);
        refused++;
      }
    }
    assert(refused > rounds / 2, `${refused} of ${rounds} refused`);
  }));

test("safetensors: a sharded model reads as one, and a broken one says which shard", () =>
  withFolder((folder) => {
    const shard = (name: string, tensors: Record<string, number[]>) =>
      writeSafetensors(
        join(folder, name),
        Object.fromEntries(
          Object.entries(tensors).map((
            [key, data],
          ) => [key, { dtype: "U8", shape: [data.length], data: Uint8Array.from(data) }]),
        ),
        { [name]: "seen" },
      );
    const index = (weightMap: unknown) =>
      writeFileSync(
        join(folder, "model.safetensors.index.json"),
        JSON.stringify({ metadata: {}, weight_map: weightMap }),
      );
    shard("model-00001-of-00002.safetensors", { a: [1], b: [2, 2] });
    shard("model-00002-of-00002.safetensors", { c: [3, 3, 3], b: [9] });
    const first = "model-00001-of-00002.safetensors";
    const second = "model-00002-of-00002.safetensors";
    index({ a: first, b: first, c: second });
    {
      using weights = openModel(folder);
      assertEquals(weights.names, ["a", "b", "c"]);
      assertEquals([[...weights.read("b")], [...weights.read("c")]], [[2, 2], [3, 3, 3]]);
      assertEquals({ ...weights.metadata }, { [first]: "seen", [second]: "seen" });
    }
    index({ a: second });
    refuses(() => openModel(folder), second, "has no tensor a");
    index({ a: "model-00003-of-00002.safetensors" });
    refuses(() => openModel(folder), "model-00003-of-00002.safetensors", "no such file");
    for (const file of ["../other.safetensors", "/etc/passwd", "..", "", 7, null]) {
      index({ a: file });
      refuses(() => openModel(folder), "index.json", "not the name of a file");
    }
    index([]);
    refuses(() => openModel(folder), "index.json", "weight_map");
    index({});
    refuses(() => openModel(folder), "index.json", "names no tensor");
    writeFileSync(join(folder, "model.safetensors.index.json"), `{"weight_map":{"a":"${first}","a":"${second}"}}`);
    refuses(() => openModel(folder), "index.json", "twice");
    writeFileSync(join(folder, "model.safetensors.index.json"), "{");
    refuses(() => openModel(folder), "index.json", "not valid JSON");
  }));

test("safetensors: writing refuses wrong sizes and names, and leaves no half file", () =>
  withFolder((folder) => {
    const path = join(folder, "out.safetensors");
    const data = new Uint8Array(4);
    refuses(
      () => writeSafetensors(path, { a: { dtype: "F32", shape: [2], data } }),
      path,
      "takes 8 bytes, 4 were given",
    );
    refuses(() => writeSafetensors(path, { __metadata__: { dtype: "F32", shape: [1], data } }), path, "__metadata__");
    const nowhere = join(folder, "none", "out.safetensors");
    refuses(() => writeSafetensors(nowhere, { a: { dtype: "F32", shape: [1], data } }), nowhere, "cannot be written");
    mkdirSync(path);
    refuses(() => writeSafetensors(path, { a: { dtype: "F32", shape: [1], data } }), path, "cannot be written");
    assertEquals(readdirSync(folder), ["out.safetensors"]);
  }));
