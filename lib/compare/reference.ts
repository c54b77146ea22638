/**
 * The reference path: a bf16 cache whose pages hold what a method would give back of each token.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import type { KvLayer } from "../ops/ops.ts";
import { type CacheOptions, KvCache, type Sequence } from "../cache/cache.ts";
import { exactSide } from "../cache/calibration.ts";
import { type CacheShape, type KvConfig, kvConfig, RING_SURPLUS } from "../cache/format.ts";
import type { ExactTokens, ReferenceMethod, TokenGroup } from "./method.ts";

/**
 * A cache of a {@linkcode ReferenceMethod}. Tokens are stored exactly, as in any cache; `settle` then replaces those of
 * complete groups in the pages. Sinks and the ring of newest tokens stay exact, so attention reads each token as the
 * method would keep it. A fork shares pages, so it belongs at the end of a group. It is as large and as slow as a bf16
 * cache: for measuring quality.
 */
export class ReferenceCache extends KvCache {
  /** What reconstructs the tokens. */
  readonly method: ReferenceMethod;
  readonly #pages: KvLayer[];
  /** By layer. */
  readonly #reconstruct: WeakMap<Sequence, ((group: TokenGroup) => void)[]> = new WeakMap();

  /** Allocates a cache. */
  constructor(device: Device, shape: CacheShape, method: ReferenceMethod, exact: ExactTokens, options: CacheOptions) {
    const { sinks, window } = exact, exactConfig = kvConfig("bf16");
    const config: KvConfig = { ...exactConfig, name: method.name, sinks, window, recent: window + RING_SURPLUS };
    super(device, shape, config, { keys: exactSide(), values: exactSide() }, options);
    this.method = method;
    this.#pages = Array.from({ length: shape.layers }, (_, layer) => this.bindPages(layer));
  }

  /** Bytes that the method keeps of one sequence of `tokens` tokens; not what this cache allocates. */
  methodBytes(tokens: number): number {
    return this.method.bytes(this.shape, tokens, this.config);
  }

  /** Reconstructs the groups of a sequence that have become complete. */
  override settle(sequence: Sequence): void {
    const { method, shape, config } = this, { group } = method;
    let reconstruct = this.#reconstruct.get(sequence);
    if (!reconstruct) {
      reconstruct = Array.from({ length: shape.layers }, (_, layer) => method.reconstructor(shape, layer));
      this.#reconstruct.set(sequence, reconstruct);
    }
    // After `truncate` to the middle of a group its tokens stay as reconstructed; the group is done again with the new ones.
    const begin = Math.max(Math.floor(sequence.settled / group) * group, config.sinks);
    const end = Math.floor(sequence.length / group) * group;
    sequence.settled = end;
    if (begin >= end) return;
    const count = end - begin, width = shape.kvHeads * shape.headDim;
    const { device } = this.layers[0];
    using keyTensor = Tensor.empty(device, "f32", [count, width]);
    using valueTensor = Tensor.empty(device, "f32", [count, width]);
    using slots = Tensor.from(device, new Int32Array(count).fill(sequence.slot));
    using positions = Tensor.from(device, Int32Array.from({ length: count }, (_, i) => begin + i));
    for (let layer = 0; layer < shape.layers; layer++) {
      const pages = this.#pages[layer];
      pages.dequantize(keyTensor, valueTensor, sequence.slot, begin);
      const keys = keyTensor.read<Float32Array>(), values = valueTensor.read<Float32Array>();
      for (let first = begin; first < end;) {
        const rows = Math.min(end, (Math.floor(first / group) + 1) * group) - first;
        const part = (x: Float32Array) => x.subarray((first - begin) * width, (first - begin + rows) * width);
        reconstruct[layer]({ first, count: rows, keys: part(keys), values: part(values) });
        first += rows;
      }
      keyTensor.write(keys);
      valueTensor.write(values);
      pages.quantize(keyTensor, valueTensor, slots, positions);
    }
  }
}
