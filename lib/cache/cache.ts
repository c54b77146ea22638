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
import { bf16Side, type Calibration, type SideCalibration } from "./calibration.ts";
import { SingularError, transformMatrices } from "./matrix.ts";
import { CacheFullError, type PageChange, PagePool } from "./pages.ts";
import { growingLayers, layerWindow, type Ring, slidingRing } from "./ring.ts";
import { checkHeadDim, codebookCounts, hasHadamard, type KvConfig, layerFormat } from "./scheme.ts";
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

/** Tensors that one layer's pages, ring and sinks live in. */
interface LayerMemory {
  quantizers: [Quantizer, Quantizer];
  /** Of keys and values; none of a layer with a sliding window. */
  pages: Tensor[];
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
  /** Its rings of newest tokens: the first of layers that see all of a sequence, the others one a sliding window. */
  readonly rings: readonly Ring[];
  readonly #device: Device;
  readonly #maxPages: number;
  readonly #memory: LayerMemory[] = [];
  readonly #owned: Disposable[] = [];
  readonly #pageTable: Tensor;
  /** Of each ring, i32 [slots]. */
  readonly #exactFrom: readonly Tensor[];
  readonly #freeSlots: number[];
  readonly #pageBytes: number;
  /** Quantizers of a codebook alone: layers that share the one share the other. */
  readonly #quantizers: Map<Float32Array, Quantizer> = new Map();

  /**
   * Allocates a cache: pages of the layers that see all of a sequence, a ring for those with a sliding window. Throws RangeError for codes
   * of a head dimension that has none, and WeightsError that names the calibration where a transform has no inverse.
   */
  constructor(device: Device, shape: CacheShape, config: KvConfig, calibration: Calibration, options: CacheOptions) {
    const { sequences = 1, context } = options;
    checkHeadDim(config, shape.headDim);
    const grows = growingLayers(shape).length > 0, room = sequences * Math.ceil(context / PAGE_TOKENS) * PAGE_TOKENS;
    // Without a layer that grows pages are a count that takes no memory, and never short.
    const tokens = (grows ? options.tokens : undefined) ?? room;
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
    const sliding = [...new Set((shape.windows ?? []).filter((window) => window > 0))];
    this.rings = [config, ...sliding.map((window) => slidingRing(window, context))];
    this.#freeSlots = Array.from({ length: sequences }, (_, i) => sequences - 1 - i);
    const layers: KvLayer[] = [];
    try {
      this.#pageTable = this.#keep(Tensor.zeros(device, "i32", [sequences, this.#maxPages]));
      this.#exactFrom = this.rings.map(() => this.#keep(Tensor.zeros(device, "i32", [sequences])));
      for (let layer = 0; layer < shape.layers; layer++) {
        const window = layerWindow(shape, layer);
        layers.push(window > 0 ? this.#bindSliding(1 + sliding.indexOf(window)) : this.#bind(layer));
      }
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
    const { sinks, window, recent } = this.config;
    const keys = this.#quantizer(this.calibration.keys, layer),
      values = this.#quantizer(this.calibration.values, layer);
    const pages = [keys, values].map((side) =>
      this.#keep(Tensor.empty(this.#device, "u8", [this.pageCount, side.pageBytes]))
    ) as [Tensor, Tensor];
    const exact = [recent, recent, sinks, sinks].map((rows) => this.#rows(rows));
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
        exactFrom: this.#exactFrom[0],
        sinks,
        window,
        recent,
      }),
    );
  }

  /** A layer with a sliding window: the ring of this index and nothing else. */
  #bindSliding(ring: number): KvLayer {
    const exact = this.rings[ring], { window, recent } = exact, side = this.#quantizer(bf16Side(), 0);
    const [keyRecent, valueRecent] = [this.#rows(recent)!, this.#rows(recent)!];
    this.#memory.push({ quantizers: [side, side], pages: [], exact: [keyRecent, valueRecent] });
    return this.#keep(
      new KvLayer(this.#device, {
        keys: side,
        values: side,
        keyPages: null,
        valuePages: null,
        keyRecent,
        valueRecent,
        pageTable: null,
        exactFrom: this.#exactFrom[ring],
        sinks: 0,
        window,
        recent,
      }),
    );
  }

  /** Memory for exact tokens of a layer, [slots, kvHeads, count, headDim]. */
  #rows(count: number): Tensor | null {
    const { kvHeads, headDim } = this.shape;
    return count === 0 ? null : this.#keep(Tensor.empty(this.#device, "bf16", [this.slots, kvHeads, count, headDim]));
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

  /** Tokens that one step may add to a sequence: the rings' surplus over their windows. No limit where nothing leaves a ring. */
  get stepTokens(): number {
    const [{ window, recent }, ...sliding] = this.rings;
    const left = sliding.filter((ring) => ring.recent < this.context).map((ring) => ring.recent - ring.window);
    return Math.min(recent === 0 ? Infinity : recent - window, ...left);
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
    const { shape, config, calibration, pageCount: pages, slots: sequences, context } = this;
    return allocatedBytes(shape, config, calibration, { pages, sequences, context });
  }

  /** Bytes that a sequence of `length` tokens fills in rings of sliding windows. */
  slidingBytes(length: number): number {
    const { windows = [], kvHeads, headDim } = this.shape, sliding = windows.filter((window) => window > 0);
    const rows = sliding.reduce((sum, window) => sum + Math.min(length, slidingRing(window, this.context).recent), 0);
    return rows * kvHeads * headDim * 2 * 2;
  }

  /** Bytes that it fills in sinks and in rings of all kinds. */
  exactBytes(length: number): number {
    const { shape, config: { sinks, recent } } = this, rows = Math.min(length, recent) + Math.min(length, sinks);
    return this.slidingBytes(length) + growingLayers(shape).length * rows * shape.kvHeads * shape.headDim * 2 * 2;
  }

  /** Bytes that each further token takes: codes and scales of the layers that see all of a sequence. */
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

  /** @internal Tells the device from which position on the rows of `slot` in a ring are valid. */
  writeExactFrom(slot: number, ring: number, position: number): void {
    this.#exactFrom[ring].write(Int32Array.of(position), slot);
  }

  /** Frees all memory; sequences of this cache are gone with it. */
  [Symbol.dispose](): void {
    for (let owned = this.#owned.pop(); owned; owned = this.#owned.pop()) owned[Symbol.dispose]();
  }
}
