/**
 * A method and its cache for one model: product quantizers are calibrated on a text, the others need nothing.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { KvCache } from "../cache/cache.ts";
import { type Calibration, describeCalibration, exactSide, type SideCalibration } from "../cache/calibration.ts";
import { cacheBytes, type CacheShape, type KvConfig } from "../cache/format.ts";
import type { Method } from "./method.ts";
import type { ProductMethod, ProductScheme } from "./product.ts";
import { ReferenceCache } from "./reference.ts";
import type { Model } from "../models/model.ts";
import { Activations, type CaptureOptions } from "../calibration/activations.ts";
import { train, trainCodebook } from "../calibration/calibrate.ts";

/** Options of {@linkcode MethodCalibrator}. */
export interface MethodOptions {
  /** Called as codebooks are done. */
  onProgress?: (done: number, total: number) => void;
  /** Stops between k-means iterations. */
  signal?: AbortSignal;
}

/** Calibrates methods on one text; what the model's attention sees there is captured once for all of them. */
export class MethodCalibrator implements Disposable {
  readonly #model: Model;
  readonly #windows: readonly Int32Array[];
  readonly #captured: (CaptureOptions & { activations: Activations })[] = [];

  /** Takes windows of tokens of the calibration text. */
  constructor(model: Model, windows: readonly Int32Array[]) {
    this.#model = model;
    this.#windows = windows;
  }

  /** What attention sees on the text. The calibrator's own: it goes with it. */
  async activations(options: CaptureOptions = {}): Promise<Activations> {
    const { skip = 4, context, window = 0, weights = false } = options;
    // The window is one of the weights alone.
    const known = this.#captured.find((old) =>
      old.skip === skip && old.context === context && (!weights || old.weights && old.window === window)
    );
    if (known) return known.activations;
    const activations = await Activations.capture(this.#model, this.#windows, options);
    this.#captured.push({ skip, context, window, weights, activations });
    return activations;
  }

  /** The calibration of a product quantizer for `config`. Positions that the cache keeps as sinks are left out. */
  async calibrate(method: ProductMethod, config: KvConfig, options: MethodOptions = {}): Promise<Calibration> {
    const { scheme } = method, { sinks: skip, window } = config, { device } = this.#model;
    if (typeof scheme === "string") throw new RangeError(`${method.name}: nothing is trained for it`);
    const { smooth, keyHadamard, fitted, perHead, weighted: importance } = scheme;
    const activations = await this.activations({
      skip,
      // Transforms are fitted to keys at all positions that the model can have.
      context: fitted ? this.#model.config.contextLength : undefined,
      window,
      weights: importance || fitted,
      signal: options.signal,
    });
    if (!scheme.perPart) {
      const recipe = { smooth, keyHadamard, fitted, perHead, importance };
      const calibration = await train(device, activations, config, recipe, options);
      for (const side of [calibration.keys, calibration.values]) side.origin = `${method.name}, trained now`;
      return calibration;
    }
    const [keys, values] = (["keys", "values"] as const).map((which) => books(activations, scheme, config, which));
    const total = keys + values;
    let done = 0;
    const sides: SideCalibration[] = [];
    for (const which of ["keys", "values"] as const) {
      sides.push(
        await trainParts(device, method.name, scheme, config, which, activations, {
          ...options,
          onProgress: () => options.onProgress?.(++done, total),
        }),
      );
    }
    return { keys: sides[0], values: sides[1] };
  }

