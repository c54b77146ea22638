import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const root = fileURLToPath(new URL("../..", import.meta.url)), folder = mkdtempSync(join(tmpdir(), "vecinfer-report-"));
after(() => rmSync(folder, { recursive: true }));

function report(...args: string[]) {
  const prefix = "Deno" in globalThis ? ["run", "-A"] : [];
  const { status, stdout, stderr } = spawnSync(process.execPath, [...prefix, "scripts/report.ts", ...args], {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, NO_COLOR: "1" },
  });
  return { status, stdout, stderr };
}

/** What `evaluate --json` prints of two texts, with every measure. */
function results() {
  const row = (text: string, name: string, path: string, effectiveBits: number, kl: number) => ({
    text,
    name,
    method: name.split(" ")[0],
    title: `the <${name}> method`,
    paper: "arXiv 1",
    path,
    kv: "vq2",
    effectiveBits,
    perplexity: 10 + kl,
    change: kl / 10,
    kl,
    top1: 1 - kl,
    attentionError: [kl, 2 * kl],
    retrieved: Array.from({ length: 10 }, (_, i) => i < 3),
    drift: [{ first: 12, agreement: 0.5 }],
  });
  const names: [string, string, number, number][] = [
    ["bf16", "fused", 16, 0],
    ["vecinfer vq2", "fused", 2.1, 0.04],
    ["vecinfer vq1", "fused", 1.1, 0.13],
    ["million vq2", "fused", 2.1, 0.11],
    ["kivi:b2g32", "reference", 3.05, 0.046],
    ["kivi:b2g128", "reference", 2.4, 0.093],
    ["ott:b2g128", "reference", 2.44, 0.092],
  ];
  return {
    model: "models/some",
    texts: [{ kind: "docs", file: "docs.txt" }, { kind: "code", file: "code & more.txt" }],
    windows: 2,
    length: 2048,
    sinks: 4,
    window: 128,
    context: 32768,
    rows: ["docs", "code"].flatMap((text) => names.map(([name, ...rest]) => row(text, name, ...rest))),
    codebooks: ["vecinfer vq2", "million vq2"].flatMap((name) =>
      (["keys", "values"] as const).map((side) => ({
        name,
        side,
        layer: 0,
        bits: 8,
        entropy: 7.5,
        counts: Array.from({ length: 256 }, (_, i) => 600 - 2 * i),
      }))
    ),
    outliers: [0, 1].map((layer) => ({
      name: "vecinfer vq2",
      layer,
      before: Array.from({ length: 128 }, (_, i) => i === 40 ? 9 + layer : 1),
      after: Array.from({ length: 128 }, (_, i) => i === 40 ? 2 : 1),
    })),
  };
}

const input = join(folder, "results.json"), out = join(folder, "out");
writeFileSync(input, JSON.stringify(results()));

