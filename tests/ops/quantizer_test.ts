import { assert, assertEquals, assertThrows } from "@std/assert";
import { readFileSync } from "node:fs";
import { FORMATS } from "../../lib/cache/format.ts";
import { VecInferError } from "../../lib/device.ts";
import { Quantizer } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { TestQuantizer } from "../support/layer.ts";
import { Random } from "../support/random.ts";
import { dot } from "../support/reference.ts";

const formats = Object.values(FORMATS);

testOnDevices("Transform.apply forward, for queries and inverse, seed 20", (device) => {
  const random = new Random(20), kvHeads = 3;
  for (const headDim of [64, 128, 256]) {
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
        side.transform.apply(out, x, "forward", { heads });
        assertAllClose(out.read(), expected((v, h) => side.forward(v, h)), close, `forward ${what}`);
        side.transform.apply(out, x, "query", { heads });
        assertAllClose(out.read(), expected((v, h) => side.query(v, h)), close, `query ${what}`);
        side.transform.apply(out, x, "inverse", { heads });
        assertAllClose(out.read(), expected((v, h) => side.inverse(v, h)), close, `inverse ${what}`);
        // In place, there and back.
        side.transform.apply(x, x, "forward", { heads });
        side.transform.apply(x, x, "inverse", { heads });
        assertAllClose(x.read(), values, close, `back ${what}`);
      }
      const [q, k] = [random.normals(headDim), random.normals(headDim)];
      assertAllClose([dot(side.query(q, 1), side.forward(k, 1))], [dot(q, k)], { absolute: 1e-9 });
    }
  }
});

testOnDevices("Quantizer keeps its codebooks, rounded at most to f16 or int8, seed 21", (device) => {
  const random = new Random(21);
  for (const { subDim, bits } of formats.filter(({ bits }) => bits < 16)) {
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
  for (
    const [subDim, bits, tokenScale, headDim] of [[4, 8, 0, 64], [4, 8, 1, 128], [8, 12, 1, 64], [4, 6, 0, 128], [
      2,
      8,
      1,
      256,
    ]]
  ) {
    using codebooks = Tensor.zeros(device, "f32", [1, 2 ** bits, subDim]);
    const options = { kvHeads: 3, headDim, subDim, bits, codebooks, tokenScale: tokenScale === 1 };
    using quantizer = new Quantizer(device, options);
    assertEquals(quantizer.pageBytes, 64 * 3 * (headDim / subDim * bits / 8 + tokenScale));
  }
  for (const headDim of [64, 80, 96, 112, 128, 192, 256]) {
    using plain = new Quantizer(device, { kvHeads: 3, headDim, subDim: 1, bits: 16 });
    assertEquals(plain.pageBytes, 64 * 3 * headDim * 2);
  }
});

testOnDevices("Quantizer names what it refuses", (device) => {
  using codebooks = Tensor.zeros(device, "f32", [1, 256, 4]);
  const options = { kvHeads: 2, headDim: 64, subDim: 4, bits: 8, codebooks };
  const refused = (change: object, message: string) =>
    assertThrows(() => new Quantizer(device, { ...options, ...change }), VecInferError, message);
  for (const headDim of [32, 80, 96, 112, 192, 255, 512]) {
    const coded = `head_dim ${headDim} is not supported with transforms and codes: 64, 128 and 256 are`;
    assertEquals(refused({ headDim }, coded).code, "UNSUPPORTED");
    if (headDim >= 80 && headDim <= 192) continue;
    const plain = `head_dim ${headDim} is not supported: 64, 80, 96, 112, 128, 192 and 256 are`;
    assertEquals(refused({ headDim, subDim: 1, bits: 16, codebooks: null }, plain).code, "UNSUPPORTED");
  }
  refused({ subDim: 3 }, "Quantizer: codebooks: expected f32 of 768 elements");
  refused({ codebooks: null }, "codebooks");
  refused({ bits: 17 }, "Quantizer: bits: expected a whole number from 1 to 16, found 17");
  using three = Tensor.zeros(device, "f32", [3, 256, 4]);
  refused({ codebooks: three }, "codebook_heads");
  refused({ codebooks: three, codebookHeads: 1, codebookParts: 3 }, "codebook_parts");
  const quantizer = new Quantizer(device, options);
  quantizer[Symbol.dispose]();
  quantizer[Symbol.dispose]();
  assertThrows(() => quantizer.codebook(codebooks), VecInferError, "Quantizer was used after it was disposed");
});

// The list of formats stands in lib/cache for TypeScript and in cuda/common/format.h for both libraries; vecinfer.h describes it.
testOnDevices(
  "Every format of FORMATS makes a quantizer; others are refused with the libraries' list, which is the same",
  (device) => {
    const of = (subDim: number, bits: number): Quantizer => {
      using codebooks = bits === 16 ? null : Tensor.zeros(device, "f32", [1, 2 ** bits, subDim]);
      return new Quantizer(device, { kvHeads: 1, headDim: 64, subDim, bits, codebooks });
    };
    for (const { subDim, bits } of formats) of(subDim, bits)[Symbol.dispose]();
    const known = formats.map(({ name, subDim, bits }) => `${name} (${subDim},${bits})`), lists = new Set<string>();
    for (const subDim of [1, 2, 3, 4, 8, 16]) {
      for (const bits of [1, 4, 6, 7, 8, 10, 12, 16]) {
        if (formats.some((format) => format.subDim === subDim && format.bits === bits)) continue;
        const { message } = assertThrows(
          () => of(subDim, bits),
          VecInferError,
          `(sub_dim, bits) is (${subDim},${bits}), not one of`,
        );
        lists.add(message.split("not one of ")[1]);
      }
    }
    assertEquals(lists.size, 1);
    const [list] = lists;
    assertEquals(list.split(", ").sort(), known.sort());
    const header = readFileSync(new URL("../../cuda/include/vecinfer.h", import.meta.url), "utf8");
    assert(header.includes(`* ${list};`), `vecinfer.h doesn't list "${list}"`);
  },
);
