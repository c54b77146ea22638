/**
 * Encoding: smooth, Hadamard, nearest codeword and the write into pages, for a decode step and for a prompt.
 *
 * @module
 */

import { kvConfig, PRESETS, randomNormal, Tensor } from "../mod.ts";
import { benchmark } from "./frame.ts";
import { FilledLayer, SHAPES } from "./shapes.ts";

await benchmark("quantize", "encoding of keys and values into the cache", {}, async ({ device, time }) => {
  for (const shape of SHAPES) {
    for (const rows of [1, 1024]) {
      for (const name of Object.keys(PRESETS)) {
        using filled = new FilledLayer(device, shape, kvConfig(name), 1024, 1);
        const width = shape.kvHeads * shape.headDim;
        using keys = Tensor.empty(device, "f32", [rows, width]);
        using values = Tensor.empty(device, "f32", [rows, width]);
        using slots = Tensor.zeros(device, "i32", [rows]);
        using positions = Tensor.from(device, Int32Array.from({ length: rows }, (_, i) => 1024 - rows + i));
        randomNormal(keys, { seed: 1 });
        randomNormal(values, { seed: 2 });
        await time(
          `${shape.name}, ${rows} tokens, ${name}`,
          () => filled.layer.quantize(keys, values, slots, positions),
          {
            bytes: rows * width * 4 * 2,
          },
        );
      }
    }
  }
});
