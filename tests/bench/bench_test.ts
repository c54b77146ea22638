import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { slow } from "../support/slow.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Runs a benchmark under the runtime that runs this test. */
function run(name: string, ...args: string[]) {
  const prefix = "Deno" in globalThis ? ["run", "-A"] : [];
  const { status, stdout, stderr } = spawnSync(process.execPath, [...prefix, `bench/${name}.ts`, ...args], {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, NO_COLOR: "1" },
  });
  return { status, stdout, stderr };
}

const tiny = ["--device", "cpu", "--synthetic", "tiny-llama", "--calibration", "data-free"];

test("the decode benchmark has a figure for each case, set against bf16, a baseline and a line; a plot shows it", {
  skip: slow,
}, () => {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-bench-"));
  try {
    const baseline = join(folder, "baseline.jsonl"),
      out = join(folder, "decode.json"),
      svg = join(folder, "decode.svg");
    const line = { kind: "decode", model: "tiny-llama", attention: "sdpa", batch: 1, ms: 70 };
    const lines = [{ device: "none" }, { ...line, tokens: 64 }, { ...line, tokens: 192 }];
    const slower = { ...line, attention: "eager", tokens: 64, ms: 90 }, failed = { ...line, tokens: 128, ms: null };
    writeFileSync(baseline, [...lines, slower, failed].map((entry) => JSON.stringify(entry)).join("\n"));
    const cases = ["--contexts", "64,128,192", "--caches", "bf16,vq2", "--batches", "2x64", "--prefill", "64"];
    const bench = run("decode", ...tiny, ...cases, "--baseline", baseline, "--out", out, "--json");
    assertEquals([bench.status, bench.stderr], [0, ""]);
    const { figures, notes } = JSON.parse(bench.stdout);
    assertEquals(
      figures.map(({ kind, batch, tokens, cache }: Record<string, unknown>) => [kind, batch, tokens, cache]),
      [
        ["prefill", 1, 64, "vq2"],
        ...["bf16", "vq2"].flatMap((cache) => [64, 128, 192].map((tokens) => ["decode", 1, tokens, cache])),
        ...["bf16", "vq2"].map((cache) => ["decode", 2, 64, cache]),
      ],
    );
    for (const { kind, median, batch, tokens, tokensPerSecond, wall, ratio, floor } of figures) {
      const each = kind === "prefill" ? tokens : batch;
      assert(Math.abs(tokensPerSecond * median / 1000 / each - 1) < 1e-9 && median > 0);
      if (kind === "decode") assert(wall > 0 && ratio > 0 && floor > 0);
    }
    const peers = figures.map(({ peer }: { peer?: { name: string; milliseconds: number } }) => peer?.milliseconds ?? 0);
    assertEquals(peers, [0, 70, 0, 70, 70, 0, 70, 0, 0]);
    assertEquals(notes.growth.map(({ cache }: { cache: string }) => cache), ["bf16", "vq2"]);
    assertEquals(notes.calibrations, { bf16: "exact", vq2: "data-free (no calibration file)" });
    const plot = run("plot", out, "--baseline", baseline, "--out", svg);
    assertEquals([plot.status, plot.stdout.trim(), plot.stderr], [0, svg, ""]);
    const drawn = readFileSync(svg, "utf8");
    assertEquals(drawn.match(/<polyline /g)?.length, 2 + 3); // caches; caches and sdpa, as eager is one point
    for (const name of ["tiny-llama", "vq2", "HF sdpa 70.0", "milliseconds a token"]) assertStringIncludes(drawn, name);
    assert(!/NaN|undefined|Infinity/.test(drawn));
  } finally {
    rmSync(folder, { recursive: true });
  }
});

for (
  const [args, words] of [
    [["--synthetic", "llama-9"], 'synthetic model "llama-9" is unknown'],
    [["--contexts", "1k"], '--contexts has "1k"'],
    [["--batches", "8"], '--batches has "8"'],
    [["--caches", "vq9"], "vq9"],
  ] as const
) {
  test(`bad use of the decode benchmark: ${words}, exit code 2`, { skip: slow }, () => {
    const { status, stderr } = run("decode", "--device", "cpu", "--json", ...args);
    assertEquals(status, 2);
    assertStringIncludes(stderr, words);
  });
}
