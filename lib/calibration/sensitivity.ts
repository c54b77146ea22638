/**
 * Which layers of a model deserve more bits: the sensitivity of each layer's keys and values to being quantized, and the
 * formats that spend a budget of bits where it counts.
 *
 * @module
 */

import { KvCache } from "../cache/cache.ts";
import type { CacheShape } from "../cache/bytes.ts";
import { bf16Calibration, type Calibration } from "../cache/calibration.ts";
import { type CodedFormatName, type Format, FORMATS } from "../cache/format.ts";
import { growingLayers } from "../cache/ring.ts";
import { kvConfig, type Side, SIDES } from "../cache/scheme.ts";
import type { Model } from "../models/model.ts";
import { evaluate } from "./quality.ts";

/** KL to the bf16 cache, in nats, with one side of one layer quantized and all else exact; 0 of layers with a sliding window. */
export interface Sensitivity {
  /** One figure a layer. */
  keys: readonly number[];
  /** One figure a layer. */
  values: readonly number[];
}

/** Options of {@linkcode sensitivity}. */
export interface SensitivityOptions {
  /** Called with caches done and in all. */
  onProgress?: (done: number, total: number) => void;
  /** Stops between steps. */
  signal?: AbortSignal;
}

/** Caches that are evaluated side by side. */
const AT_ONCE = 8;

/** Measures every layer's keys and values with the codes of `calibration`, by teacher forcing on `passages`. */
export async function sensitivity(
  model: Model,
  calibration: Calibration,
  passages: readonly Int32Array[],
  options: SensitivityOptions = {},
): Promise<Sensitivity> {
  const shape = model.cacheShape, { layers } = shape, exact = FORMATS.bf16;
  const context = Math.max(...passages.map(({ length }) => length));
  const out = { keys: new Array<number>(layers).fill(0), values: new Array<number>(layers).fill(0) };
  const config = kvConfig({ keys: calibration.keys.format.name, values: calibration.values.format.name });
  const cases = SIDES.flatMap((side) => growingLayers(shape).map((layer) => ({ side, layer })));
  using reference = new KvCache(model.device, shape, kvConfig("bf16"), bf16Calibration(), { context });
  for (let begin = 0; begin < cases.length; begin += AT_ONCE) {
    using owned = new DisposableStack();
    const batch = cases.slice(begin, begin + AT_ONCE);
    const caches = batch.map(({ side, layer }) => {
      const only = (own: Side) => ({
        ...calibration[own],
        layerFormats: Array.from(
          { length: layers },
          (_, i) => own === side && i === layer ? calibration[own].format : exact,
        ),
      });
      const alone = { keys: only("keys"), values: only("values") };
      return owned.use(new KvCache(model.device, shape, config, alone, { context }));
    });
    const qualities = await evaluate(model, reference, caches, passages, { signal: options.signal });
    batch.forEach(({ side, layer }, i) => out[side][layer] = Math.max(0, qualities[i + 1].kl));
    options.onProgress?.(Math.min(cases.length, begin + AT_ONCE), cases.length);
  }
  return out;
}

/**
 * Mean squared error of a format on N(0,1) after its own codebook, a channel: what a layer's KL is taken to be
 * proportional to.
 */
export const DISTORTION: Readonly<Record<CodedFormatName, number>> = {
  d8b8: 0.324,
  d8b12: 0.172,
  d4b6: 0.186,
  d4b8: 0.0979,
  d4b10: 0.0511,
  d4b12: 0.0264,
  d2b8: 0.0079,
};

function distortion({ name }: Format): number {
  if (!Object.hasOwn(DISTORTION, name)) throw new RangeError(`there is no distortion of ${name}`);
  return DISTORTION[name as CodedFormatName];
}

/** The codes' bits a channel. */
function rate(format: Format): number {
  return format.bits / format.subDim;
}

/** The formats on the lower convex hull of distortion against rate, in the order of their rates. */
function convexHull(choices: readonly Format[]): Format[] {
  const ladder = [...choices].sort((a, b) => rate(a) - rate(b) || distortion(b) - distortion(a));
  const hull: Format[] = [];
  for (const format of ladder) {
    if (hull.length > 0 && distortion(hull.at(-1)!) <= distortion(format)) continue;
    if (hull.length > 0 && rate(hull.at(-1)!) === rate(format)) hull.pop();
    const slope = (a: Format, b: Format) => (distortion(a) - distortion(b)) / (rate(b) - rate(a));
    while (hull.length > 1 && slope(hull.at(-2)!, hull.at(-1)!) <= slope(hull.at(-1)!, format)) hull.pop();
    hull.push(format);
  }
  return hull;
}

/**
 * Formats a layer and side that minimize sum_l s_l D(f_l) / D(f_0), s_l the sensitivity at format f_0 and D the
 * {@linkcode DISTORTION}, with a mean rate of at most `bits` a channel of the layers that are coded: steps along each layer's convex hull in the order of
 * gain a bit, which is Lagrange's condition.
 */
export function allocate(
  shape: CacheShape,
  measured: Sensitivity,
  at: Format,
  bits: number,
  choices: readonly Format[],
): { keys: Format[]; values: Format[] } {
  const hull = convexHull(choices), coded = growingLayers(shape), exact = FORMATS.bf16;
  const level = { keys: new Array<number>(shape.layers).fill(0), values: new Array<number>(shape.layers).fill(0) };
  let left = 2 * (bits - rate(hull[0])) * coded.length;
  for (;;) {
    let best: { side: Side; layer: number; gain: number; cost: number } | undefined;
    for (const side of SIDES) {
      for (const layer of coded) {
        const now = level[side][layer], next = hull[now + 1];
        if (!next) continue;
        const cost = rate(next) - rate(hull[now]);
        const fall = distortion(hull[now]) - distortion(next);
        const gain = measured[side][layer] / distortion(at) * fall / cost;
        if (cost <= left + 1e-9 && (!best || gain > best.gain)) best = { side, layer, gain, cost };
      }
    }
    if (!best) break;
    level[best.side][best.layer]++;
    left -= best.cost;
  }
  const formats = (side: Side) => level[side].map((i, layer) => coded.includes(layer) ? hull[i] : exact);
  return { keys: formats("keys"), values: formats("values") };
}
