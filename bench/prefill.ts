/**
 * Attention of a prompt over its own keys and values, as a layer of a model calls it: a number of rows a call, over all tokens
 * so far. Its floor is the same number of operations in a matrix product of this run.
 *
 * On a GPU of compute capability 9.0 two kernels do this: `VECINFER_WGMMA=off` measures the other one. The results' `device` says
 * which was measured.
 *
 * @module
 */

import { readFileSync } from "node:fs";
import { attentionPrefill, type Device, linear, randomNormal, Tensor } from "../lib/ops/mod.ts";
import { UsageError } from "../scripts/frame/command.ts";
import { type Bench, benchmark, type Figure } from "./frame.ts";

/** A line of bench/baselines/bf16_attention.py. */
interface Baseline {
  tokens: number;
  heads: number;
  head_dim: number;
  prefill: boolean;
  best: string;
  ms: number;
}

/** A figure of a prompt. */
interface PrefillFigure extends Figure {
  /** Operations (4 a channel, query and key it sees) a second. */
  operations?: number;
}

/** Operations a second of a bf16 product of `size` rows, inputs and outputs. */
async function productRate(bench: Bench, size: number): Promise<number> {
  const { device } = bench;
  using x = Tensor.empty(device, "f32", [size, size]);
  using weight = Tensor.empty(device, "bf16", [size, size]);
  using out = Tensor.empty(device, "f32", [size, size]);
  randomNormal(x, { seed: 1 });
  randomNormal(weight, { seed: 2 });
  const { median } = await bench.time(`product of ${size} x ${size} x ${size}`, () => linear(out, x, weight));
  return 2 * size ** 3 / (median / 1000);
}

/** Keys, values and queries of a prompt, and its attention in calls of `rows` rows. */
class RandomPrompt implements Disposable {
  readonly #owned: DisposableStack = new DisposableStack();
  readonly #q: Tensor;
  readonly #kv: Tensor;
  readonly #out: Tensor;

  constructor(
    device: Device,
    readonly tokens: number,
    heads: number,
    readonly kvHeads: number,
    readonly headDim: number,
  ) {
    const make = (dtype: "f32" | "bf16", width: number): Tensor =>
      this.#owned.use(Tensor.empty(device, dtype, [tokens, width]));
    this.#q = make("f32", heads * headDim);
    this.#kv = make(device.name === "cpu" ? "f32" : "bf16", 2 * kvHeads * headDim);
    this.#out = make("f32", heads * headDim);
    randomNormal(this.#q, { seed: 3 });
    randomNormal(this.#kv, { seed: 4 });
  }

  attend(rows: number): void {
    const { tokens, kvHeads, headDim } = this, width = kvHeads * headDim;
    const keys = this.#kv.columns(0, width), values = this.#kv.columns(width, width);
    for (let first = 0; first < tokens; first += rows) {
      const some = Math.min(rows, tokens - first), options = { rows: some, first, kvHeads, headDim };
      attentionPrefill(this.#out.rows(first, some), this.#q.rows(first, some), keys, values, options);
    }
  }

  [Symbol.dispose](): void {
    this.#owned.dispose();
  }
}

const numbers = (option: string, text: unknown): number[] =>
  String(text).split(",").map((entry) => {
    const value = Number(entry);
    if (Number.isInteger(value) && value >= 1) return value;
    throw new UsageError(`--${option} has "${entry}"; whole numbers from 1 on are needed`);
  });

await benchmark("prefill", "attention of prompts over their own keys and values", {
  shapes: { type: "string", default: "32/8x128,32/8x64", help: "query/KV heads x channels, with commas" },
  prompts: { type: "string", default: "2048,4096,8192,32768", help: "tokens, with commas" },
  rows: { type: "string", default: "2048", help: "rows a call, with commas; a prompt of fewer tokens is one call" },
  product: { type: "string", default: "8192", help: "size of the matrix product that gives the floor" },
  baseline: {
    type: "string",
    help: "lines of baselines/bf16_attention.py --prefill from the same run, to compare with",
  },
}, async (bench, options) => {
  const baselines: Baseline[] = options.baseline === undefined
    ? []
    : readFileSync(String(options.baseline), "utf8").trim().split("\n").map((line) => JSON.parse(line));
  const rate = await productRate(bench, numbers("product", options.product)[0]);
  for (const shape of String(options.shapes).split(",")) {
    const match = /^(\d+)\/(\d+)x(\d+)$/.exec(shape);
    if (!match) throw new UsageError(`--shapes has "${shape}"; heads as 32/8x128 are needed`);
    const [heads, kvHeads, headDim] = match.slice(1).map(Number);
    for (const tokens of numbers("prompts", options.prompts)) {
      using prompt = new RandomPrompt(bench.device, tokens, heads, kvHeads, headDim);
      const sizes = new Set(numbers("rows", options.rows).map((rows) => Math.min(rows, tokens)));
      for (const rows of sizes) {
        const operations = 4 * headDim * heads * tokens * (tokens + 1) / 2;
        const floor = {
          milliseconds: operations / rate * 1000,
          of: `${operations} operations at the rate of a product`,
        };
        const name = `${shape}, ${tokens} tokens, ${rows} a call`;
        const figure: PrefillFigure = await bench.time(name, () => prompt.attend(rows), floor);
        figure.operations = operations / (figure.median / 1000);
        if (bench.verbose) console.log(`    ${(figure.operations / 1e12).toPrecision(4)} TFLOP/s`);
        const peer = baselines.find((line) =>
          line.prefill && line.tokens === tokens && line.heads === heads && line.head_dim === headDim
        );
        if (!peer) continue;
        figure.peer = { name: `PyTorch ${peer.best}, bf16`, milliseconds: peer.ms, ratio: peer.ms / figure.median };
        if (bench.verbose) console.log(`    ${figure.peer.ratio.toFixed(2)}x ${figure.peer.name} (${peer.ms} ms)`);
      }
    }
  }
});
