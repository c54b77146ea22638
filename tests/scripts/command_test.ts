import { assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { spawn } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { type Command, parse, UsageError } from "../../scripts/frame/command.ts";

const options = {
  model: { type: "string", short: "m", default: "tiny", help: "the model" },
  tokens: { type: "number", default: 8, help: "how many" },
  seed: { type: "number", help: "the seed" },
  json: { type: "boolean", help: "print JSON" },
} as const;
const spec: Command<typeof options> = {
  name: "sample",
  summary: "a command for its test",
  usage: "sample.ts [options] <mode>",
  options,
  positionals: [1, 1],
};

test("command: defaults, given values and positionals", () => {
  assertEquals(parse(spec, ["run"]), {
    help: false,
    options: { model: "tiny", tokens: 8, seed: undefined, json: false },
    positionals: ["run"],
  });
  assertEquals(parse(spec, ["-m", "big", "--tokens=2.5", "run", "--seed=-1", "--json"]).options, {
    model: "big",
    tokens: 2.5,
    seed: -1,
    json: true,
  });
});

test("command: a wrong command line is a UsageError that names the mistake", () => {
  const wrong: [string[], string][] = [
    [["--tokens", "many", "run"], "--tokens takes a number, not 'many'"],
    [["--tokens=", "run"], "--tokens takes a number"],
    [["--tokens", "Infinity", "run"], "--tokens takes a number"],
    [["--colour", "run"], "--colour"],
    [["run", "--model"], "--model"],
    [["--json=yes", "run"], "--json"],
    [["run", "fast"], "unexpected argument 'fast'"],
    [[], "an argument is missing"],
  ];
  for (const [argv, message] of wrong) {
    const error = assertThrows(() => parse(spec, argv), UsageError);
    assertStringIncludes((error as Error).message, message);
  }
});

/** Runs sample_command.ts in a process of its own. */
function sample(args: string[], env: Record<string, string> = {}, interruptAt?: string): Promise<Result> {
  const script = fileURLToPath(new URL("./sample_command.ts", import.meta.url));
  const allow = "Deno" in globalThis ? ["run", "--allow-all", "--no-check"] : ["run"];
  const child = spawn(process.execPath, [...allow, script, ...args], {
    env: { ...process.env, NO_COLOR: "1", ...env },
  });
  const result = { stdout: "", stderr: "", code: null as number | null };
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    result.stdout += chunk;
    // Not child.kill: after it, Deno reports the signal in place of the exit code.
    if (interruptAt !== undefined && chunk.includes(interruptAt)) process.kill(child.pid!, "SIGINT");
  });
  child.stderr.setEncoding("utf8").on("data", (chunk: string) => result.stderr += chunk);
  return new Promise((done, fail) => {
    child.on("error", fail);
    child.on("close", (code) => done({ ...result, code }));
  });
}
interface Result {
  stdout: string;
  stderr: string;
  code: number | null;
}

test("command: results on stdout, exit code 0 or the one that the work returns", async () => {
  assertEquals(await sample(["done"]), { stdout: "done\n", stderr: "", code: 0 });
  assertEquals((await sample(["code"])).code, 3);
});

test("command: a large output is whole, also through a pipe", async () => {
  assertEquals((await sample(["large"])).stdout.length, 1_000_001);
});

test("command: --help lists the options and does no work", async () => {
  const { stdout, code } = await sample(["--help"]);
  assertEquals(code, 0);
  assertMatch(stdout, /usage: sample_command\.ts/);
  assertMatch(stdout, /-c, --count <number> +how often \(default: 2\)/);
  assertMatch(stdout, /-h, --help +print this text/);
});

test("command: an error of the work is one line on stderr and exit code 1", async () => {
  assertEquals(await sample(["fail"]), { stdout: "", stderr: "error: model.bin: cut short\n", code: 1 });
});

test("command: VECINFER_DEBUG adds the stack", async () => {
  assertMatch((await sample(["fail"], { VECINFER_DEBUG: "1" })).stderr, /sample_command\.ts:\d+/);
});

test("command: bad use is exit code 2 with a hint", async () => {
  const { stdout, stderr, code } = await sample(["done", "--count", "x"]);
  assertEquals([stdout, code], ["", 2]);
  assertEquals(stderr, "sample: --count takes a number, not 'x'\nsee: sample --help\n");
});

test("command: SIGINT aborts the work, which may end cleanly, with exit code 130", async () => {
  const { stdout, stderr, code } = await sample(["wait"], {}, "waiting");
  assertEquals([stdout, stderr, code], ["waiting\ncleaned\n", "interrupted\n", 130]);
});

test("command: progress writes lines where there is no terminal, nothing under --json, never to stdout", async () => {
  const plain = await sample(["progress"]);
  assertEquals([plain.stdout, plain.code], ["", 0]);
  assertMatch(plain.stderr, /^working: 50 % \(5\/10\) after \d+ s\n$/);
  assertEquals(await sample(["progress", "--json"]), { stdout: "", stderr: "", code: 0 });
});
