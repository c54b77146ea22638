import { assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { linear } from "../../lib/ops/mod.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { allBf16, dot, row } from "../support/reference.ts";

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
});
