/**
 * The KV cache of a model: pages of codes shared by sequences, and per sequence the first and the newest tokens in
 * bf16. The memory lives here, what is whose in `pages.ts`, the layout inside a page in the native library (see
 * `cuda/include/vecinfer.h`).
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { KvLayer, PAGE_TOKENS, Quantizer, Transform } from "../ops/ops.ts";
import { allocatedBytes, type CacheBytes, type CacheShape } from "./bytes.ts";
import type { Calibration, SideCalibration } from "./calibration.ts";
import { SingularError, transformMatrices } from "./matrix.ts";
import { CacheFullError, type PageChange, PagePool } from "./pages.ts";
import { codebookCounts, hasHadamard, type KvConfig, layerFormat } from "./scheme.ts";
import { Sequence, type SequenceCache } from "./sequence.ts";
import { WeightsError } from "../weights/safetensors.ts";

/** Sizes of a {@linkcode KvCache}. */
export interface CacheOptions {
  /** Sequences that may exist at once. Default 1. */
  sequences?: number;
  /** Longest sequence, in tokens. */
  context: number;
  /** Tokens in all sequences together, rounded up to pages. Default: room for `sequences` of length `context`. */
  tokens?: number;
}

/** Tensors that one layer's pages, ring and sinks live in; null where a part has size 0. */
interface LayerMemory {
  quantizers: [Quantizer, Quantizer];
  pages: [Tensor, Tensor];
  /** key ring, value ring, key sinks, value sinks: [slots, kvHeads, rows, headDim]. */
  exact: Tensor[];
}

/** A paged cache for several sequences. */
export class KvCache implements SequenceCache, Disposable {
  /** What is kept, and how. */
  readonly config: KvConfig;
  /** The model's sizes. */
  readonly shape: CacheShape;
  /** Where transforms and codebooks come from. */
  readonly calibration: Calibration;
  /** The native binding of each layer, for ops. */
  readonly layers: readonly KvLayer[];
  /** Which pages are whose. */
  readonly pages: PagePool;
  /** Sequences that may exist at once. */
  readonly slots: number;
  /** Longest sequence, in tokens. */
  readonly context: number;
  readonly #device: Device;
  readonly #maxPages: number;
  readonly #memory: LayerMemory[] = [];
  readonly #owned: Disposable[] = [];
  readonly #pageTable: Tensor;
  readonly #exactFrom: Tensor;
  readonly #freeSlots: number[];
  readonly #pageBytes: number;
  /** Quantizers of a codebook alone: layers that share the one share the other. */
  readonly #quantizers: Map<Float32Array, Quantizer> = new Map();

