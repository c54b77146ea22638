/**
 * Whole decode steps, recorded and replayed: time a token against context for bf16 and coded caches, batches, prompts, host
 * time and memory, of a model folder or of a synthetic model of a published shape.
 *
 * For decoding the cache is filled without reading a prompt: random keys and values are encoded, every token into memory of
 * its own. So a context of 196608 tokens takes seconds.
 *
 * @module
 */

import { readFileSync } from "node:fs";
import { type Model, openModel } from "../mod.ts";
import { loadCalibration, syntheticCalibration } from "../lib/calibration/mod.ts";
import {
  areAlike,
  type Calibration,
  Decoder,
  describeCalibration,
  findCalibration,
  KvCache,
  type KvConfig,
  kvConfig,
  type PrefillPlan,
  PRESETS,
  syntheticConfig,
  syntheticModel,
  syntheticPrompt,
  Tensor,
  VecInferError,
} from "../lib/ops/mod.ts";
import { UsageError } from "../scripts/frame/command.ts";
import { checked, MODEL_OPTIONS } from "../scripts/frame/options.ts";
import { type Bench, benchmark, type Figure, text } from "./frame.ts";
import { fillCache } from "./shapes.ts";

/** Steps that are run before the sequences are cut back to their length: fewer than the ring's surplus. */
const STEPS = 56;

/** The cases by default: of a synthetic model, and of a model folder. */
const LARGE = {
  contexts: "1024,8192,32768,131072,196608",
  caches: "bf16,vq4,vq2,vq1.5,vq1",
  batches: "8x32768,32x8192,32x32768,8x131072,1x1048576",
  prefill: "2048,32768",
};
const SMALL = { contexts: "512,2048", caches: Object.keys(PRESETS).join(","), batches: "", prefill: "512" };

/** A figure of decoding or of prefill. Bytes, milliseconds. */
interface DecodeFigure extends Figure {
  kind: "decode" | "prefill";
  cache: string;
  batch: number;
  tokens: number;
  /** Bytes that a token of context takes. */
  bytesPerToken?: number;
  tokensPerSecond?: number;
  /** A step as a program sees it: launched, waited for, its ids read back. Median. */
  wall?: number;
  /** Of that, TypeScript and FFI up to the return of the launch. Median; absent on a CPU, which computes in it. */
  host?: number;
  /** While the case ran. */
  memory?: Memory;
  /** Bytes beside weights and cache: activations, scratch memory, sampler. */
  beside?: number;
}

/** Bytes allocated, and in use on the device by whomever. */
interface Memory {
  allocated: number;
  used: number;
}

/** A line of baselines/hugging_face_decode.py. */
interface Baseline {
  kind: "decode" | "prefill";
  model: string;
  attention: string;
  batch: number;
  tokens: number;
  ms: number | null;
}

/** What all cases of a run share. */
interface Run {
  bench: Bench;
  model: Model;
  name: string;
  baselines: Baseline[];
  /** Bytes in use before the weights came. */
  before: number;
  /** Calibrations by cache. */
  calibration(config: KvConfig): Promise<Calibration>;
}

