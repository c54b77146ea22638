/**
 * A server under a mix of all that clients ask, for as long as wanted: what grows, what hangs, what does not come back.
 * Starts scripts/serve.ts in a process of its own, or takes a running server. What is asked is a table, bench/mix.ts.
 *
 * Each client sends one request after another; a share of them leaves before the answer has ended. After `--settle`
 * seconds the process's memory must not grow; at the end nothing may run, and pages and native bytes must be as at the start.
 *
 * @module
 */

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import os from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL } from "../mod.ts";
import { command, type Progress, UsageError } from "../scripts/frame/command.ts";
import { commit, runtime, table } from "./frame.ts";
import { type Making, MIX, type MixEntry } from "./mix.ts";
import { quiet, SERVER_OPTIONS, startServer, type State, state, uniform, wait } from "./server.ts";

/** Milliseconds between two looks at the server. */
const SAMPLE = 5000;

/** What became of the requests of one kind. */
interface Tally {
  requests: number;
  left: number;
  /** How often each status came. */
  statuses: Record<string, number>;
  /** No answer within the limit. */
  hung: number;
  /** What is wrong with an answer, a few of them. */
  wrong: string[];
  slowest: number;
}

/** What requests of a run have in common. */
interface Run {
  url: string;
  /** Seconds after which a request counts as hung. */
  limit: number;
  /** Share of clients that leave. */
  leave: number;
  random(): number;
}

