/**
 * Methods that are product quantizers: what their calibration is trained for. They run through the fused attention.
 *
 * @module
 */

import type { MethodInfo } from "./method.ts";

/** What the codebooks of a product quantizer are trained on and shared by. */
export interface ProductScheme {
  /** Smooth factors of the keys. */
  readonly smooth: boolean;
  /** Walsh-Hadamard transform of the keys. */
  readonly keyHadamard: boolean;
  /** A transform of keys and values fitted to each KV head, in place of both. */
  readonly fitted: boolean;
  /** A codebook a KV head, or one for all heads of a layer. */
  readonly perHead: boolean;
  /** A codebook a sub-vector, or one for all sub-vectors of a head. */
  readonly perPart: boolean;
  /** The same codebooks in all layers. */
  readonly shared: boolean;
  /** Whether vectors count by what their error does to the attention's output. */
  readonly weighted: boolean;
}

/** A product quantizer, at whatever formats the cache has. */
export interface ProductMethod extends MethodInfo {
  /** Its path. */
  readonly path: "fused";
  /** What is trained; "file": the calibration beside the model, "data-free": codebooks for N(0, 1), which need no training. */
  readonly scheme: ProductScheme | "file" | "data-free";
}

const plain: ProductScheme = {
  smooth: false,
  keyHadamard: false,
  fitted: false,
  perHead: false,
  perPart: false,
  shared: false,
  weighted: false,
};

/** The scheme of one of several settings; throws RangeError that names them. */
function choose(method: string, setting: string, schemes: Record<string, ProductScheme>): ProductScheme {
  if (Object.hasOwn(schemes, setting)) return schemes[setting];
  const names = Object.keys(schemes).filter((name) => name !== "").map((name) => `${method}:${name}`);
  throw new RangeError(`${method}:${setting}: settings are ${[method, ...names].join(", ")}`);
}

function fused(
  base: string,
  setting: string,
  title: string,
  paper: string,
  scheme: ProductMethod["scheme"],
): ProductMethod {
  return { name: setting ? `${base}:${setting}` : base, title, paper, path: "fused", scheme };
}

/** What the model comes with: its calibration file, or the data-free scheme where there is none. */
export function calibrated(setting: string): ProductMethod {
  if (setting) throw new RangeError(`calibrated:${setting}: there are no settings`);
  return fused("calibrated", "", "the model's own calibration", "this package", "file");
}

/** Hadamard transform of keys and values, a token scale, and one codebook for N(0, 1): nothing is trained. */
export function dataFree(setting: string): ProductMethod {
  if (setting) throw new RangeError(`data-free:${setting}: there are no settings`);
  return fused("data-free", "", "data-free: codebooks for N(0, 1)", "this package", "data-free");
}

/**
 * VecInfer (arXiv 2510.06175): keys smoothed by sqrt(max |k_i|) and rotated by a Hadamard matrix, values as they are, one
 * codebook a layer for each. Settings: `hadamard` and `plain` leave the smooth factors out, or both transforms: the
 * ablations of the paper.
 */
export function vecinfer(setting: string): ProductMethod {
  const scheme = choose("vecinfer", setting, {
    "": { ...plain, smooth: true, keyHadamard: true },
    hadamard: { ...plain, keyHadamard: true },
    plain,
  });
  const title = {
    "": "VecInfer, the paper's recipe",
    hadamard: "VecInfer, Hadamard alone",
    plain: "VQ alone",
  }[setting]!;
  return fused("vecinfer", setting, title, "arXiv 2510.06175", scheme);
}

/**
 * This project's own recipe at one format for all layers: transforms fitted to each KV head, a codebook for each, centroids weighted by
 * importance. A calibration file of a preset such as `vq2+`, which `calibrated` takes, has formats a layer as well.
 */
export function vecinferPlus(setting: string): ProductMethod {
  const scheme = choose("vecinfer+", setting, { "": { ...plain, fitted: true, perHead: true, weighted: true } });
  return fused("vecinfer+", "", "fitted transforms, a codebook a head, weighted", "this package", scheme);
}

/**
 * MILLION (arXiv 2504.03661): a codebook for each sub-vector, no transform, trained on all layers and heads together and
 * used by all. Settings: `layer` trains each layer apart. Differs from the paper: codes are written when a token arrives, not
 * a block at a time, and formats of 12 bits run through the same attention.
 */
export function million(setting: string): ProductMethod {
  const scheme = choose("million", setting, {
    "": { ...plain, perPart: true, shared: true },
    layer: { ...plain, perPart: true },
  });
  const title = setting ? "MILLION, codebooks a layer" : "MILLION";
  return fused("million", setting, title, "arXiv 2504.03661", scheme);
}

/**
 * CQ, coupled quantization (arXiv 2405.03917): the channels of a sub-vector are coded together, by a codebook for each
 * layer, KV head and sub-vector, with centroids that weigh vectors by importance. Settings: `plain` does not weigh. Differs
 * from the paper: keys are coded after RoPE, and the weights are what an error does to the attention's output in the
 * forward pass, not the squared gradients of the loss.
 */
export function coupled(setting: string): ProductMethod {
  const scheme = choose("cq", setting, {
    "": { ...plain, perHead: true, perPart: true, weighted: true },
    plain: { ...plain, perHead: true, perPart: true },
  });
  return fused("cq", setting, setting ? "CQ, not weighted" : "CQ", "arXiv 2405.03917", scheme);
}
