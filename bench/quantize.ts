/**
 * Encoding: the transform, nearest codeword and the write into pages, for a decode step and for a prompt.
 *
 * @module
 */

import { kvConfig, PRESETS, presetScheme, randomNormal, Tensor } from "../lib/ops/mod.ts";
import { benchmark } from "./frame.ts";
import { FilledLayer, SHAPES } from "./shapes.ts";

await benchmark("quantize", "encoding of keys and values into the cache", {
  rows: { type: "string", default: "1,1024", help: "tokens encoded at a time, with commas" },
  caches: {
    type: "string",
    default: Object.keys(PRESETS).join(","),
    help: 'presets or formats, with commas; "d4b10 + fitted" with matrices and a codebook a head, as those with a plus',
  },
}, async ({ device, time }, options) => {
  for (const shape of SHAPES) {
    for (const rows of String(options.rows).split(",").map(Number)) {
      const tokens = Math.max(1024, rows);
      for (const name of String(options.caches).split(",")) {
        const [preset] = name.split(" ");
        const fitted = presetScheme(preset).keys.transform === "fitted" || name.includes("fitted");
        using filled = new FilledLayer(device, shape, kvConfig(preset), tokens, 1, { perHead: fitted, fitted });
        const width = shape.kvHeads * shape.headDim;
        using keys = Tensor.empty(device, "f32", [rows, width]);
        using values = Tensor.empty(device, "f32", [rows, width]);
        using slots = Tensor.zeros(device, "i32", [rows]);
        using positions = Tensor.from(device, Int32Array.from({ length: rows }, (_, i) => tokens - rows + i));
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
