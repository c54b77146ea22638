/**
 * Writes one page and its plots from the JSON of `evaluate`.
 *
 * @module
 */

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { command, UsageError } from "./frame/command.ts";
import { type Color, escape, Panel, STYLE, svg } from "./frame/svg.ts";

/** A row of `evaluate --json`, as far as the report needs it. */
interface Row {
  text: string;
  name: string;
  method: string;
  title: string;
  paper: string;
  path: string;
  kv: string;
  effectiveBits: number;
  perplexity?: number;
  change?: number;
  kl?: number;
  top1?: number;
  attentionError?: number[];
  retrieved?: boolean[];
  drift?: { first: number; agreement: number }[];
}

/** What `evaluate --json` prints. */
interface Results {
  model: string;
  texts: { kind: string; file: string }[];
  windows: number;
  length: number;
  sinks: number;
  window: number;
  context: number;
  rows: Row[];
  codebooks?: {
    name: string;
    side: "keys" | "values";
    layer: number;
    bits: number;
    entropy: number;
    counts: number[];
  }[];
  outliers?: { name: string; layer: number; before: number[]; after: number[] }[];
}

const mean = (x: readonly number[]): number => x.reduce((sum, value) => sum + value, 0) / x.length;

/** What a row is called in a plot: presets of the model's own calibration by their name alone. */
const labelOf = ({ name, method, kv }: Row): string => method === "calibrated" ? kv : name;

const colorOf = ({ path }: Row): Color => path === "fused" ? "a" : "b";

function readResults(path: string): Results {
  let results: Results;
  try {
    results = JSON.parse(readFileSync(path, "utf8"));
  } catch (cause) {
    throw new Error(`${path}: cannot be read as JSON (${(cause as Error).message})`, { cause });
  }
  if (!Array.isArray(results?.rows) || !Array.isArray(results?.texts)) {
    throw new Error(`${path}: has no rows and texts; give what \`evaluate --json\` printed`);
  }
  return results;
}

/** KL against effective bits, a panel a kind of text. */
function qualityPlot(results: Results): string | undefined {
  const shown = results.rows.filter(({ kl, name }) => kl !== undefined && kl > 0 && name !== "bf16");
  if (shown.length === 0) return undefined;
  const kls = shown.map(({ kl }) => kl!), bits = shown.map(({ effectiveBits }) => effectiveBits);
  const x = { title: "effective bits a channel", range: [Math.min(...bits) - 0.3, Math.max(...bits) + 0.9] as const };
  const y = {
    title: "KL to bf16, nats a token",
    range: [Math.min(...kls) / 1.3, Math.max(...kls) * 1.3] as const,
    log: true,
  };
  const kinds = results.texts.map(({ kind }) => kind).filter((kind) => shown.some(({ text }) => text === kind));
  const columns = kinds.length === 1 ? 1 : 2,
    width = kinds.length === 1 ? 800 : 560,
    height = kinds.length === 1 ? 440 : 360;
  const panels = kinds.map((kind, i) => {
    const box = { x: 72 + i % columns * (width + 76), y: 88 + Math.floor(i / columns) * (height + 84), width, height };
    const panel = new Panel(box, kind, x, y), rows = shown.filter(({ text }) => text === kind);
    // A line joins the settings of one method.
    for (const family of new Set(rows.map(familyOf))) {
      const own = rows.filter((row) => familyOf(row) === family).sort((a, b) => a.effectiveBits - b.effectiveBits);
      if (own.length > 1) panel.line(own.map((row) => [row.effectiveBits, row.kl!]), colorOf(own[0]), 0.35);
    }
    for (const row of rows) {
      panel.dot(
        row.effectiveBits,
        row.kl!,
        colorOf(row),
        `${row.title}: ${row.effectiveBits.toFixed(2)} bits, KL ${row.kl!.toFixed(4)}`,
      );
    }
    for (const row of rows) {
      panel.label(row.effectiveBits, row.kl!, labelOf(row), colorOf(row), row.method.startsWith("vecinfer"));
    }
    return String(panel);
  });
  const key = '<text class="a-text" x="72" y="54">● through the fused attention</text>' +
    '<text class="b-text" x="270" y="54">● on the reference path</text>';
  const rows = Math.ceil(kinds.length / columns);
  return svg(
    `Quality against size: what each cache loses, at the bits it takes (${results.context} tokens, everything counted)`,
    72 + columns * (width + 76) - 44,
    88 + rows * (height + 84) - 20,
    key + panels.join(""),
  );
}

