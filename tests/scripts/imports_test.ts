import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { circles, doors, imports, offences, refusal, rounds, sources } from "../../scripts/chores/imports.ts";
import { root } from "../../scripts/frame/step.ts";
import { runtime } from "../../scripts/setup.ts";

/** Files from the lowest floor to the highest, one a floor. */
const ladder = [
  "lib/ffi/a.ts",
  "lib/tensor.ts",
  "lib/ops/a.ts",
  "lib/cache/a.ts",
  "lib/models/model.ts",
  "lib/engine/a.ts",
  "lib/server/a.ts",
  "mod.ts",
];

test("imports: every part may import itself and what is below it", () => {
  for (const [high, from] of [...ladder, "tests/a_test.ts"].entries()) {
    for (const [low, to] of [...ladder, "tests/a_test.ts"].entries()) {
      assertEquals(refusal(from, to) === undefined, low <= high, `${from} -> ${to}`);
    }
  }
  assertEquals(refusal("lib/device.ts", "lib/tensor.ts"), undefined);
  assertEquals(refusal("lib/tensor.ts", "lib/device.ts"), undefined);
  assertStringIncludes(refusal("lib/novel/a.ts", "mod.ts")!, "novel");
  assertStringIncludes(refusal("lib/ops/a.ts", "elsewhere/a.ts")!, "elsewhere");
});

test("imports: neighbours on one floor do not see each other", () => {
  for (
    const [a, b] of [["engine", "calibration"], ["compare", "server"], ["cache", "grammar"], ["weights", "tokenizer"]]
  ) {
    assert(refusal(`lib/${a}/a.ts`, `lib/${b}/b.ts`), `${a} -> ${b}`);
    assert(refusal(`lib/${b}/b.ts`, `lib/${a}/a.ts`), `${b} -> ${a}`);
  }
});

test("imports: leaves import no other part and are used from the cache up", () => {
  for (const leaf of ["lib/weights/safetensors.ts", "lib/tokenizer/tokenizer.ts"]) {
    for (const to of ["lib/ffi/a.ts", "lib/tensor.ts", "lib/engine/a.ts", "mod.ts"]) assert(refusal(leaf, to));
    for (const from of ["lib/cache/a.ts", "lib/models/a.ts", "lib/engine/a.ts", "mod.ts", "tests/a.ts"]) {
      assertEquals(refusal(from, leaf), undefined);
    }
    for (const from of ["lib/ffi/a.ts", "lib/device.ts", "lib/ops/a.ts"]) assert(refusal(from, leaf));
    assertEquals(refusal(leaf, leaf.replace(/\w+\.ts/, "b.ts")), undefined);
  }
});

test("imports: nothing above the models knows an architecture's file, the doors neither", () => {
  for (const from of ["lib/engine/a.ts", "lib/calibration/a.ts", "lib/compare/a.ts", "lib/server/a.ts", ...doors]) {
    assertStringIncludes(refusal(from, "lib/models/llama.ts")!, "lib/models/model.ts");
    assertEquals(refusal(from, "lib/models/model.ts"), undefined);
  }
  assertEquals(refusal("tests/models/llama_test.ts", "lib/models/llama.ts"), undefined);
});

test("imports: the workshop enters lib through the doors alone, leaves included", () => {
  for (const from of ["scripts/a.ts", "scripts/frame/a.ts", "scripts/chores/a.ts", "bench/a.ts"]) {
    for (const door of doors) assertEquals(refusal(from, door), undefined);
    for (const part of ["engine/a", "ops/a", "weights/json", "tokenizer/a", "hub/hub", "models/model", "device"]) {
      assertStringIncludes(refusal(from, `lib/${part}.ts`)!, "mod.ts", `${from} -> ${part}`);
    }
    assert(refusal(from, "tests/support/assert.ts"));
  }
  assertEquals(refusal("bench/research/a.ts", "lib/calibration/a.ts"), undefined);
  assert(refusal("bench/research/a.ts", "lib/engine/a.ts"));
  for (const door of doors) assert(refusal("lib/engine/a.ts", door));
});

