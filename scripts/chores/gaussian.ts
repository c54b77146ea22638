/**
 * Fits the data-free scheme's codebooks to N(0,1) and writes them as a module, so that they come with every import.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { trainCodebook } from "../../lib/calibration/mod.ts";
import { Device, FORMATS, randomNormal, Tensor } from "../../lib/ops/mod.ts";
import { command } from "../frame/command.ts";
import { deviceOptions, MODEL_OPTIONS, whole } from "../frame/options.ts";

const { device, threads, library } = MODEL_OPTIONS;

await command({
  name: "gaussian",
  summary: "fits one codebook a format to N(0,1) and writes lib/cache/gaussian.ts",
  usage: "scripts/chores/gaussian.ts [options]",
  options: {
    device,
    threads,
    library,
    samples: { type: "number", default: 400000, help: "points a codebook is trained on" },
    iterations: { type: "number", default: 40, help: "k-means iterations" },
    seed: { type: "number", default: 1, help: "of points and k-means" },
    json: { type: "boolean", help: "print one JSON object" },
  },
}, async ({ options, signal, progress }) => {
  using place = Device.open(deviceOptions(options));
  const formats = Object.values(FORMATS).filter((format) => format.bits < 16);
  const bar = progress("gaussian", formats.length), count = whole("samples", options.samples, 4096);
  const lines: string[] = [], distortion: Record<string, number> = {};
  for (const [index, format] of formats.entries()) {
    using points = Tensor.empty(place, "f32", [count, format.subDim]);
    randomNormal(points, { seed: options.seed });
    const host = points.read() as Float32Array;
    const { iterations, seed } = options;
    const codebook = await trainCodebook(place, format, host, undefined, { iterations, seed, signal });
    const text = Buffer.from(Float16Array.from(codebook).buffer).toString("base64");
    lines.push(`  ${format.name}: "${text}",`);
    distortion[format.name] = meanSquaredError(host, codebook, format.subDim, 4000);
    bar.update(index + 1);
  }
  bar.stop();
  const path = fileURLToPath(new URL("../../lib/cache/gaussian.ts", import.meta.url));
  writeFileSync(
    path,
    `/**
 * One generated table: codebooks fitted to N(0,1), f16 [2^bits, subDim] in base64, for caches without a calibration.
 * Made by scripts/chores/gaussian.ts (${count} points, ${options.iterations} iterations, seed ${options.seed}).
 *
 * @module
 */

import type { CodedFormatName } from "./format.ts";

// deno-fmt-ignore
const CODEBOOKS: Record<CodedFormatName, string> = {
${lines.join("\n")}
};

/** The Gaussian codebook of a format, [2^bits, subDim]. Throws RangeError for a format without one. */
export function gaussianCodebook(format: string): Float32Array {
  if (!Object.hasOwn(CODEBOOKS, format)) throw new RangeError(\`there is no Gaussian codebook for \${format}\`);
  const text = CODEBOOKS[format as CodedFormatName];
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  return Float32Array.from(new Float16Array(bytes.buffer));
}
`,
  );
  if (options.json) console.log(JSON.stringify({ path, distortion }));
  else {for (const [name, value] of Object.entries(distortion)) {
      console.log(`${name}: mean squared error ${value.toFixed(4)}`);
    }}
});

/** Mean squared error a channel over the first `count` points: what the codebook loses of N(0,1). */
function meanSquaredError(points: Float32Array, codebook: Float32Array, dim: number, count: number): number {
  let sum = 0;
  for (let p = 0; p < count * dim; p += dim) {
    let best = Infinity;
    for (let c = 0; c < codebook.length; c += dim) {
      let distance = 0;
      for (let j = 0; j < dim; j++) distance += (points[p + j] - codebook[c + j]) ** 2;
      best = Math.min(best, distance);
    }
    sum += best;
  }
  return sum / (count * dim);
}
