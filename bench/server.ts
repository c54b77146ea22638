/**
 * A server in a process of its own, for the benchmarks that load one.
 *
 * @module
 */

import { type ChildProcess, spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** Options of commands that take a running server or start one. */
export const SERVER_OPTIONS = {
  url: { type: "string", help: "a running server (default: starts one)" },
  kv: { type: "string", short: "k", default: "vq2", help: "cache of the server that is started" },
  device: { type: "string", short: "d", default: "auto", help: "device of the server that is started" },
  model: { type: "string", short: "m", default: "assets/tiny-llama", help: "model of the server that is started" },
} as const;

/** Waits so many milliseconds. */
export const wait = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Uniform numbers in [0, 1) that repeat (xorshift32). */
export function uniform(seed: number): () => number {
  let state = seed | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/** The server's counts that matter after a load. */
export interface State {
  rss: number;
  deviceBytes: number;
  pages: number;
  freePages: number;
  prefixPages: number;
  sequences: number;
  waiting: number;
  loop: { le: number; count: number }[];
}

/** The state now. */
export async function state(url: string): Promise<State> {
  const metrics = await (await fetch(`${url}/metrics`)).text(), stats = await (await fetch(`${url}/stats`)).json();
  const [model] = stats.models;
  return {
    rss: Number(/^process_resident_memory_bytes (\S+)/m.exec(metrics)?.[1]),
    deviceBytes: stats.deviceBytes,
    pages: model.pages.total,
    freePages: model.pages.free,
    prefixPages: model.pages.prefix,
    sequences: model.sequences,
    waiting: model.waiting,
    loop: [...metrics.matchAll(/^vecinfer:event_loop_delay_seconds_bucket\{le="(\S+?)"\} (\d+)/gm)]
      .map(([, le, count]) => ({ le: le === "+Inf" ? Infinity : Number(le), count: Number(count) })),
  };
}

/** The state once nothing runs. */
export async function quiet(url: string): Promise<State> {
  for (let i = 0; i < 100; i++) {
    const now = await state(url);
    if (now.sequences + now.waiting === 0) return now;
    await wait(100);
  }
  return await state(url);
}

/** Starts a server and waits for it. */
export async function startServer(args: string[], signal: AbortSignal): Promise<{ url: string; child: ChildProcess }> {
  const script = fileURLToPath(new URL("../scripts/serve.ts", import.meta.url));
  const allow = "Deno" in globalThis ? ["run", "--allow-all", "--no-check"] : ["run"];
  const child = spawn(process.execPath, [...allow, script, "--quiet", "--port", "0", ...args], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let text = "";
  return await new Promise((resolve, reject) => {
    child.stderr!.setEncoding("utf8").on("data", (part: string) => {
      text += part;
      const match = /serving +(http\S+)\/v1/.exec(text);
      if (match) resolve({ url: match[1], child });
    });
    child.on("close", () => reject(new Error(`the server ended: ${text}`)));
    signal.addEventListener("abort", () => child.kill());
  });
}
