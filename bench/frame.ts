/**
 * The frame of every benchmark: options, timing, the floors, the table and the JSON result.
 *
 * On a CPU a call is timed by mitata. On CUDA many calls are recorded as one graph, and its replays are timed by events on the
 * device: launched one by one, short calls would wait for the host. Beside each figure stands its floor: bytes moved over
 * the read bandwidth measured in the same run.
 *
 * @module
 */

import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import os from "node:os";
import { dirname } from "node:path";
import process from "node:process";
import { measure } from "mitata";
import { attention, Device, type DeviceInfo, FORMATS, linear, randomNormal, Tensor } from "../lib/ops/mod.ts";
import { command, type Option } from "../scripts/frame/command.ts";
import { deviceOptions, MODEL_OPTIONS, table } from "../scripts/frame/options.ts";
import { FilledLayer, SHAPES } from "./shapes.ts";

/** One figure. Times in milliseconds. */
export interface Figure {
  /** What was measured. */
  name: string;
  /** Median time of one call. */
  median: number;
  /** Quartiles. */
  p25: number;
  /** Upper quartile. */
  p75: number;
  /** The least time that its bytes (or its operations) take here, if one is known. */
  floor?: number;
  /** What the floor counts. */
  floorOf?: string;
  /** How many times faster than this project's bf16 figure of the same sizes. */
  ratio?: number;
  /** Why there is no time, where a case was left out; its times are NaN. */
  leftOut?: string;
  /** What another system took in the same run, and how many times faster this is. */
  peer?: { name: string; milliseconds: number; ratio: number };
}

/** What a benchmark gets. */
export interface Bench {
  /** Where it runs. */
  device: Device;
  /** Bytes a second that this device reads, measured at the start. */
  bandwidth: number;
  /** Aborted at Ctrl-C. */
  signal: AbortSignal;
  /** What else goes into the results, by name. */
  notes: Record<string, unknown>;
  /** False where one JSON object is the whole output. */
  verbose: boolean;
  /**
   * Times `call`, called with 0, 1, 2, ... to rotate over buffers, and adds the figure. `bytes` gives the floor. A call that
   * can't be recorded, as it launches a graph or copies from the host, says `recorded: false`.
   */
  time(
    name: string,
    call: (turn: number) => void,
    floor?: { bytes: number } | { milliseconds: number; of: string },
    options?: { recorded?: boolean },
  ): Promise<Figure>;
  /** Adds a figure that was measured by other means. */
  add(figure: Figure): void;
}

/** Larger than any cache here: buffers are rotated over this many bytes so that each call reads memory. */
export const ROTATION_BYTES: number = 256 << 20;

/** The middle one. */
function median(times: number[]): number {
  return times.sort((a, b) => a - b)[times.length >> 1];
}

/**
 * Bytes a second that the device reads, by what reads them: a product with one row streams its weight once (128 MiB on a
 * CPU, 2 GiB on a GPU); on a GPU also attention over 8 x 65536 tokens of a bf16 cache (2 GiB).
 */
function readBandwidth(device: Device): Record<string, number> {
  const cpu = device.name === "cpu", out = cpu ? 16384 : 32768, width = cpu ? 4096 : 32768;
  using weight = Tensor.zeros(device, "bf16", [out, width]);
  using x = Tensor.zeros(device, "f32", [1, width]);
  using y = Tensor.empty(device, "f32", [1, out]);
  const product = () => linear(y, x, weight);
  if (cpu) {
    const times = Array.from({ length: 12 }, () => device.time(product)).slice(2);
    return { "product with one row": out * width * 2 / (median(times) / 1000) };
  }
  const rate = (call: () => void, bytes: number) => bytes / (timeCuda(device, call).median / 1000);
  const slots = 8, tokens = 65536, shape = SHAPES[1];
  using filled = new FilledLayer(device, shape, { keys: FORMATS.bf16, values: FORMATS.bf16 }, tokens, slots);
  using q = Tensor.empty(device, "f32", [slots, shape.heads * shape.headDim]);
  using attended = Tensor.empty(device, "f32", [slots, shape.heads * shape.headDim]);
  using ids = Tensor.from(device, Int32Array.from({ length: slots }, (_, i) => i));
  using positions = Tensor.from(device, new Int32Array(slots).fill(tokens - 1));
  randomNormal(q, { seed: 5 });
  return {
    "product with one row": rate(product, out * width * 2),
    "attention over bf16": rate(() => attention(attended, q, filled.layer, ids, positions), slots * filled.bytes),
  };
}

async function timeCpu(device: Device, call: (turn: number) => void): Promise<Omit<Figure, "name">> {
  let turn = 0;
  const stats = await measure(() => {
    call(turn++);
    device.synchronize();
  }, { min_cpu_time: 300e6, batch_threshold: 2000 });
  return { median: stats.p50 / 1e6, p25: stats.p25 / 1e6, p75: stats.p75 / 1e6 };
}

function timeCuda(device: Device, call: (turn: number) => void, recorded: boolean = true): Omit<Figure, "name"> {
  let turn = 0;
  const within = (least: number, most: number, x: number) => Math.max(least, Math.min(most, Math.ceil(x)));
  for (let i = 0; i < 3; i++) call(turn++);
  const once = device.time(() => call(turn++)), count = recorded ? within(1, 512, 4 / once) : within(4, 50, 20 / once);
  const calls = (): void => {
    for (let i = 0; i < count; i++) call(turn++);
  };
  using graph = recorded ? device.capture(calls) : null;
  const run = graph ? () => graph.launch() : calls;
  run();
  const times = Array.from({ length: 20 }, () => device.time(run) / count).sort((a, b) => a - b);
  return { median: times[10], p25: times[5], p75: times[15] };
}

