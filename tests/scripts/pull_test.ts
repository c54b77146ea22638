import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { tinyLlama, withFolder } from "../weights/fixture.ts";
import { type HubServer, startHub } from "../hub/hub_server.ts";

const script = fileURLToPath(new URL("../../scripts/pull.ts", import.meta.url));
const names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
const files = Object.fromEntries(names.map((name) => [name, readFileSync(join(tinyLlama, name))]));

/** Runs the script under the runtime of this test. `interrupt` says after which progress line to send SIGINT. */
function run(
  args: string[],
  environment: Record<string, string> = {},
  interrupt?: Promise<void>,
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const before = "Deno" in globalThis ? ["run", "-A"] : [];
  const child = spawn(process.execPath, [...before, script, ...args], {
    env: { ...process.env, HF_TOKEN: "", NO_COLOR: "1", ...environment },
  });
  const result = { code: null as number | null, stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => result.stdout += chunk);
  child.stderr.setEncoding("utf8").on("data", (chunk: string) => result.stderr += chunk);
  // Not child.kill: after it, Deno reports the signal in place of the exit code.
  interrupt?.then(() => process.kill(child.pid!, "SIGINT"));
  return new Promise((done, fail) => {
    child.on("error", fail);
    child.on("close", (code) => done({ ...result, code }));
  });
}

async function withHub(work: (hub: HubServer, folder: string) => Promise<void>): Promise<void> {
  const hub = await startHub(files);
  try {
    await withFolder((folder) => work(hub, join(folder, "model")));
  } finally {
    await hub.close();
  }
}

test("pull: downloads a model, says so, and finds it offline", () =>
  withHub(async (hub, folder) => {
    const arguments_ = ["owner/name", "--out", folder, "--endpoint", hub.endpoint];
    const first = await run(arguments_, { SOME_TOKEN: "hf_secret" });
    assertEquals([first.code, first.stdout], [0, `${folder}: owner/name is complete\n`]);
    assertStringIncludes(first.stderr, "model.safetensors: 16269672 bytes, checked");
    assert(readFileSync(join(folder, "model.safetensors")).equals(files["model.safetensors"]));
    assertEquals(hub.seen[0].authorization, undefined);

    const token = await run([...arguments_, "--token-env", "SOME_TOKEN", "--json"], { SOME_TOKEN: "hf_secret" });
    assertEquals([token.code, token.stderr], [0, ""]);
    assertEquals(hub.seen.at(-1)!.authorization, "Bearer hf_secret");
    const result = JSON.parse(token.stdout);
    assertEquals(result.files.map((file: { outcome: string }) => file.outcome), names.map(() => "present"));

    const requests = hub.seen.length;
    assertEquals((await run([...arguments_, "--offline"])).code, 0);
    assertEquals(hub.seen.length, requests);
  }));

test("pull: an interruption ends with 130, and the next run goes on", () =>
  withHub(async (hub, folder) => {
    const arguments_ = ["owner/name", "--out", folder, "--endpoint", hub.endpoint];
    const bytes = files["model.safetensors"];
    const half = new Promise<void>((sent) => {
      hub.intercept = (_request, response, file) => {
        if (file !== "model.safetensors") return false;
        response.setHeader("content-length", bytes.byteLength);
        response.write(bytes.subarray(0, 1_000_000), () => setTimeout(sent, 300));
        return true;
      };
    });
    const stopped = await run(arguments_, {}, half);
    assertEquals(stopped.code, 130);
    assertStringIncludes(stopped.stderr, "the same command goes on from there");
    assertEquals(existsSync(join(folder, "model.safetensors")), false);
    assert(readFileSync(join(folder, "model.safetensors.part")).byteLength > 0);
    hub.intercept = () => false;
    assertEquals((await run(arguments_)).code, 0);
    assertMatch(hub.seen.at(-1)!.range!, /^bytes=[1-9]\d*-$/);
    assert(readFileSync(join(folder, "model.safetensors")).equals(bytes));
  }));

test("pull: a failure is exit code 1 with the address and the cause", () =>
  withHub(async (hub, folder) => {
    const missing = await run(["owner/none", "--out", folder, "--endpoint", hub.endpoint]);
    assertEquals([missing.code, missing.stdout], [1, ""]);
    assertMatch(missing.stderr, /^error: http:\/\/127\.0\.0\.1:\d+\/api\/models\/owner\/none\/tree\/main: HTTP 404/);
    const offline = await run(["owner/name", "--out", join(folder, "none"), "--offline"]);
    assertEquals(offline.code, 1);
    assertStringIncludes(offline.stderr, "no such folder");
  }));

test("pull: bad use is exit code 2", async () => {
  const cases: [args: string[], part: string][] = [
    [[], "argument is missing"],
    [["one", "two"], "unexpected argument"],
    [["name"], "owner/name"],
    [["../../etc"], "owner/name"],
    [["owner/name", "--endpoint", "hub"], "--endpoint"],
    [["owner/name", "--token-env", "NO_SUCH_TOKEN"], "NO_SUCH_TOKEN"],
    [["owner/name", "--fast"], "--fast"],
  ];
  await Promise.all(cases.map(async ([args, part]) => {
    const { code, stdout, stderr } = await run(args);
    assertEquals([code, stdout], [2, ""], args.join(" "));
    assertStringIncludes(stderr, part);
  }));
  const help = await run(["--help"]);
  assertEquals(help.code, 0);
  for (const option of ["--revision", "--out", "--endpoint", "--offline", "--token-env", "--json"]) {
    assertStringIncludes(help.stdout, option);
  }
});
