/**
 * The KV cache of a model: pages of codes shared by sequences, and per sequence the first and the newest tokens in
 * bf16. Page tables live here, the layout inside a page in the native library (see `cuda/include/vecinfer.h`).
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { KvLayer, Quantizer, Transform } from "../ops/ops.ts";
import type { Calibration, SideCalibration } from "./calibration.ts";
import {
  type CacheBytes,
  type CacheShape,
  type KvConfig,
  layerFormat,
  matrixBytes,
  PAGE_TOKENS,
  tokenBytes,
} from "./format.ts";
import { transformMatrices } from "./matrix.ts";
import { WeightsError } from "../weights/safetensors.ts";

/** The cache has no free page or slot left; freeing sequences, or a larger cache, helps. */
export class CacheFullError extends Error {
  /** Always "CacheFullError". */
  override readonly name: string = "CacheFullError";
}

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
export class KvCache implements Disposable {
  /** What is kept, and how. */
  readonly config: KvConfig;
  /** The model's sizes. */
  readonly shape: CacheShape;
  /** Where transforms and codebooks come from. */
  readonly calibration: Calibration;
  /** The native binding of each layer, for ops. */
  readonly layers: readonly KvLayer[];
  /** Pages in all. */
  readonly pageCount: number;
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
  readonly #references: Int32Array;
  readonly #freePages: number[];
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
    this.pageCount = Math.ceil(tokens / PAGE_TOKENS);
    this.#references = new Int32Array(this.pageCount);
    this.#freePages = Array.from({ length: this.pageCount }, (_, i) => this.pageCount - 1 - i);
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
    const { subDim, bits } = layerFormat(side, side.format, layer);
    const { codebook, smooth, matrix } = bits === 16 ? {} : side.layers[layer] ?? {};
    const plain = codebook && !smooth && !matrix, shared = plain ? this.#quantizers.get(codebook) : undefined;
    if (shared) return shared;
    using codebooks = codebook && Tensor.from(this.#device, codebook, [codebook.length / subDim, subDim]);
    const { codebookHeads, codebookParts } = side;
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
    const { kvHeads, headDim } = this.shape, { smooth, matrix } = side.layers[layer] ?? {}, { hadamard } = side;
    if (!smooth && !matrix && !hadamard) return null;
    using factors = smooth && Tensor.from(this.#device, smooth, [kvHeads, headDim]);
    using matrices = matrix && this.#matrices(matrix, side, layer);
    return this.#keep(new Transform(this.#device, { kvHeads, headDim, smooth: factors, matrices, hadamard }));
  }

  #matrices(matrix: Float32Array, side: SideCalibration, layer: number): Tensor {
    const { kvHeads, headDim } = this.shape, which = side === this.calibration.keys ? "keys" : "values";
    try {
      return Tensor.from(this.#device, transformMatrices(matrix, headDim), [3, kvHeads, headDim, headDim]);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      throw new WeightsError(`${side.origin}: layers.${layer}.${which}.matrix: ${error.message}`);
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

  /**
   * A second binding of a layer's pages, without ring and sinks: what is stored through it goes to the pages alone. For
   * caches that change what is in them.
   */
  protected bindPages(layer: number): KvLayer {
    const { quantizers: [keys, values], pages: [keyPages, valuePages] } = this.#memory[layer];
    const tables = { pageTable: this.#pageTable, exactFrom: this.#exactFrom };
    return this.#keep(
      new KvLayer(this.#device, { keys, values, keyPages, valuePages, ...tables, sinks: 0, window: 0, recent: 0 }),
    );
  }

  /** Called between steps, once a step's tokens are stored, for caches that code tokens in groups. */
  settle(_sequence: Sequence): void {}

  /** Pages that no sequence holds. */
  get freePages(): number {
    return this.#freePages.length;
  }

  /** Pages that more than one sequence holds. */
  get sharedPages(): number {
    return this.#references.reduce((count, references) => count + Number(references > 1), 0);
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

  /** The bytes this cache has allocated, by use; codebooks and matrices as they are kept in files, f16 and one of three matrices. */
  bytes(): CacheBytes {
    const out: CacheBytes = { pages: 0, scales: 0, window: 0, sinks: 0, codebooks: 0, total: 0 };
    const row = this.slots * this.shape.kvHeads * this.shape.headDim * 2 * 2 * this.shape.layers;
    for (const which of ["keys", "values"] as const) {
      const side = this.calibration[which];
      const tokens = this.pageCount * PAGE_TOKENS;
      for (let layer = 0; layer < this.shape.layers; layer++) {
        const token = tokenBytes(this.shape, layerFormat(side, side.format, layer), side.tokenScale);
        out.pages += tokens * token.codes;
        out.scales += tokens * token.scale;
      }
      for (const codebook of new Set(side.layers.map((layer) => layer.codebook))) out.codebooks += codebook.length * 2;
      for (const { smooth, matrix } of side.layers) {
        out.codebooks += (smooth?.byteLength ?? 0) + (matrix ? matrixBytes(this.shape) : 0);
      }
    }
    out.window = row * this.config.recent;
    out.sinks = row * this.config.sinks;
    out.total = out.pages + out.scales + out.window + out.sinks + out.codebooks;
    return out;
  }

  /** Bytes that each further token takes: codes and scales of all layers. */
  get bytesPerToken(): number {
    return this.#pageBytes / PAGE_TOKENS;
  }

  /** @internal Takes a page for `slot`'s table at `index`, with the contents of `from` where it was shared. */
  takePage(slot: number, index: number, from?: number): number {
    const page = this.#freePages.pop();
    if (page === undefined) {
      throw new CacheFullError(
        `KV cache: all ${this.pageCount} pages (${this.pageCount * PAGE_TOKENS} tokens) are in use; ` +
          "dispose a sequence, or make the cache with more tokens",
      );
    }
    this.#references[page] = 1;
    if (from !== undefined) {
      for (const { pages } of this.#memory) {
        for (const side of pages) side.rows(page, 1).copyFrom(side.rows(from, 1));
      }
      this.releasePage(from);
    }
    this.#pageTable.write(Int32Array.of(page), slot * this.#maxPages + index);
    return page;
  }

  /** @internal */
  sharePages(slot: number, pages: readonly number[]): void {
    for (const page of pages) this.#references[page]++;
    if (pages.length) this.#pageTable.write(Int32Array.from(pages), slot * this.#maxPages);
  }

  /** @internal */
  isShared(page: number): boolean {
    return this.#references[page] > 1;
  }

  /** @internal */
  releasePage(page: number): void {
    if (--this.#references[page] === 0) this.#freePages.push(page);
  }

  /** @internal */
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

/** One sequence of tokens in a {@linkcode KvCache}. */
export class Sequence implements Disposable {
  /** The cache it lives in. */
  readonly cache: KvCache;
  /** Its row in page tables and rings. */
  readonly slot: number;
  /** @internal Tokens from the start that `cache.settle` is done with. */
  settled: number = 0;
  #length = 0;
  #exactFrom = 0;
  #exposed = 0;
  #pages: number[] = [];
  #disposed = false;

  /** @internal Use `cache.sequence()`. */
  constructor(cache: KvCache, slot: number) {
    this.cache = cache;
    this.slot = slot;
    cache.writeExactFrom(slot, 0);
  }

  /** Tokens stored, or about to be by the step in progress. */
  get length(): number {
    return this.#length;
  }

  /** Lowest position that is in the ring of newest tokens once the tokens of `extend` are stored. */
  get exactFrom(): number {
    return this.#exactFrom;
  }

  /** Pages in order. */
  get pages(): readonly number[] {
    return this.#pages;
  }

  /**
   * Makes room for `count` more tokens: they get pages of their own (a shared last page is copied first).
   * Throws RangeError past the cache's context, and CacheFullError with nothing changed where pages run out.
   */
  extend(count: number): void {
    this.#alive();
    const { context, config } = this.cache, length = this.#length + count;
    if (length > context) {
      throw new RangeError(`sequence: ${this.#length} + ${count} tokens do not fit the cache's context of ${context}`);
    }
    const last = this.#pages.length - 1,
      copy = this.#length % PAGE_TOKENS !== 0 && this.cache.isShared(this.#pages[last]);
    const wanted = Math.ceil(length / PAGE_TOKENS) - this.#pages.length;
    if (wanted + Number(copy) > this.cache.freePages) {
      throw new CacheFullError(
        `KV cache: ${wanted + Number(copy)} pages are needed for ${count} tokens, ${this.cache.freePages} are free; ` +
          "dispose a sequence, or make the cache with more tokens",
      );
    }
    if (copy) this.#pages[last] = this.cache.takePage(this.slot, last, this.#pages[last]);
    for (let i = 0; i < wanted; i++) this.#pages.push(this.cache.takePage(this.slot, this.#pages.length));
    this.#length = length;
    if (count > this.cache.stepTokens) this.#exactFrom = Math.max(this.#exactFrom, length - config.recent);
  }

  /** Tells the device from which position on the ring holds this sequence's tokens. Called around a prompt's `quantize`. */
  expose(position: number): void {
    if (position === this.#exposed) return;
    this.cache.writeExactFrom(this.slot, position);
    this.#exposed = position;
  }

  /** A second sequence with the same tokens. Pages are shared until one of the two writes to them. */
  fork(): Sequence {
    this.#alive();
    const copy = this.cache.sequence();
    copy.#length = this.#length;
    copy.settled = this.settled;
    copy.#pages = [...this.#pages];
    this.cache.sharePages(copy.slot, copy.#pages);
    this.cache.copySlot(copy.slot, this.slot);
    copy.#exactFrom = this.#exactFrom;
    copy.expose(this.#exactFrom);
    return copy;
  }

  /**
   * Drops tokens from the end. Up to `cache.stepTokens` dropped tokens leave no trace; after more, some positions of
   * the window have left the ring and are read from their codes until new tokens have filled it again.
   */
  truncate(length: number): void {
    this.#alive();
    if (!Number.isInteger(length) || length < 0 || length > this.#length) {
      throw new RangeError(`sequence: cannot truncate ${this.#length} tokens to ${length}`);
    }
    const pages = Math.ceil(length / PAGE_TOKENS);
    for (const page of this.#pages.splice(pages)) this.cache.releasePage(page);
    if (this.cache.config.recent > 0) {
      this.#exactFrom = Math.min(length, Math.max(this.#exactFrom, this.#length - this.cache.config.recent));
      this.expose(this.#exactFrom);
    }
    this.#length = length;
    this.settled = Math.min(this.settled, length);
  }

  #alive(): void {
    if (this.#disposed) throw new Error("sequence: used after it was disposed");
  }

  /** Gives its pages and its slot back. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const page of this.#pages.splice(0)) this.cache.releasePage(page);
    this.cache.releaseSlot(this.slot);
  }
}
