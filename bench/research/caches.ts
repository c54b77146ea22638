/**
 * The caches of the ablation's rows.
 *
 * @module
 */

import { needsImportance, train } from "../../lib/calibration/train.ts";
import { allocate, type Sensitivity, sensitivity } from "../../lib/calibration/sensitivity.ts";
import type { Model, Tokenizer } from "../../mod.ts";
import {
  Activations,
  isFitted,
  LAYER_FORMATS,
  type Quality,
  readText,
  ReferenceCache,
  textPassages,
  withLayerFormats,
} from "../../lib/calibration/mod.ts";
import {
  cacheBytes,
  type Calibration,
  dataFreeSide,
  effectiveBits,
  type Format,
  FORMATS,
  KvCache,
  kvConfig,
  type Scheme,
  SCHEMES,
} from "../../lib/ops/mod.ts";
import type { Progress } from "../../scripts/frame/command.ts";
import { coderMethod } from "./coders.ts";
import type { AblationRow } from "./schemes.ts";

/** Tokens of context that effective bits are counted over. */
export const COUNTED_CONTEXT = 32768;

/** What is found of a row. */
export interface Result {
  name: string;
  /** What the name stood for. */
  row: AblationRow;
  /** Formats and how many layers have them, where layers differ. */
  layers?: { keys: Record<string, number>; values: Record<string, number> };
  bits: number;
  seconds: number;
  calibration: string;
  /** Milliseconds a decode step with this cache, and with a bf16 cache in turn with it. */
  decode?: { tokens: number; milliseconds: number; exact: number };
  texts: Record<string, Omit<Quality, "nll">>;
}

/** A row's cache, before it is measured. */
export interface Made {
  result: Result;
  cache: KvCache;
}

/** A kind of text and its file. */
export interface Kind {
  kind: string;
  path: string;
}

/** Numbers of the command line. */
export interface Settings {
  windows: number;
  length: number;
  calibrationWindows: number;
  calibrationLength: number;
  calibrationContext: number;
  sensitivityWindows: number;
  sensitivityLength: number;
  samples: number;
  iterations: number;
  decode: number;
}

function tally(formats: readonly Format[] = []): Record<string, number> {
  return formats.reduce<Record<string, number>>((all, { name }) => ({ ...all, [name]: (all[name] ?? 0) + 1 }), {});
}

/** What rows are made from. */
export interface Source {
  model: Model;
  tokenizer: Tokenizer;
  settings: Settings;
  /** Calibration texts; the first is the default. */
  kinds: readonly Kind[];
  rows: readonly AblationRow[];
  signal: AbortSignal;
  progress: (label: string, total: number) => Progress;
  say: (text: string) => void;
}

/** Makes the caches of rows from one capture of activations a kind of calibration text. */
export class Maker implements Disposable {
  readonly sensitivities: Record<string, Sensitivity> = {};
  readonly #source: Source;
  readonly #texts: Map<string, { activations: Activations; passages: Int32Array[] }> = new Map();
  readonly #owned: DisposableStack = new DisposableStack();

  constructor(source: Source) {
    this.#source = source;
  }

  /** A row's cache; undefined where its calibration text is not there. */
  async make(row: AblationRow): Promise<Made | undefined> {
    const { model: { cacheShape: shape }, kinds, say } = this.#source, from = performance.now();
    const kind = row.calibration ?? kinds[0].kind, made = await this.#cacheOf(row, kind);
    if (!made) {
      say(`${row.name}: left out, no calibration text "${kind}"`);
      return undefined;
    }
    const { cache, bytes, layers } = made, calibration = isDataFree(row) ? "data-free" : kind;
    const seconds = Number(((performance.now() - from) / 1000).toFixed(2));
    const bits = effectiveBits(shape, bytes, COUNTED_CONTEXT);
    return { cache, result: { name: row.name, row, ...(layers && { layers }), bits, seconds, calibration, texts: {} } };
  }

