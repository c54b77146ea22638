/**
 * Checks where imports lead: down the floors only, into `lib` through its doors, and never in a circle, of files or of
 * folders. Prints those that lead elsewhere and exits with 1. An import of types counts as any other.
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
  ["models", "chat"],
  ["engine", "calibration"],
  ["compare", "server"],
  ["doors"],
  ["scripts/frame"],
  ["scripts", "bench"],
  ["scripts/chores", "bench/research"],
  ["tests"],
];

/** Leaves import from no other part. */
const leaves: readonly string[] = ["weights", "tokenizer"];

/** Two files that are one floor: a tensor belongs to a device. */
const together: readonly string[] = ["tensor", "device"];

/** The public surface: what users, commands and benchmarks import. Doors open on any part; nothing in `lib` imports them. */
export const doors: readonly string[] = [
  "mod.ts",
  "lib/ops/mod.ts",
  "lib/calibration/mod.ts",
  "lib/server/mod.ts",
];

/** What stands above `lib/models` imports these of it alone, and no architecture's file. */
const modelDoors: readonly string[] = ["lib/models/model.ts", "lib/models/synthetic.ts"];

/** Parts that may be entered past the doors, by whom. Tests may enter all. */
const past: Readonly<Record<string, readonly string[]>> = {
  // Research takes training and codes apart, down to pieces that no user is promised.
  "bench/research": ["cache", "calibration", "compare", "grammar", "tokenizer"],
};

/** The part a file belongs to, by its path from the root: `lib/ops/rope.ts` is of `ops`. */
function partOf(path: string): string {
  if (doors.includes(path)) return "doors";
  const [first, second] = path.replace(/\.ts$/, "").split("/");
  if (first === "lib") return second;
  return rank(`${first}/${second}`) < 0 ? first : `${first}/${second}`;
}

function rank(part: string): number {
  return floors.findIndex((floor) => floor.includes(part));
}

/** Why a file must not import another, or undefined when it may. Both paths are from the root. */
export function refusal(from: string, to: string): string | undefined {
  const [source, target] = [partOf(from), partOf(to)];
  for (const part of [source, target]) if (rank(part) < 0) return `${part} is on no floor`;
  if (source === "tests" || source === target) return undefined;
  if (rank(target) > rank(source)) return `${source} is below ${target}`;
  if (leaves.includes(source)) return `${source} is a leaf and imports no other part`;
  if (rank(target) === rank(source)) {
    return together.includes(source) ? undefined : `${source} and ${target} are neighbours`;
  }
  if (target === "models" && !modelDoors.includes(to)) return `${source} knows models through ${modelDoors.join(", ")}`;
  const outside = rank(source) > rank("doors") && rank(target) < rank("doors");
  return outside && !past[source]?.includes(target) ? `${source} import ${doors.join(", ")}, not lib` : undefined;
}

/**
 * The files that a source text imports by relative path, as paths from the root: in any form of import, also at run time,
 * and as the module of a worker (`new Worker(new URL("./worker.ts", import.meta.url))`). What stands in comments and strings is none.
 */
export function imports(path: string, text: string): string[] {
  const strings: string[] = [];
  // Comments and strings are read in one pass, as each may hold what looks like the other; a string leaves its number.
  const tokens = /\/\*[\s\S]*?\*\/|\/\/.*|`(?:\\[\s\S]|[^`\\])*`|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'/g;
  const code = text.replace(tokens, (token) => {
    if (token.startsWith("/")) return " ";
    return token.startsWith("`") ? "``" : `"${strings.push(token.slice(1, -1)) - 1}"`;
  });
  const places = code.matchAll(/(?:\bfrom\s*|\bimport\s*\(?\s*|\bnew Worker\(new URL\(\s*)"(\d+)"/g);
  const specifiers = [...places].map(([, index]) => strings[Number(index)]);
  return specifiers.filter((name) => /^\..*\.ts$/.test(name)).map((name) => posix.join(dirname(path), name));
}

/** One line for each import that leads where it must not. */
export function offences(path: string, text: string): string[] {
  return imports(path, text).flatMap((to) => {
    const reason = refusal(path, to);
    return reason === undefined ? [] : [`${path} imports ${to}: ${reason}`];
  });
}

/** Circles of a graph, as the nodes around them: `["a", "b", "a"]`; at least one of each set of nodes that reach each other. */
export function circles(graph: ReadonlyMap<string, readonly string[]>): string[][] {
  const found: string[][] = [], done = new Set<string>(), path: string[] = [];
  const visit = (node: string): void => {
    const at = path.indexOf(node);
    if (at >= 0) return void found.push([...path.slice(at), node]);
    if (done.has(node)) return;
    path.push(node);
    for (const next of graph.get(node) ?? []) visit(next);
    path.pop();
    done.add(node);
  };
  for (const node of graph.keys()) visit(node);
  return found;
}

/**
 * One line for each circle among the files and folders of one folder, with the import behind each of its arrows. A folder
 * stands for all files in it, so that two folders make a circle though no two files do. Every circle of files is one here:
 * in the innermost folder that holds it. Doors are left out: nothing in `lib` imports them, so none comes of them.
 */
export function rounds(graph: ReadonlyMap<string, readonly string[]>): string[] {
  const folders = new Map<string, Map<string, Map<string, string>>>();
  for (const [from, targets] of graph) {
    for (const to of doors.includes(from) ? [] : targets) {
      const [a, b] = [from.split("/"), to.split("/")], apart = a.findIndex((name, i) => name !== b[i]);
      if (apart < 0) continue;
      const folder = a.slice(0, apart).join("/") || ".", entries = folders.get(folder) ?? new Map();
      const arrows = entries.get(a[apart]) ?? new Map();
      folders.set(folder, entries.set(a[apart], arrows.set(b[apart], `${from} imports ${to}`)));
    }
  }
  return [...folders].flatMap(([folder, entries]) =>
    circles(new Map([...entries].map(([name, arrows]) => [name, [...arrows.keys()]]))).map((circle) => {
      const reasons = circle.slice(1).map((name, i) => entries.get(circle[i])!.get(name));
      return `a circle in ${folder}: ${circle.join(" -> ")} (${reasons.join("; ")})`;
    })
  );
}

/** The texts of all files that are checked, by path from the root. */
export function sources(): Map<string, string> {
  const files = globSync(["mod.ts", "{lib,scripts,bench,tests}/**/*.ts"], { cwd: root }).sort();
  return new Map(files.map((file) => [file, readFileSync(join(root, file), "utf8")]));
}

if (import.meta.main) {
  await command({
    name: "imports",
    summary: "checks that imports point down only, through doors, and never in a circle",
    usage: "scripts/chores/imports.ts",
    options: {},
  }, () => {
    const texts = sources(), graph = new Map([...texts].map(([file, text]) => [file, imports(file, text)]));
    const found = [...[...texts].flatMap(([file, text]) => offences(file, text)), ...rounds(graph)];
    for (const line of found) console.log(line);
    if (found.length === 0) console.log(`${texts.size} files: imports point down only`);
    return found.length === 0 ? 0 : 1;
  });
}
