/**
 * Plots as SVG text that is readable on light and dark ground: axes, points, lines, and labels that keep apart.
 *
 * @module
 */

/** Text that may stand in XML. */
export function escape(text: string): string {
  return text.replace(/[&<>"]/g, (char) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[char]!);
}

/** Colors by name, on light and on dark ground. */
const COLORS = {
  ground: ["#ffffff", "#15181c"],
  ink: ["#1d2126", "#e8eaed"],
  muted: ["#5d6670", "#9aa3ad"],
  grid: ["#e3e6ea", "#2c3238"],
  a: ["#1f66d1", "#74a9ff"],
  b: ["#b8500f", "#ff9f5f"],
  c: ["#2b7d3f", "#6ccb84"],
  d: ["#8a3fb0", "#cf95ef"],
  e: ["#8a6a00", "#dcb03c"],
  f: ["#b3276e", "#f58cbd"],
  g: ["#0d7680", "#5cc4cd"],
} as const;

/** Names of colors for series. */
export type Color = (typeof SERIES)[number];

/** Colors of series, to be taken in turn. */
export const SERIES = ["a", "b", "c", "d", "e", "f", "g", "muted"] as const;

const vars = (dark: 0 | 1) => Object.entries(COLORS).map(([name, pair]) => `--${name}:${pair[dark]}`).join(";");

/** The style that plots and the page around them share. */
export const STYLE: string = `:root{${vars(0)}}@media(prefers-color-scheme:dark){:root{${vars(1)}}}` +
  "svg{font:12px system-ui,sans-serif;fill:var(--ink)}svg .title{font-size:15px;font-weight:600}" +
  "svg .muted{fill:var(--muted)}svg .grid{stroke:var(--grid);stroke-width:1}svg .strong{font-weight:600}" +
  SERIES.map((name) =>
    `svg .${name}-dot{fill:var(--${name});stroke:var(--ground);stroke-width:1.5}` +
    `svg .${name}-line{fill:none;stroke:var(--${name});stroke-width:1.5}svg .${name}-text{fill:var(--${name})}`
  ).join("");

/** A rectangle of the drawing. */
export interface Box {
  /** Left edge. */
  x: number;
  /** Top edge. */
  y: number;
  /** To the right. */
  width: number;
  /** Down. */
  height: number;
}

/** One axis: the range of values, and whether it is logarithmic. */
export interface Axis {
  /** What it shows, with its unit. */
  title: string;
  /** Smallest and largest value. */
  range: readonly [number, number];
  /** Powers of 10 at equal distances. */
  log?: boolean;
  /** What numbers along the axis count, and what is written behind them: 1024 and "k" for tokens. */
  unit?: readonly [size: number, suffix: string];
}

/** A panel: axes in a box, into which points and lines are drawn. */
export class Panel {
  readonly #box: Box;
  readonly #x: Axis;
  readonly #y: Axis;
  readonly #taken: Box[] = [];
  #body = "";

  /** Draws title, grid and axes into a box; 56 left, 40 below and 26 above it are for their text. */
  constructor(box: Box, title: string, x: Axis, y: Axis) {
    this.#box = box;
    this.#x = x;
    this.#y = y;
    const { x: left, y: top, width, height } = box, bottom = top + height;
    this.#body += `<text class="strong" x="${left}" y="${top - 10}">${escape(title)}</text>`;
    for (const tick of ticks(y)) {
      const at = this.yOf(tick).toFixed(1);
      this.#body += `<line class="grid" x1="${left}" x2="${left + width}" y1="${at}" y2="${at}"/>` +
        `<text class="muted" text-anchor="end" x="${left - 6}" y="${at}" dy="4">${format(y, tick)}</text>`;
    }
    for (const tick of ticks(x)) {
      const at = this.xOf(tick).toFixed(1);
      this.#body += `<line class="grid" x1="${at}" x2="${at}" y1="${top}" y2="${bottom}"/>` +
        `<text class="muted" text-anchor="middle" x="${at}" y="${bottom + 16}">${format(x, tick)}</text>`;
    }
    const middle = top + height / 2;
    this.#body += `<text class="muted" text-anchor="middle" x="${left + width / 2}" y="${bottom + 34}">${
      escape(x.title)
    }</text><text class="muted" text-anchor="middle" transform="translate(${left - 44} ${middle}) rotate(-90)">${
      escape(y.title)
    }</text>`;
  }

  /** Where a value stands from left to right. */
  xOf(value: number): number {
    return this.#box.x + share(this.#x, value) * this.#box.width;
  }

  /** Where a value stands from top to bottom. */
  yOf(value: number): number {
    return this.#box.y + (1 - share(this.#y, value)) * this.#box.height;
  }

  /** A dot, with its text for those who point at it. */
  dot(x: number, y: number, color: Color, hint: string, radius: number = 5): void {
    const at = { x: this.xOf(x), y: this.yOf(y) };
    this.#taken.push({ x: at.x - radius, y: at.y - radius, width: 2 * radius, height: 2 * radius });
    this.#body += `<circle class="${color}-dot" cx="${at.x.toFixed(1)}" cy="${at.y.toFixed(1)}" r="${radius}"><title>${
      escape(hint)
    }</title></circle>`;
  }

  /** A line through points. */
  line(
    points: readonly (readonly [number, number])[],
    color: Color,
    opacity: number = 1,
    dashed: boolean = false,
  ): void {
    const path = points.map(([x, y]) => `${this.xOf(x).toFixed(1)},${this.yOf(y).toFixed(1)}`).join(" ");
    this.#body += `<polyline class="${color}-line" opacity="${opacity}"${
      dashed ? ' stroke-dasharray="5 3"' : ""
    } points="${path}"/>`;
  }

  /** Names of lines to the right of where they end, 13 apart; 100 right of the box are for their text. */
  ends(lines: readonly { x: number; y: number; text: string; color: Color }[]): void {
    let above = Infinity;
    for (const { x, y, text, color } of lines.toSorted((a, b) => a.y - b.y)) {
      const place = above = Math.min(this.yOf(y) + 4, above - 13);
      this.#body += `<text class="${color}-text" x="${(this.xOf(x) + 8).toFixed(1)}" y="${place.toFixed(1)}">${
        escape(text)
      }</text>`;
    }
  }

  /** A label near a value, at the first place where it covers nothing; call after all dots. */
  label(x: number, y: number, text: string, color: Color, strong: boolean = false): void {
    const at = { x: this.xOf(x), y: this.yOf(y) }, width = text.length * 6.4, height = 13;
    const places: Box[] = [];
    for (const distance of [0, 14, 28, 42]) {
      for (const dy of distance === 0 ? [0] : [-distance, distance]) {
        places.push({ x: at.x + 9, y: at.y - height / 2 + dy, width, height });
        places.push({ x: at.x - 9 - width, y: at.y - height / 2 + dy, width, height });
        if (distance > 0) places.push({ x: at.x - width / 2, y: at.y - height / 2 + dy, width, height });
      }
    }
    const cost = (place: Box) =>
      this.#taken.reduce((sum, other) => sum + overlap(place, other), 0) + outside(place, this.#box);
    const costs = places.map(cost), place = places[costs.indexOf(Math.min(...costs))];
    this.#taken.push(place);
    // A label that had to go further is led back to its dot.
    if (Math.abs(place.y + height / 2 - at.y) > 20) {
      const end = Math.min(Math.max(at.x, place.x), place.x + width),
        edge = place.y > at.y ? place.y : place.y + height;
      this.#body += `<line class="${color}-line" opacity="0.5" x1="${at.x.toFixed(1)}" y1="${at.y.toFixed(1)}" x2="${
        end.toFixed(1)
      }" y2="${edge.toFixed(1)}"/>`;
    }
    this.#body += `<text class="${color}-text${strong ? " strong" : ""}" x="${place.x.toFixed(1)}" y="${
      (place.y + 10.5).toFixed(1)
    }">${escape(text)}</text>`;
  }

  /** A line of text in the upper right corner; line 0 is the first. */
  note(line: number, text: string, color: Color): void {
    const { x, y, width } = this.#box;
    this.#body += `<text class="${color}-text" text-anchor="end" x="${x + width - 6}" y="${y + 18 + 17 * line}">${
      escape(text)
    }</text>`;
  }

  /** The drawing so far. */
  toString(): string {
    return this.#body;
  }
}

function share({ range: [low, high], log }: Axis, value: number): number {
  if (!log) return (value - low) / (high - low);
  return Math.log(Math.max(value, low) / low) / Math.log(high / low);
}

function overlap(a: Box, b: Box): number {
  const width = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
  const height = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
  return width > 0 && height > 0 ? width * height : 0;
}

function outside(a: Box, frame: Box): number {
  return a.width * a.height - overlap(a, frame);
}

/** Round values along an axis: 1, 2 and 5 times powers of 10 of its unit, as many as fit. */
function ticks({ range, log, unit: [unit] = [1, ""] }: Axis): number[] {
  const out: number[] = [], [low, high] = range.map((value) => value / unit);
  if (log) {
    const few = high / low > 300;
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const factor of few ? [1] : high / low > 30 ? [1, 2, 5] : [1, 1.5, 2, 3, 5, 7]) {
        const tick = factor * 10 ** power;
        if (tick >= low * 0.999 && tick <= high * 1.001) out.push(tick * unit);
      }
    }
    return out;
  }
  const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough)! * power;
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) out.push(tick * unit);
  return out;
}

function format({ unit: [unit, suffix] = [1, ""] }: Axis, value: number): string {
  return value === 0 ? "0" : Number((value / unit).toPrecision(3)) + suffix;
}

/** A whole drawing, with its own style so that it can stand alone. */
export function svg(title: string, width: number, height: number, body: string): string {
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${
    escape(title)
  }">` +
    `<style>${STYLE}</style><rect width="${width}" height="${height}" fill="var(--ground)"/>` +
    `<text class="title" x="16" y="26">${escape(title)}</text>${body}</svg>\n`;
}
