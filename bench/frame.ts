/**
 * The frame of every benchmark: options, timing, the floors, the table and the JSON result.
 *
 * On a CPU a call is timed by mitata. On CUDA a batch of calls is timed by events on the device, since the host only
 * enqueues. Beside each figure stands its floor: bytes moved over the read bandwidth measured in the same run.
 *
 * @module
 */

import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import os from "node:os";
import { dirname } from "node:path";
import process from "node:process";
import { measure } from "mitata";
import { Device, type DeviceInfo, linear, Tensor } from "../mod.ts";
import { command, type Option } from "../scripts/command.ts";
import { deviceOptions, MODEL_OPTIONS, table } from "../scripts/options.ts";

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
  /** Times `call`, called with 0, 1, 2, ... to rotate over buffers, and adds the figure. `bytes` gives the floor. */
  time(
    name: string,
    call: (turn: number) => void,
    floor?: { bytes: number } | { milliseconds: number; of: string },
  ): Promise<Figure>;
}

/** Larger than any cache here: buffers are rotated over this many bytes so that each call reads memory. */
export const ROTATION_BYTES: number = 256 << 20;

/** Bytes a second that the device reads: a product with one row streams a weight once. Median of several. */
function readBandwidth(device: Device): number {
  const out = 16384, width = device.name === "cpu" ? 4096 : 32768, bytes = out * width * 2;
  using weight = Tensor.zeros(device, "bf16", [out, width]);
  using x = Tensor.zeros(device, "f32", [1, width]);
  using y = Tensor.empty(device, "f32", [1, out]);
  const times = Array.from({ length: 12 }, () => device.time(() => linear(y, x, weight))).slice(2).sort((a, b) =>
    a - b
  );
  return bytes / (times[times.length >> 1] / 1000);
}

async function timeCpu(device: Device, call: (turn: number) => void): Promise<Omit<Figure, "name">> {
  let turn = 0;
  const stats = await measure(() => {
    call(turn++);
    device.synchronize();
  }, { min_cpu_time: 300e6, batch_threshold: 2000 });
  return { median: stats.p50 / 1e6, p25: stats.p25 / 1e6, p75: stats.p75 / 1e6 };
}

function timeCuda(device: Device, call: (turn: number) => void): Omit<Figure, "name"> {
  let turn = 0;
  for (let i = 0; i < 3; i++) call(turn++);
  const once = device.time(() => call(turn++)), batch = Math.max(1, Math.min(50, Math.ceil(1 / once)));
  const times = Array.from({ length: 20 }, () =>
    device.time(() => {
      for (let i = 0; i < batch; i++) call(turn++);
    }) / batch).sort((a, b) => a - b);
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
  /** The figures. */
  figures: Figure[];
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
    const bandwidth = readBandwidth(device), figures: Figure[] = [];
    const cpus = os.cpus();
    if (!given.json) {
      console.log(
        `${name} on ${device.info.device} (${device.name}, ${device.info.threads} threads), ${runtime()}, commit ${commit()}`,
      );
      console.log(`read bandwidth ${(bandwidth / 1e9).toFixed(1)} GB/s`);
    }
    const bench: Bench = {
      device,
      bandwidth,
      signal,
      async time(label, call, floor) {
        signal.throwIfAborted();
        const timed = device.name === "cpu" ? await timeCpu(device, call) : timeCuda(device, call);
        const figure: Figure = { name: label, ...timed };
        if (floor) {
          figure.floor = "bytes" in floor ? floor.bytes / bandwidth * 1000 : floor.milliseconds;
          figure.floorOf = "bytes" in floor ? `${floor.bytes} bytes read` : floor.of;
        }
        figures.push(figure);
        if (!given.json) {
          console.log(
            `${label.padEnd(44)} ${text(figure.median).padStart(10)}` +
              (figure.floor === undefined
                ? ""
                : `   floor ${text(figure.floor).padStart(10)}  ${
                  (100 * figure.floor / figure.median).toFixed(0).padStart(3)
                } %`),
          );
        }
        return figure;
      },
    };
    await run(bench, options as Record<string, unknown>);
    const results: Results = {
      name,
      date: new Date().toISOString(),
      commit: commit(),
      runtime: runtime(),
      machine: { cpu: cpus[0]?.model ?? "unknown", cores: cpus.length, memory: os.totalmem() },
      device: device.info,
      bandwidth,
      figures,
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
