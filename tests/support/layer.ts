/** A small cache layer with random contents, and what it should hold. @module */
import type { Device } from "../../lib/device.ts";
import { KvLayer, Quantizer, Transform } from "../../lib/ops/ops.ts";
import { Tensor } from "../../lib/tensor.ts";
import type { Random } from "./random.ts";
import { codedVector, hadamard } from "./reference.ts";

/** How one side is kept. */
export interface Side {
  subDim: number;
  bits: number;
  hadamard?: boolean;
  tokenScale?: boolean;
  smooth?: boolean;
  /** The two given as matrices. */
  asMatrices?: boolean;
  /** A codebook a KV head. */
  perHead?: boolean;
  /** A codebook a sub-vector. */
  perPart?: boolean;
}

/** Sizes of a {@linkcode TestLayer}. */
export interface LayerShape {
  kvHeads: number;
  headDim: number;
  slots: number;
  /** Pages a slot may have; 0 for a layer with a sliding window of `window` positions. */
  maxPages: number;
  sinks: number;
  window: number;
  recent: number;
}

/** A quantizer with random codebooks, and its transform and codes in float64. */
export class TestQuantizer implements Disposable {
  readonly native: Quantizer;
  readonly #transform: Transform | null;
  readonly #side: Side;
  readonly #smooth: Float32Array | undefined;
  readonly #codebook: Float32Array;
  readonly #headDim: number;

  constructor(device: Device, random: Random, side: Side, kvHeads: number, headDim: number) {
    const { subDim, bits } = side, heads = side.perHead ? kvHeads : 1, words = 2 ** bits;
    const codebookParts = side.perPart ? headDim / subDim : 1, shape = [heads, codebookParts, words, subDim];
    this.#side = side;
    this.#headDim = headDim;
    this.#smooth = side.smooth
      ? Float32Array.from({ length: kvHeads * headDim }, () => 0.5 + random.uniform())
      : undefined;
    const size = heads * codebookParts * words * subDim;
    using codebooks = bits === 16 ? undefined : Tensor.from(device, random.normals(size), shape);
    using smooth = this.#smooth && Tensor.from(device, this.#smooth, [kvHeads, headDim]);
    const { tokenScale, asMatrices = false } = side;
    using matrices = asMatrices ? this.#matrices(device, kvHeads) : undefined;
    const transform = bits === 16 ? null : new Transform(device, {
      kvHeads,
      headDim,
      smooth: asMatrices ? undefined : smooth,
      hadamard: side.hadamard && !asMatrices,
      matrices,
    });
    this.#transform = transform;
    this.native = new Quantizer(device, {
      kvHeads,
      headDim,
      subDim,
      bits,
      codebooks,
      transform,
      tokenScale,
      codebookParts,
    });
    if (bits === 16) {
      this.#codebook = new Float32Array(0);
    } else {
      using rounded = Tensor.empty(device, "f32", shape);
      this.native.codebook(rounded);
      this.#codebook = rounded.read();
    }
  }

  /** The transform; 16 bits go without. */
  get transform(): Transform {
    if (this.#transform === null) throw new Error("a side of 16 bits has no transform");
    return this.#transform;
  }

  /** The transform in its three directions, where each unit vector goes. */
  #matrices(device: Device, kvHeads: number): Tensor {
    const n = this.#headDim, all: number[] = [];
    for (const direction of ["forward", "query", "inverse"] as const) {
      for (let head = 0; head < kvHeads; head++) {
        for (let i = 0; i < n; i++) {
          all.push(...this[direction](Float64Array.from({ length: n }, (_, j) => Number(i === j)), head));
        }
      }
    }
    return Tensor.from(device, Float32Array.from(all), [3, kvHeads, n, n]);
  }

