/**
 * Attention of a prompt over its own keys and values, as a layer of a model calls it: a number of rows a call, over all tokens
 * so far. And of a turn of a chat, over what the cache holds already. The floor is the same number of operations in a matrix
 * product of this run.
 *
 * On a GPU of compute capability 9.0 two kernels do this: `VECINFER_WGMMA=off` measures the other one. The results' `device` says
 * which was measured.
 *
 * @module
 */

import { readFileSync } from "node:fs";
import {
  attentionPrefill,
  convert,
  type Device,
  kvConfig,
  type KvLayer,
  linear,
  presetScheme,
  randomNormal,
  Tensor,
} from "../lib/ops/mod.ts";
import { UsageError } from "../scripts/frame/command.ts";
import { type Bench, benchmark, type Figure } from "./frame.ts";
import { FilledLayer, type Shape } from "./shapes.ts";

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
    const make = (dtype: "f32" | "f16", width: number): Tensor =>
      this.#owned.use(Tensor.empty(device, dtype, [tokens, width]));
    this.#q = make("f32", heads * headDim);
    this.#kv = make(device.name === "cpu" ? "f32" : "f16", 2 * kvHeads * headDim);
    this.#out = make("f32", heads * headDim);
    randomNormal(this.#q, { seed: 3 });
    using random = Tensor.empty(device, "f32", [tokens, 2 * kvHeads * headDim]);
    randomNormal(random, { seed: 4 });
    convert(this.#kv, random);
  }

  attend(rows: number, past = 0, layer: KvLayer | null = null): void {
    const { tokens, kvHeads, headDim } = this, width = kvHeads * headDim;
    const keys = this.#kv.columns(0, width), values = this.#kv.columns(width, width);
    for (let first = 0; first < tokens; first += rows) {
      const some = Math.min(rows, tokens - first), options = { rows: some, first, past, layer, kvHeads, headDim };
      attentionPrefill(this.#out.rows(first, some), this.#q.rows(first, some), keys, values, options);
    }
  }

  [Symbol.dispose](): void {
    this.#owned.dispose();
  }
}

/** A turn of `tokens` tokens over `past` ones in each cache, and how many times as long as over bf16 pages it takes. */
async function turns(bench: Bench, shape: Shape, tokens: number, past: number, caches: string[], rate: number) {
  const { device, verbose } = bench, { name: heads, headDim } = shape;
  using prompt = new RandomPrompt(device, tokens, shape.heads, shape.kvHeads, headDim);
  const operations = 4 * headDim * shape.heads * tokens * (past + (tokens + 1) / 2);
  const floor = { milliseconds: operations / rate * 1000, of: `${operations} operations at the rate of a product` };
  let plain: number | undefined;
  for (const cache of caches) {
    const fitted = presetScheme(cache).keys.transform === "fitted", kind = { perHead: fitted, fitted };
    using filled = new FilledLayer(device, shape, kvConfig(cache), past, 1, kind);
    const name = `${heads}, ${tokens} tokens after ${past} in ${cache}`;
    const figure: PrefillFigure = await bench.time(name, () => prompt.attend(tokens, past, filled.layer), floor);
    figure.operations = operations / (figure.median / 1000);
    if (cache === "bf16") plain = figure.median;
    if (plain === undefined) continue;
    figure.peer = { name: "over bf16 pages", milliseconds: plain, ratio: plain / figure.median };
    if (verbose) console.log(`    ${(figure.median / plain).toFixed(3)} times as long as over bf16 pages`);
  }
}

const numbers = (option: string, text: unknown): number[] =>
  String(text).split(",").filter((entry) => entry !== "").map((entry) => {
    const value = Number(entry);
    if (Number.isInteger(value) && value >= 1) return value;
    throw new UsageError(`--${option} has "${entry}"; whole numbers from 1 on are needed`);
  });

await benchmark("prefill", "attention of prompts over their own keys and values", {
  shapes: { type: "string", default: "32/8x128,32/8x64", help: "query/KV heads x channels, with commas" },
  prompts: { type: "string", default: "2048,4096,8192,32768", help: "tokens, with commas" },
  rows: { type: "string", default: "2048", help: "rows a call, with commas; a prompt of fewer tokens is one call" },
  past: { type: "string", default: "", help: "tokens in the cache before a turn, with commas; none: no turns" },
  turn: { type: "string", default: "2048", help: "tokens of a turn" },
  caches: {
    type: "string",
    default: "bf16,vq2,vq2+,vq3",
    help: "presets that hold what is before a turn, with commas",
  },
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
    for (const past of numbers("past", options.past)) {
      const caches = String(options.caches).split(","), [turn] = numbers("turn", options.turn);
      await turns(bench, { name: shape, heads, kvHeads, headDim }, turn, past, caches, rate);
    }
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
