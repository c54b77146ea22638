/**
 * Builds the CPU library, runs the suite under Bun and under Deno, and closes with the sums of both.
 *
 * @module
 */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, isAbsolute, join, relative } from "node:path";
import process from "node:process";
import { build } from "../build.ts";
import { command, UsageError } from "../frame/command.ts";
import { runtime } from "../setup.ts";
import { root } from "../frame/step.ts";

/** The outcome of the suite under one runtime. */
export interface Outcome {
  /** Tests that held. */
  passed: number;
  /** Names of the tests that did not. */
  failed: string[];
  /** Tests that were not run. */
  skipped: number;
}

/** Counts the tests of a JUnit report. A test with sub-tests counts by those, unless it failed of itself. */
export function outcome(junit: string): Outcome {
  const cases = [...junit.matchAll(/<testcase ([^>]*?)(\/>|>([\s\S]*?)<\/testcase>)/g)].map((match) => {
    const attribute = (name: string): string =>
      decode(match[1].match(new RegExp(`(?:^| )${name}="([^"]*)"`))?.[1] ?? "");
    const body = match[3] ?? "";
    const failed = /<(failure|error)[ >]/.test(body);
    return { name: attribute("name"), group: attribute("classname"), failed, skipped: /<skipped/.test(body) };
  });
  const result: Outcome = { passed: 0, failed: [], skipped: 0 };
  // Deno reports a test and its steps, the steps named "test > step"; Bun reports only what has no parts.
  const failedParts = new Set<string>();
  const parents = new Set<string>();
  for (const { name, failed } of cases) {
    for (let at = name.lastIndexOf(" > "); at > 0; at = name.lastIndexOf(" > ", at - 1)) {
      parents.add(name.slice(0, at));
      if (failed) failedParts.add(name.slice(0, at));
    }
  }
  for (const { name, group, failed, skipped } of cases) {
    const parent = parents.has(name);
    if (parent && (!failed || failedParts.has(name))) continue;
    if (failed) result.failed.push(group && !group.includes("/") && !group.includes(":") ? `${group} > ${name}` : name);
    else if (skipped) result.skipped++;
    else result.passed++;
  }
  return result;
}

function decode(text: string): string {
  const named: Record<string, string> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };
  return text.replace(
    /&(?:#(\d+)|#x([0-9a-f]+)|(lt|gt|quot|apos|amp));/gi,
    (_, decimal, hex, name) => name ? named[name] : String.fromCodePoint(decimal ? Number(decimal) : parseInt(hex, 16)),
  );
}

/** The closing line that a person and CI read. */
export function closing(passed: number, failed: number, skipped: number): string {
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}

/** Milliseconds after which Bun gives a test up; its default of 5 s is too short for a language model. */
const TIMEOUT = 900_000;

