import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type ChildProcess, spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

/** scripts/serve.ts in a process of its own. */
function start(
  ...args: string[]
): {
  child: ChildProcess;
  out: { stdout: string; stderr: string };
  exit: Promise<number | null>;
  url: Promise<string>;
} {
  const script = fileURLToPath(new URL("../../scripts/serve.ts", import.meta.url));
  const allow = "Deno" in globalThis ? ["run", "--allow-all", "--no-check"] : ["run"];
  const child = spawn(process.execPath, [...allow, script, "--device", "cpu", "--port", "0", ...args], {
    env: { ...process.env, NO_COLOR: "1" },
  });
  const out = { stdout: "", stderr: "" };
  child.stdout!.setEncoding("utf8").on("data", (text: string) => out.stdout += text);
  const exit = new Promise<number | null>((resolve) => child.on("close", resolve));
  const url = new Promise<string>((resolve, reject) => {
    child.stderr!.setEncoding("utf8").on("data", (text: string) => {
      out.stderr += text;
      const match = /serving +(http\S+)\/v1/.exec(out.stderr);
      if (match) resolve(match[1]);
    });
    void exit.then(() => reject(new Error(out.stderr)));
  });
  url.catch(() => {});
  return { child, out, exit, url };
}

test("serve: prints what is in effect, logs JSON lines, and SIGTERM lets a running stream end", async () => {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-serve-"));
  try {
    writeFileSync(join(folder, "keys"), "# keys\nsecret\n");
    const { child, out, exit, url } = start(
      "--kv",
      "vq2,bf16",
      "--name",
      "tiny",
      "--api-key-file",
      join(folder, "keys"),
      "--sequences",
      "2",
    );
    const base = await url;
    for (
      const words of ["cache        vq2", "cache        bf16", "keys         1", "plain: the model has no template"]
    ) {
      assertStringIncludes(out.stderr, words);
    }
    const response = await fetch(`${base}/v1/completions`, {
      method: "POST",
      headers: { authorization: "Bearer secret", "content-type": "application/json" },
      body: JSON.stringify({ model: "tiny", prompt: "The kernel", max_tokens: 150, temperature: 0, stream: true }),
    });
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    let text = (await reader.read()).value!;
    process.kill(child.pid!, "SIGTERM");
    for (let part = await reader.read(); !part.done; part = await reader.read()) text += part.value;
    assertStringIncludes(text, "data: [DONE]");
    assertEquals(await exit, 0);
    const lines = out.stdout.trim().split("\n").map((line) => JSON.parse(line));
    const line = lines.find(({ path }) => path === "/v1/completions");
    assertEquals([line.status, line.stream, line.model, line.completion_tokens, line.finish], [
      200,
      true,
      "tiny",
      150,
      "length",
    ]);
    assertMatch(line.id, /^req_/);
    assert(!out.stdout.includes("The kernel"), "a prompt is in the log");
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test("serve: wrong options and a taken port end with a message and an exit code", async () => {
  const wrong = start("--kv", "vq9");
  assertEquals(await wrong.exit, 2);
  assertStringIncludes(wrong.out.stderr, '"vq9" is unknown');
  const absent = start("--model", "no/such/model");
  assertEquals(await absent.exit, 1);
  assertStringIncludes(absent.out.stderr, "no/such/model");
  const first = start("--quiet"), base = await first.url;
  const second = start("--port", new URL(base).port);
  assertEquals(await second.exit, 1);
  assertMatch(second.out.stderr, /error: .*(in use|EADDRINUSE|listen)/i);
  process.kill(first.child.pid!, "SIGTERM");
  assertEquals(await first.exit, 0);
});