function familyOf({ method }: Row): string {
  return method.replace(/:.*/, "") + (method.includes(":") && !/:[a-z]\d/.test(method) ? method : "");
}

/** Largest magnitude of each key channel over the layer's median, before and after the transform. */
function outlierPlot(results: Results): string | undefined {
  const flattens = (entry: { before: number[]; after: number[] }) => entry.before.some((x, i) => x !== entry.after[i]);
  const name = results.outliers?.find(flattens)?.name,
    layers = results.outliers?.filter((entry) => entry.name === name);
  if (!layers?.length) return undefined;
  const ratios = (x: number[]) => {
    const median = [...x].sort((a, b) => a - b)[x.length >> 1];
    return x.map((value) => value / median);
  };
  const most = Math.max(...layers.flatMap(({ before }) => ratios(before))), channels = layers[0].before.length;
  const worst = layers.reduce((a, b) => Math.max(...ratios(a.before)) > Math.max(...ratios(b.before)) ? a : b);
  const x = { title: "channel of all KV heads", range: [0, channels - 1] as const };
  const y = { title: "max |k| over the layer's median", range: [0, most * 1.08] as const };
  const panels = (["before", "after"] as const).map((when, i) => {
    const title = when === "before" ? "keys as they are" : `after the transform of ${name}`;
    const panel = new Panel({ x: 72 + i * 520, y: 76, width: 440, height: 320 }, title, x, y);
    for (const entry of layers) {
      if (entry !== worst) panel.line(ratios(entry[when]).map((value, channel) => [channel, value]), "muted", 0.35);
    }
    const own = ratios(worst[when]), peak = Math.max(...own);
    panel.line(own.map((value, channel) => [channel, value]), "a");
    panel.label(own.indexOf(peak), peak, `layer ${worst.layer}: ${peak.toFixed(1)} x`, "a", true);
    return String(panel);
  });
  return svg(
    "Outliers of the keys: channels before and after the transform, a line a layer",
    1080,
    452,
    panels.join(""),
  );
}

/** How often codewords are chosen, from the most used to the least: a panel a cache. */
function codebookPlot(results: Results): string | undefined {
  if (!results.codebooks?.length) return undefined;
  const x = { title: "% of the codewords, the most used first", range: [0, 100] as const };
  const y = { title: "times as in equal use", range: [0.02, 50] as const, log: true };
  const names = [...new Set(results.codebooks.map(({ name }) => name))], columns = Math.min(3, names.length);
  const panels = names.map((name, i) => {
    const box = { x: 72 + i % columns * 350, y: 76 + Math.floor(i / columns) * 270, width: 270, height: 190 };
    const panel = new Panel(box, name, x, y);
    for (const [side, color] of [["keys", "a"], ["values", "b"]] as const) {
      const layers = results.codebooks!.filter((entry) => entry.name === name && entry.side === side);
      if (layers.length === 0) continue;
      const { bits, counts } = layers[0], words = counts.length;
      const sums = counts.map((_, word) => mean(layers.map((layer) => layer.counts[word])));
      const total = sums.reduce((sum, n) => sum + n, 0);
      panel.line(sums.map((n, word) => [100 * word / (words - 1), n / total * words]), color);
      const entropy = mean(layers.map((layer) => layer.entropy)).toFixed(2);
      panel.note(side === "keys" ? 0 : 1, `${side}: ${entropy} of ${bits} bits`, color);
    }
    return String(panel);
  });
  const rows = Math.ceil(names.length / columns),
    title = "Use of codewords: how often each is chosen, and the entropy of the codes";
  return svg(title, Math.max(600, 40 + columns * 350), 76 + rows * 270, panels.join(""));
}

