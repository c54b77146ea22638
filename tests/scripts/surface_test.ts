import { assert, assertEquals } from "@std/assert";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { doors } from "../../scripts/chores/imports.ts";
import { root } from "../../scripts/frame/step.ts";
import { runtime } from "../../scripts/setup.ts";

/** Most names that a user of models meets. */
const MOST = 40;

interface Documented {
  nodes: Record<string, { symbols: { name: string; declarations: { jsDoc?: { doc?: string } }[] }[] }>;
}

/** The names that a door exports, with whether they have a doc comment. */
function exported(door: string): Map<string, boolean> {
  const env = { ...process.env, NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" };
  const options = { cwd: root, encoding: "utf8", env, maxBuffer: 1 << 28 } as const;
  const { status, stdout, stderr } = spawnSync(runtime("deno"), ["doc", "--json", door], options);
  assertEquals(status, 0, stderr);
  const { symbols } = (JSON.parse(stdout) as Documented).nodes[pathToFileURL(join(root, door)).href];
  const told = ({ declarations }: typeof symbols[number]) => declarations.some(({ jsDoc }) => Boolean(jsDoc?.doc));
  return new Map(symbols.map((symbol) => [symbol.name, told(symbol)]));
}

test("surface: mod.ts has what a user of models needs and no more", () => {
  const names = [...exported("mod.ts").keys()];
  assert(names.length <= MOST, `${names.length} names: ${names.join(", ")}`);
  for (const name of ["LanguageModel", "LoadOptions", "Piece", "EffectiveConfig", "PRESETS", "VecInferError", "pull"]) {
    assert(names.includes(name), name);
  }
});

for (const door of doors) {
  test(`surface: every name of ${door} says what it is`, () => {
    const names = exported(door);
    assert(names.size > 0);
    assertEquals([...names].filter(([, told]) => !told).map(([name]) => name), []);
  });
}

test("surface: Deno and npm are given the same doors", () => {
  const [deno, npm] = ["deno.json", "package.json"]
    .map((file) => JSON.parse(readFileSync(join(root, file), "utf8")));
  assertEquals(npm.exports, deno.exports);
  assertEquals(Object.values(deno.exports), doors.map((door) => `./${door}`));
  assertEquals(Object.keys(deno.exports), [".", "./ops", "./calibrate", "./server"]);
});

test("surface: a name that two doors export is the same thing", async () => {
  const modules = await Promise.all(doors.map((door) => import(pathToFileURL(join(root, door)).href)));
  const seen = new Map<string, unknown>();
  for (const [name, value] of modules.flatMap((module) => Object.entries(module as Record<string, unknown>))) {
    if (seen.has(name)) assert(seen.get(name) === value, name);
    seen.set(name, value);
  }
});
