/**
 * Time a token against context as an SVG, from the results of bench/decode.ts: this project's caches on a linear scale, and
 * beside them, where lines of baselines/hugging_face_decode.py are given, the other system on a logarithmic one.
 *
 * @module
 */

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { command } from "../scripts/frame/command.ts";
import { type Color, Panel, SERIES, svg } from "../scripts/frame/svg.ts";
import type { Results } from "./frame.ts";

const WIDTH = 540, HEIGHT = 400;

/** A line of the plot. */
interface Series {
  name: string;
  color: Color;
  dashed: boolean;
  /** Tokens of context, milliseconds a token; by context. */
  points: [number, number][];
}

/** The bf16 cache is the ground that others are seen against. */
const COLORS: readonly Color[] = ["muted", ...SERIES.filter((color) => color !== "muted")];

/** A decode figure with what the plot needs. */
interface Point {
  kind?: string;
  cache: string;
  batch: number;
  tokens: number;
  wall?: number;
}

await command({
  name: "bench/plot",
  summary: "draws time a token against context from results of bench/decode.ts",
  usage: "bench/plot.ts [options] <results.json>",
  positionals: [1, 1],
  options: {
    baseline: { type: "string", help: "lines of baselines/hugging_face_decode.py from the same card" },
    out: { type: "string", short: "o", default: "docs/decode.svg", help: "the SVG file" },
  },
}, ({ options, positionals: [path] }) => {
  const results = JSON.parse(readFileSync(path, "utf8")) as Results;
  const ours = seriesOf(results), name = (results.notes.model as { name: string }).name;
  if (ours.length === 0) throw new Error(`${path}: no decode figures of batch 1 at two contexts or more`);
  const others = options.baseline === undefined ? [] : baselinesOf(options.baseline, name);
  const title = `Time a token, ${name}, batch 1, ${results.device.device}`;
  const panels = [panel("caches", ours, false, 0)];
  if (others.length > 0) panels.push(panel("beside Hugging Face transformers (HF)", [...ours, ...others], true, 1));
  mkdirSync(dirname(options.out), { recursive: true });
  writeFileSync(options.out, svg(title, WIDTH * panels.length, HEIGHT, panels.join("")));
  console.log(options.out);
});

/** Of each cache, the contexts that another cache has too. */
function seriesOf(results: Results): Series[] {
  const points = (results.figures as unknown as Point[]).filter((point) =>
    point.kind === "decode" && point.batch === 1 && point.wall !== undefined
  );
  const caches = [...new Set(points.map(({ cache }) => cache))];
  const shared = (tokens: number) => caches.length === 1 || points.filter((p) => p.tokens === tokens).length > 1;
  return caches.map((cache, i): Series => ({
    name: cache,
    color: COLORS[i % COLORS.length],
    dashed: false,
    points: points.filter((p) => p.cache === cache && shared(p.tokens)).map((
      p,
    ): [number, number] => [p.tokens, p.wall!])
      .sort(([a], [b]) => a - b),
  })).filter(({ points }) => points.length > 1);
}

/** The other system's attentions. */
function baselinesOf(path: string, model: string): Series[] {
  const lines = readFileSync(path, "utf8").trim().split("\n").map((line) => JSON.parse(line)).filter((line) =>
    line.kind === "decode" && line.batch === 1 && line.model === model && line.ms
  );
  const names: string[] = [...new Set(lines.map(({ attention }) => attention as string))];
  return names.map((name, i): Series => ({
    name: `HF ${name}`,
    color: COLORS[(COLORS.length - 1 - i) % COLORS.length],
    dashed: true,
    points: lines.filter((line) => line.attention === name).map((line): [number, number] => [line.tokens, line.ms])
      .sort(([a], [b]) => a - b),
  })).filter(({ points }) => points.length > 1);
}

/** One pair of axes with its lines, which are named where they end. */
function panel(title: string, series: readonly Series[], log: boolean, column: number): string {
  const all = series.flatMap(({ points }) => points), times = all.map(([, y]) => y), most = Math.max(...times);
  const x = {
    title: "context, tokens (k = 1024)",
    range: [0, Math.max(...all.map(([tokens]) => tokens))] as const,
    unit: [1024, "k"] as const,
  };
  const y = {
    title: `milliseconds a token${log ? " (logarithmic)" : ""}`,
    range: log ? [Math.min(...times) / 1.3, most * 1.3] as const : [0, most * 1.08] as const,
    log,
  };
  const out = new Panel({ x: 72 + column * WIDTH, y: 76, width: WIDTH - 176, height: HEIGHT - 132 }, title, x, y);
  for (const { points, color, dashed } of series) out.line(points, color, 1, dashed);
  for (const { name, points, color } of series) {
    for (const [tokens, time] of points) {
      out.dot(tokens, time, color, `${name}, ${tokens} tokens: ${time.toFixed(2)} ms`, 3.5);
    }
  }
  out.ends(series.map(({ name, points, color }) => {
    const [x, y] = points.at(-1)!;
    return { x, y, text: `${name} ${y.toPrecision(3)}`, color };
  }));
  return String(out);
}