/** The figures of one text. */
function figures(results: Results, kind: string): string {
  const rows = results.rows.filter(({ text }) => text === kind);
  const columns: [string, (row: Row) => string | undefined][] = [
    ["cache", (row) => labelOf(row)],
    ["what it is", ({ title, paper }) => paper ? `${title} (${paper})` : title],
    ["path", ({ path }) => path],
    ["bits", ({ effectiveBits }) => effectiveBits.toFixed(2)],
    ["perplexity", ({ perplexity }) => perplexity?.toFixed(3)],
    [
      "change",
      ({ change }) => change === undefined ? undefined : `${change < 0 ? "" : "+"}${(100 * change).toFixed(2)} %`,
    ],
    ["KL", ({ kl }) => kl?.toFixed(4)],
    ["top-1", ({ top1 }) => top1?.toFixed(4)],
    ["attention error", ({ attentionError }) => attentionError && mean(attentionError).toFixed(4)],
    ["retrieval", ({ retrieved }) => retrieved && `${retrieved.filter(Boolean).length}/${retrieved.length}`],
    ["first difference", ({ drift }) => drift && mean(drift.map(({ first }) => first)).toFixed(0)],
    ["agreement", ({ drift }) => drift && mean(drift.map(({ agreement }) => agreement)).toFixed(3)],
  ];
  const used = columns.filter(([, show]) => rows.some((row) => show(row) !== undefined));
  const head = used.map(([title]) => `<th>${title}</th>`).join("");
  const body = rows.map((row) => `<tr>${used.map(([, show]) => `<td>${escape(show(row) ?? "")}</td>`).join("")}</tr>`);
  return `<div class="wide"><table><thead><tr>${head}</tr></thead><tbody>${body.join("\n")}</tbody></table></div>`;
}

/** The whole page. */
function page(all: { path: string; results: Results; plots: Record<string, string> }[]): string {
  const sections = all.map(({ results, plots }) => {
    const { model, windows, length, sinks, window, context, texts, rows } = results;
    const known = rows[0]?.retrieved?.filter(Boolean).length;
    const notes = [
      `${windows} windows of ${length} predictions a text; sinks ${sinks}, window ${window}; bits at ${context} tokens.`,
      "Caches on the reference path hold what their method would give back as bf16: quality is the method's, speed is not.",
      ...known !== undefined && known < 5
        ? [`bf16 itself finds ${known} of 10 planted facts: retrieval says nothing here.`]
        : [],
    ];
    return `<h2>${escape(model)}</h2><p>${notes.map(escape).join(" ")}</p>` +
      Object.values(plots).map((plot) => `<figure>${plot}</figure>`).join("") +
      texts.map(({ kind, file }) => `<h3>${escape(kind)}: ${escape(file)}</h3>${figures(results, kind)}`).join("");
  });
  const style =
    `${STYLE}body{background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:1180px;` +
    "margin:2rem auto;padding:0 1rem}figure{margin:1.5rem 0}svg{width:100%;height:auto}.wide{overflow-x:auto}" +
    "table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}" +
    "td{white-space:nowrap}td:nth-child(2){white-space:normal}th,td{padding:.3rem .6rem;border-bottom:1px solid var(--grid);text-align:right}" +
    "th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}th{color:var(--muted);font-weight:500}";
  return '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">' +
    `<meta name="color-scheme" content="light dark"><title>Caches compared</title><style>${style}</style></head>` +
    `<body><h1>Caches compared</h1>${sections.join("")}</body></html>\n`;
}

await command({
  name: "report",
  summary: "one self-contained page and its plots from the JSON of evaluate",
  usage: "scripts/report.ts [options] <evaluate.json>...",
  positionals: [1, 64],
  options: {
    out: { type: "string", short: "o", default: "report", help: "folder for index.html and the plots" },
    json: { type: "boolean", help: "print one JSON object with the files' names" },
  },
}, ({ options, positionals }) => {
  if (options.out === "") throw new UsageError("--out is empty");
  mkdirSync(options.out, { recursive: true });
  const files: string[] = [],
    write = (name: string, text: string) => {
      const path = join(options.out, name);
      writeFileSync(path, text);
      files.push(path);
    };
  const all = positionals.map((path, i) => {
    const results = readResults(path), plots: Record<string, string> = {};
    for (
      const [name, draw] of [["quality", qualityPlot], ["outliers", outlierPlot], ["codebooks", codebookPlot]] as const
    ) {
      const plot = draw(results);
      if (plot === undefined) continue;
      plots[name] = plot;
      write(positionals.length > 1 ? `${name}-${i + 1}.svg` : `${name}.svg`, plot);
    }
    return { path, results, plots };
  });
  write("index.html", page(all));
  if (options.json) console.log(JSON.stringify({ files }));
  else for (const file of files) console.log(file);
});
