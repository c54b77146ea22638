import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { test } from "node:test";
import { imports, offences, refusal } from "../../scripts/chores/imports.ts";

test("imports: every layer may import itself and what is below it", () => {
  const order = [
    "lib/ffi/a.ts",
    "lib/tensor.ts",
    "lib/ops/a.ts",
    "lib/cache/a.ts",
    "lib/models/a.ts",
    "lib/engine/a.ts",
  ]
    .concat("lib/server/a.ts", "mod.ts", "tests/a.ts");
  for (const [high, from] of order.entries()) {
    for (const [low, to] of order.entries()) {
      assertEquals(refusal(from, to) === undefined, low <= high, `${from} -> ${to}`);
    }
  }
  assertEquals(refusal("lib/device.ts", "lib/tensor.ts"), undefined);
});

test("imports: leaves import no layer and are used from the cache up", () => {
  for (const leaf of ["lib/weights/safetensors.ts", "lib/tokenizer/tokenizer.ts"]) {
    for (const to of ["lib/ffi/a.ts", "lib/tensor.ts", "lib/engine/a.ts", "mod.ts"]) assert(refusal(leaf, to));
    for (const from of ["lib/cache/a.ts", "lib/models/a.ts", "lib/engine/a.ts", "mod.ts", "tests/a.ts"]) {
      assertEquals(refusal(from, leaf), undefined);
    }
    for (const from of ["lib/ffi/a.ts", "lib/device.ts", "lib/ops/a.ts"]) assert(refusal(from, leaf));
  }
  assert(refusal("lib/weights/a.ts", "lib/tokenizer/a.ts"));
  assertEquals(refusal("lib/weights/a.ts", "lib/weights/b.ts"), undefined);
});

test("imports: scripts and benchmarks use the public surface, and nothing uses the tests", () => {
  assertEquals(refusal("scripts/demo.ts", "mod.ts"), undefined);
  assertEquals(refusal("bench/attention.ts", "scripts/frame/command.ts"), undefined);
  assertStringIncludes(refusal("scripts/demo.ts", "lib/engine/engine.ts")!, "mod.ts");
  assertStringIncludes(refusal("bench/attention.ts", "lib/ops/attention.ts")!, "mod.ts");
  assert(refusal("scripts/demo.ts", "tests/support/assert.ts"));
  assertStringIncludes(refusal("lib/novel/a.ts", "mod.ts")!, "novel");
});

test("imports: every form of import is seen, and none in a comment", () => {
  const text = `
    /** Example: import { a } from "../../engine/comment.ts"; */
    // import "../../engine/line.ts";
    import { a } from "../../engine/plain.ts";
    import type { B } from "../../engine/type.ts";
    import {
      c,
      d,
    } from "../../engine/lines.ts";
    export * from "../../engine/again.ts";
    import "../../engine/effect.ts";
    const e = await import("../../engine/late.ts");
    import process from "node:process";`;
  const names = ["plain", "type", "lines", "again", "effect", "late"];
  assertEquals(imports("lib/ops/a.ts", text), names.map((name) => `lib/engine/${name}.ts`));
  assertEquals(offences("lib/ops/a.ts", text).length, names.length);
  assertEquals(offences("lib/server/a.ts", text), []);
  assertStringIncludes(
    offences("lib/ops/a.ts", text)[0],
    "lib/ops/a.ts imports lib/engine/plain.ts: ops is below engine",
  );
});
