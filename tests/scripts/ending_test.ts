/** How commands end: while they load, with options that cannot be, without a reader. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { folder as assets } from "../support/embedded.ts";

const allow = "Deno" in globalThis ? ["run", "--allow-all", "--no-check"] : ["run"];
const path = (name: string) => fileURLToPath(new URL(`../../scripts/${name}.ts`, import.meta.url));

/** A command in a process of its own. */
function run(name: string, ...args: string[]) {
  const child = spawn(process.execPath, [...allow, path(name), ...args], { env: { ...process.env, NO_COLOR: "1" } });
  let text = "";
  child.stderr.setEncoding("utf8").on("data", (part: string) => text += part);
  child.stdout.resume();
  const exit = new Promise<number | null>((resolve) => child.on("exit", resolve));
  return { child, exit, stderr: () => text };
}

/** A port that nobody listens at. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

test("serve: SIGTERM while a model loads is obeyed at once", async () => {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-loading-"));
  try {
    for (const name of readdirSync(assets)) symlinkSync(join(assets, name), join(folder, name));
    // Reading it never ends.
    rmSync(join(folder, "model.safetensors"));
    execFileSync("mkfifo", [join(folder, "model.safetensors")]);
    const port = await freePort(),
      { child, exit } = run("serve", "--device", "cpu", "--port", `${port}`, "--model", folder);
    let state;
    for (let i = 0; i < 600 && state !== "loading"; i++) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      state = await fetch(`http://127.0.0.1:${port}/health`).then((answer) => answer.json(), () => ({})).then((
        { status },
      ) => status);
    }
    assertEquals(state, "loading");
    const begin = performance.now();
    // Not child.kill, after which Deno tells of no exit code.
    process.kill(child.pid!, "SIGTERM");
    assertEquals(await exit, 0);
    assert(performance.now() - begin < 20_000);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("serve: options that cannot be end with 2", async () => {
  const wrong = [
    "timeout=-5",
    "timeout=2147484",
    "grace=-1",
    "watchdog=1e300",
    "port=70000",
    "metric-names=prometheus",
  ];
  await Promise.all(wrong.map(async (option) => {
    const { exit, stderr } = run("serve", `--${option}`);
    assertEquals(await exit, 2, option);
    assertStringIncludes(stderr(), option.split("=")[0]);
  }));
});

test("generate: a reader that stops reading ends it without a word", () => {
  const command = [
    process.execPath,
    ...allow,
    path("generate"),
    "--max-tokens",
    "400",
    "--device",
    "cpu",
    "The kernel",
  ];
  const errors = join(tmpdir(), `vecinfer-head-${process.pid}`), quoted = command.map((part) => `'${part}'`).join(" ");
  try {
    const shell = `${quoted} 2>${errors} | head -c 12`;
    assertEquals(execFileSync("sh", ["-c", shell], { encoding: "utf8" }).slice(0, 10), "The kernel");
    const text = readFileSync(errors, "utf8");
    assert(text.includes("cache") && !/EPIPE|\.ts:/.test(text), text);
  } finally {
    rmSync(errors, { force: true });
  }
});
