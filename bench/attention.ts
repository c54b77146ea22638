/**
 * Decode attention, one query row over a sequence of 1k, 4k and 16k tokens, for bf16 and every preset.
 *
 * @module
 */

import { attention, FORMATS, kvConfig, PRESETS, randomNormal, Tensor } from "../mod.ts";
import { benchmark, ROTATION_BYTES } from "./frame.ts";
import { FilledLayer, SHAPES } from "./shapes.ts";

const MIXED = "d4b10+d8b12";

await benchmark("attention", "decode attention over a cache: bf16, every preset, and what token scales cost", {
  tokens: { type: "string", default: "1024,4096,16384", help: "sequence lengths, with commas" },
}, async ({ device, time }, options) => {
  for (const shape of SHAPES) {
    for (const tokens of String(options.tokens).split(",").map(Number)) {
      let exact = 0;
      for (const name of [...Object.keys(PRESETS), MIXED, "vq2 + scale", "vq2 + scale + head codebooks"]) {
        const [preset] = name.split(" "), tokenScale = name.includes("scale"), perHead = name.includes("head");
        const [keys, values = keys] = preset.split("+");
        const config = kvConfig(keys in FORMATS ? { keys, values } : preset);
        const codes = tokens * shape.kvHeads * shape.headDim *
          (config.keys.bits / config.keys.subDim + config.values.bits / config.values.subDim) / 8;
        const slots = Math.max(1, Math.ceil(ROTATION_BYTES / codes));
        using filled = new FilledLayer(device, shape, config, tokens, slots, { tokenScale, perHead });
        using q = Tensor.empty(device, "f32", [1, shape.heads * shape.headDim]);
        using out = Tensor.empty(device, "f32", [1, shape.heads * shape.headDim]);
        using position = Tensor.from(device, Int32Array.of(tokens - 1));
        using slotIds = Tensor.from(device, Int32Array.from({ length: slots }, (_, i) => i));
        randomNormal(q, { seed: 5 });
        const turns = Array.from({ length: slots }, (_, slot) => slotIds.rows(slot, 1));
        const figure = await time(
          `${shape.name}, ${tokens} tokens, ${name}`,
          (turn) => attention(out, q, filled.layer, turns[turn % slots], position),
          { bytes: filled.bytes },
        );
        if (name === "bf16") exact = figure.median;
        else figure.ratio = exact / figure.median;
      }
    }
  }
});
