/**
 * Methods that are product quantizers: the schemes of `lib/cache/scheme.ts`. They run through the fused attention.
 *
 * @module
 */

import { type SchemeName, SCHEMES } from "../cache/scheme.ts";
import type { ProductMethod } from "./method.ts";

/**
 * What schemes are called and where they are published. Where they differ from the papers:
 *
 * - `million`: codes are written when a token arrives, not a block at a time, and formats of 12 bits run through the same attention.
 * - `cq`: keys are coded after RoPE, and the weights are what an error does to the attention's output in the forward pass, not the squared
 *   gradients of the loss.
 *
 * `vecinfer:hadamard` and `vecinfer:plain` are ablations of the paper. `vecinfer+` is at one format for all layers here; a calibration file of
 * a preset such as `vq2+`, which `calibrated` takes, has formats a layer as well.
 */
const PUBLISHED: Readonly<Record<Exclude<SchemeName, "bf16">, { title: string; paper: string }>> = {
  "data-free": { title: "data-free: codebooks for N(0, 1)", paper: "this package" },
  "vecinfer": { title: "VecInfer, the paper's recipe", paper: "arXiv 2510.06175" },
  "vecinfer:hadamard": { title: "VecInfer, Hadamard alone", paper: "arXiv 2510.06175" },
  "vecinfer:plain": { title: "VQ alone", paper: "arXiv 2510.06175" },
  "vecinfer+": { title: "fitted transforms, a codebook a head, weighted", paper: "this package" },
  "million": { title: "MILLION", paper: "arXiv 2504.03661" },
  "million:layer": { title: "MILLION, codebooks a layer", paper: "arXiv 2504.03661" },
  "cq": { title: "CQ", paper: "arXiv 2405.03917" },
  "cq:plain": { title: "CQ, not weighted", paper: "arXiv 2405.03917" },
};

/** What the model comes with: its calibration file, or the data-free scheme where there is none. */
export function calibrated(setting: string): ProductMethod {
  if (setting) throw new RangeError(`calibrated:${setting}: there are no settings`);
  const title = "the model's own calibration";
  return { name: "calibrated", title, paper: "this package", path: "fused", scheme: "file" };
}

/** What makes the methods of the schemes whose names begin with `base` from the setting behind it; that throws RangeError for others. */
export function product(base: Exclude<SchemeName, "bf16">): (setting: string) => ProductMethod {
  const names = Object.keys(SCHEMES).filter((name) => name === base || name.startsWith(`${base}:`));
  return (setting) => {
    const name = setting ? `${base}:${setting}` : base;
    if (!names.includes(name)) {
      const known = names.length === 1 ? "there are no settings" : `settings are ${names.join(", ")}`;
      throw new RangeError(`${name}: ${known}`);
    }
    const scheme = name as Exclude<SchemeName, "bf16">;
    return { name, ...PUBLISHED[scheme], path: "fused", scheme };
  };
}