test("report writes a page and three plots that need nothing else", () => {
  const { status, stdout, stderr } = report("--json", "-o", out, input);
  assertEquals([status, stderr], [0, ""]);
  const files: string[] = JSON.parse(stdout).files;
  assertEquals(files, ["quality.svg", "outliers.svg", "codebooks.svg", "index.html"].map((name) => join(out, name)));
  for (const file of files) {
    const text = readFileSync(file, "utf8");
    assert(!/(src|href)=|url\(|@import|<script/.test(text), `${file} asks for something`);
    assert(!/NaN|undefined|Infinity/.test(text), `${file} has a number that is none`);
  }
  const page = readFileSync(join(out, "index.html"), "utf8");
  for (const plot of files.slice(0, 3)) assertStringIncludes(page, readFileSync(plot, "utf8"));
  for (const text of ["the &lt;kivi:b2g32&gt; method", "code &amp; more.txt", "retrieval says nothing", "+1.10 %"]) {
    assertStringIncludes(page, text);
  }
  for (
    const label of [">million vq2</text>", ">docs</text>", ">code</text>", "effective bits a channel", "KL to bf16"]
  ) {
    assertStringIncludes(readFileSync(files[0], "utf8"), label);
  }
  assertStringIncludes(readFileSync(files[1], "utf8"), "layer 1: 10.0 x");
  assertStringIncludes(readFileSync(files[2], "utf8"), "keys: 7.50 of 8 bits");
});

test("quality alone gives one plot; several results are numbered", () => {
  const { codebooks: _, outliers: __, ...quality } = results(), second = join(folder, "quality.json");
  writeFileSync(second, JSON.stringify(quality));
  const { status, stdout } = report("--json", "-o", join(folder, "two"), second, input);
  assertEquals(status, 0);
  assertEquals(
    JSON.parse(stdout).files.map((file: string) => file.slice(folder.length + 5)),
    ["quality-1.svg", "quality-2.svg", "outliers-2.svg", "codebooks-2.svg", "index.html"],
  );
});

test("what is no result of evaluate is refused by name", () => {
  const bad = join(folder, "bad.json");
  for (const [text, message] of [["{", "cannot be read as JSON"], ["{}", "has no rows and texts"]]) {
    writeFileSync(bad, text);
    const { status, stderr } = report("-o", out, bad);
    assertEquals(status, 1);
    assertStringIncludes(stderr, `${bad}: ${message}`);
  }
  assertEquals(report().status, 2);
});

const executablePath = "/usr/bin/chromium";
test(
  "the page in a browser: nothing is fetched, text stays inside its plot and stands out, light and dark",
  { skip: existsSync(executablePath) ? false : `no Chromium at ${executablePath}` },
  async () => {
    assertEquals(report("-o", out, input).status, 0);
    // A sanitizer's runtime that is loaded first into this process must not be loaded into the browser.
    const { LD_PRELOAD: _, ...env } = process.env as Record<string, string>;
    const browser = await chromium.launch({
      executablePath,
      args: ["--headless", "--no-sandbox", "--disable-gpu"],
      env,
    });
    try {
      for (const colorScheme of ["light", "dark"] as const) {
        const page = await browser.newPage({ colorScheme, viewport: { width: 1280, height: 900 } }),
          asked: string[] = [];
        page.on("request", (request) => asked.push(request.url()));
        await page.goto(pathToFileURL(join(out, "index.html")).href);
        if (process.env.VECINFER_PICTURES) {
          await page.screenshot({
            path: join(process.env.VECINFER_PICTURES, `report-${colorScheme}.png`),
            fullPage: true,
          });
        }
        assertEquals(asked.length, 1);
        const found = await page.evaluate(() => {
          // Runs in the page; brightness after ITU-R BT.709.
          const bright = (color: string) => {
            const [r, g, b] = color.match(/[\d.]+/g)!.map((part) => Number(part) / 255);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          // deno-lint-ignore no-explicit-any
          const { document, getComputedStyle } = globalThis as any;
          const ground = bright(getComputedStyle(document.body).backgroundColor),
            outside: string[] = [],
            faint: string[] = [];
          for (const svg of document.querySelectorAll("svg")) {
            const frame = svg.getBoundingClientRect();
            for (const text of svg.querySelectorAll("text")) {
              const box = text.getBoundingClientRect();
              if (box.left < frame.left || box.right > frame.right || box.bottom > frame.bottom) {
                outside.push(text.textContent);
              }
              if (Math.abs(bright(getComputedStyle(text).fill) - ground) < 0.3) faint.push(text.textContent);
            }
          }
          return { ground, outside, faint, plots: document.querySelectorAll("svg").length };
        });
        assertEquals([found.plots, found.outside, found.faint], [3, [], []]);
        assert(colorScheme === "light" ? found.ground > 0.9 : found.ground < 0.2, `ground ${found.ground}`);
        await page.close();
      }
    } finally {
      await browser.close();
    }
  },
);
