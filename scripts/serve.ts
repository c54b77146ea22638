/**
 * Serves a model over OpenAI's API.
 *
 * @module
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import { DEFAULT_KV, kvConfig, PAGE_TOKENS } from "../lib/ops/mod.ts";
import { ENGINE_DEFAULTS, type LogEntry, serve } from "../lib/server/mod.ts";
import { command, UsageError } from "./frame/command.ts";
import { bytesText, CACHE_OPTIONS, checked, configText, deviceOptions, MODEL_OPTIONS, whole } from "./frame/options.ts";

/** Keys: those of the environment, and the lines of a file. */
function keysOf(file: string | undefined): string[] {
  const inline = process.env.VECINFER_API_KEYS?.split(",") ?? [];
  const lines = file === undefined ? [] : readFileSync(file, "utf8").split("\n");
  return [...inline, ...lines].map((key) => key.trim()).filter((key) => key !== "" && !key.startsWith("#"));
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
      default: DEFAULT_KV,
      help: "caches on offer, by commas; the first is the default",
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
    "api-key-file": { type: "string", help: "bearer keys, one a line; also VECINFER_API_KEYS, by commas" },
    cors: { type: "string", help: "origins that browsers may call from, by commas, or *" },
    "body-limit": { type: "number", default: 1 << 20, help: "bytes of a request at most" },
    timeout: { type: "number", default: 600, help: "seconds of a request at most" },
    grace: { type: "number", default: 30, help: "seconds that running requests have when the server ends" },
    quiet: { type: "boolean", short: "q", help: "no log of requests" },
  },
}, async ({ options, signal, progress }) => {
  const kv = options.kv.split(",").map((name) => name.trim());
  for (const name of kv) checked(() => kvConfig(name, options));
  const fallback = options["chat-fallback"];
  if (fallback !== "plain" && fallback !== "refuse") {
    throw new UsageError(`--chat-fallback is "${fallback}"; plain or refuse is needed`);
  }
  const loading = progress("loading", 1);
  const keys = keysOf(options["api-key-file"]);
  const write = (entry: LogEntry): void => void process.stdout.write(`${JSON.stringify(entry)}\n`);
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
    hostname: options.host,
    port: whole("port", options.port, 0),
    name: options.name,
    keys,
    cors: options.cors?.split(","),
    bodyBytes: whole("body-limit", options["body-limit"]),
    timeout: options.timeout,
    log: options.quiet ? undefined : write,
    onProgress: (bytes, total) => loading.update(bytes / total),
  });
  const ended = new Promise<void>((resolve) => {
    signal.addEventListener("abort", () => resolve());
    process.once("SIGTERM", () => resolve());
  });
  try {
    await server.ready.finally(() => loading.stop());
  } catch (error) {
    await server.close(0);
    throw error;
  }
  const { caches, chatTemplate } = server.engine.config;
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
  console.error(`keys         ${keys.length === 0 ? "none: everyone who reaches it may use it" : keys.length}`);
  console.error(`serving      ${server.url}/v1   (page: ${server.url}/)`);
  await ended;
  console.error("ending: running requests may finish");
  await server.close(options.grace);
});
