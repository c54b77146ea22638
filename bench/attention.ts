/**
 * Decode attention, one query row a sequence, for bf16 and every preset.
 *
 * @module
 */

import { readFileSync } from "node:fs";
import { attention, kvConfig, PRESETS, presetScheme, randomNormal, Tensor } from "../lib/ops/mod.ts";
import { UsageError } from "../scripts/frame/command.ts";
import { benchmark, ROTATION_BYTES } from "./frame.ts";
import { FilledLayer, type Shape } from "./shapes.ts";

/** Presets, and what beside them is part of the kernels: token scales, codebooks per KV head, matrices, uneven bits. */
const CACHES = [
  ...Object.keys(PRESETS),
  "d4b10+d8b12",
  "vq2 + scale",
  "vq2 + scale + head codebooks",
  "vq2 + head codebooks",
  "vq2 + fitted + head codebooks",
];

/** A line of bench/baselines/bf16_attention.py. */
interface Baseline {
  batch: number;
  tokens: number;
  heads: number;
  kv_heads: number;
  head_dim: number;
  best: string;
  ms: number;
}

/** "32/8x128": query heads, KV heads, channels a head. */
function shapeOf(text: string): Shape {
  const match = /^(\d+)\/(\d+)x(\d+)$/.exec(text);
  if (!match) throw new UsageError(`--shapes has "${text}"; heads as 32/8x128 are needed`);
  const [heads, kvHeads, headDim] = match.slice(1).map(Number);
  return { name: `${heads}/${kvHeads} heads of ${headDim}`, heads, kvHeads, headDim };
}

await benchmark(
  "attention",
  "decode attention over a cache: bf16, every preset, and what scales, codebooks and matrices cost",
  {
    shapes: { type: "string", default: "8/2x64,32/8x128", help: "query/KV heads x channels, with commas" },
    cases: { type: "string", default: "1x1024,1x4096,1x16384", help: "sequences x tokens, with commas" },
    caches: { type: "string", default: CACHES.join(","), help: "presets or formats, with commas" },
    baseline: { type: "string", help: "lines of baselines/bf16_attention.py from the same run, to compare with" },
  },
  async ({ device, time }, options) => {
    const baselines: Baseline[] = options.baseline === undefined
      ? []
      : readFileSync(String(options.baseline), "utf8").trim().split("\n").map((line) => JSON.parse(line));
    for (const shape of String(options.shapes).split(",").map(shapeOf)) {
      for (const entry of String(options.cases).split(",")) {
        const [batch, tokens] = entry.split("x").map(Number), { heads, kvHeads, headDim } = shape;
        const peer = baselines.find((line) =>
          line.batch === batch && line.tokens === tokens && line.heads === heads && line.kv_heads === kvHeads &&
          line.head_dim === headDim
        );
        let exact = 0;
        for (const name of String(options.caches).split(",")) {
          const [preset] = name.split(" "),
            tokenScale = name.includes("scale"),
            plus = presetScheme(preset).keys.transform === "fitted";
          const perHead = plus || name.includes("head"), fitted = plus || name.includes("fitted");
          const config = kvConfig(preset);
          const codes = batch * tokens * kvHeads * headDim *
            (config.keys.bits / config.keys.subDim + config.values.bits / config.values.subDim) / 8;
          const turns = Math.max(1, Math.ceil(ROTATION_BYTES / codes)), slots = turns * batch;
          using filled = new FilledLayer(device, shape, config, tokens, slots, { tokenScale, perHead, fitted });
          using q = Tensor.empty(device, "f32", [batch, heads * headDim]);
          using out = Tensor.empty(device, "f32", [batch, heads * headDim]);
          using positions = Tensor.from(device, new Int32Array(batch).fill(tokens - 1));
          using slotIds = Tensor.from(device, Int32Array.from({ length: slots }, (_, i) => i));
          randomNormal(q, { seed: 5 });
          const rows = Array.from({ length: turns }, (_, turn) => slotIds.rows(turn * batch, batch));
          const figure = await time(
            `${shape.name}, ${entry} tokens, ${name}`,
            (turn) => attention(out, q, filled.layer, rows[turn % turns], positions),
            { bytes: batch * filled.bytes },
          );
          if (name === "bf16") exact = figure.median;
          if (exact) figure.ratio = exact / figure.median;
          if (peer) {
            figure.peer = { name: `PyTorch ${peer.best}, bf16`, milliseconds: peer.ms, ratio: peer.ms / figure.median };
            console.error(`  ${peer.ms.toFixed(3)} ms of ${figure.peer.name}: ${figure.peer.ratio.toFixed(2)}x`);
          }
        }
      }
    }
  },
);