test("imports: commands share the frame, chores use commands, benchmarks do not", () => {
  for (const from of ["scripts/a.ts", "scripts/chores/a.ts", "bench/a.ts", "bench/research/a.ts"]) {
    assertEquals(refusal(from, "scripts/frame/command.ts"), undefined);
    assert(refusal("scripts/frame/command.ts", from));
  }
  assertEquals(refusal("scripts/chores/check.ts", "scripts/build.ts"), undefined);
  assertEquals(refusal("bench/research/a.ts", "bench/frame.ts"), undefined);
  for (const [a, b] of [["scripts/a.ts", "bench/b.ts"], ["scripts/chores/a.ts", "bench/research/b.ts"]]) {
    assert(refusal(a, b) && refusal(b, a), `${a}, ${b}`);
  }
  assert(refusal("bench/frame.ts", "bench/research/a.ts") && refusal("scripts/a.ts", "scripts/chores/b.ts"));
});

test("imports: every form of import is seen, and none in a comment or a string", () => {
  const text = `
    /** Example: import { a } from "../engine/comment.ts"; */
    // import "../engine/line.ts";
    import { a } from "../engine/plain.ts"; // from "../engine/behind.ts"
    import type { B } from "../engine/type.ts";
    import { type C, c } from '../engine/single.ts';
    import {
      c,
      d, /* from "../engine/within.ts" */
    } from "../engine/lines.ts";
    export * from "../engine/again.ts";
    export { f } from "../engine/named.ts";
    import "../engine/effect.ts";
    const e = await import("../engine/late.ts"), g = await import(
      "../engine/later.ts"
    );
    const address = "https://example.org"; import h from "../engine/address.ts";
    const opened = "/*"; import i from "../engine/opened.ts"; const closed = "*/";
    const quoted = 'import "../engine/quoted.ts"', escaped = "\\" from '../engine/escaped.ts'";
    const long = \`import "../engine/template.ts" // \\\` import "../engine/again_template.ts"\`;
    const worker = new Worker(new URL("../engine/worker.ts", import.meta.url), { type: "module" });
    const file = new URL("../engine/read.ts", import.meta.url), same = Array.from("../engine/array.ts");
    import process from "node:process";
    import data from "../engine/data.json" with { type: "json" };`;
  const names = ["plain", "type", "single", "lines", "again", "named", "effect", "late", "later", "address", "opened"]
    .concat("worker");
  assertEquals(imports("lib/ops/a.ts", text), names.map((name) => `lib/engine/${name}.ts`));
  assertEquals(offences("lib/ops/a.ts", text).length, names.length);
  assertEquals(offences("lib/server/a.ts", text), []);
  assertStringIncludes(
    offences("lib/ops/a.ts", text)[0],
    "lib/ops/a.ts imports lib/engine/plain.ts: ops is below engine",
  );
});