await benchmark("decode", "decode steps of a whole model; their floor is one read of weights and cache", {
  model: MODEL_OPTIONS.model,
  synthetic: { type: "string", help: "random weights of a published shape in place of a folder: llama-3.1-8b, ..." },
  calibration: {
    type: "string",
    help: 'file, "data-free" or, with --synthetic, "synthetic" (default: beside the model, or synthetic)',
  },
  contexts: { type: "string", help: "tokens at batch 1, with commas" },
  caches: { type: "string", help: "presets or formats, with commas; keys+values apart as d4b10+d8b12" },
  batches: { type: "string", help: 'sequences x tokens, with commas; "" for none' },
  "batch-caches": { type: "string", default: "bf16,vq2", help: "the caches of --batches" },
  prefill: { type: "string", help: 'lengths of prompts, with commas; 16x512 for 16 read together; "" for none' },
  "prefill-plan": { type: "string", default: "{}", help: 'parts of the plan of --prefill, as {"rows":4096}' },
  "prefill-cache": { type: "string", default: "vq2", help: "the cache of --prefill" },
  baseline: { type: "string", help: "lines of baselines/hugging_face_decode.py from the same card, to compare with" },
}, async (bench, given) => {
  const { device } = bench, options = given as Record<string, string | undefined>, { synthetic } = options;
  const folder = options.model!, grid = synthetic === undefined ? SMALL : LARGE;
  const chosen = (name: keyof typeof LARGE) => list(options[name] ?? grid[name]);
  const contexts = chosen("contexts").map((entry) => count("contexts", entry));
  const caches = chosen("caches").map((name) => checked(() => kvConfig(name)));
  const batchCaches = list(options["batch-caches"]!).map((name) => checked(() => kvConfig(name)));
  const batches = chosen("batches").map((entry) => {
    const match = /^(\d+)x(\d+)$/.exec(entry);
    if (!match) throw new UsageError(`--batches has "${entry}"; sequences x tokens as 8x32768 are needed`);
    return [count("batches", match[1]), count("batches", match[2])];
  });
  const prompts = chosen("prefill").map((entry) => {
    const [, together, tokens] = /^(?:(\d+)x)?(\d+)$/.exec(entry) ?? [];
    return {
      together: together === undefined ? 1 : count("prefill", together),
      tokens: count("prefill", tokens ?? entry),
    };
  });
  const prefillCache = checked(() => kvConfig(options["prefill-cache"]!));
  const before = used(bench);
  using model = synthetic === undefined
    ? await openModel(device, folder)
    : syntheticModel(device, checked(() => syntheticConfig(synthetic)));
  const known = new Map<string, Calibration>();
  const run: Run = {
    bench,
    model,
    before,
    name: synthetic ?? folder,
    baselines: options.baseline === undefined
      ? []
      : readFileSync(options.baseline, "utf8").trim().split("\n").map((line) => JSON.parse(line)),
    async calibration(config) {
      let found = known.get(config.name);
      if (!found) {
        const path = options.calibration;
        if (synthetic === undefined) found = loadCalibration(folder, model, config, path);
        else if (path === undefined || path === "synthetic") {
          found = await syntheticCalibration(model, config, bench.signal);
        } else found = findCalibration(config, model.cacheShape, `${synthetic} 0`, { path, folders: [] });
        known.set(config.name, found);
      }
      return found;
    },
  };
  const floorBytes = model.stepBytes;
  bench.notes.model = { name: run.name, weightBytes: model.weightBytes, weightBytesRead: floorBytes };
  if (bench.verbose) console.log(`${run.name}: ${(floorBytes / 1e9).toFixed(2)} GB of weights read a step`);
  const plan = planOf(options["prefill-plan"]!);
  for (const { together, tokens } of prompts) await prefill(run, prefillCache, together, tokens, plan);
  const figures: DecodeFigure[] = [];
  for (const config of caches) for (const tokens of contexts) figures.push(await decode(run, config, 1, tokens));
  for (const [batch, tokens] of batches) {
    for (const config of batchCaches) figures.push(await decode(run, config, batch, tokens));
  }
  for (const figure of figures) {
    const exact = figures.find(({ cache, batch, tokens }) =>
      cache === "bf16" && batch === figure.batch && tokens === figure.tokens
    );
    if (exact) figure.ratio = exact.median / figure.median;
  }
  bench.notes.growth = caches.map((config) => growth(run, config, figures)).filter((line) => line !== null);
  bench.notes.calibrations = Object.fromEntries([...known].map(([name, found]) => [name, describeCalibration(found)]));
});

function list(text: string): string[] {
  return text.split(",").map((entry) => entry.trim()).filter((entry) => entry !== "");
}

function planOf(text: string): Partial<PrefillPlan> {
  try {
    return JSON.parse(text);
  } catch {
    throw new UsageError(`--prefill-plan has "${text}"; JSON as {"rows":4096} is needed`);
  }
}

function count(option: string, text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1) return value;
  throw new UsageError(`--${option} has "${text}"; whole numbers from 1 on are needed`);
}

function used({ device }: Bench): number {
  const { free, total } = device.memory();
  return total - free;
}

/** Bytes beside weights and cache; on a GPU with the library's scratch memory, on a CPU only what is counted. */
function beside({ bench, model, before }: Run, memory: Memory, cache: KvCache): number {
  const all = bench.device.name === "cpu" ? memory.allocated : memory.used - before;
  return all - model.weightBytes - cache.bytes().total;
}

function middle(times: number[]): number {
  return times.sort((a, b) => a - b)[times.length >> 1];
}

