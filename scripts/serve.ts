/**
 * Serves a model over OpenAI's API.
 *
 * @module
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import { DEFAULT_KV, kvConfig, PAGE_TOKENS } from "../lib/ops/mod.ts";
import { ENGINE_DEFAULTS, LineLog, LONGEST_TIMEOUT, serve, type Server, standardOutput } from "../lib/server/mod.ts";
import { command, UsageError } from "./frame/command.ts";
import { bytesText, CACHE_OPTIONS, checked, configText, deviceOptions, MODEL_OPTIONS, whole } from "./frame/options.ts";

/** Keys: those of the environment, and the lines of a file. */
function keysOf(file: string | undefined): string[] {
  const inline = process.env.VECINFER_API_KEYS?.split(",") ?? [];
  const lines = file === undefined ? [] : readFileSync(file, "utf8").split("\n");
  return [...inline, ...lines].map((key) => key.trim()).filter((key) => key !== "" && !key.startsWith("#"));
}

/** A number from 0 to `most`, or bad use. */
function within(name: string, value: number, most: number): number {
  if (value >= 0 && value <= most) return value;
  throw new UsageError(`--${name} is ${value}; it must be from 0 to ${most}`);
}

await command({
  name: "serve",
  summary: "serves a model over OpenAI's API, with continuous batching and a quantized KV cache",
  usage: "scripts/serve.ts [options]",
  options: {
    ...MODEL_OPTIONS,
    kv: {
      type: "string",
      short: "k",
      help: `caches on offer, by commas; the first is the default (default: ${DEFAULT_KV} where heads have codes)`,
    },
    ...CACHE_OPTIONS,
    host: { type: "string", default: "127.0.0.1", help: "address to listen at" },
    port: { type: "number", short: "p", default: 8000, help: "port, 0 = any" },
    name: { type: "string", help: "what clients call the model (default: the name of its folder or file)" },
    context: { type: "number", help: "longest sequence in tokens (default: the model's, at most 8192)" },
    sequences: {
      type: "number",
      default: ENGINE_DEFAULTS.sequences,
      help: "sequences answered at once, for each cache",
    },
    queue: { type: "number", default: ENGINE_DEFAULTS.queue, help: "requests that may wait, for each cache" },
    "cache-tokens": { type: "number", help: "tokens of all sequences together (default: sequences x context)" },
    prefixes: { type: "number", default: ENGINE_DEFAULTS.prefixes, help: "states of earlier prompts kept, 0 = none" },
    block: {
      type: "number",
      default: ENGINE_DEFAULTS.block,
      help: "tokens of a prompt read as one; prompts share whole blocks",
    },
    "chat-fallback": { type: "string", default: "plain", help: "chats without a template: plain or refuse" },
    "tool-form": { type: "string", help: "how the model writes tool calls (default: as its template is known)" },
    "api-key-file": { type: "string", help: "bearer keys, one a line; also VECINFER_API_KEYS, by commas" },
    "allow-host": {
      type: "string",
      help: "names that clients may call it by, by commas (default: any; on loopback its own)",
    },
    cors: { type: "string", help: "origins that browsers may call from, by commas, or *" },
    "share-prefixes": { type: "boolean", help: "find prompts of one key in the cache for another one" },
    "metric-names": { type: "string", default: "vecinfer", help: "whose names metrics have: vecinfer or vllm" },
    "body-limit": { type: "number", default: 1 << 20, help: "bytes of a request at most" },
    timeout: { type: "number", default: 600, help: "seconds of a request at most, 0 = no limit" },
    watchdog: { type: "number", default: 120, help: "seconds without a sign of life after which it ends, 0 = never" },
    grace: { type: "number", default: 30, help: "seconds that running requests have when the server ends" },
    quiet: { type: "boolean", short: "q", help: "no log of requests" },
  },
}, async ({ options, signal, progress }) => {
  const kv = options.kv?.split(",").map((name) => name.trim());
  for (const name of kv ?? []) checked(() => kvConfig(name, options));
  const fallback = options["chat-fallback"];
  if (fallback !== "plain" && fallback !== "refuse") {
    throw new UsageError(`--chat-fallback is "${fallback}"; plain or refuse is needed`);
  }
  const grace = within("grace", options.grace, LONGEST_TIMEOUT), names = options["metric-names"];
  if (names !== "vecinfer" && names !== "vllm") {
    throw new UsageError(`--metric-names is "${names}"; vecinfer or vllm is needed`);
  }
  const loading = progress("loading", 1), keys = keysOf(options["api-key-file"]), lines = new LineLog(standardOutput());
  const ended = new Promise<"ended">((resolve) => {
    signal.addEventListener("abort", () => resolve("ended"));
    process.once("SIGTERM", () => resolve("ended"));
  });
  const server = await serve({
    ...deviceOptions(options),
    model: options.model,
    kv,
    sinks: options.sinks,
    window: options.window,
    calibration: options.calibration,
    context: options.context,
    sequences: whole("sequences", options.sequences),
    queue: whole("queue", options.queue, 0),
    cacheTokens: options["cache-tokens"],
    prefixes: whole("prefixes", options.prefixes, 0),
    block: whole("block", options.block, PAGE_TOKENS),
    chatFallback: fallback,
    toolForm: options["tool-form"],
    hostname: options.host,
    port: within("port", whole("port", options.port, 0), 65535),
    name: options.name,
    keys,
    hosts: options["allow-host"]?.split(",").map((host) => host.trim()),
    cors: options.cors?.split(",").map((origin) => origin.trim()),
    sharePrefixes: options["share-prefixes"],
    metricNames: names,
    bodyBytes: whole("body-limit", options["body-limit"]),
    timeout: within("timeout", options.timeout, LONGEST_TIMEOUT),
    watchdog: within("watchdog", options.watchdog, LONGEST_TIMEOUT),
    log: options.quiet ? undefined : (entry) => lines.line(JSON.stringify(entry)),
    onProgress: (bytes, total) => loading.update(bytes / total),
  });
  try {
    // Loading is given up where the process is to end.
    if (await Promise.race([server.ready, ended]) === "ended") return await end(server, lines, 0);
  } catch (error) {
    await server.close(0);
    throw error;
  } finally {
    loading.stop();
  }
  const { caches, chatTemplate, tools } = server.engine.config;
  for (const cache of caches) {
    console.error(configText(cache));
    console.error(
      `batching     ${cache.sequences} sequences, ${cache.queue} may wait, ${cache.cacheTokens} tokens together ` +
        `(${bytesText(cache.cacheTokens * cache.bf16BytesPerToken)} in bf16), ${cache.prefixes} prefixes\n`,
    );
  }
  if (chatTemplate === "plain") {
    console.error("chat         plain: the model has no template; texts are joined by blank lines");
  }
  const told = tools.prompt === "model" ? "by the model's template" : "by a built-in text";
  console.error(`tools        in the form ${tools.form}, told ${told}`);
  console.error(`keys         ${keys.length === 0 ? "none: everyone who reaches it may use it" : keys.length}`);
  console.error(`serving      ${server.url}/v1   (page: ${server.url}/)`);
  const failure = await Promise.race([server.failed, ended]);
  if (failure instanceof Error) {
    // A device that failed is begun anew with a new process alone: what runs this one starts it again.
    console.error(`error: ${failure.message}`);
    await end(server, lines, 0);
    return 1;
  }
  console.error("ending: running requests may finish");
  await end(server, lines, grace);
});

async function end(server: Server, lines: LineLog, grace: number): Promise<void> {
  await server.close(grace);
  await lines.flush();
  // A thread that hangs must not keep the process.
  setTimeout(() => process.exit(), 1000).unref();
}
