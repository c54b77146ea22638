import { assertThrows } from "@std/assert";
import { VecInferError } from "../../lib/device.ts";
import { ropeFrequencies } from "../../lib/models/rope.ts";
import { rope } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import { assertAllClose } from "../support/close.ts";
import { testOnDevices } from "../support/device.ts";
import { Random } from "../support/random.ts";
import { rope as reference } from "../support/reference.ts";

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

testOnDevices("rope names what it refuses", (device) => {
  using x = Tensor.zeros(device, "f32", [2, 128]);
  using positions = Tensor.zeros(device, "i32", [2]);
  using frequencies = Tensor.zeros(device, "f32", [32]);
  assertThrows(() => rope(x, positions, frequencies, { heads: 3 }), VecInferError, "rope: x: expected f32 [2, 192]");
  assertThrows(() => rope(x, positions, frequencies, { stride: 129 }), VecInferError, "rows 129 elements apart");
  assertThrows(() => rope(x, frequencies, frequencies), VecInferError, "rope: positions: expected i32 [2]");
  assertThrows(() => rope(x, positions, positions), VecInferError, "rope: frequencies: expected f32 of 2 elements");
});
