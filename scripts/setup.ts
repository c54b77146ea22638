/**
 * Installs the dependencies (`npm ci`) unless `node_modules` is what `package-lock.json` says, and builds the native
 * library when asked to. Needs no dependency.
 *
 * @module
 */
import { existsSync, readFileSync, realpathSync, rmSync, statSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { build, preset } from "./build.ts";
import { command } from "./frame/command.ts";
import { exclusive, root, step, which } from "./frame/step.ts";

interface Lock {
  packages: Record<string, { version?: string; integrity?: string; optional?: boolean } & Dependencies>;
}
interface Dependencies {
  dependencies?: Record<string, string>;
  devDependencies?: Record<string, string>;
}

/** Installs what is missing; throws when npm is not there or fails. */
export async function setup(): Promise<void> {
  if (installed() && finished()) return;
  await exclusive(async () => {
    if (!installed()) {
      const npm = which("npm");
      if (npm === undefined) throw new Error("npm is missing: install Node.js 20 or newer, with npm");
      await step("installing the dependencies", npm, ["ci", "--no-audit", "--no-fund"], root);
      if (!installed()) throw new Error("npm ci left node_modules without what package-lock.json lists");
    }
    if (!finished()) await finish();
  });
}

/** The path of a runtime installed as a dependency. */
export function runtime(name: "bun" | "deno"): string {
  return join(root, "node_modules", name, name === "bun" ? "bin/bun.exe" : "deno");
}

/** What `deno` means inside a Deno task. */
const bin = join(root, "node_modules", ".bin", "deno");

/**
 * npm may be set not to run install scripts: those of the two runtimes put their binary in place. Deno's also links
 * `.bin/deno` to the binary, which a Deno task then fails to run as JavaScript: the link goes back to the script.
 */
async function finish(): Promise<void> {
  for (const [name, script] of [["bun", "install.js"], ["deno", "install.cjs"]] as const) {
    const folder = join(root, "node_modules", name);
    if (hasBinary(name)) continue;
    const node = which("node");
    if (node === undefined) throw new Error("node is missing: install Node.js 20 or newer");
    await step(`installing ${name}`, node, [script], folder);
  }
  rmSync(bin, { force: true });
  symlinkSync("../deno/bin.cjs", bin);
}

function finished(): boolean {
  return hasBinary("bun") && hasBinary("deno") && existsSync(bin) && realpathSync(bin).endsWith("bin.cjs");
}

function hasBinary(name: "bun" | "deno"): boolean {
  // Without its install script the Bun package holds a text of a few hundred bytes in the binary's place.
  return existsSync(runtime(name)) && statSync(runtime(name)).size > 1e6;
}

/** npm writes `node_modules/.package-lock.json` last: it lists what is really there. */
function installed(): boolean {
  const wanted = lockOf(join(root, "package-lock.json"));
  const present = lockOf(join(root, "node_modules", ".package-lock.json"));
  if (wanted === undefined) throw new Error("package-lock.json is missing: restore it");
  if (present === undefined) return false;
  const stated: Dependencies = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  const locked = wanted.packages[""];
  if (!same(stated.dependencies, locked.dependencies) || !same(stated.devDependencies, locked.devDependencies)) {
    throw new Error("package-lock.json does not match package.json: run npm install");
  }
  return Object.entries(wanted.packages).every(([path, { version, integrity, optional }]) => {
    const found = present.packages[path];
    return path === "" || (found ? found.version === version && found.integrity === integrity : optional === true);
  });
}

function lockOf(path: string): Lock | undefined {
  return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : undefined;
}

function same(a: Record<string, string> = {}, b: Record<string, string> = {}): boolean {
  return JSON.stringify(Object.entries(a).sort()) === JSON.stringify(Object.entries(b).sort());
}

if (import.meta.main) {
  await command({
    name: "setup",
    summary: "installs the dependencies and builds the presets named, unless they are up to date",
    usage: "scripts/setup.ts [cpu|cpu-sanitize|cuda]...",
    options: {},
    positionals: [0, 3],
  }, async ({ positionals }) => {
    const names = positionals.map(preset);
    await setup();
    for (const name of names) await build(name);
  });
}