/** The commit, with a plus where the tree has changes. */
export function commit(): string {
  try {
    const git = (...args: string[]) =>
      execFileSync("git", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
    return git("rev-parse", "--short", "HEAD") +
      (git("status", "--porcelain", "--", "lib", "cuda", "bench") ? "+" : "");
  } catch {
    return "unknown";
  }
}

/** The runtime and its version. */
export function runtime(): string {
  const { Bun, Deno } = globalThis as unknown as { Bun?: { version: string }; Deno?: { version: { deno: string } } };
  return Bun ? `Bun ${Bun.version}` : Deno ? `Deno ${Deno.version.deno}` : `Node ${process.version}`;
}

/** What a results file holds. */
export interface Results {
  /** The benchmark. */
  name: string;
  /** When it ran, ISO 8601. */
  date: string;
  /** Commit, with a plus where the tree had changes. */
  commit: string;
  /** Runtime and version. */
  runtime: string;
  /** Machine. */
  machine: { cpu: string; cores: number; memory: number };
  /** What computed. */
  device: DeviceInfo;
  /** Measured read bandwidth, bytes a second. */
  bandwidth: number;
  /** Read bandwidth by reader; the best counts. */
  readers: Record<string, number>;
  /** The figures. */
  figures: Figure[];
  /** What a benchmark has to say beside its figures. */
  notes: Record<string, unknown>;
}

/** What a benchmark gets, over the list that its figures are added to. */
function benchOf(device: Device, bandwidth: number, signal: AbortSignal, verbose: boolean, figures: Figure[]): Bench {
  const bench: Bench = {
    device,
    bandwidth,
    signal,
    notes: {},
    verbose,
    async time(name, call, floor, options = {}) {
      signal.throwIfAborted();
      const timed = device.name === "cpu" ? await timeCpu(device, call) : timeCuda(device, call, options.recorded);
      const figure: Figure = { name, ...timed };
      if (floor) {
        figure.floor = "bytes" in floor ? floor.bytes / bandwidth * 1000 : floor.milliseconds;
        figure.floorOf = "bytes" in floor ? `${floor.bytes} bytes read` : floor.of;
      }
      bench.add(figure);
      return figure;
    },
    add(figure) {
      figures.push(figure);
      if (!verbose) return;
      const { name, median, floor, leftOut } = figure;
      const share = floor === undefined
        ? ""
        : `   floor ${text(floor).padStart(10)}  ${(100 * floor / median).toFixed(0).padStart(3)} %`;
      console.log(`${name.padEnd(44)} ${leftOut ?? text(median).padStart(10) + share}`);
    },
  };
  return bench;
}

/** Prints what runs where, before the first figure. */
function printHead(name: string, device: Device, readers: Record<string, number>): void {
  const { info } = device;
  console.log(
    `${name} on ${info.device} (${device.name}, ${info.threads} threads), ${runtime()}, commit ${commit()}`,
  );
  const rates = Object.entries(readers).map(([name, rate]) => `${(rate / 1e9).toFixed(1)} GB/s by ${name}`);
  console.log(`read bandwidth ${rates.join(", ")}`);
}

/** Runs a benchmark as a script. Extra options are passed on. */
export async function benchmark<const O extends Record<string, Option>>(
  name: string,
  summary: string,
  extra: O,
  run: (bench: Bench, options: Record<string, unknown>) => Promise<void>,
): Promise<void> {
  const { device: deviceOption, threads, library } = MODEL_OPTIONS;
  await command({
    name: `bench/${name}`,
    summary,
    usage: `bench/${name}.ts [options]`,
    options: {
      device: deviceOption,
      threads,
      library,
      ...extra,
      out: { type: "string", short: "o", help: "write the results to this JSON file" },
      json: { type: "boolean", help: "print one JSON object" },
    } as Record<string, Option>,
  }, async ({ options, signal }) => {
    const given = options as Record<string, unknown> as {
      device: string;
      threads: number;
      library?: string;
      out?: string;
      json: boolean;
    };
    using device = Device.open(deviceOptions({ ...given, library: given.library }));
    const readers = readBandwidth(device), bandwidth = Math.max(...Object.values(readers)), figures: Figure[] = [];
    if (!given.json) printHead(name, device, readers);
    const bench = benchOf(device, bandwidth, signal, !given.json, figures), cpus = os.cpus();
    await run(bench, options as Record<string, unknown>);
    const results: Results = {
      name,
      date: new Date().toISOString(),
      commit: commit(),
      runtime: runtime(),
      machine: { cpu: cpus[0]?.model ?? "unknown", cores: cpus.length, memory: os.totalmem() },
      device: device.info,
      bandwidth,
      readers,
      figures,
      notes: bench.notes,
    };
    if (given.out) {
      mkdirSync(dirname(given.out), { recursive: true });
      writeFileSync(given.out, `${JSON.stringify(results, null, 1)}\n`);
    }
    if (given.json) console.log(JSON.stringify(results));
  });
}

/** Milliseconds in a fitting unit. */
export function text(milliseconds: number): string {
  if (milliseconds < 1e-3) return `${(milliseconds * 1e6).toFixed(1)} ns`;
  return milliseconds < 1 ? `${(milliseconds * 1000).toFixed(1)} us` : `${milliseconds.toFixed(3)} ms`;
}

export { table };