/** The fastest of the other system's implementations for a case. */
function compare(run: Run, figure: DecodeFigure, milliseconds: number): void {
  const same = run.baselines.filter(({ kind, model, batch, tokens, ms }) =>
    kind === figure.kind && model === run.name && batch === figure.batch && tokens === figure.tokens && ms
  ).sort((a, b) => a.ms! - b.ms!);
  for (const { attention, ms } of same.slice(0, 1)) {
    figure.peer = { name: `Hugging Face, ${attention}`, milliseconds: ms!, ratio: ms! / milliseconds };
  }
}

/** The second line of a figure. */
function describe(run: Run, figure: DecodeFigure): void {
  const { tokensPerSecond, wall, host, memory, beside, peer } = figure,
    giga = (bytes: number) => (bytes / 1e9).toFixed(2);
  const parts = [
    tokensPerSecond && `${tokensPerSecond.toFixed(0)} tokens/s`,
    wall && `${text(wall)} with the ids read back`,
    host && `host ${text(host)} (${(100 * host / wall!).toFixed(1)} %)`,
    memory && `${giga(memory.allocated)} GB allocated`,
    beside && `${giga(beside)} GB beside weights and cache`,
    peer && `${peer.ratio.toFixed(2)}x ${peer.name} (${text(peer.milliseconds)})`,
  ];
  if (run.bench.verbose) console.log(`    ${parts.filter(Boolean).join(", ")}`);
}

/** Adds a case that does not fit in memory, and hands back its figure. Other errors are thrown on. */
function leaveOut(run: Run, figure: DecodeFigure, error: unknown): DecodeFigure {
  if (!(error instanceof VecInferError) || error.code !== "OUT_OF_MEMORY") throw error;
  const left = { ...figure, median: NaN, p25: NaN, p75: NaN, leftOut: `does not fit: ${error.message}` };
  run.bench.add(left);
  return left;
}

/** Steps of `batch` sequences of `tokens` tokens. */
async function decode(run: Run, config: KvConfig, batch: number, tokens: number): Promise<DecodeFigure> {
  const { bench, model } = run, { device } = bench, calibration = await run.calibration(config);
  const name = `${batch} x ${tokens} tokens, ${config.name}`, kind = "decode", cacheName = config.name;
  const empty: DecodeFigure = { name, kind, cache: cacheName, batch, tokens, median: NaN, p25: NaN, p75: NaN };
  using owned = new DisposableStack();
  try {
    const sizes = { context: tokens + STEPS, sequences: batch };
    const cache = owned.use(new KvCache(device, model.cacheShape, config, calibration, sizes));
    const decoder = owned.use(new Decoder(model, cache, batch)), sequences = fillCache(device, cache, batch, tokens);
    sequences.forEach((sequence, row) => decoder.resume(row, sequence, row + 1, {}));
    let done = 0;
    const step = (): void => {
      if (done++ === STEPS) {
        sequences.forEach((sequence, row) => {
          sequence.truncate(tokens);
          decoder.resume(row, sequence, row + 1);
        });
        done = 1;
      }
      for (const sequence of sequences) sequence.extend(1);
      decoder.advance();
    };
    step();
    const bytes = model.stepBytes + batch * tokens * cache.bytesPerToken;
    const of = `${model.stepBytes} bytes of weights and ${batch * tokens * cache.bytesPerToken} of cache read once`;
    const floor = { milliseconds: bytes / bench.bandwidth * 1000, of };
    const timed = await bench.time(name, step, floor, { recorded: false }), { median } = timed;
    const walls: number[] = [], hosts: number[] = [];
    for (let i = 0; i < 20; i++) {
      device.synchronize();
      const start = performance.now();
      step();
      const launched = performance.now(), ids = decoder.ids.read<Int32Array>();
      walls.push(performance.now() - start);
      hosts.push(launched - start);
      if (ids.some((id) => id < 0)) throw new Error(`${name}: the logits are not numbers`);
    }
    const memory: Memory = { allocated: device.memory().allocated, used: used(bench) };
    const figure: DecodeFigure = Object.assign(timed, {
      kind: "decode" as const,
      cache: cacheName,
      batch,
      tokens,
      bytesPerToken: cache.bytesPerToken,
      tokensPerSecond: batch / median * 1000,
      wall: middle(walls),
      host: device.name === "cpu" ? undefined : middle(hosts),
      memory,
      beside: beside(run, memory, cache),
    });
    compare(run, figure, figure.wall!);
    describe(run, figure);
    return figure;
  } catch (error) {
    return leaveOut(run, empty, error);
  }
}

