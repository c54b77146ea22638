/**
 * Load on a server: what clients see, and what it costs the server. Starts scripts/serve.ts in a process of its own, or
 * takes a running server.
 *
 * - load: clients one after another's answers (`--clients`), or arrivals at random moments whatever the server does
 *   (`--rate`, an open loop); prompts and answers of mixed lengths; a share of the clients leaves in the middle of the stream.
 * - batch: tokens a second of one client and of several.
 * - prefix: time to the first token of a long prompt, read for the first time and again.
 *
 * @module
 */

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import os from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL } from "../mod.ts";
import { command, UsageError } from "../scripts/frame/command.ts";
import { commit, runtime, table } from "./frame.ts";
import { quiet, SERVER_OPTIONS, startServer, type State, state, uniform, wait } from "./server.ts";

/** What one request saw. Times in milliseconds. */
interface Seen {
  first: number | undefined;
  between: number[];
  tokens: number;
  text: string;
  outcome: "ended" | "left" | `status ${number}` | "error";
}

/** Sends a completion and reads its stream; leaves after `leaveAfter` pieces of text. */
async function ask(
  url: string,
  body: Record<string, unknown>,
  signal: AbortSignal,
  leaveAfter = Infinity,
): Promise<Seen> {
  const seen: Seen = { first: undefined, between: [], tokens: 0, text: "", outcome: "error" };
  const abort = new AbortController(), started = performance.now();
  let last = started, pieces = 0;
  try {
    const response = await fetch(`${url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal: AbortSignal.any([signal, abort.signal]),
    });
    if (!response.ok) {
      await response.text();
      return { ...seen, outcome: `status ${response.status}` };
    }
    let held = "";
    for await (const part of response.body!.pipeThrough(new TextDecoderStream())) {
      const events = (held + part).split("\n\n");
      held = events.pop()!;
      for (const event of events) {
        if (event === "data: [DONE]") return { ...seen, outcome: "ended" };
        if (!event.startsWith("data: ")) continue;
        const data = JSON.parse(event.slice(6));
        if (data.error) return seen;
        if (data.usage) seen.tokens = data.usage.completion_tokens;
        if (!data.choices[0]?.text) continue;
        const now = performance.now();
        seen.text += data.choices[0].text;
        if (seen.first === undefined) seen.first = now - started;
        else seen.between.push(now - last);
        last = now;
        seen.tokens = Math.max(seen.tokens, ++pieces);
        if (pieces >= leaveAfter) {
          abort.abort();
          return { ...seen, outcome: "left" };
        }
      }
    }
    return seen;
  } catch (error) {
    if (signal.aborted) return { ...seen, outcome: "left" };
    return { ...seen, text: String(error) };
  }
}

interface Quantiles {
  count: number;
  p50: number;
  p95: number;
  p99: number;
  max: number;
}

function quantiles(values: number[]): Quantiles {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? NaN;
  return { count: sorted.length, p50: at(0.5), p95: at(0.95), p99: at(0.99), max: at(1) };
}

/** Upper bounds of the buckets that hold the quantiles of what was counted between two states, in milliseconds. */
function loopDelay(before: State, after: State): { p50: number; p99: number } {
  const counts = after.loop.map(({ le, count }, i) => ({ le, count: count - before.loop[i].count }));
  const total = counts.at(-1)?.count ?? 0;
  const at = (share: number) => 1000 * (counts.find(({ count }) => count >= share * total)?.le ?? NaN);
  return { p50: at(0.5), p99: at(0.99) };
}

/** The server under load, and what it is asked. */
class Target {
  readonly random: () => number;
  readonly source: string = readFileSync(`${fileURLToPath(EMBEDDED_MODEL)}/eval.txt`, "utf8");

  constructor(readonly url: string, readonly model: string, readonly signal: AbortSignal, seed: number) {
    this.random = uniform(seed);
  }

  /** A length between two, as likely short as long on a logarithmic scale. */
  length(low: number, high: number): number {
    return Math.round(low * (high / low) ** this.random());
  }

  /** Some text of the evaluation's, about four characters a token, that no other request has. */
  excerpt(tokens: number): string {
    const begin = Math.floor(this.random() * (this.source.length - 4 * tokens));
    return this.source.slice(begin, begin + 4 * tokens);
  }
}

interface LoadOptions {
  clients: number;
  rate: number | undefined;
  seconds: number;
  warm: number;
  leave: number;
}

/** Requests for so many seconds. */
async function requests(target: Target, { clients, rate, leave }: LoadOptions, seconds: number): Promise<Seen[]> {
  const seen: Seen[] = [], until = performance.now() + seconds * 1000, { url, random, signal } = target;
  const one = async () => {
    const prompt = target.excerpt(target.length(8, 800)), most = target.length(16, 160);
    const body = { model: target.model, prompt, max_tokens: most, temperature: 0.8 };
    const leaveAfter = random() < leave ? 1 + Math.floor(random() * most / 2) : Infinity;
    seen.push(await ask(url, body, signal, leaveAfter));
  };
  if (rate === undefined) {
    await Promise.all(Array.from({ length: clients }, async () => {
      while (performance.now() < until) await one();
    }));
    return seen;
  }
  const open: Promise<void>[] = [];
  while (performance.now() < until) {
    open.push(one());
    // Poisson arrivals.
    await wait(-Math.log(1 - random()) * 1000 / rate);
  }
  await Promise.all(open);
  return seen;
}

/** What clients saw of a load, and what it left behind. */
async function load(target: Target, options: LoadOptions): Promise<Record<string, unknown>> {
  const { url } = target;
  await requests(target, options, options.warm);
  const before = await quiet(url), begin = performance.now(), memory: number[] = [];
  const sampling = setInterval(() => void state(url).then(({ rss }) => memory.push(rss)), 10_000);
  const seen = await requests(target, options, options.seconds), seconds = (performance.now() - begin) / 1000;
  clearInterval(sampling);
  const after = await quiet(url);
  const outcomes: Record<string, number> = {};
  for (const { outcome } of seen) outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  const problems = seen.filter(({ outcome }) => outcome === "error").slice(0, 3).map(({ text }) => text.slice(-200));
  const tokens = seen.reduce((sum, { tokens }) => sum + tokens, 0);
  return {
    clients: options.rate === undefined ? options.clients : undefined,
    rate: options.rate,
    seconds,
    requests: seen.length,
    outcomes,
    problems,
    tokens,
    tokensPerSecond: tokens / seconds,
    firstToken: quantiles(seen.flatMap(({ first }) => first ?? [])),
    betweenTokens: quantiles(seen.flatMap(({ between }) => between)),
    eventLoopDelay: loopDelay(before, after),
    rssEvery10Seconds: memory,
    before: { ...before, loop: undefined },
    after: { ...after, loop: undefined },
  };
}

/** Tokens a second of one client and of several. */
async function batch(target: Target): Promise<Record<string, unknown>> {
  const { url, model, signal } = target, rates: Record<string, number> = {};
  for (const clients of [1, 2, 4, 8, 16]) {
    const body = () => ({
      model,
      prompt: target.excerpt(16),
      max_tokens: 128,
      temperature: 0,
      logit_bias: { 1: -100 },
    });
    await ask(url, body(), signal);
    const begin = performance.now();
    const seen = await Promise.all(Array.from({ length: clients }, () => ask(url, body(), signal)));
    rates[clients] = seen.reduce((sum, { tokens }) => sum + tokens, 0) / (performance.now() - begin) * 1000;
  }
  return { tokensPerSecond: rates, gainOf8: rates[8] / rates[1] };
}

/** Time to the first token of a long prompt, read for the first time and again. */
async function prefix({ url, model, source, signal }: Target): Promise<Record<string, unknown>> {
  const body = { model, prompt: source.slice(0, 6000), max_tokens: 16, temperature: 0 };
  const usage = await (await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, prompt: `Warm up. ${body.prompt}`, max_tokens: 1 }),
  })).json();
  const miss = await ask(url, body, signal), hits: Seen[] = [];
  for (let i = 0; i < 5; i++) hits.push(await ask(url, body, signal));
  const hit = quantiles(hits.flatMap(({ first }) => first ?? [])).p50;
  return {
    promptTokens: usage.usage.prompt_tokens,
    firstTokenMiss: miss.first,
    firstTokenHit: hit,
    gain: miss.first! / hit,
    identical: hits.every(({ text }) => text === miss.text),
  };
}

const PARTS = { load, batch, prefix };

await command({
  name: "bench/serve",
  summary: "load on a server: time to first token, time between tokens, tokens/s, memory after it",
  usage: "bench/serve.ts [options] [load|batch|prefix]...",
  positionals: [0, 3],
  options: {
    ...SERVER_OPTIONS,
    sequences: { type: "number", default: 64, help: "sequences at once of the server that is started" },
    clients: { type: "number", default: 64, help: "clients at once" },
    rate: { type: "number", help: "requests a second at random moments, in place of clients that wait" },
    seconds: { type: "number", short: "s", default: 60, help: "duration of the load" },
    warm: { type: "number", default: 10, help: "seconds of the same load before it, not counted" },
    leave: { type: "number", default: 0.33, help: "share of clients that leave in the middle of a stream" },
    seed: { type: "number", default: 1, help: "of lengths and moments" },
    out: { type: "string", short: "o", help: "write the results to this JSON file" },
    json: { type: "boolean", help: "print one JSON object" },
  },
}, async ({ options, positionals, signal }) => {
  const names = Object.keys(PARTS) as (keyof typeof PARTS)[];
  for (const part of positionals) {
    if (!Object.hasOwn(PARTS, part)) throw new UsageError(`'${part}' is none of ${names.join(", ")}`);
  }
  const args = ["--kv", options.kv, "--device", options.device, "--model", options.model];
  const started = options.url === undefined
    ? await startServer([...args, "--sequences", String(options.sequences)], signal)
    : undefined;
  const url = options.url ?? started!.url;
  const config = await (await fetch(`${url}/config`)).json(), model = config.models[0];
  const target = new Target(url, model.id, signal, options.seed), results: Record<string, unknown> = {};
  for (const name of names) {
    if (positionals.length === 0 || positionals.includes(name)) results[name] = await PARTS[name](target, options);
  }
  started?.child.kill();
  const file = {
    name: "serve",
    date: new Date().toISOString(),
    commit: commit(),
    runtime: runtime(),
    machine: { cpu: os.cpus()[0]?.model ?? "unknown", cores: os.cpus().length, memory: os.totalmem() },
    server: {
      device: model.device,
      kv: model.kv,
      sequences: model.sequences,
      block: model.block,
      prefixes: model.prefixes,
    },
    ...results,
  };
  if (options.out) {
    mkdirSync(dirname(options.out), { recursive: true });
    writeFileSync(options.out, `${JSON.stringify(file, null, 1)}\n`);
  }
  if (options.json) return console.log(JSON.stringify(file));
  for (const [part, figures] of Object.entries(results)) {
    console.log(`${part}\n${table(lines(figures as Record<string, unknown>))}\n`);
  }
});

/** Figures as rows of a name and a value. */
function lines(figures: Record<string, unknown>, prefix = ""): string[][] {
  return Object.entries(figures).flatMap(([name, value]) => {
    if (value === undefined) return [];
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      return lines(value as Record<string, unknown>, `${prefix}${name} `);
    }
    const text = typeof value === "number" && !Number.isInteger(value) ? value.toFixed(2) : String(value);
    return [[`  ${prefix}${name}`, text]];
  });
}
