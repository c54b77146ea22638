import { assertEquals, assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { ropeFrequencies } from "../../lib/models/rope.ts";
import { rope, ropeRound } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { bf16, rope as reference } from "../support/reference.ts";

testOnDevices("rope rotates the first heads of strided rows, seed 4", (device) => {
  const random = new Random(4);
  for (const [rows, heads, headDim, gap] of [[1, 1, 2, 0], [5, 3, 64, 17], [70, 9, 128, 0], [33, 2, 64, 64]]) {
    const stride = heads * headDim + gap, values = random.normals(rows * stride);
    const frequencies = ropeFrequencies({ headDim, ropeTheta: 10000 });
    const at = random.integers(rows, 0, 131072);
    using x = Tensor.from(device, values, [rows, stride]);
    using positions = Tensor.from(device, at);
    using table = Tensor.from(device, frequencies);
    const expected = Array.from(values);
    for (let r = 0; r < rows; r++) {
      for (let h = 0; h < heads; h++) {
        const begin = r * stride + h * headDim;
        expected.splice(begin, headDim, ...reference(values.subarray(begin, begin + headDim), at[r], frequencies));
      }
    }
    if (gap > 0) rope(x, positions, table, { heads });
    else rope(x, positions, table);
    assertAllClose(x.read(), expected, { absolute: 3e-6 }, `[${rows}, ${heads}, ${headDim}] + ${gap}`);
    // The same through a view of columns, back again.
    for (let r = 0; r < rows; r++) at[r] = -at[r];
    positions.write(at);
    rope(x.columns(0, heads * headDim), positions, table);
    assertAllClose(x.read(), values, { absolute: 6e-6 }, "back again");
  }
});

/** The number that bits of a bf16 mean. */
function fromBits(bits: number): number {
  return new Float32Array(Uint32Array.of(bits * 65536).buffer)[0];
}

testOnDevices("ropeRound turns as rope does and rounds keys and values, seed 5", (device) => {
  const random = new Random(5);
  for (const [rows, heads, kvHeads, headDim] of [[1, 1, 1, 2], [70, 9, 3, 64], [33, 8, 8, 128]]) {
    const q = heads * headDim, kv = kvHeads * headDim, stride = q + 2 * kv + 3, values = random.normals(rows * stride);
    using x = Tensor.from(device, values, [rows, stride]);
    using wanted = Tensor.from(device, values, [rows, stride]);
    using positions = Tensor.from(device, random.integers(rows, 0, 131072));
    using table = Tensor.from(device, ropeFrequencies({ headDim, ropeTheta: 10000 }));
    using out = Tensor.zeros(device, "bf16", [rows, 2 * kv + 1]);
    const to = { keys: out.columns(0, kv), values: out.columns(kv, kv) };
    ropeRound(x.columns(0, q), x.columns(q, kv), x.columns(q + kv, kv), to, positions, table);
    rope(wanted, positions, table, { heads: heads + kvHeads });
    const turned = wanted.read<Float32Array>(), found = x.read<Float32Array>(), rounded = out.read<Uint16Array>();
    for (let r = 0; r < rows; r++) {
      const at = r * stride, row = turned.subarray(at, at + stride);
      assertAllClose(found.subarray(at, at + q), row.subarray(0, q), { absolute: 1e-6 }, `queries of row ${r}`);
      const kept = Array.from(rounded.subarray(r * (2 * kv + 1), r * (2 * kv + 1) + 2 * kv), fromBits);
      assertAllClose(
        kept,
        row.subarray(q, q + 2 * kv),
        { absolute: 1e-5, relative: 1 / 200 },
        `keys and values of row ${r}`,
      );
      assertEquals(kept.slice(kv), Array.from(row.subarray(q + kv, q + 2 * kv), bf16), `values of row ${r}`);
    }
    const columns = [x.columns(0, q), x.columns(q, kv), x.columns(q + kv, kv)];
    assertThrows(
      () => ropeRound(columns[0], columns[1], table, to, positions, table),
      VecInferError,
      "ropeRound: values",
    );
    assertThrows(
      () => ropeRound(columns[0], columns[1], columns[2], { ...to, values: x }, positions, table),
      VecInferError,
      "to.values",
    );
  }
});

testOnDevices("rope names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 128]);
  using positions = Tensor.zeros(device, "i32", [2]);
  using frequencies = Tensor.zeros(device, "f32", [32]);
  assertThrows(() => rope(x, positions, frequencies, { heads: 3 }), VecInferError, "rope: x: expected f32 [2, 192]");
  assertThrows(() => rope(x, positions, frequencies, { stride: 129 }), VecInferError, "rows 129 elements apart");
  assertThrows(() => rope(x, frequencies, frequencies), VecInferError, "rope: positions: expected i32 [2]");
  assertThrows(() => rope(x, positions, positions), VecInferError, "rope: frequencies: expected f32 of 2 elements");
});
