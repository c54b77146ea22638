/**
 * Every check that is not a test: formatting, lint, types, generated files, lengths, import direction, publishing,
 * documentation, the header as C, and the CUDA library where its compiler is.
 *
 * @module
 */
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { build, nvcc } from "../build.ts";
import { command } from "../frame/command.ts";
import { runtime } from "../setup.ts";
import { root, which } from "../frame/step.ts";
import { doors } from "./imports.ts";
import { closing } from "./test.ts";

/** Runs one check: undefined when it holds, a reason when it is skipped; throws with the output when it fails. */
type Check = () => Promise<string | undefined> | string | undefined;

function run(program: string, ...args: string[]): undefined {
  const env = { ...process.env, NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" };
  const { status, error, stdout, stderr } = spawnSync(program, args, { cwd: root, encoding: "utf8", env });
  if (error) throw error;
  if (status !== 0) throw new Error(`${program} ${args.join(" ")}: exit code ${status}\n${stdout}${stderr}`.trim());
}

const deno = runtime("deno");

async function cuda(): Promise<string | undefined> {
  if (nvcc() === undefined) return "no nvcc";
  if (!readdirSync(join(root, "cuda", "kernels")).some((file) => file.endsWith(".cu"))) return "no kernels";
  await build("cuda");
}

function header(): string | undefined {
  const compiler = process.env.CC ?? ["cc", "gcc", "clang"].find(which);
  if (compiler === undefined) throw new Error("missing: a C compiler; on Debian or Ubuntu: apt-get install gcc");
  const flags = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-x", "c"];
  return run(compiler, ...flags, "cuda/include/vecinfer.h");
}

const checks: Record<string, Check> = {
  "formatting": () => run(deno, "fmt", "--check"),
  "lint": () => run(deno, "lint"),
  "types": () => run(deno, "check", "."),
  "symbols in step with the header": () =>
    run(process.execPath, "run", ...allow(), "scripts/chores/symbols.ts", "--check"),
  "lengths of native code": () => run(process.execPath, "run", ...allow(), "scripts/chores/lengths.ts"),
  "import direction": () => run(process.execPath, "run", ...allow(), "scripts/chores/imports.ts"),
  "publish": () => run(deno, "publish", "--dry-run", "--allow-dirty"),
  "documentation": () => run(deno, "doc", "--lint", ...doors),
  "header as C11": header,
  "CUDA library": cuda,
};

/** Deno asks for permissions; Bun has no such option. */
function allow(): string[] {
  return "Deno" in globalThis ? ["--allow-all"] : [];
}

if (import.meta.main) {
  await command({
    name: "check",
    summary: "runs every check that is not a test",
    usage: "scripts/chores/check.ts",
    options: {},
  }, async ({ signal }) => {
    const counts = { passed: 0, failed: 0, skipped: 0 };
    for (const [name, check] of Object.entries(checks)) {
      signal.throwIfAborted();
      const start = performance.now();
      let result: string;
      try {
        const reason = await check();
        counts[reason === undefined ? "passed" : "skipped"]++;
        result = reason === undefined ? "pass" : `skipped: ${reason}`;
      } catch (error) {
        counts.failed++;
        result = `FAIL\n${(error as Error).message}`;
      }
      const [first, ...rest] = result.split("\n");
      console.log(`${name.padEnd(32)} ${((performance.now() - start) / 1000).toFixed(1).padStart(6)} s  ${first}`);
      if (rest.length > 0) console.log(rest.join("\n"));
    }
    console.log(closing(counts.passed, counts.failed, counts.skipped));
    return counts.failed > 0 ? 1 : 0;
  });
}