  /** A row's cache, its bytes over the counted context, and the formats of its layers. */
  async #cacheOf(
    row: AblationRow,
    kind: string,
  ): Promise<{ cache: KvCache; bytes: number; layers?: Result["layers"] } | undefined> {
    const { model, settings: { length, samples, iterations }, signal, progress } = this.#source;
    const { device, cacheShape: shape } = model, options = { ...row.training, samples, iterations, signal };
    const config = kvConfig({ keys: row.keys, values: row.values, sinks: row.sinks, window: row.window });
    let calibration: Calibration;
    if (isDataFree(row)) {
      calibration = {
        keys: dataFreeSide(config.keys, shape.layers),
        values: dataFreeSide(config.values, shape.layers),
      };
    } else {
      const text = await this.#text(kind, row.scheme);
      if (!text) return undefined;
      const scheme = await this.#schemeOf(row, kind), { activations } = text;
      if (row.coder) {
        const bar = progress(row.name, 2 * shape.layers), source = { device, activations, config, scheme };
        const method = await coderMethod(row.coder, source, { ...options, onProgress: bar.update })
          .finally(() => bar.stop());
        const cache = new ReferenceCache(device, shape, method, config, { context: length });
        return { cache, bytes: cache.methodBytes(COUNTED_CONTEXT) };
      }
      calibration = await train(device, activations, config, scheme, options);
    }
    const { keys, values } = calibration;
    return {
      cache: new KvCache(device, shape, config, calibration, { context: length }),
      bytes: cacheBytes(shape, config, calibration, COUNTED_CONTEXT).total,
      ...(keys.layerFormats && { layers: { keys: tally(keys.layerFormats), values: tally(values.layerFormats) } }),
    };
  }

  /** A kind of calibration text and what attention sees on it, for a scheme; undefined where that text is not there. */
  async #text(kind: string, scheme: Scheme) {
    const { model, settings, kinds, rows, tokenizer, signal, say } = this.#source;
    // As `calibrate` does, for fitted transforms alone.
    const context = isFitted(scheme) && settings.calibrationContext || undefined;
    const key = `${kind} ${context}`, known = this.#texts.get(key);
    if (known) return known;
    const found = kinds.find((text) => text.kind === kind);
    if (!found) return undefined;
    const { calibrationLength, calibrationWindows } = settings, { window } = kvConfig("vq2");
    const passages = textPassages(tokenizer, readText(found.path), calibrationLength, calibrationWindows);
    const importance = rows.some(({ scheme }) => needsImportance(scheme));
    const activations = this.#owned.use(
      await Activations.capture(model, passages, { context, window, importance, signal }),
    );
    const made = { activations, passages };
    this.#texts.set(key, made);
    say(`captured ${kind}${context ? ` for a context of ${context}` : ""}`);
    return made;
  }

  /** A row's scheme, with the formats of the layers under its budget. */
  async #schemeOf({ scheme, choices = LAYER_FORMATS, training }: AblationRow, kind: string): Promise<Scheme> {
    const { bits, ...alike } = scheme, { model, settings, signal, progress, say } = this.#source;
    if (bits === undefined) return scheme;
    const { activations, passages } = (await this.#text(kind, scheme))!, shape = model.cacheShape;
    const at = FORMATS.d4b8, key = `${kind} ${at.name} ${JSON.stringify({ ...alike, ...training })}`;
    if (!this.sensitivities[key]) {
      const options = { ...training, samples: settings.samples, iterations: settings.iterations, signal };
      const base = await train(model.device, activations, kvConfig(at.name), alike, options);
      const bar = progress(`sensitivity on ${kind}`, 2 * shape.layers);
      const part = passages.slice(0, settings.sensitivityWindows)
        .map((tokens) => tokens.subarray(0, settings.sensitivityLength));
      this.sensitivities[key] = await sensitivity(model, base, part, { signal, onProgress: bar.update })
        .finally(() => bar.stop());
      say(`sensitivity ${key}`);
    }
    return withLayerFormats(alike, allocate(shape, this.sensitivities[key], at, bits, choices));
  }

  [Symbol.dispose](): void {
    this.#owned.dispose();
  }
}

function isDataFree({ scheme }: AblationRow): boolean {
  return scheme === SCHEMES["data-free"];
}
