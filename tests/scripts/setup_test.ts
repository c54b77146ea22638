import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { spawn } from "node:child_process";
import { chmodSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { closing, outcome } from "../../scripts/chores/test.ts";
import { root } from "../../scripts/frame/step.ts";

interface Result {
  stdout: string;
  stderr: string;
  code: number | null;
}

/** A copy of the set-up scripts beside a native library of one function, in a folder of its own. */
class Tree {
  readonly folder = mkdtempSync(join(tmpdir(), "vecinfer-setup-"));
  readonly empty = join(this.folder, "empty");
  readonly source = join(this.folder, "cuda", "cpu", "one.cpp");

  constructor() {
    for (const name of ["scripts/frame", "cuda/cpu", "empty"]) mkdirSync(join(this.folder, name), { recursive: true });
    for (const path of ["build", "setup", "frame/command", "frame/step"].map((name) => `scripts/${name}.ts`)) {
      cpSync(join(root, path), join(this.folder, path));
    }
    this.write("package.json", JSON.stringify({ type: "module", dependencies: { a: "1.0.0" } }));
    this.write("package-lock.json", JSON.stringify({ packages: { "": { dependencies: { a: "1.0.0" } } } }));
    this.write("cuda/cpu/one.cpp", "int one() { return 1; }\n");
    this.write(
      "cuda/CMakeLists.txt",
      "cmake_minimum_required(VERSION 3.22)\nproject(one LANGUAGES CXX)\nadd_library(vecinfer_cpu SHARED cpu/one.cpp)\n",
    );
    const binaryDir = "${sourceDir}/build/${presetName}";
    this.write(
      "cuda/CMakePresets.json",
      JSON.stringify({
        version: 3,
        configurePresets: [{ name: "cpu", binaryDir }],
        buildPresets: [{ name: "cpu", configurePreset: "cpu" }],
      }),
    );
  }

  write(path: string, text: string): void {
    writeFileSync(join(this.folder, path), text);
  }

  run(script: string, args: string[] = [], path: string = process.env.PATH!): Promise<Result> {
    const allow = "Deno" in globalThis ? ["run", "--allow-all", "--no-check"] : ["run"];
    const { LD_PRELOAD: _sanitizer, BUN_OPTIONS: _preload, ...inherited } = process.env;
    const env = { ...inherited, PATH: path, NO_COLOR: "1" };
    const child = spawn(process.execPath, [...allow, join(this.folder, "scripts", `${script}.ts`), ...args], { env });
    const result: Result = { stdout: "", stderr: "", code: null };
    child.stdout.setEncoding("utf8").on("data", (chunk: string) => result.stdout += chunk);
    child.stderr.setEncoding("utf8").on("data", (chunk: string) => result.stderr += chunk);
    return new Promise((done, fail) => {
      child.on("error", fail);
      child.on("close", (code) => done({ ...result, code }));
    });
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

test("build: missing tools are named on one line with the way to get them", async () => {
  using tree = new Tree();
  const { stderr, code } = await tree.run("build", [], tree.empty);
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /^error: missing: CMake .* and a C\+\+20 compiler .* and make; .* apt-get install cmake g\+\+ make\n$/,
  );
  tree.write("empty/cmake", "");
  tree.write("empty/make", "");
  assertMatch(
    (await tree.run("build", [], tree.empty)).stderr,
    /^error: missing: a C\+\+20 compiler .* install g\+\+\n$/,
  );
});

test("build: builds once, then only when the content of a source changes", async () => {
  using tree = new Tree();
  const first = await tree.run("build");
  assertEquals(
    [first.code, first.stdout.trim().endsWith("cuda/build/cpu/libvecinfer_cpu.so")],
    [0, true],
    first.stderr,
  );
  // Without any tool on the PATH only a build that is up to date succeeds.
  const second = await tree.run("build", [], tree.empty);
  assertEquals([second.code, second.stderr], [0, ""]);
  assertStringIncludes(second.stdout, "up to date: ");
  utimesSync(tree.source, new Date(), new Date());
  assertEquals((await tree.run("build", [], tree.empty)).code, 0);
  tree.write("cuda/cpu/one.cpp", "int one() { return 2; }\n");
  assertEquals((await tree.run("build", [], tree.empty)).code, 1);
  assertEquals((await tree.run("build")).code, 0);
  assertEquals((await tree.run("build", [], tree.empty)).code, 0);
  rmSync(join(tree.folder, "cuda/build/cpu/libvecinfer_cpu.so"));
  assertEquals((await tree.run("build", [], tree.empty)).code, 1);
  assertEquals((await tree.run("build")).code, 0);
});

test("build: a compiler error shows the compiler's message and leaves the build out of date", async () => {
  using tree = new Tree();
  tree.write("cuda/cpu/one.cpp", "int one() { return missing_name; }\n");
  const { stderr, code } = await tree.run("build");
  assertEquals(code, 1);
  assertStringIncludes(stderr, "missing_name");
  assertEquals((await tree.run("build", [], tree.empty)).code, 1);
});

test("build: a preset that does not exist is bad use", async () => {
  using tree = new Tree();
  const { stderr, code } = await tree.run("build", ["gpu"]);
  assertEquals([code, stderr.split("\n")[0]], [
    2,
    "build: there is no preset 'gpu'; there are cpu, cpu-sanitize, cuda",
  ]);
});

test("build: of several at once one builds and the others wait for it", async () => {
  using tree = new Tree();
  const results = await Promise.all([1, 2, 3].map(() => tree.run("build")));
  assertEquals(results.map(({ code }) => code), [0, 0, 0], results.map(({ stderr }) => stderr).join());
  assertEquals(results.filter(({ stdout }) => !stdout.startsWith("up to date")).length, 1);
});

test("build: a lock left behind by a process that died is taken over", async () => {
  using tree = new Tree();
  const child = spawn("true");
  await new Promise((done) => child.on("close", done));
  mkdirSync(join(tree.folder, "cuda/build"));
  tree.write("cuda/build/.lock", String(child.pid));
  assertEquals((await tree.run("build")).code, 0);
});

test("build: a build folder made under another path is made anew", async () => {
  using tree = new Tree();
  mkdirSync(join(tree.folder, "cuda/build/cpu"), { recursive: true });
  tree.write("cuda/build/cpu/CMakeCache.txt", "#\nCMAKE_HOME_DIRECTORY:INTERNAL=/elsewhere/cuda\n");
  const { code, stderr } = await tree.run("build");
  assertEquals(code, 0, stderr);
});

test("setup: a missing npm is named on one line", async () => {
  using tree = new Tree();
  const { stderr, code } = await tree.run("setup", [], tree.empty);
  assertEquals([code, stderr], [1, "error: npm is missing: install Node.js 20 or newer, with npm\n"]);
});

test("setup: a failing npm shows what it said", async () => {
  using tree = new Tree();
  tree.write("empty/npm", '#!/bin/sh\necho "no network: $1"\nexit 7\n');
  chmodSync(join(tree.folder, "empty", "npm"), 0o755);
  const { stderr, code } = await tree.run("setup", [], tree.empty);
  assertEquals(code, 1);
  assertMatch(stderr, /installing the dependencies failed .*: 7\)\nno network: ci\n$/);
});

test("setup: a lock file that does not match package.json is refused", async () => {
  using tree = new Tree();
  tree.write("package-lock.json", JSON.stringify({ packages: { "": { dependencies: { a: "2.0.0" } } } }));
  mkdirSync(join(tree.folder, "node_modules"));
  tree.write("node_modules/.package-lock.json", JSON.stringify({ packages: {} }));
  const { stderr, code } = await tree.run("setup");
  assertEquals([code, stderr], [1, "error: package-lock.json does not match package.json: run npm install\n"]);
});

test("setup: the lock file names no registry host, and the version is the same everywhere", () => {
  const text = readFileSync(join(root, "package-lock.json"), "utf8");
  // The addresses that it does hold are those of the packages' funding pages.
  assertEquals(text.match(/"resolved"|https?:[^"]*(registry|npmjs|\.tgz)/g), null);
  const versions = ["package.json", "deno.json", "package-lock.json"]
    .map((name) => JSON.parse(readFileSync(join(root, name), "utf8")).version);
  assertEquals(new Set(versions).size, 1, versions.join());
});

test("test: a JUnit report of Bun is counted by its leaves", () => {
  assertEquals(
    outcome(`<testsuites tests="4"><testsuite name="a_test.ts" tests="4">
      <testcase name="a" classname="" time="0" assertions="0" />
      <testcase name="b" classname="" time="0"><skipped /></testcase>
      <testsuite name="d"><testcase name="x &lt; &#39;1&#39;" classname="d">
        <failure type="AssertionError" message="1 !== 2">stack</failure></testcase></testsuite>
      <testcase name="c > d" classname="" time="0"></testcase></testsuite></testsuites>`),
    { passed: 2, failed: ["d > x < '1'"], skipped: 1 },
  );
});

test("test: a JUnit report of Deno counts steps, and a parent only when it failed of itself", () => {
  const group = 'classname="./tests/a_test.ts" time="0.0" line="1" col="1"';
  assertEquals(
    outcome(`<testsuites><testsuite name="./tests/a_test.ts">
      <testcase name="a" ${group}>
      </testcase>
      <testcase name="d" ${group}>
        <failure message="1 test step failed">1 test step failed.</failure>
      </testcase>
      <testcase name="e" ${group}>
        <failure message="Uncaught Error: after">Error: after</failure>
      </testcase>
      <testcase name="f" ${group}>
      </testcase>
      <testcase name="d &gt; x" classname="ext:deno_node/testing.ts">
      </testcase>
      <testcase name="d &gt; y" classname="ext:deno_node/testing.ts">
        <failure message="no">no</failure>
      </testcase>
      <testcase name="d &gt; z" classname="ext:deno_node/testing.ts">
        <skipped/>
      </testcase>
      <testcase name="e &gt; x" ${group}>
      </testcase>
      <testcase name="f &gt; g" ${group}>
      </testcase>
      <testcase name="f &gt; g &gt; h" ${group}>
      </testcase></testsuite></testsuites>`),
    { passed: 4, failed: ["e", "d > y"], skipped: 1 },
  );
  assertEquals(outcome(""), { passed: 0, failed: [], skipped: 0 });
});

test("test: the closing line", () => {
  assertEquals(closing(3, 0, 0), "3 passed, 0 failed");
  assertEquals(closing(3, 1, 2), "3 passed, 1 failed, 2 skipped");
});
