/**
 * Checks that imports point down only and never in a circle. Prints those that do and exits with 1.
 *
 * @module
 */
import { globSync, readFileSync } from "node:fs";
import { dirname, join, posix } from "node:path";
import { command } from "../frame/command.ts";
import { root } from "../frame/step.ts";

/** The floors: a part imports from itself and from the floors below it, not from its neighbours on the same one. */
const floors: readonly (readonly string[])[] = [
  ["ffi"],
  ["tensor", "device"],
  ["ops", "weights", "tokenizer"],
  ["cache", "hub", "grammar"],
  ["models"],
  ["engine", "calibration"],
  ["compare", "server"],
  ["doors"],
  ["scripts", "bench"],
  ["tests"],
];

/** Leaves import from no other part of `lib`. */
const leaves: readonly string[] = ["weights", "tokenizer"];

/** Neighbours on one floor that may import each other's files, as long as no circle comes of it. */
const together: readonly (readonly string[])[] = [["tensor", "device"], ["scripts", "bench"]];

/** The public surface: what users, scripts and benchmarks import. Doors open on any part; nothing in `lib` imports them. */
export const doors: readonly string[] = [
  "mod.ts",
  "lib/ops/mod.ts",
  "lib/calibration/mod.ts",
  "lib/server/mod.ts",
];

/** What stands above `lib/models` imports these of it alone. */
const modelDoors: readonly string[] = ["lib/models/model.ts", "lib/models/synthetic.ts"];

/** Files of a leaf that a command may import past the doors: downloads, and the reading of untrusted JSON. */
const open: readonly string[] = ["lib/hub/hub.ts"];

/** The part a file belongs to, by its path from the root: `lib/ops/rope.ts` is of `ops`. */
function partOf(path: string): string {
  if (doors.includes(path)) return "doors";
  const [first, second] = path.split("/");
  return (first === "lib" && second !== undefined ? second : first).replace(/\.ts$/, "");
}

function rank(part: string): number {
  return floors.findIndex((floor) => floor.includes(part));
}

/** Why a file must not import another, or undefined when it may. Both paths are from the root. */
export function refusal(from: string, to: string): string | undefined {
  const [source, target] = [partOf(from), partOf(to)];
  for (const part of [source, target]) if (rank(part) < 0) return `${part} is on no floor`;
  if (source === "tests") return undefined;
  if (target === "tests") return "nothing imports tests";
  if (
    (source === "scripts" || source === "bench") && to.startsWith("lib/") && target !== "doors" && !open.includes(to)
  ) {
    return `${source} import ${doors.join(", ")}, not lib`;
  }
  if (target === "models" && rank(source) > rank(target) && source !== "doors" && !modelDoors.includes(to)) {
    return `${source} knows models through ${modelDoors[0]}`;
  }
  if (source === target) return undefined;
  if (leaves.includes(source)) return `${source} is a leaf and imports no other part`;
  if (together.some((parts) => parts.includes(source) && parts.includes(target))) return undefined;
  if (rank(target) > rank(source)) return `${source} is below ${target}`;
  return rank(target) < rank(source) ? undefined : `${source} and ${target} are neighbours`;
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

/** The circles among files, each once, as the paths around it: `["a.ts", "b.ts", "a.ts"]`. */
export function circles(graph: ReadonlyMap<string, readonly string[]>): string[][] {
  const found: string[][] = [], done = new Set<string>(), path: string[] = [];
  const visit = (file: string): void => {
    const at = path.indexOf(file);
    if (at >= 0) return void found.push([...path.slice(at), file]);
    if (done.has(file)) return;
    path.push(file);
    for (const next of graph.get(file) ?? []) visit(next);
    path.pop();
    done.add(file);
  };
  for (const file of graph.keys()) visit(file);
  return found;
}

if (import.meta.main) {
  await command({
    name: "imports",
    summary: "checks that imports point down only and never in a circle",
    usage: "scripts/chores/imports.ts",
    options: {},
  }, () => {
    const files = globSync(["mod.ts", "{lib,scripts,bench,tests}/**/*.ts"], { cwd: root }).sort();
    const texts = new Map(files.map((file) => [file, readFileSync(join(root, file), "utf8")]));
    const found = files.flatMap((file) => offences(file, texts.get(file)!));
    const graph = new Map(files.map((file) => [file, imports(file, texts.get(file)!).filter((to) => texts.has(to))]));
    for (const circle of circles(graph)) found.push(`a circle: ${circle.join(" -> ")}`);
    for (const line of found) console.log(line);
    if (found.length === 0) console.log(`${files.length} files: imports point down only`);
    return found.length === 0 ? 0 : 1;
  });
}