/** Sends a request, reads its answer or leaves, and counts what became of it. */
async function ask({ url, limit, leave, random }: Run, entry: MixEntry, making: Making, tally: Tally): Promise<void> {
  const { path, body, headers, method } = entry.make(making), begin = performance.now(), abort = new AbortController();
  let hung = false, left = false;
  const hanging = setTimeout(() => abort.abort(void (hung = true)), limit * 1000);
  // From the first moment to the end of a long answer.
  const leaving = random() < leave
    ? setTimeout(() => abort.abort(void (left = true)), 1500 * random() ** 2)
    : undefined;
  tally.requests++;
  try {
    const response = await fetch(url + path, {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers: { ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: abort.signal,
    });
    const text = await response.text(), { status } = response;
    tally.statuses[status] = (tally.statuses[status] ?? 0) + 1;
    const right = [429, ...entry.statuses ?? [200]].includes(status),
      failed = status === 200 && /^data: \{"error"/m.test(text);
    if (!right || failed) tally.wrong.push(`${status}: ${text.slice(-200)}`);
  } catch (error) {
    if (hung) tally.hung++;
    else if (left) tally.left++;
    else tally.wrong.push(String(error));
  } finally {
    clearTimeout(hanging);
    clearTimeout(leaving);
    tally.wrong.splice(5);
    tally.slowest = Math.max(tally.slowest, performance.now() - begin);
  }
}

/** Median of some numbers. */
function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
}

/** By how much the last fifth of the samples lies above the first, in bytes. */
function growth(samples: readonly { rss: number }[]): number {
  const part = Math.max(1, Math.floor(samples.length / 5)), rss = samples.map(({ rss }) => rss);
  return median(rss.slice(-part)) - median(rss.slice(0, part));
}

/** What is not as it should be. */
function problems(
  tallies: Record<string, Tally>,
  before: State,
  after: State,
  grown: number | undefined,
  most: number,
): string[] {
  const found = Object.entries(tallies).flatMap(([name, { hung, wrong }]) => [
    ...hung > 0 ? [`${name}: ${hung} hung`] : [],
    ...wrong.map((text) => `${name}: ${text}`),
  ]);
  if (after.sequences + after.waiting > 0) {
    found.push(`${after.sequences} sequences run, ${after.waiting} requests wait`);
  }
  if (after.freePages + after.prefixPages !== after.pages) {
    found.push(`${after.pages - after.freePages - after.prefixPages} pages are neither free nor kept prefixes`);
  }
  if (after.deviceBytes !== before.deviceBytes) {
    found.push(`native bytes: ${before.deviceBytes}, then ${after.deviceBytes}`);
  }
  if (grown !== undefined && grown > most) found.push(`memory grew by ${Math.round(grown / 2 ** 20)} MiB`);
  return found;
}

/** Clients that ask for so many seconds, and the server's state meanwhile. */
async function soaked(
  run: Run & { seconds: number; clients: number; signal: AbortSignal },
  names: readonly string[],
  making: Making,
  shown: Progress,
): Promise<{ tallies: Record<string, Tally>; samples: (State & { seconds: number })[]; seconds: number }> {
  const { url, seconds, signal, random } = run, all = names.reduce((sum, name) => sum + MIX[name].weight, 0);
  const tallies = Object.fromEntries(
    names.map((name): [string, Tally] => [
      name,
      { requests: 0, left: 0, statuses: {}, hung: 0, wrong: [], slowest: 0 },
    ]),
  );
  const pick = (): string => {
    let at = random() * all;
    return names.find((name) => (at -= MIX[name].weight) < 0) ?? names[0];
  };
  const begin = performance.now(), samples: (State & { seconds: number })[] = [];
  const elapsed = () => (performance.now() - begin) / 1000;
  const clients = Array.from({ length: run.clients }, async () => {
    while (elapsed() < seconds && !signal.aborted) {
      const name = pick();
      await ask(run, MIX[name], making, tallies[name]);
    }
  });
  while (elapsed() < seconds && !signal.aborted) {
    await wait(Math.min(SAMPLE, 1000 * Math.max(0, seconds - elapsed())));
    const now = await state(url).catch(() => undefined);
    if (now) samples.push({ ...now, seconds: elapsed() });
    shown.update(Math.min(1, elapsed() / seconds));
  }
  await Promise.all(clients);
  shown.stop();
  return { tallies, samples, seconds: elapsed() };
}

/** Requests by kind, as a table. */
function rowsOf(tallies: Record<string, Tally>): string[][] {
  return Object.entries(tallies).map(([name, { requests, left, hung, statuses, slowest }]) => [
    name,
    `${requests}`,
    `${left}`,
    `${hung}`,
    Object.entries(statuses).map(([status, count]) => `${status}: ${count}`).join(", "),
    `${Math.round(slowest)}`,
  ]);
}

await command({
  name: "bench/soak",
  summary: "a server under a mix of all requests: growth of memory, what hangs, what does not come back",
  usage: "bench/soak.ts [options] [kind of request]...",
  positionals: [0, Object.keys(MIX).length],
  options: {
    ...SERVER_OPTIONS,
    clients: { type: "number", default: 16, help: "clients at once" },
    seconds: { type: "number", short: "s", default: 1800, help: "duration" },
    settle: { type: "number", default: 600, help: "seconds after which memory must not grow" },
    grow: { type: "number", default: 64, help: "MiB by which it may do so all the same" },
    leave: { type: "number", default: 0.25, help: "share of clients that leave before the answer has ended" },
    limit: { type: "number", default: 120, help: "seconds after which a request counts as hung" },
    seed: { type: "number", default: 1, help: "of the mix" },
    out: { type: "string", short: "o", help: "write the results to this JSON file" },
    json: { type: "boolean", help: "print one JSON object" },
  },
}, async ({ options, positionals, signal, progress }) => {
  const names = positionals.length > 0 ? positionals : Object.keys(MIX);
  for (const name of names) {
    if (!Object.hasOwn(MIX, name)) throw new UsageError(`'${name}' is none of: ${Object.keys(MIX).join("; ")}`);
  }
  const { url: given, kv, device, model: path, seconds, settle, limit, leave } = options;
  const args = ["--kv", kv, "--device", device, "--model", path];
  const started = given === undefined ? await startServer(args, signal) : undefined, url = given ?? started!.url;
  const [{ id: model, ...config }] = (await (await fetch(`${url}/config`)).json()).models;
  const random = uniform(options.seed), source = readFileSync(`${fileURLToPath(EMBEDDED_MODEL)}/eval.txt`, "utf8");
  const making: Making = {
    model,
    random,
    integer: (low, high) => low + Math.floor(random() * (high - low + 1)),
    excerpt: (tokens) => {
      const begin = Math.floor(random() * (source.length - 4 * tokens));
      return source.slice(begin, begin + 4 * tokens);
    },
  };
  const before = await quiet(url), clients = options.clients;
  const run = { url, limit, leave, random, seconds, clients, signal };
  const { tallies, samples, seconds: took } = await soaked(run, names, making, progress("soak", 1));
  const after = await quiet(url), settled = samples.filter((sample) => sample.seconds >= settle);
  started?.child.kill();
  const grown = settled.length >= 10 ? growth(settled) : undefined;
  const found = problems(tallies, before, after, grown, options.grow * 2 ** 20);
  const plain = ({ loop: _, ...rest }: State) => rest;
  const file = {
    name: "soak",
    date: new Date().toISOString(),
    commit: commit(),
    runtime: runtime(),
    machine: { cpu: os.cpus()[0]?.model ?? "unknown", cores: os.cpus().length, memory: os.totalmem() },
    server: { device: config.device, kv: config.kv, sequences: config.sequences, prefixes: config.prefixes },
    seconds: took,
    clients,
    requests: Object.values(tallies).reduce((sum, { requests }) => sum + requests, 0),
    left: Object.values(tallies).reduce((sum, { left }) => sum + left, 0),
    hung: Object.values(tallies).reduce((sum, { hung }) => sum + hung, 0),
    problems: found,
    growthBytes: grown ?? null,
    before: plain(before),
    after: plain(after),
    kinds: tallies,
    memory: samples.map(({ seconds, rss }) => ({ seconds: Math.round(seconds), rss })),
  };
  if (options.out) {
    mkdirSync(dirname(options.out), { recursive: true });
    writeFileSync(options.out, `${JSON.stringify(file, null, 1)}\n`);
  }
  if (options.json) console.log(JSON.stringify(file));
  else {
    console.log(table([["kind", "requests", "left", "hung", "statuses", "slowest, ms"], ...rowsOf(tallies)]));
    const memory = grown === undefined
      ? "too short to tell of growth"
      : `memory grew by ${(grown / 2 ** 20).toFixed(1)} MiB`;
    console.log(`\n${file.requests} requests in ${file.seconds.toFixed(0)} s; ${memory} after ${settle} s`);
    console.log(found.length === 0 ? "nothing hangs, all is given back" : `problems:\n  ${found.join("\n  ")}`);
  }
  return found.length === 0 ? 0 : 1;
});
