/** Servers of this process for tests, and a client for each. */
import { assertRejects } from "@std/assert";
import { after } from "node:test";
import OpenAI, { APIError } from "openai";
import { fileURLToPath } from "node:url";
import { EMBEDDED_MODEL } from "../../mod.ts";
import { readText } from "../../lib/calibration/mod.ts";
import { type CacheStats, type LogEntry, serve, type ServeOptions, type Server } from "../../lib/server/mod.ts";

/** Text for prompts. */
export const source = readText(`${fileURLToPath(EMBEDDED_MODEL)}/eval.txt`);
/** The lines that the servers logged. */
export const log: LogEntry[] = [];
const servers: Server[] = [];

/** Closes all servers after the tests of a file. */
export function closeAfter(): void {
  after(() => Promise.all(servers.map((server) => server.close(0))));
}

/** A server of this process, and a client that does not try twice. */
export async function start(options: ServeOptions = {}): Promise<{ server: Server; client: OpenAI }> {
  const server = await serve({
    port: 0,
    device: "cpu",
    sequences: 4,
    prefixes: 0,
    log: (entry) => log.push(entry),
    ...options,
  });
  servers.push(server);
  return { server, client: new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 }) };
}

/** A short chat, answered the same each time. */
export const chat = {
  model: "tiny",
  messages: [{ role: "user" as const, content: "The kernel" }],
  temperature: 0,
  max_completion_tokens: 24,
};

/** The error that a call must end with. */
export async function error(call: () => PromiseLike<unknown>): Promise<InstanceType<typeof APIError>> {
  return await assertRejects(call, APIError) as unknown as InstanceType<typeof APIError>;
}

/** Waits until nothing runs and says what is in use. */
export async function idle(of: Server): Promise<CacheStats & { deviceBytes: number }> {
  for (let i = 0; i < 400; i++) {
    const { caches, deviceBytes } = of.engine.stats, [stats] = Object.values(caches);
    if (stats.sequences + stats.waiting + of.app.active + of.engine.pending === 0) return { ...stats, deviceBytes };
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error(`never idle: ${JSON.stringify(of.engine.stats)}`);
}
