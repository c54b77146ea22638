import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { spawn } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { EngineError } from "../../lib/engine/request.ts";
import { apiError, noteError } from "../../lib/server/error.ts";
import { knownPath, LineLog, type LogEntry } from "../../lib/server/log.ts";

test("lines that nobody takes are lost and counted, those that are taken are whole and in their order", async () => {
  let text = "", taken = Promise.withResolvers<void>(), broken = false;
  const log = new LineLog(async (bytes) => {
    await taken.promise;
    if (broken) throw new Error("EPIPE");
    const some = Math.min(bytes.length, 777);
    text += new TextDecoder().decode(bytes.subarray(0, some));
    return some;
  }, 20_000);
  for (let i = 0; i < 3000; i++) log.line(JSON.stringify({ i, text: "x".repeat(90) }));
  assert(log.lost > 2500, `${log.lost}`);
  taken.resolve();
  await log.flush(5000);
  log.line(JSON.stringify({ last: true }));
  await log.flush(5000);
  const lines = text.trimEnd().split("\n").map((line) => JSON.parse(line));
  const numbers = lines.flatMap(({ i }) => i ?? []), lost = lines.reduce((sum, { lost }) => sum + (lost ?? 0), 0);
  assertEquals(numbers, numbers.map((_, i) => i));
  assertEquals([numbers.length + lost, log.lost, lines.at(-1)], [3000, 0, { last: true }]);
  // A descriptor that takes nothing any more costs lines, and nothing else.
  broken = true;
  log.line("gone");
  await log.flush(5000);
  assertEquals(log.lost, 1);
  [broken, taken] = [false, Promise.withResolvers()];
  log.line("back");
  taken.resolve();
  await log.flush(5000);
  assert(text.includes("back"), text.slice(-100));
  assertEquals(log.lost, 0);
});

test("a log tells nothing of what clients put into paths", () => {
  const routes = ["/", "/health", "/v1/models", "/v1/models/{id}", "/v1/chat/completions", "/openapi.json"];
  for (
    const [path, told] of [
      ["/", "/"],
      ["/health", "/health"],
      ["/v1/models", "/v1/models"],
      ["/v1/models/sk-123", "/v1/models/..."],
      ["/v1/chat/completions", "/v1/chat/completions"],
      ["/chat/completions", "/chat/completions"],
      ["/v1/completions?", "/v1/..."],
      ["/sk-123/v1/models", "/..."],
      ["/v1/chat/completions/The%20kernel", "/v1/chat/completions/..."],
      [`/${"x".repeat(10_000)}`, "/..."],
    ]
  ) assertEquals(knownPath(path, routes), told);
});

test("clients are told a neutral text with the request's id, the log says more but no novel", () => {
  for (const error of [new EngineError("internal", "vi_graph_launch: secret"), new Error("secret"), "secret"]) {
    const told = apiError(error, "req_1");
    assertEquals([told.status, told.code], [500, null]);
    assertStringIncludes(told.message, "req_1");
    assert(!told.message.includes("secret"), told.message);
    const entry: LogEntry = {};
    noteError(entry, error);
    assertStringIncludes(String(entry.detail), "secret");
    noteError(entry, told);
    assertStringIncludes(String(entry.detail), "secret");
  }
  const entry: LogEntry = {};
  noteError(entry, new Error("x".repeat(1e6)));
  assert(String(entry.detail).length <= 2000);
});

test("serve: a standard output that nobody reads holds no request up, and paths are cut in it", async () => {
  const script = fileURLToPath(new URL("../../scripts/serve.ts", import.meta.url));
  const allow = "Deno" in globalThis ? ["run", "--allow-all", "--no-check"] : ["run"];
  const child = spawn(process.execPath, [...allow, script, "--device", "cpu", "--port", "0", "--sequences", "1"]);
  const exit = new Promise<number | null>((resolve) => child.on("exit", resolve));
  const base = await new Promise<string>((resolve, reject) => {
    let text = "";
    child.stderr.setEncoding("utf8").on("data", (part: string) => {
      text += part;
      const match = /serving +(http\S+)\/v1/.exec(text);
      if (match) resolve(match[1]);
    });
    void exit.then(() => reject(new Error(text)));
  });
  for (let i = 0; i < 40; i++) {
    const answers = await Promise.all(
      Array.from(
        { length: 30 },
        (_, j) => fetch(`${base}/v1/models/sk-secret-${i}-${j}`, { signal: AbortSignal.timeout(20_000) }),
      ),
    );
    for (const answer of answers) {
      await answer.text();
      assertEquals(answer.status, 404);
    }
  }
  let out = "";
  child.stdout.setEncoding("utf8").on("data", (part: string) => out += part);
  process.kill(child.pid!, "SIGTERM");
  assertEquals(await exit, 0);
  assert(out.split("\n").length > 300, `${out.length} characters`);
  assert(!out.includes("secret"), "a path is in the log");
});
