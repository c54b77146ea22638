import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { Quantizer } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { TestQuantizer } from "../support/layer.ts";
import { Random } from "../support/random.ts";
import { dot } from "../support/reference.ts";

testOnDevices("Quantizer.transform, its query and its inverse, seed 20", (device) => {
  const random = new Random(20), kvHeads = 3;
  for (const headDim of [64, 128]) {
    for (const [smooth, hadamard] of [[true, true], [false, true], [true, false], [false, false]]) {
      using side = new TestQuantizer(device, random, { subDim: 4, bits: 8, smooth, hadamard }, kvHeads, headDim);
      for (const [rows, group, gap] of [[1, 1, 0], [7, 4, 0], [70, 1, 5]]) {
        const heads = kvHeads * group,
          width = heads * headDim,
          stride = width + gap,
          what = `${headDim} ${rows} ${group} ${gap}`;
        const values = random.normals(rows * stride);
        using x = Tensor.from(device, values, [rows, stride]);
        using out = Tensor.zeros(device, "f32", [rows, stride]);
        const expected = (call: (vector: Float32Array, kvHead: number) => number[]): Float32Array => {
          const all = new Float32Array(rows * stride);
          for (let r = 0; r < rows; r++) {
            for (let h = 0; h < heads; h++) {
              const at = r * stride + h * headDim;
              all.set(call(values.subarray(at, at + headDim), Math.floor(h / group)), at);
            }
          }
          return all;
        };
        const close = { absolute: 1e-5 };
        side.native.transform(out, x, "forward", { heads });
        assertAllClose(out.read(), expected((v, h) => side.forward(v, h)), close, `forward ${what}`);
        side.native.transform(out, x, "query", { heads });
        assertAllClose(out.read(), expected((v, h) => side.query(v, h)), close, `query ${what}`);
        side.native.transform(out, x, "inverse", { heads });
        assertAllClose(out.read(), expected((v, h) => side.inverse(v, h)), close, `inverse ${what}`);
        // In place, there and back.
        side.native.transform(x, x, "forward", { heads });
        side.native.transform(x, x, "inverse", { heads });
        assertAllClose(x.read(), values, close, `back ${what}`);
      }
      const [q, k] = [random.normals(headDim), random.normals(headDim)];
      assertAllClose([dot(side.query(q, 1), side.forward(k, 1))], [dot(q, k)], { absolute: 1e-9 });
    }
  }
});

testOnDevices("Quantizer keeps its codebooks, rounded at most to f16 or int8, seed 21", (device) => {
  const random = new Random(21);
  for (const [subDim, bits] of [[2, 8], [4, 12], [4, 10], [4, 8], [4, 6], [8, 12], [8, 8]]) {
    const values = random.normals(2 * 2 ** bits * subDim);
    using codebooks = Tensor.from(device, values, [2, 2 ** bits, subDim]);
    using quantizer = new Quantizer(device, { kvHeads: 2, headDim: 64, subDim, bits, codebooks });
    using out = Tensor.empty(device, "f32", [2, 2 ** bits, subDim]);
    quantizer.codebook(out);
    const largest = values.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    assertAllClose(out.read(), values, { absolute: largest / 127 }, `d${subDim}b${bits}`);
  }
});

testOnDevices("Quantizer.pageBytes are the bits of the codes, and a byte a vector for its scale", (device) => {
  for (const [subDim, bits, tokenScale, headDim] of [[4, 8, 0, 64], [4, 8, 1, 128], [8, 12, 1, 64], [4, 6, 0, 128]]) {
    using codebooks = Tensor.zeros(device, "f32", [1, 2 ** bits, subDim]);
    const options = { kvHeads: 3, headDim, subDim, bits, codebooks, tokenScale: tokenScale === 1 };
    using quantizer = new Quantizer(device, options);
    assertEquals(quantizer.pageBytes, 64 * 3 * (headDim / subDim * bits / 8 + tokenScale));
  }
  using plain = new Quantizer(device, { kvHeads: 3, headDim: 64, subDim: 1, bits: 16 });
  assertEquals(plain.pageBytes, 64 * 3 * 64 * 2);
});

testOnDevices("Quantizer names what it refuses", (device) => {
  using codebooks = Tensor.zeros(device, "f32", [1, 256, 4]);
  const options = { kvHeads: 2, headDim: 64, subDim: 4, bits: 8, codebooks };
  const refused = (change: object, message: string) =>
    assertThrows(() => new Quantizer(device, { ...options, ...change }), VecInferError, message);
  assertEquals(refused({ headDim: 96 }, "96").code, "UNSUPPORTED");
  refused({ subDim: 3 }, "Quantizer: codebooks: expected f32 of 768 elements");
  refused({ codebooks: null }, "codebooks");
  refused({ bits: 17 }, "Quantizer: bits: expected a whole number from 1 to 16, found 17");
  refused({ smooth: codebooks }, "Quantizer: smooth: expected f32 of 128 elements");
  using three = Tensor.zeros(device, "f32", [3, 256, 4]);
  refused({ codebooks: three }, "codebook_heads");
  refused({ codebooks: three, codebookHeads: 1, codebookParts: 3 }, "codebook_parts");
  const quantizer = new Quantizer(device, options);
  using x = Tensor.zeros(device, "f32", [2, 192]);
  assertThrows(() => quantizer.transform(x, x, "sideways" as "query"), VecInferError, '"sideways"');
  assertThrows(() => quantizer.transform(x, x, "query"), VecInferError, "heads");
  quantizer[Symbol.dispose]();
  quantizer[Symbol.dispose]();
  assertThrows(() => quantizer.codebook(codebooks), VecInferError, "Quantizer was used after it was disposed");
});