/** Prompts of `tokens` tokens, read layer by layer: `prompts` of them, as many in a pass as get what they get alone. */
async function prefill(
  run: Run,
  config: KvConfig,
  prompts: number,
  tokens: number,
  plan: Partial<PrefillPlan>,
): Promise<void> {
  const { bench, model } = run, { device } = bench, calibration = await run.calibration(config), kind = "prefill";
  const planned = Object.entries(plan).map(([part, value]) => `, ${part} ${value}`).join("");
  const name = `prefill of ${prompts > 1 ? `${prompts} x ` : ""}${tokens} tokens, ${config.name}${planned}`;
  const empty: DecodeFigure = {
    name,
    kind,
    cache: config.name,
    batch: prompts,
    tokens,
    median: NaN,
    p25: NaN,
    p75: NaN,
  };
  using owned = new DisposableStack();
  try {
    const room = { context: tokens, sequences: prompts };
    const cache = owned.use(new KvCache(device, model.cacheShape, config, calibration, room));
    const logits = owned.use(Tensor.empty(device, "f32", [1, model.config.vocabularySize]));
    const ids = syntheticPrompt(model.config, tokens), alike = (count: number) => new Array<number>(count).fill(tokens);
    let most = prompts;
    while (most > 1 && !areAlike(device, model.config, alike(most))) most--;
    let memory: Memory = { allocated: 0, used: 0 };
    const read = (): number => {
      using sequences = new DisposableStack();
      const reads = Array.from({ length: prompts }, () => ({ sequence: sequences.use(cache.sequence()), ids, logits }));
      const onProgress = (done: number): void => {
        if (done === 1) memory = { allocated: device.memory().allocated, used: used(bench) };
      };
      const start = performance.now();
      for (let i = 0; i < prompts; i += most) {
        for (const _ of model.prefillTogether(reads.slice(i, i + most), { signal: bench.signal, onProgress, plan }));
      }
      device.synchronize();
      return performance.now() - start;
    };
    const repeats = prompts * tokens <= 8192 ? 5 : tokens <= 65536 ? 2 : 1;
    if (repeats > 1) read();
    const times = Array.from({ length: repeats }, read).sort((a, b) => a - b), median = times[repeats >> 1];
    const figure: DecodeFigure = {
      ...empty,
      median,
      p25: times[repeats >> 2],
      p75: times[Math.min(repeats - 1, (3 * repeats) >> 2)],
      tokensPerSecond: prompts * tokens / median * 1000,
      memory,
      beside: beside(run, memory, cache),
    };
    bench.add(figure);
    if (prompts === 1) compare(run, figure, median);
    describe(run, figure);
  } catch (error) {
    leaveOut(run, empty, error);
  }
}

/** A line through time against context at batch 1 (least squares), and its slope against the bytes a token takes. */
interface Growth {
  cache: string;
  /** Milliseconds without any context. */
  intercept: number;
  /** Nanoseconds a token of context. */
  slope: number;
  /** Nanoseconds to read its bytes. */
  floor: number;
  /** slope / floor. */
  ratio: number;
  /** The largest distance of a point from the line, over the point's time. */
  deviation: number;
}

function growth(run: Run, config: KvConfig, figures: readonly DecodeFigure[]): Growth | null {
  const points = figures.filter(({ cache, batch, leftOut }) => cache === config.name && batch === 1 && !leftOut);
  if (points.length < 3) return null;
  const mean = (of: (figure: DecodeFigure) => number) => points.reduce((sum, p) => sum + of(p), 0) / points.length;
  const x = mean((p) => p.tokens), y = mean((p) => p.median);
  const slope = mean((p) => (p.tokens - x) * (p.median - y)) / mean((p) => (p.tokens - x) ** 2),
    intercept = y - slope * x;
  const deviation = Math.max(...points.map((p) => Math.abs(intercept + slope * p.tokens - p.median) / p.median));
  const floor = points[0].bytesPerToken! / run.bench.bandwidth * 1e9, nanoseconds = slope * 1e6;
  const line = { cache: config.name, intercept, slope: nanoseconds, floor, ratio: nanoseconds / floor, deviation };
  if (run.bench.verbose) {
    console.log(
      `${config.name}: ${intercept.toFixed(3)} ms + ${nanoseconds.toFixed(2)} ns a token of context, ` +
        `${line.ratio.toFixed(2)}x its bytes at the read bandwidth; off the line by at most ${
          (100 * deviation).toFixed(1)
        } %`,
    );
  }
  return line;
}