  /**
   * Allocates a cache. Throws VecInferError (UNSUPPORTED) for a head dimension that the library has no code for, and WeightsError that
   * names the calibration where a transform has no inverse.
   */
  constructor(device: Device, shape: CacheShape, config: KvConfig, calibration: Calibration, options: CacheOptions) {
    const { sequences = 1, context } = options;
    const tokens = options.tokens ?? sequences * Math.ceil(context / PAGE_TOKENS) * PAGE_TOKENS;
    for (const [name, value] of Object.entries({ sequences, context, tokens })) {
      if (!Number.isInteger(value) || value < 1) {
        throw new RangeError(`KvCache: ${name} is ${value}; at least 1 is needed`);
      }
    }
    this.config = config;
    this.shape = shape;
    this.calibration = calibration;
    this.context = context;
    this.slots = sequences;
    this.#device = device;
    this.#maxPages = Math.ceil(context / PAGE_TOKENS);
    this.pages = new PagePool(Math.ceil(tokens / PAGE_TOKENS));
    this.#freeSlots = Array.from({ length: sequences }, (_, i) => sequences - 1 - i);
    const layers: KvLayer[] = [];
    try {
      this.#pageTable = this.#keep(Tensor.zeros(device, "i32", [sequences, this.#maxPages]));
      this.#exactFrom = this.#keep(Tensor.zeros(device, "i32", [sequences]));
      for (let layer = 0; layer < shape.layers; layer++) layers.push(this.#bind(layer));
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
    this.layers = layers;
    const all = this.#memory.flatMap(({ pages }) => pages);
    this.#pageBytes = all.reduce((sum, pages) => sum + pages.byteLength, 0) / this.pageCount;
  }

  #keep<T extends Disposable>(owned: T): T {
    this.#owned.push(owned);
    return owned;
  }

  #quantizer(side: SideCalibration, layer: number): Quantizer {
    const { kvHeads, headDim } = this.shape;
    const format = layerFormat(side, side.format, layer), { subDim, bits } = format;
    const { codebook, smooth, matrix } = bits === 16 ? {} : side.layers[layer] ?? {};
    const plain = codebook && !smooth && !matrix, shared = plain ? this.#quantizers.get(codebook) : undefined;
    if (shared) return shared;
    using codebooks = codebook && Tensor.from(this.#device, codebook, [codebook.length / subDim, subDim]);
    const { heads: codebookHeads, parts: codebookParts } = codebookCounts(side.codebooks, this.shape, format);
    const quantizer = this.#keep(
      new Quantizer(this.#device, {
        kvHeads,
        headDim,
        subDim,
        bits,
        codebooks: codebooks ?? null,
        transform: bits < 16 ? this.#transform(side, layer) : null,
        codebookHeads,
        codebookParts,
        tokenScale: side.tokenScale && bits < 16,
      }),
    );
    if (plain) this.#quantizers.set(codebook, quantizer);
    return quantizer;
  }

  #transform(side: SideCalibration, layer: number): Transform | null {
    const { kvHeads, headDim } = this.shape, { smooth, matrix } = side.layers[layer] ?? {};
    const hadamard = hasHadamard(side.transform);
    if (!smooth && !matrix && !hadamard) return null;
    using factors = smooth && Tensor.from(this.#device, smooth, [kvHeads, headDim]);
    using matrices = matrix && this.#matrices(matrix, side, layer);
    return this.#keep(new Transform(this.#device, { kvHeads, headDim, smooth: factors, matrices, hadamard }));
  }

  #matrices(matrix: Float32Array, side: SideCalibration, layer: number): Tensor {
    const { kvHeads, headDim } = this.shape, name = side === this.calibration.keys ? "keys" : "values";
    try {
      return Tensor.from(this.#device, transformMatrices(matrix, headDim), [3, kvHeads, headDim, headDim]);
    } catch (error) {
      if (!(error instanceof SingularError)) throw error;
      throw new WeightsError(`${side.origin}: layers.${layer}.${name}.matrix: ${error.message}`);
    }
  }

  #bind(layer: number): KvLayer {
    const { kvHeads, headDim } = this.shape, { sinks, window, recent } = this.config;
    const keys = this.#quantizer(this.calibration.keys, layer),
      values = this.#quantizer(this.calibration.values, layer);
    const pages = [keys, values].map((side) =>
      this.#keep(Tensor.empty(this.#device, "u8", [this.pageCount, side.pageBytes]))
    ) as [Tensor, Tensor];
    const rows = (count: number) =>
      count === 0 ? null : this.#keep(Tensor.empty(this.#device, "bf16", [this.slots, kvHeads, count, headDim]));
    const exact = [rows(recent), rows(recent), rows(sinks), rows(sinks)];
    this.#memory.push({ quantizers: [keys, values], pages, exact: exact.filter((tensor) => tensor !== null) });
    return this.#keep(
      new KvLayer(this.#device, {
        keys,
        values,
        keyPages: pages[0],
        valuePages: pages[1],
        keyRecent: exact[0],
        valueRecent: exact[1],
        keySinks: exact[2],
        valueSinks: exact[3],
        pageTable: this.#pageTable,
        exactFrom: this.#exactFrom,
        sinks,
        window,
        recent,
      }),
    );
  }

  /** A layer's quantizers of keys and values. */
  quantizers(layer: number): readonly [Quantizer, Quantizer] {
    return this.#memory[layer].quantizers;
  }

  /** Pages in all. */
  get pageCount(): number {
    return this.pages.count;
  }

  /** Pages that no sequence holds. */
  get freePages(): number {
    return this.pages.free;
  }

  /** Pages that more than one sequence holds. */
  get sharedPages(): number {
    return this.pages.shared;
  }

  /** Whether more than one sequence holds a page. */
  isShared(page: number): boolean {
    return this.pages.isShared(page);
  }

  /** Tokens that one step may add to a sequence: the ring's surplus over the window. Without a ring, no limit. */
  get stepTokens(): number {
    return this.config.recent === 0 ? Infinity : this.config.recent - this.config.window;
  }

  /** Starts an empty sequence. Throws CacheFullError where all slots are taken. */
  sequence(): Sequence {
    const slot = this.#freeSlots.pop();
    if (slot === undefined) {
      throw new CacheFullError(
        `KV cache: all ${this.slots} sequences are in use; dispose one, or make the cache with more`,
      );
    }
    return new Sequence(this, slot);
  }

  /** The bytes this cache has allocated, by use, as {@linkcode allocatedBytes} counts them. */
  bytes(): CacheBytes {
    const { shape, config, calibration, pageCount: pages, slots: sequences } = this;
    return allocatedBytes(shape, config, calibration, { pages, sequences });
  }

  /** Bytes that each further token takes: codes and scales of all layers. */
  get bytesPerToken(): number {
    return this.#pageBytes / PAGE_TOKENS;
  }

  /** @internal Writes entries of `slot`'s page table, once the page that the first is a copy of is copied. */
  writePages(slot: number, { first, pages, copyOf }: PageChange): void {
    if (copyOf !== undefined) {
      for (const { pages: sides } of this.#memory) {
        for (const side of sides) side.rows(pages[0], 1).copyFrom(side.rows(copyOf, 1));
      }
    }
    this.#pageTable.write(Int32Array.from(pages), slot * this.#maxPages + first);
  }

  /** @internal Gives a slot back. */
  releaseSlot(slot: number): void {
    this.#freeSlots.push(slot);
  }

  /** @internal Copies ring and sinks from one slot to another. */
  copySlot(to: number, from: number): void {
    for (const { exact } of this.#memory) for (const part of exact) part.rows(to, 1).copyFrom(part.rows(from, 1));
  }

  /** @internal Tells the device from which position on `slot`'s ring rows are valid. */
  writeExactFrom(slot: number, position: number): void {
    this.#exactFrom.write(Int32Array.of(position), slot);
  }

  /** Frees all memory; sequences of this cache are gone with it. */
  [Symbol.dispose](): void {
    for (let owned = this.#owned.pop(); owned; owned = this.#owned.pop()) owned[Symbol.dispose]();
  }
}
