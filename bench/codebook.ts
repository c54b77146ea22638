/**
 * Nearest codewords: the inner step of k-means and of quantize.
 *
 * @module
 */

import { codebookAssign, FORMATS, randomNormal, Tensor } from "../lib/ops/mod.ts";
import { benchmark } from "./frame.ts";

/** Points of one layer's keys: 2048 tokens of 8 KV heads of 128 channels. */
const CHANNELS = 2048 * 8 * 128;

await benchmark("codebook", "codebook_assign for every format", {}, async ({ device, time }) => {
  for (const format of Object.values(FORMATS).filter(({ bits }) => bits < 16)) {
    const count = CHANNELS / format.subDim;
    using points = Tensor.empty(device, "f32", [count, format.subDim]);
    using codebook = Tensor.empty(device, "f32", [2 ** format.bits, format.subDim]);
    using codes = Tensor.empty(device, "i32", [count]);
    randomNormal(points, { seed: 1 });
    randomNormal(codebook, { seed: 2 });
    await time(`assign ${format.name}, ${count} points`, () => codebookAssign(codes, points, codebook), {
      bytes: CHANNELS * 4 + count * 4,
    });
  }
});
