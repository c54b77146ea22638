import { assert, assertEquals } from "@std/assert";
import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { root } from "../../scripts/frame/step.ts";

const read = (path: string): string => readFileSync(join(root, path), "utf8");

/** What stands for a word in a path. */
const PLACEHOLDER = /NOUN|FORMAT|NAME/;

/** What names files: documents, comments, commands. Those in tests of scripts are made up. */
const files = globSync(
  ["*.{md,json,ts}", ".ci/*", "docs/*.md", "assets/**/*.md", "{lib,scripts,bench,tests}/**/*.ts"],
  {
    cwd: root,
  },
).concat(globSync("cuda/{include,common,cpu,kernels,tests}/**/*.{h,cpp,cu,cuh,txt}", { cwd: root }))
  .filter((path) => path !== "package-lock.json" && !path.startsWith("tests/scripts/")).sort();

/** Files of the project that a text names, by path from the root: in one string, in braces, or in pieces for `join`. */
function named(text: string): string[] {
  const expanded = text.replace(
    /([\w./-]*)\{(\w+(?:,\w+)+)\}([\w.-]*)/g,
    (_, before, list, after) => list.split(",").map((word: string) => before + word + after).join(" "),
  );
  const whole = expanded.matchAll(
    /(?<![\w./-])(?:lib|cuda|scripts|bench|tests|docs)\/[\w/.+-]*\.(?:ts|mjs|py|md|svg|json|jsonl|h|cuh?|cpp)\b/g,
  );
  const pieces = text.matchAll(/"(?:scripts|bench|tests|lib)"(?:, "[\w/]+")*, "\w+\.(?:ts|mjs|py)"/g);
  const paths = [...whole].map(([path]) => path)
    .concat([...pieces].map(([list]) => list.replaceAll(/"|,| /g, (mark) => mark === "," ? "/" : "")));
  return [...new Set(paths)].filter((path) => !path.startsWith("cuda/build/"));
}

test("docs: the files and commands that documents, comments and scripts name are there", () => {
  const missing = files.flatMap((file) =>
    named(read(file)).filter((path) => !PLACEHOLDER.test(path) && !existsSync(join(root, path)))
      .map((path) => `${file} names ${path}`)
  );
  assertEquals(missing, []);
  assertEquals(named("see scripts/generate.ts or bench/{a,b}_test.ts"), [
    "scripts/generate.ts",
    "bench/a_test.ts",
    "bench/b_test.ts",
  ]);
  assertEquals(named('join(root, "scripts", "chores", "test.ts")'), ["scripts/chores/test.ts"]);
});

test("docs: links to files and headings lead somewhere", () => {
  const anchor = (heading: string): string => heading.toLowerCase().replace(/[^\w\- ]/g, "").replaceAll(" ", "-");
  const anchors = (path: string): string[] => [...read(path).matchAll(/^#+ (.*)$/gm)].map(([, text]) => anchor(text));
  const pages = files.filter((file) => file.endsWith(".md"));
  assert(pages.length > 2);
  for (const page of pages) {
    for (const [, target] of read(page).matchAll(/\]\((?!https?:)([^)\s]+)\)/g)) {
      const [path, heading] = target.split("#"), file = path === "" ? page : join(dirname(page), path);
      assert(existsSync(join(root, file)), `${page} links to ${target}`);
      if (heading !== undefined) assert(anchors(file).includes(heading), `${page} links to ${target}`);
    }
  }
});

/** Rows of the table whose head has this first cell, as the text of their cells. */
function tableOf(text: string, head: string): string[][] {
  const lines = text.split("\n"), first = lines.findIndex((line) => line.startsWith(`| ${head} `));
  assert(first >= 0, `no table begins with "${head}"`);
  const end = lines.findIndex((line, i) => i > first && !line.startsWith("|"));
  return lines.slice(first + 2, end).map((line) => line.slice(1, -1).split("|").map((cell) => cell.trim()));
}

/** The paths in a cell. */
const pathsOf = (cell: string): string[] =>
  [...cell.matchAll(/`([^`]+)`/g)].map(([, path]) => path).filter((path) => /^[\w.]+\/|^mod\.ts$/.test(path));

/** Whether there is a file or folder at a path, any at all where the path has a placeholder. */
const there = (path: string): boolean =>
  PLACEHOLDER.test(path)
    ? globSync(path.replace(PLACEHOLDER, "*"), { cwd: root }).length > 0
    : existsSync(join(root, path));

test("docs: every part of lib is in the README's table of layers, and nothing else is", () => {
  const layers = tableOf(read("README.md"), "layer").flatMap(([layer]) => pathsOf(layer));
  for (const path of layers) assert(there(path), path);
  const told = layers.map((path) => path.replace(/\/$/, ""));
  for (const part of globSync("lib/*", { cwd: root })) assert(told.includes(part), `${part} is in no layer`);
});

test('docs: "to add X, touch Y" names files that are there, five at most', () => {
  const rows = tableOf(read("README.md"), "to add");
  const wanted = ["cache format", "native op", "architecture", "endpoint", "dialect", "method", "preset", "runtime"];
  for (const word of [...wanted, "command"]) assert(rows.some(([what]) => what.includes(word)), word);
  for (const [what, files] of rows) {
    const paths = pathsOf(files);
    assert(paths.length > 0 && paths.length <= 5, `${what}: ${paths.length} files`);
    for (const path of paths) assert(there(path), `${what}: ${path}`);
  }
});

test("docs: the README's table of scripts has every command of users", () => {
  const told = tableOf(read("README.md"), "script").map(([name]) => `scripts/${name.replaceAll("`", "")}.ts`);
  assertEquals(told.sort(), globSync("scripts/*.ts", { cwd: root }).sort());
});
