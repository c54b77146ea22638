/**
 * A model's fingerprint: what ties a calibration file to the weights it was made from.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { isGguf, readModelConfig } from "./config.ts";
import { Gguf } from "./gguf.ts";
import { openModel } from "./safetensors.ts";
import type { TensorFile } from "./tensor_file.ts";

/** Bytes sampled at the start and in the middle of each tensor. */
const SAMPLE_BYTES = 256;

/**
 * SHA-256 (hexadecimal) over the configuration that shapes keys and values, over every tensor's name, dtype and shape,
 * and over a sample of its bytes. A model gives the same fingerprint however it is cut into shards; a fine-tuned one
 * gives another, and so does each GGUF file of one model. Reads two short pieces of each tensor, not the weights. Throws WeightsError as
 * {@link readModelConfig} and {@link openModel} do.
 */
export function modelFingerprint(folder: string): string {
  const config = readModelConfig(folder);
  const hash = createHash("sha256");
  const { architecture, layers, heads, kvHeads, headDim, hiddenSize, rmsNormEps, ropeTheta, ropeScaling } = config;
  const { rotaryDim, unrotatedLayers, multipliers } = config;
  const special = [rotaryDim, unrotatedLayers, multipliers].some((value) => value !== undefined)
    ? [rotaryDim ?? headDim, unrotatedLayers ?? [], multipliers ?? null]
    : [];
  const shaping = [architecture, layers, heads, kvHeads, headDim, hiddenSize, rmsNormEps, ropeTheta, ropeScaling];
  hash.update(JSON.stringify([...shaping, ...special]));
  using weights: TensorFile = isGguf(folder) ? Gguf.open(folder) : openModel(folder);
  for (const name of weights.names.sort()) {
    const { dtype, shape, byteLength } = weights.info(name);
    hash.update(JSON.stringify([name, dtype, shape]));
    const sample = new Uint8Array(Math.min(SAMPLE_BYTES, byteLength));
    for (const offset of [0, Math.floor((byteLength - sample.byteLength) / 2)]) {
      weights.readInto(name, offset, sample);
      hash.update(sample);
    }
  }
  return hash.digest("hex");
}