test("imports: what is read is what Deno resolves, for every file of the project", () => {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-imports-")), texts = sources();
  try {
    const entry = join(folder, "all.ts"), url = (file: string): string => pathToFileURL(join(root, file)).href;
    writeFileSync(entry, [...texts.keys()].map((file) => `import "${url(file)}";\n`).join(""));
    const args = ["info", "--json", "--config", join(root, "deno.json"), entry];
    const env = { ...process.env, DENO_NO_UPDATE_CHECK: "1" };
    const { stdout, stderr, status } = spawnSync(runtime("deno"), args, { encoding: "utf8", env, maxBuffer: 1 << 28 });
    assertEquals(status, 0, stderr);
    const { modules } = JSON.parse(stdout) as {
      modules: { specifier: string; dependencies?: { specifier: string }[] }[];
    };
    const resolved = new Map(modules.map((module) => [module.specifier, module.dependencies ?? []]));
    for (const [file, text] of texts) {
      const wanted = resolved.get(url(file))!.map(({ specifier }) => specifier).filter((name) =>
        /^\..*\.ts$/.test(name)
      )
        .map((name) => new URL(name, url(file)).href);
      const found = imports(file, text).map(url), more = found.filter((to) => !wanted.includes(to));
      assertEquals(wanted.filter((to) => !found.includes(to)), [], file);
      // To Deno a worker is no import.
      assertEquals(more.filter((to) => !to.endsWith("/worker.ts")), [], file);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

const graphOf = (arrows: string): Map<string, string[]> => {
  const graph = new Map<string, string[]>();
  for (const [from, to] of arrows.split(" ").map((arrow) => arrow.split(">"))) {
    graph.set(from, [...graph.get(from) ?? [], to]);
  }
  return graph;
};

test("circles: none in a graph without, one at least in each that has", () => {
  assertEquals(circles(new Map()), []);
  assertEquals(circles(graphOf("a>b a>c b>d c>d d>e")), []);
  assertEquals(circles(graphOf("a>a")), [["a", "a"]]);
  assertEquals(circles(graphOf("a>b b>a")), [["a", "b", "a"]]);
  assertEquals(circles(graphOf("a>b b>c c>b")), [["b", "c", "b"]]);
  assertEquals(circles(graphOf("x>a a>b b>c c>a y>p p>q q>p")).length, 2);
  // Entered at any node, a circle is found.
  for (const first of ["a", "b", "c"]) {
    const graph = graphOf("a>b b>c c>a");
    assertEquals(circles(new Map([[first, graph.get(first)!], ...graph])).length, 1);
  }
});

test("rounds: circles of files, and of folders through different files", () => {
  assertEquals(rounds(graphOf("lib/a/x.ts>lib/a/y.ts lib/a/x.ts>lib/b/z.ts lib/a/y.ts>lib/b/z.ts")), []);
  assertEquals(rounds(graphOf("lib/a/x.ts>lib/a/y.ts lib/a/y.ts>lib/a/x.ts")), [
    "a circle in lib/a: x.ts -> y.ts -> x.ts (lib/a/x.ts imports lib/a/y.ts; lib/a/y.ts imports lib/a/x.ts)",
  ]);
  // No two files import each other here.
  const apart = rounds(graphOf("lib/a/x.ts>lib/b/x.ts lib/b/y.ts>lib/a/y.ts"));
  assertEquals(apart, [
    "a circle in lib: a -> b -> a (lib/a/x.ts imports lib/b/x.ts; lib/b/y.ts imports lib/a/y.ts)",
  ]);
  // Nor here, between a file and the folder beside it; and the circle of three folders has no two that import each other.
  assertEquals(rounds(graphOf("lib/s/routes/x.ts>lib/s/body.ts lib/s/body.ts>lib/s/routes/y.ts")).length, 1);
  assertEquals(rounds(graphOf("scripts/a.ts>bench/a.ts bench/b.ts>tests/b.ts tests/c.ts>scripts/c.ts")).length, 1);
  // A file that heads its folder, over parts in folders of their own.
  assertEquals(rounds(graphOf("lib/s/app.ts>lib/s/routes/x.ts lib/s/routes/x.ts>lib/s/body.ts")), []);
  // A door stands in the folder of one part and opens on others above it.
  assertEquals(rounds(graphOf("lib/ops/mod.ts>lib/cache/a.ts lib/cache/a.ts>lib/ops/ops.ts")), []);
});

test("rounds: floors alone leave no circle between parts, whatever their files", () => {
  const parts = ["ffi", "ops", "weights", "tokenizer", "cache", "hub", "grammar", "models", "engine", "calibration"]
    .concat("compare", "server").map((part) => `lib/${part}`)
    .concat("scripts/frame", "scripts/chores", "bench/research", "tests", "scripts", "bench", "lib");
  // Models are seen through their door; tensor and device are the two files that may see each other.
  const files = parts.flatMap((part) => part === "lib" ? ["lib/tensor.ts"] : [`${part}/model.ts`]);
  const allowed = new Map(
    files.map((from) => [from, files.filter((to) => to !== from && refusal(from, to) === undefined)]),
  );
  assertEquals(circles(allowed), []);
  assert([...allowed.values()].flat().length > 50);
});
