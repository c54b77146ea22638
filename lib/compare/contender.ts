/**
 * A method and its cache for one model.
 *
 * @module
 */

import { cacheBytes } from "../cache/bytes.ts";
import { KvCache } from "../cache/cache.ts";
import { type Calibration, describeCalibration } from "../cache/calibration.ts";
import type { KvConfig } from "../cache/scheme.ts";
import type { Model } from "../models/model.ts";
import type { Method } from "./method.ts";
import { ReferenceCache } from "./reference.ts";

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
    bytes: (tokens) => cacheBytes(shape, config, calibration, tokens).total,
    [Symbol.dispose]: () => cache[Symbol.dispose](),
  };
}
