/**
 * Checks that imports point down only. Prints those that do not and exits with 1.
 *
 * @module
 */
import { globSync, readFileSync } from "node:fs";
import { dirname, join, posix } from "node:path";
import { command } from "./command.ts";
import { root } from "./step.ts";

/** A layer imports from itself and from the layers before it. */
const layers: readonly (readonly string[])[] = [
  ["ffi"],
  ["device", "tensor"],
  ["ops"],
  ["cache"],
  ["models"],
  ["engine"],
  ["server"],
  ["mod"],
  ["scripts", "bench", "tests"],
];
/** Leaves import from no layer and from no other leaf; the cache and all above may import them. */
const leaves: readonly string[] = ["weights", "tokenizer"];
const cache = layers.findIndex((layer) => layer.includes("cache"));

/** The layer or leaf a file belongs to, by its path from the root: `lib/ops/rope.ts` is of `ops`. */
function partOf(path: string): string {
  const [first, second] = path.split("/");
  return (first === "lib" && second !== undefined ? second : first).replace(/\.ts$/, "");
}

function rank(part: string): number {
  return layers.findIndex((layer) => layer.includes(part));
}

/** Why a file must not import another, or undefined when it may. Both paths are from the root. */
export function refusal(from: string, to: string): string | undefined {
  const [source, target] = [partOf(from), partOf(to)];
  for (const part of [source, target]) {
    if (rank(part) < 0 && !leaves.includes(part)) return `${part} is no known layer`;
  }
  if (source === target) return undefined;
  if (leaves.includes(source)) return `${source} is a leaf and imports no layer`;
  if (leaves.includes(target)) return rank(source) >= cache ? undefined : `${source} is below the leaves' users`;
  if ((source === "scripts" || source === "bench") && to.startsWith("lib/") && to !== "lib/server/mod.ts") {
    return `${source} import mod.ts or lib/server/mod.ts, not lib`;
  }
  if (source !== "tests" && target === "tests") return "nothing imports tests";
  return rank(target) <= rank(source) ? undefined : `${source} is below ${target}`;
}

/** The files that a source text imports by relative path, as paths from the root. */
export function imports(path: string, text: string): string[] {
  const code = text.replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "");
  const specifiers = code.matchAll(/(?:\bfrom|\bimport)\s*\(?\s*"(\.[^"]*)"/g);
  return [...specifiers].map(([, specifier]) => posix.join(dirname(path), specifier));
}

/** One line for each import that points up. */
export function offences(path: string, text: string): string[] {
  return imports(path, text).filter((to) => to.endsWith(".ts")).flatMap((to) => {
    const reason = refusal(path, to);
    return reason === undefined ? [] : [`${path} imports ${to}: ${reason}`];
  });
}

if (import.meta.main) {
  await command({
    name: "imports",
    summary: "checks that imports point down only",
    usage: "scripts/imports.ts",
    options: {},
  }, () => {
    const files = globSync(["mod.ts", "{lib,scripts,bench,tests}/**/*.ts"], { cwd: root }).sort();
    const found = files.flatMap((file) => offences(file, readFileSync(join(root, file), "utf8")));
    for (const line of found) console.log(line);
    if (found.length === 0) console.log(`${files.length} files: imports point down only`);
    return found.length === 0 ? 0 : 1;
  });
}