  /** Frees what was captured. */
  [Symbol.dispose](): void {
    for (const { activations } of this.#captured.splice(0)) activations[Symbol.dispose]();
  }
}

/** Codebooks of a side. */
function books({ shape }: Activations, scheme: ProductScheme, config: KvConfig, which: "keys" | "values"): number {
  const { layers, kvHeads, headDim } = shape, { bits, subDim } = config[which];
  return bits === 16 ? 0 : (scheme.shared ? 1 : layers) * (scheme.perHead ? kvHeads : 1) * headDim / subDim;
}

/** Sub-vectors a codeword is trained on, at most. */
const POINTS = 256;

/** Trains codebooks of each sub-vector, of one side. */
async function trainParts(
  device: Device,
  name: string,
  scheme: ProductScheme,
  config: KvConfig,
  which: "keys" | "values",
  activations: Activations,
  options: MethodOptions,
): Promise<SideCalibration> {
  const { layers, kvHeads, headDim } = activations.shape, format = config[which];
  if (format.bits === 16) return exactSide();
  const { subDim, bits } = format, parts = headDim / subDim, words = 2 ** bits;
  const codebookHeads = scheme.perHead ? kvHeads : 1, groups = scheme.shared ? 1 : layers;
  const trained: Float32Array[] = [];
  for (let layer = 0; layer < groups; layer++) {
    const codebook = new Float32Array(codebookHeads * parts * words * subDim);
    const from = scheme.shared ? Array.from({ length: layers }, (_, i) => i) : [layer];
    const sources = from.map((layer): Source => ({
      rows: activations.rows(layer, which),
      importance: scheme.weighted ? activations.importance(layer, which) : undefined,
    }));
    for (let head = 0; head < codebookHeads; head++) {
      for (let part = 0; part < parts; part++) {
        const own = scheme.perHead ? head : null;
        const { points, weights } = pointsOf(sources, activations.shape, own, part, subDim, POINTS * words);
        if (points.length < words * subDim) {
          throw new RangeError(
            `${name}: ${points.length / subDim} sub-vectors are too few for ${words} codewords; use more text`,
          );
        }
        const book = await trainCodebook(device, format, points, weights, {}, { signal: options.signal });
        codebook.set(book, (head * parts + part) * words * subDim);
        options.onProgress?.(0, 0);
      }
    }
    trained.push(codebook);
  }
  return {
    format,
    hadamard: false,
    tokenScale: false,
    smooth: false,
    codebookHeads,
    codebookParts: parts,
    layers: Array.from({ length: layers }, (_, layer) => ({ codebook: trained[scheme.shared ? 0 : layer] })),
    origin: `${name}, trained now`,
  };
}

/** One layer's vectors of a side, [tokens, kvHeads, headDim], and their importance, [tokens, kvHeads], where it counts. */
interface Source {
  readonly rows: Float32Array;
  readonly importance: Float32Array | undefined;
}

/**
 * Sub-vector `part` of the vectors of one KV head, or of all (null), evenly spread where there are more than `most`, and
 * their importance.
 */
function pointsOf(
  sources: readonly Source[],
  { kvHeads, headDim }: CacheShape,
  head: number | null,
  part: number,
  subDim: number,
  most: number,
): { points: Float32Array; weights: Float32Array | undefined } {
  const vectors = sources[0].rows.length / headDim / (head === null ? 1 : kvHeads);
  const available = sources.length * vectors, count = Math.min(available, most);
  const points = new Float32Array(count * subDim);
  const weights = sources[0].importance && new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const pick = Math.floor((i + 0.5) * available / count), { rows, importance } = sources[pick % sources.length];
    const picked = Math.floor(pick / sources.length), vector = head === null ? picked : picked * kvHeads + head;
    const at = vector * headDim + part * subDim;
    points.set(rows.subarray(at, at + subDim), i * subDim);
    if (weights && importance) weights[i] = importance[vector];
  }
  return { points, weights };
}

/** A cache to be measured, and what it is. */
export interface Contender extends Disposable {
  /** The method's name; for product quantizers with the cache's formats, `million vq2`. */
  readonly name: string;
  /** The method. */
  readonly method: Method;
  /** Its cache. */
  readonly cache: KvCache;
  /** Where its codebooks come from. */
  readonly calibration: string;
  /** Bytes kept of one sequence of `tokens` tokens, everything counted; codebooks as f16. */
  bytes(tokens: number): number;
}

/** Makes a method's cache. `calibration` is that of a product quantizer; the others take none. */
export function contender(
  model: Model,
  method: Method,
  config: KvConfig,
  calibration: Calibration | undefined,
  context: number,
): Contender {
  const { device } = model, shape = model.cacheShape;
  if (method.path === "reference") {
    const cache = new ReferenceCache(device, shape, method, config, { context });
    const bytes = (tokens: number) => cache.methodBytes(tokens);
    return {
      name: method.name,
      method,
      cache,
      calibration: "none",
      bytes,
      [Symbol.dispose]: () => cache[Symbol.dispose](),
    };
  }
  if (!calibration) throw new RangeError(`${method.name}: a product quantizer needs a calibration`);
  const cache = new KvCache(device, shape, config, calibration, { context });
  return {
    name: `${method.name} ${config.name}`,
    method,
    cache,
    calibration: describeCalibration(calibration),
    bytes(tokens) {
      const { total, codebooks } = cacheBytes(shape, config, calibration, tokens);
      return total - codebooks + cache.bytes().codebooks; // each codebook once where layers share it
    },
    [Symbol.dispose]: () => cache[Symbol.dispose](),
  };
}
