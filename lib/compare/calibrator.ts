/**
 * Calibration of methods on one text.
 *
 * @module
 */

import type { Calibration } from "../cache/calibration.ts";
import { type KvConfig, SCHEMES } from "../cache/scheme.ts";
import { Activations, type CaptureOptions } from "../calibration/activations.ts";
import { isFitted } from "../calibration/calibrate.ts";
import { needsImportance, train } from "../calibration/train.ts";
import type { Model } from "../models/model.ts";
import type { ProductMethod } from "./method.ts";

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
  readonly #passages: readonly Int32Array[];
  readonly #captured: (CaptureOptions & { activations: Activations })[] = [];

  /** Takes passages of tokens of the calibration text. */
  constructor(model: Model, passages: readonly Int32Array[]) {
    this.#model = model;
    this.#passages = passages;
  }

  /** What attention sees on the text. The calibrator's own: it goes with it. */
  async activations(options: CaptureOptions = {}): Promise<Activations> {
    const { skip = 4, context, window = 0, importance = false } = options;
    // The window is one of the importance alone.
    const known = this.#captured.find((old) =>
      old.skip === skip && old.context === context && (!importance || old.importance && old.window === window)
    );
    if (known) return known.activations;
    const activations = await Activations.capture(this.#model, this.#passages, options);
    this.#captured.push({ skip, context, window, importance, activations });
    return activations;
  }

  /** The calibration of a product quantizer for `config`. Positions that the cache keeps as sinks are left out. */
  async calibrate(method: ProductMethod, config: KvConfig, options: MethodOptions = {}): Promise<Calibration> {
    if (method.scheme === "file" || method.scheme === "data-free") {
      throw new RangeError(`${method.name}: nothing is trained for it`);
    }
    const scheme = SCHEMES[method.scheme], { sinks: skip, window } = config;
    const activations = await this.activations({
      skip,
      // Transforms are fitted to keys at all positions that the model can have.
      context: isFitted(scheme) ? this.#model.config.contextLength : undefined,
      window,
      importance: needsImportance(scheme),
      signal: options.signal,
    });
    const calibration = await train(this.#model.device, activations, config, scheme, options);
    for (const side of [calibration.keys, calibration.values]) side.origin = `${method.name}, trained now`;
    return calibration;
  }

  /** Frees what was captured. */
  [Symbol.dispose](): void {
    for (const { activations } of this.#captured.splice(0)) activations[Symbol.dispose]();
  }
}
