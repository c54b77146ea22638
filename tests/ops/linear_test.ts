import { assert, assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { gate, linear, pack, rmsnorm } from "../../lib/ops/ops.ts";
import { PACKED_ROWS, Tensor } from "../../lib/tensor.ts";
import { blockWeights, randomBlocks } from "../support/blocks.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { allBf16, dot, rmsnorm as normed, row, silu } from "../support/reference.ts";

testOnDevices("linear, with and without bias, seed 3", (device) => {
  const random = new Random(3);
  // The CUDA library may round x to bf16 for its tensor cores: 2^-9 of each product.
  const precision = device.name === "cpu" ? 1e-5 : 1e-2;
  for (const [rows, outFeatures, inFeatures] of [[1, 1, 1], [1, 65, 127], [5, 33, 64], [16, 128, 256], [70, 95, 130]]) {
    const values = random.normals(rows * inFeatures), matrix = random.normals(outFeatures * inFeatures);
    const offsets = random.normals(outFeatures), rounded = allBf16(matrix), roundedOffsets = allBf16(offsets);
    using x = Tensor.from(device, values, [rows, inFeatures]);
    using weight = Tensor.from(device, matrix, [outFeatures, inFeatures], "bf16");
    using bias = Tensor.from(device, offsets, [outFeatures], "bf16");
    using out = Tensor.empty(device, "f32", [rows, outFeatures]);
    const product = Array.from(
      { length: rows },
      (_, r) =>
        Array.from({ length: outFeatures }, (_, o) => dot(row(values, r, inFeatures), row(rounded, o, inFeatures))),
    ).flat();
    const shape = `[${rows}, ${outFeatures}, ${inFeatures}]`, close = { absolute: precision * Math.sqrt(inFeatures) };
    linear(out, x, weight);
    assertAllClose(out.read(), product, close, shape);
    linear(out, x, weight, { bias });
    assertAllClose(out.read(), product.map((y, i) => y + roundedOffsets[i % outFeatures]), close, `${shape} with bias`);
    const part = Math.ceil(rows / 2);
    out.fill(7);
    linear(out, x, weight, { rows: part });
    const partly = product.map((y, i) => i < part * outFeatures ? y : 7);
    assertAllClose(out.read(), partly, close, `${shape}, ${part} rows`);
  }
});

testOnDevices("linear of normed rows, sums and gates, seed 4", (device) => {
  const random = new Random(4), epsilon = 1e-2;
  for (const [rows, outFeatures, inFeatures] of [[1, 34, 64], [3, 6, 131], [8, 64, 96], [20, 70, 130]]) {
    const precision = device.name === "cpu" ? 1e-5 : rows > 8 ? 1e-2 : 2e-5, half = outFeatures / 2;
    const values = random.normals(rows * inFeatures), before = random.normals(rows * outFeatures);
    const matrix = random.normals(outFeatures * inFeatures, 1 / Math.sqrt(inFeatures)),
      offsets = random.normals(outFeatures);
    const scales = random.normals(inFeatures);
    const roundedMatrix = allBf16(matrix), roundedOffsets = allBf16(offsets);
    using x = Tensor.from(device, values, [rows, inFeatures]);
    using weight = Tensor.from(device, matrix, [outFeatures, inFeatures], "bf16");
    using weights = Tensor.from(device, scales, [inFeatures]);
    using bias = Tensor.from(device, offsets, [outFeatures], "bf16");
    using out = Tensor.empty(device, "f32", [rows, outFeatures]);
    using gated = Tensor.empty(device, "f32", [rows, half]);
    for (const norm of [null, weights]) {
      const products = Array.from({ length: rows }, (_, r) => {
        const own = row(values, r, inFeatures), y = norm ? normed(own, scales, epsilon) : own;
        return Array.from(
          { length: outFeatures },
          (_, o) => dot(y, row(roundedMatrix, o, inFeatures)) + roundedOffsets[o],
        );
      });
      const shape = `${norm ? "normed " : ""}[${rows}, ${outFeatures}, ${inFeatures}]`;
      const close = { absolute: precision * Math.sqrt(inFeatures), relative: precision };
      linear(out, x, weight, { norm, epsilon, bias });
      assertAllClose(out.read(), products.flat(), close, shape);
      out.write(Float32Array.from(before));
      linear(out, x, weight, { norm, epsilon, bias, output: "sum" });
      assertAllClose(out.read(), products.flat().map((y, i) => before[i] + y), close, `${shape}, sums`);
      linear(gated, x, weight, { norm, epsilon, bias, output: "silu" });
      const gates = products.map((y) => y.slice(0, half).map((g, o) => silu(g) * y[half + o])).flat();
      assertAllClose(gated.read(), gates, { ...close, absolute: 4 * close.absolute }, `${shape}, gated`);
    }
  }
});

testOnDevices("a row of linear has the same bits alone and among others, fused or not, seed 5", (device) => {
  const random = new Random(5), rows = 8, width = 264, outs = 78;
  using x = Tensor.from(device, random.normals(rows * width), [rows, width]);
  using weight = Tensor.from(device, random.normals(outs * width), [outs, width], "bf16");
  using norm = Tensor.from(device, random.normals(width));
  using prepared = Tensor.empty(device, "f32", [rows, width]);
  using pairs = Tensor.empty(device, "f32", [rows, outs]);
  rmsnorm(prepared, x, norm, 1e-5);
  for (const output of ["values", "silu"] as const) {
    const own = output === "silu" ? outs / 2 : outs;
    using out = Tensor.empty(device, "f32", [rows, own]);
    using alone = Tensor.empty(device, "f32", [1, own]);
    linear(out, x, weight, { norm, epsilon: 1e-5, output });
    const all = out.read<Float32Array>();
    for (let r = 0; r < rows; r++) {
      linear(alone, x.rows(r, 1), weight, { norm, epsilon: 1e-5, output });
      assertEquals([...alone.read()], row(all, r, own), `${output}, row ${r}`);
    }
    linear(output === "silu" ? pairs : out, prepared, weight);
    if (output === "silu") gate(out, pairs);
    assertAllClose(out.read(), all, { absolute: 1e-4, relative: 1e-5 }, output);
  }
});

/** What rounding y to 8 bits may change y . w by: half a step a value, a step being the largest of its 32 over 127. */
function rounding(y: readonly number[], w: readonly number[]): number {
  let bound = 1e-5;
  for (let b = 0; b < y.length; b += 32) {
    const most = Math.max(...y.slice(b, b + 32).map(Math.abs));
    for (let i = b; i < b + 32; i++) bound += Math.abs(w[i]) * (most / 254 + 1e-6);
  }
  return bound;
}

for (const type of ["Q8_0", "Q4_0", "Q4_1"] as const) {
  const dtype = type.toLowerCase() as "q8_0" | "q4_0" | "q4_1";
  testOnDevices(`linear with ${type} weights is within the rounding of its input, seed 6`, (device) => {
    const random = new Random(6);
    for (const [rows, outFeatures, inFeatures] of [[1, 1, 32], [1, 65, 128], [3, 40, 96], [7, 16, 32], [20, 50, 160]]) {
      const blocks = randomBlocks(random, type, outFeatures * inFeatures), matrix = blockWeights(type, blocks);
      const values = random.normals(rows * inFeatures), offsets = allBf16(random.normals(outFeatures));
      using x = Tensor.from(device, values, [rows, inFeatures]);
      using bytes = Tensor.from(device, blocks);
      using weight = Tensor.empty(device, dtype, [outFeatures, inFeatures]);
      using bias = Tensor.from(device, offsets, [outFeatures], "bf16");
      using out = Tensor.from(device, new Float32Array(rows * outFeatures).fill(3), [rows, outFeatures]);
      pack(weight, bytes);
      linear(out, x, weight, { bias, output: "sum" });
      const found = out.read<Float32Array>();
      for (let r = 0; r < rows; r++) {
        const y = row(values, r, inFeatures);
        for (let o = 0; o < outFeatures; o++) {
          const w = row(matrix, o, inFeatures), exact = dot(y, w) + offsets[o] + 3;
          const bound = rounding(y, w);
          const error = Math.abs(found[r * outFeatures + o] - exact);
          assert(error <= bound, `[${rows}, ${outFeatures}, ${inFeatures}] row ${r}, output ${o}: ${error} > ${bound}`);
        }
      }
      // Alone, and with weights that begin at a later panel. CUDA has the same bits among up to 8 rows.
      if (device.name !== "cpu" && rows > 8) continue;
      using alone = Tensor.empty(device, "f32", [1, outFeatures]);
      out.fill(0);
      linear(out, x, weight);
      linear(alone, x.rows(rows - 1, 1), weight);
      assertEquals([...alone.read()], row(out.read(), rows - 1, outFeatures), "a row alone");
      if (outFeatures <= PACKED_ROWS) continue;
      using rest = Tensor.empty(device, "f32", [rows, outFeatures - PACKED_ROWS]);
      linear(rest, x, weight.rows(PACKED_ROWS, outFeatures - PACKED_ROWS));
      assertEquals(row(rest.read(), 0, rest.width), row(out.read(), 0, outFeatures).slice(PACKED_ROWS), "later panels");
    }
  });
}

testOnDevices("linear with packed weights of normed rows, gates, NaN and infinity, seed 7", (device) => {
  const random = new Random(7), rows = 5, width = 64, outs = 34;
  const blocks = randomBlocks(random, "Q8_0", width * outs), matrix = blockWeights("Q8_0", blocks);
  const pairs = random.normals(rows * 2 * width), scales = random.normals(width);
  using bytes = Tensor.from(device, blocks);
  using weight = Tensor.empty(device, "q8_0", [outs, width]);
  pack(weight, bytes);
  using x = Tensor.from(device, pairs, [2 * rows, width]);
  using norm = Tensor.from(device, scales);
  using out = Tensor.empty(device, "f32", [rows, outs]);
  const check = (name: string, y: (r: number) => number[]): void => {
    const found = out.read<Float32Array>();
    for (let r = 0; r < rows; r++) {
      for (let o = 0; o < outs; o++) {
        const w = row(matrix, o, width), error = Math.abs(found[r * outs + o] - dot(y(r), w));
        assert(error <= 1.01 * rounding(y(r), w), `${name}: row ${r}, output ${o} is ${error} off`);
      }
    }
  };
  linear(out, x, weight, { rows, norm, epsilon: 1e-3 });
  check("norm", (r) => normed(row(pairs, r, width), scales, 1e-3));
  using gated = Tensor.empty(device, "f32", [rows, outs / 2]);
  linear(out, x, weight, { rows });
  linear(gated, x, weight, { rows, output: "silu" });
  const y = out.read<Float32Array>(),
    gates = Array.from({ length: rows * outs / 2 }, (_, i) => {
      const r = Math.floor(i / (outs / 2)), o = i % (outs / 2);
      return silu(y[r * outs + o]) * y[r * outs + outs / 2 + o];
    });
  assertAllClose(gated.read(), gates, { absolute: 1e-5, relative: 1e-5 }, "gated");
  for (const bad of [NaN, Infinity]) {
    x.write([bad], width + 7);
    linear(out, x, weight, { rows });
    const found = out.read<Float32Array>();
    assert(row(found, 0, outs).every(Number.isFinite) && row(found, 1, outs).every(Number.isNaN), String(bad));
  }
});

testOnDevices("linear names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 8]);
  using weight = Tensor.zeros(device, "bf16", [4, 8]);
  using out = Tensor.zeros(device, "f32", [2, 4]);
  assertThrows(
    () => linear(x, x, weight),
    VecInferError,
    "linear: out: expected f32 [2, 4] or more rows, found f32 [2, 8]",
  );
  assertThrows(() => linear(out, out, weight), VecInferError, "linear: x: expected f32 [2, 8]");
  assertThrows(() => linear(out, x, weight, { bias: weight }), VecInferError, "linear: bias: expected bf16 of 4");
  assertThrows(() => linear(out, x, out), VecInferError, "linear: out");
  assertThrows(
    () => linear(out, x, weight, { output: "silu" }),
    VecInferError,
    "linear: out: expected f32 [2, 2] or more rows",
  );
  assertThrows(() => linear(out, x, weight, { norm: weight }), VecInferError, "linear: norm: expected f32 of 8");
  using norm = Tensor.zeros(device, "f32", [8]);
  assertThrows(() => linear(out, x, weight, { norm, epsilon: -1 }), VecInferError, "epsilon is -1");
  assertThrows(
    () => linear(out, x, weight, { output: "gelu" as never }),
    VecInferError,
    "linear: output: expected one of values,sum,silu, found gelu",
  );
});
