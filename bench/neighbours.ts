/**
 * What a client notices of what others send: one stream beside each attack of bench/attacks.ts. Starts scripts/serve.ts in a
 * process of its own, or takes a running server.
 *
 * A neighbour's streams follow each other; between the tokens of a stream the longest gap counts. Another client asks for one
 * token again and again: how long does it wait. A third one asks for /health.
 *
 * @module
 */

import { mkdirSync, writeFileSync } from "node:fs";
import os from "node:os";
import { dirname } from "node:path";
import { command, UsageError } from "../scripts/frame/command.ts";
import { ATTACKS, type Target } from "./attacks.ts";
import { commit, runtime, table } from "./frame.ts";
import { quiet, SERVER_OPTIONS, startServer, wait } from "./server.ts";

/** What is noticed during an attack. Milliseconds. */
interface Noticed {
  /** Tokens of the neighbour's streams. */
  tokens: number;
  /** The longest time between two of them, and what 99 of 100 stay below. */
  longest: number;
  p99: number;
  /** The longest time that somebody new waits for one token. */
  waited: number;
  /** Answers of /health that were not 200, and the longest time that one took. */
  unhealthy: number;
  health: number;
  /** What went wrong for the neighbour. */
  problems: string[];
}

const HEADERS = { "content-type": "application/json" };

/** A stream's gaps between tokens. Ends with the signal. */
async function stream({ url, model, signal }: Target, gaps: number[], problems: string[]): Promise<void> {
  const body = JSON.stringify({
    model,
    prompt: "The kernel",
    max_tokens: 1500,
    temperature: 1,
    logit_bias: { 1: -100, 2: -100 },
    stream: true,
  });
  try {
    const response = await fetch(`${url}/v1/completions`, { method: "POST", headers: HEADERS, body, signal });
    if (!response.ok) problems.push(`${response.status}: ${(await response.text()).slice(0, 200)}`);
    let last: number | undefined;
    for await (const part of response.body!.pipeThrough(new TextDecoderStream())) {
      const now = performance.now();
      if (/^data: {"error"/m.test(part)) problems.push(part.slice(0, 200));
      if (last !== undefined) gaps.push(now - last);
      last = now;
    }
  } catch (error) {
    if (!signal.aborted) problems.push(String(error));
  }
}

/** Asks again and again until the signal, and notes the longest time that an answer took. */
async function asking(signal: AbortSignal, ask: () => Promise<void>): Promise<number> {
  let longest = 0;
  while (!signal.aborted) {
    const begin = performance.now();
    await ask().catch(() => {});
    longest = Math.max(longest, performance.now() - begin);
    await wait(50);
  }
  return longest;
}

/** An attack, and what is noticed of it. */
async function attacked(
  url: string,
  model: string,
  seconds: number,
  attackers: number,
  name: string | undefined,
): Promise<Noticed> {
  const over = new AbortController(), { signal } = over, target = { url, model, signal };
  const gaps: number[] = [], problems: string[] = [], round = name === undefined ? undefined : ATTACKS[name](model);
  let unhealthy = 0;
  const neighbour = (async () => {
    while (!signal.aborted && problems.length === 0) await stream(target, gaps, problems);
  })();
  // The stream runs before the attack begins.
  while (gaps.length < 10 && problems.length === 0) await wait(10);
  gaps.length = 0;
  const one = JSON.stringify({ model, prompt: "a", max_tokens: 1 });
  const waited = asking(signal, async () => {
    const response = await fetch(`${url}/v1/completions`, { method: "POST", headers: HEADERS, body: one });
    await response.text();
    if (!response.ok) problems.push(`a new client: ${response.status}`);
  });
  const health = asking(signal, async () => {
    const response = await fetch(`${url}/health`);
    await response.text();
    if (response.status !== 200) unhealthy++;
  });
  const attacks = Array.from({ length: round ? attackers : 0 }, async () => {
    while (!signal.aborted) await round!(target).catch(() => wait(10));
  });
  await wait(seconds * 1000);
  // What is under way shows in the gap that it makes.
  const longest = Math.max(...gaps), sorted = [...gaps].sort((a, b) => a - b);
  over.abort();
  await Promise.all([neighbour, ...attacks]);
  const p99 = sorted[Math.floor(sorted.length * 0.99)] ?? NaN;
  return { tokens: gaps.length, longest, p99, waited: await waited, unhealthy, health: await health, problems };
}

await command({
  name: "bench/neighbours",
  summary: "the longest gap between a neighbour's tokens under each attack",
  usage: "bench/neighbours.ts [options] [attack]...",
  positionals: [0, Object.keys(ATTACKS).length],
  options: {
    ...SERVER_OPTIONS,
    seconds: { type: "number", short: "s", default: 10, help: "duration of each attack" },
    attackers: { type: "number", default: 2, help: "clients that attack at once" },
    bound: { type: "number", default: 250, help: "milliseconds that a gap may last" },
    out: { type: "string", short: "o", help: "write the results to this JSON file" },
    json: { type: "boolean", help: "print one JSON object" },
  },
}, async ({ options, positionals, signal }) => {
  const names = positionals.length > 0 ? positionals : Object.keys(ATTACKS);
  for (const name of names) {
    if (!Object.hasOwn(ATTACKS, name)) throw new UsageError(`'${name}' is none of: ${Object.keys(ATTACKS).join("; ")}`);
  }
  const { kv, device, model: path, seconds, attackers, bound } = options;
  const args = ["--kv", kv, "--device", device, "--model", path];
  const started = options.url === undefined ? await startServer(args, signal) : undefined;
  const url = options.url ?? started!.url, [{ id: model }] = (await (await fetch(`${url}/config`)).json()).models;
  const results: Record<string, Noticed> = {};
  for (const name of [undefined, ...names]) {
    const noticed = results[name ?? "nothing"] = await attacked(url, model, seconds, attackers, name);
    const left = await quiet(url).catch(() => undefined);
    if (!left) noticed.problems.push("the server is gone");
    else if (left.sequences + left.waiting > 0) noticed.problems.push("what was asked runs on");
    if (signal.aborted || !left) break;
  }
  started?.child.kill();
  const failed = Object.entries(results).filter(([, { longest, unhealthy, problems }]) =>
    longest > bound || unhealthy > 0 || problems.length > 0
  ).map(([name]) => name);
  const file = {
    name: "neighbours",
    date: new Date().toISOString(),
    commit: commit(),
    runtime: runtime(),
    machine: { cpu: os.cpus()[0]?.model ?? "unknown", cores: os.cpus().length, memory: os.totalmem() },
    server: { kv, device, model: path },
    seconds,
    attackers,
    bound,
    failed,
    attacks: results,
  };
  if (options.out) {
    mkdirSync(dirname(options.out), { recursive: true });
    writeFileSync(options.out, `${JSON.stringify(file, null, 1)}\n`);
  }
  if (options.json) console.log(JSON.stringify(file));
  else {
    const head = ["beside", "tokens", "longest gap, ms", "p99, ms", "new client, ms", "health, ms", ""];
    const rows = Object.entries(results).map(([name, { tokens, longest, p99, waited, health, problems }]) => [
      name,
      `${tokens}`,
      longest.toFixed(0),
      p99.toFixed(0),
      waited.toFixed(0),
      health.toFixed(0),
      problems[0] ?? "",
    ]);
    console.log(table([head, ...rows]));
    console.log(
      failed.length === 0 ? `\nno gap above ${bound} ms` : `\nabove ${bound} ms, or wrong: ${failed.join("; ")}`,
    );
  }
  return failed.length === 0 ? 0 : 1;
});