  /** x~ of a head's vector. */
  forward(x: ArrayLike<number>, head: number): number[] {
    const out = Array.from(x, (value, i) => value / (this.#smooth?.[head * this.#headDim + i] ?? 1));
    return this.#side.hadamard ? hadamard(out) : out;
  }

  /** q~ of a query's vector. */
  query(x: ArrayLike<number>, head: number): number[] {
    const out = Array.from(x, (value, i) => value * (this.#smooth?.[head * this.#headDim + i] ?? 1));
    return this.#side.hadamard ? hadamard(out) : out;
  }

  /** x of x~. */
  inverse(x: ArrayLike<number>, head: number): number[] {
    const out = this.#side.hadamard ? hadamard(x) : Array.from(x);
    return out.map((value, i) => value * (this.#smooth?.[head * this.#headDim + i] ?? 1));
  }

  /** What a head's vector is read back as, and how far the choice of its codewords was from another. */
  coded(x: ArrayLike<number>, head: number): { values: number[]; margin: number } {
    const { subDim, bits, tokenScale = false, perHead, perPart } = this.#side, size = 2 ** bits * subDim;
    const parts = perPart ? this.#headDim / subDim : 1, first = perHead ? head * parts : 0;
    const codebooks = Array.from({ length: this.#headDim / subDim }, (_, s) => {
      const index = first + (perPart ? s : 0);
      return this.#codebook.subarray(index * size, (index + 1) * size);
    });
    const { values, margin } = codedVector(this.forward(x, head), codebooks, subDim, tokenScale);
    return { values: this.inverse(values, head), margin };
  }

  [Symbol.dispose](): void {
    this.native[Symbol.dispose]();
    this.#transform?.[Symbol.dispose]();
  }
}

/**
 * A layer whose pages lie in random order, with memory and page table poisoned wherever nothing was stored: NaN bits, and
 * page indices that are none.
 */
export class TestLayer implements Disposable {
  readonly device: Device;
  readonly shape: LayerShape;
  readonly keys: TestQuantizer;
  readonly values: TestQuantizer;
  readonly native: KvLayer;
  readonly exactFrom: Tensor;
  readonly #owned: Disposable[] = [];

  constructor(device: Device, random: Random, keys: Side, values: Side, shape: LayerShape, pagesUsed: number) {
    const { kvHeads, headDim, slots, maxPages, sinks, window, recent } = shape;
    this.device = device;
    this.shape = shape;
    this.keys = this.#keep(new TestQuantizer(device, random, keys, kvHeads, headDim));
    this.values = this.#keep(new TestQuantizer(device, random, values, kvHeads, headDim));
    const order = random.permutation(slots * pagesUsed);
    const table = Int32Array.from({ length: slots * maxPages }, (_, i) => {
      const page = i % maxPages;
      return page < pagesUsed ? order[Math.floor(i / maxPages) * pagesUsed + page] : i % 2 ? -1e9 : 1e9;
    });
    const pages = (side: TestQuantizer): Tensor | null => {
      if (maxPages === 0) return null;
      return this.#keep(Tensor.empty(device, "u8", [slots * pagesUsed, side.native.pageBytes]).fill(0xff));
    };
    const rows = (count: number): Tensor | null => {
      if (count === 0) return null;
      return this.#keep(Tensor.empty(device, "bf16", [slots, kvHeads, count, headDim]).fill(NaN));
    };
    this.exactFrom = this.#keep(Tensor.zeros(device, "i32", [slots]));
    this.native = this.#keep(
      new KvLayer(device, {
        keys: this.keys.native,
        values: this.values.native,
        keyPages: pages(this.keys),
        valuePages: pages(this.values),
        keyRecent: rows(recent),
        valueRecent: rows(recent),
        keySinks: rows(sinks),
        valueSinks: rows(sinks),
        pageTable: maxPages === 0 ? null : this.#keep(Tensor.from(device, table, [slots, maxPages])),
        exactFrom: this.exactFrom,
        sinks,
        window,
        recent,
      }),
    );
  }

  #keep<T extends Disposable>(owned: T): T {
    this.#owned.push(owned);
    return owned;
  }

  /**
   * Stores positions 0 to count - 1 of a slot, `step` at a time. keys and values [count, kvHeads, headDim]. A prompt that
   * the ring can't hold is stored as the cache does: only its newest tokens go to the ring.
   */
  store(slot: number, keys: Float32Array, values: Float32Array, step: number): void {
    const { device, native } = this, { kvHeads, headDim, recent } = this.shape, width = kvHeads * headDim;
    const count = keys.length / width;
    for (let first = 0; first < count; first += step) {
      const rows = Math.min(step, count - first), from = first * width, to = (first + rows) * width;
      if (rows > recent && recent > 0) this.exactFrom.write([Math.max(0, first + rows - recent)], slot);
      using k = Tensor.from(device, keys.subarray(from, to), [rows, width]);
      using v = Tensor.from(device, values.subarray(from, to), [rows, width]);
      using slots = Tensor.from(device, new Int32Array(rows).fill(slot));
      using positions = Tensor.from(device, Int32Array.from({ length: rows }, (_, i) => first + i));
      native.quantize(k, v, slots, positions);
    }
  }

  /** What the pages hold: keys and values f32 [count, kvHeads, headDim]. */
  pages(slot: number, first: number, count: number): { keys: Float32Array; values: Float32Array } {
    const width = this.shape.kvHeads * this.shape.headDim;
    using keys = Tensor.empty(this.device, "f32", [count, width]);
    using values = Tensor.empty(this.device, "f32", [count, width]);
    this.native.dequantize(keys, values, slot, first);
    return { keys: keys.read(), values: values.read() };
  }

  [Symbol.dispose](): void {
    for (let owned = this.#owned.pop(); owned; owned = this.#owned.pop()) owned[Symbol.dispose]();
  }
}
