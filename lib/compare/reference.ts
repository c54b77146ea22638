/**
 * The reference path: a bf16 cache whose pages hold what a method would give back of each token.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { type CacheOptions, KvCache } from "../cache/cache.ts";
import type { CacheShape } from "../cache/bytes.ts";
import { bf16Calibration } from "../cache/calibration.ts";
import { growingLayers } from "../cache/ring.ts";
import { type ExactTokens, type KvConfig, kvConfig, RING_SURPLUS } from "../cache/scheme.ts";
import type { Sequence } from "../cache/sequence.ts";
import type { ReferenceMethod, TokenGroup } from "./method.ts";

/**
 * A cache of a {@linkcode ReferenceMethod}. Tokens are stored exactly, as in any cache; `settle` then replaces those of
 * complete groups in the pages. Sinks and the ring of newest tokens stay exact, so attention reads each token as the
 * method would keep it. A fork shares pages, so it belongs at the end of a group. It is as large and as slow as a bf16
 * cache: for measuring quality.
 */
export class ReferenceCache extends KvCache {
  /** What reconstructs the tokens. */
  readonly method: ReferenceMethod;
  /** By layer. */
  readonly #reconstruct: WeakMap<Sequence, ((group: TokenGroup) => void)[]> = new WeakMap();
  readonly #device: Device;

  /** Allocates a cache. */
  constructor(device: Device, shape: CacheShape, method: ReferenceMethod, exact: ExactTokens, options: CacheOptions) {
    const { sinks, window } = exact, bf16 = kvConfig("bf16");
    const config: KvConfig = { ...bf16, name: method.name, sinks, window, recent: window + RING_SURPLUS };
    super(device, shape, config, bf16Calibration(), options);
    this.method = method;
    this.#device = device;
  }

  /** Bytes that the method keeps of one sequence of `tokens` tokens; not what this cache allocates. */
  methodBytes(tokens: number): number {
    const coded = { ...this.shape, layers: growingLayers(this.shape).length };
    return this.method.bytes(coded, tokens, this.config) + this.slidingBytes(tokens);
  }

  /** Reconstructs the groups of a sequence that are complete with its tokens from position `from` on, which are new. */
  settle(sequence: Sequence, from: number): void {
    const { method: { group }, shape, config } = this;
    // The tokens of a group that `truncate` has cut stay as reconstructed; the group is done again with the new ones.
    const begin = Math.max(Math.floor(from / group) * group, config.sinks);
    const end = Math.floor(sequence.length / group) * group;
    if (begin >= end) return;
    const count = end - begin, width = shape.kvHeads * shape.headDim;
    using keyTensor = Tensor.empty(this.#device, "f32", [count, width]);
    using valueTensor = Tensor.empty(this.#device, "f32", [count, width]);
    using slots = Tensor.from(this.#device, new Int32Array(count).fill(sequence.slot));
    using positions = Tensor.from(this.#device, Int32Array.from({ length: count }, (_, i) => begin + i));
    const reconstruct = this.#reconstructors(sequence);
    // What is stored while no position is in the ring goes to the pages alone.
    sequence.expose(sequence.starts.map((start, ring) => ring === 0 ? end : start));
    for (const layer of growingLayers(shape)) {
      const kvLayer = this.layers[layer];
      kvLayer.dequantize(keyTensor, valueTensor, sequence.slot, begin);
      const keys = keyTensor.read<Float32Array>(), values = valueTensor.read<Float32Array>();
      for (let first = begin; first < end;) {
        const rows = Math.min(end, (Math.floor(first / group) + 1) * group) - first;
        const part = (x: Float32Array) => x.subarray((first - begin) * width, (first - begin + rows) * width);
        reconstruct[layer]({ first, count: rows, keys: part(keys), values: part(values) });
        first += rows;
      }
      keyTensor.write(keys);
      valueTensor.write(values);
      kvLayer.quantize(keyTensor, valueTensor, slots, positions);
    }
    sequence.expose();
  }

  #reconstructors(sequence: Sequence): ((group: TokenGroup) => void)[] {
    const { method, shape } = this, known = this.#reconstruct.get(sequence);
    if (known) return known;
    const made = Array.from({ length: shape.layers }, (_, layer) => method.reconstructor(shape, layer));
    this.#reconstruct.set(sequence, made);
    return made;
  }
}

/** What a {@linkcode ReferenceCache} does after a step, or a prompt, that begins at position `from`; other caches need nothing. */
export function settle(cache: KvCache, sequence: Sequence, from: number): void {
  if (cache instanceof ReferenceCache) cache.settle(sequence, from);
}