/** Runs the suite under one runtime. A runtime that crashed or ran nothing counts as one failed test. */
async function suite(
  name: "bun" | "deno",
  paths: readonly string[],
  filter: string | undefined,
  env: NodeJS.ProcessEnv,
  signal: AbortSignal,
): Promise<Outcome> {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-test-"));
  const report = join(folder, "junit.xml");
  const args = name === "bun"
    ? ["test", "--timeout", String(TIMEOUT), "--reporter=junit", "--reporter-outfile", report]
    : ["test", "--allow-all", "--no-check", "--junit-path", report];
  if (filter !== undefined) args.push(name === "bun" ? "--test-name-pattern" : "--filter", filter);
  try {
    const code = await new Promise<number | string>((done, fail) => {
      const child = spawn(runtime(name), [...args, ...paths.map(local)], { cwd: root, env, stdio: "inherit" });
      const stop = (): void => void child.kill("SIGINT");
      signal.addEventListener("abort", stop);
      child.on("error", fail);
      child.on("close", (code, signalName) => {
        signal.removeEventListener("abort", stop);
        done(code ?? signalName ?? 1);
      });
    });
    signal.throwIfAborted();
    const result = existsSync(report) ? outcome(readFileSync(report, "utf8")) : { passed: 0, failed: [], skipped: 0 };
    const ran = result.passed + result.failed.length + result.skipped;
    if (code !== 0 && result.failed.length === 0) result.failed.push(`${name} ended with ${code}; see above`);
    else if (ran === 0) result.failed.push(`${name} ran no test`);
    return result;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A path from the project's root with the "./" that makes Bun take it as a path. */
function local(path: string): string {
  return `./${relative(root, isAbsolute(path) ? path : join(root, path))}`;
}

/** Environment under which Bun and Deno run with the sanitizers' runtime, which must be loaded first. */
function sanitizers(library: string): NodeJS.ProcessEnv {
  const files = ["libasan.so", "libstdc++.so.6"].map((name) => {
    const path = spawnSync("gcc", [`-print-file-name=${name}`], { encoding: "utf8" }).stdout?.trim();
    if (!path || !isAbsolute(path)) throw new Error(`missing: ${name} of GCC; install it together with g++`);
    return path;
  });
  return {
    // The folder, so that no CUDA library is found: the CPU library is what is checked.
    VECINFER_LIB: dirname(library),
    // Tests that take minutes without the sanitizers are skipped by name with them.
    VECINFER_SANITIZE: "1",
    // The C++ library is preloaded too: the sanitizer looks for __cxa_throw when it starts.
    LD_PRELOAD: files.join(" "),
    // A runtime never frees what it holds at exit; an absurd size is to fail as it does without the sanitizer.
    ASAN_OPTIONS: "detect_leaks=0:allocator_may_return_null=1:detect_odr_violation=0",
    UBSAN_OPTIONS: "print_stacktrace=1",
    BUN_OPTIONS: `--preload=${join(root, "scripts", "chores", "sigaltstack.ts")}`,
  };
}

if (import.meta.main) {
  await command({
    name: "test",
    summary: "runs the suite under Bun and under Deno",
    usage: "scripts/chores/test.ts [options] [path]...",
    options: {
      bun: { type: "boolean", help: "only under Bun" },
      deno: { type: "boolean", help: "only under Deno" },
      filter: { type: "string", short: "f", help: "only tests whose name has this text" },
      sanitize: { type: "boolean", help: "with the library under AddressSanitizer and UBSan" },
    },
    positionals: [0, 100],
  }, async ({ options, positionals, signal }) => {
    for (const path of positionals) {
      if (!existsSync(join(root, local(path)))) throw new UsageError(`there is no ${path}`);
    }
    const { library } = await build(options.sanitize ? "cpu-sanitize" : "cpu");
    const env = { ...process.env, ...(options.sanitize ? sanitizers(library) : {}) };
    const names = (["bun", "deno"] as const).filter((name) => options.bun === options.deno || options[name]);
    const paths = positionals.length > 0 ? positionals : ["tests"];
    const lines: string[] = [];
    let [passed, failed, skipped] = [0, 0, 0];
    for (const name of names) {
      const version = spawnSync(runtime(name), ["--version"], { encoding: "utf8" }).stdout?.match(/\d+\.\d+\.\d+/)?.[0];
      console.log(`--- ${name} ${version}${options.sanitize ? ", with sanitizers" : ""}`);
      const start = performance.now();
      const result = await suite(name, paths, options.filter, env, signal);
      const seconds = ((performance.now() - start) / 1000).toFixed(1);
      lines.push(...result.failed.map((test) => `FAILED under ${name}: ${test}`));
      lines.push(`${name} ${version}: ${closing(result.passed, result.failed.length, result.skipped)} (${seconds} s)`);
      passed += result.passed;
      failed += result.failed.length;
      skipped += result.skipped;
    }
    console.log(`\n${lines.join("\n")}\n${closing(passed, failed, skipped)}`);
    return failed > 0 ? 1 : 0;
  });
}
