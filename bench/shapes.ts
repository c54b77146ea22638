/**
 * Shapes that benchmarks of the cache share, and layers filled with random tokens of them.
 *
 * @module
 */

import {
  type Device,
  type Format,
  gaussianCodebook,
  hadamard,
  type KvCache,
  KvLayer,
  PAGE_TOKENS,
  Quantizer,
  randomNormal,
  type Sequence,
  Tensor,
  Transform,
} from "../lib/ops/mod.ts";

/** Attention sizes of a model. */
export interface Shape {
  /** What it is called. */
  name: string;
  /** Query heads. */
  heads: number;
  /** Key/value heads. */
  kvHeads: number;
  /** Channels a head. */
  headDim: number;
}

/** The embedded model's and Llama-3.1-8B's. */
export const SHAPES: readonly Shape[] = [
  { name: "8/2 heads of 64", heads: 8, kvHeads: 2, headDim: 64 },
  { name: "32/8 heads of 128", heads: 32, kvHeads: 8, headDim: 128 },
];

/** Positions kept exactly, as by default. */
const SINKS = 4, WINDOW = 128, RECENT = 192;

/** The Hadamard matrix for all KV heads and the three directions of a transform's matrices; it is its own inverse. */
function denseHadamard(kvHeads: number, n: number): Float32Array {
  const one = hadamard(n), out = new Float32Array(3 * kvHeads * n * n);
  for (let at = 0; at < out.length; at += one.length) out.set(one, at);
  return out;
}

/** What of a quantizer is not its format: scales a token, a codebook a KV head, matrices in place of the Hadamard transform. */
interface QuantizerKind {
  tokenScale?: boolean;
  perHead?: boolean;
  fitted?: boolean;
}

/** A data-free quantizer. Its matrices are the Hadamard matrix as a dense one. */
function quantizerOf(device: Device, { kvHeads, headDim }: Shape, format: Format, kind: QuantizerKind): Quantizer {
  const { bits, subDim } = format, { tokenScale = false, perHead = false, fitted = false } = kind;
  if (bits === 16) return new Quantizer(device, { kvHeads, headDim, subDim, bits, codebooks: null });
  const codebook = gaussianCodebook(format.name), codebookHeads = perHead ? kvHeads : 1;
  const all = new Float32Array(codebookHeads * codebook.length);
  for (let head = 0; head < codebookHeads; head++) all.set(codebook, head * codebook.length);
  using codebooks = Tensor.from(device, all, [codebookHeads, 2 ** bits, subDim]);
  using matrices = fitted ? Tensor.from(device, denseHadamard(kvHeads, headDim), [3, kvHeads, headDim, headDim]) : null;
  using transform = new Transform(device, { kvHeads, headDim, matrices, hadamard: !fitted });
  return new Quantizer(device, { kvHeads, headDim, subDim, bits, codebooks, codebookHeads, transform, tokenScale });
}

/** A layer whose `slots` sequences all hold `tokens` random tokens, each in pages of its own. */
export class FilledLayer implements Disposable {
  /** The layer. */
  readonly layer: KvLayer;
  /** Bytes that attention over one slot reads at least: codes, scales and exact tokens. */
  readonly bytes: number;
  readonly #owned = new DisposableStack();

  /** Encodes `tokens` tokens once and copies their pages to the other slots. */
  constructor(
    device: Device,
    shape: Shape,
    formats: { keys: Format; values: Format },
    tokens: number,
    slots: number,
    kind: QuantizerKind = {},
  ) {
    const { kvHeads, headDim } = shape, pages = Math.ceil(tokens / PAGE_TOKENS), exact = formats.keys.bits === 16;
    const keep = <T extends Disposable>(owned: T): T => this.#owned.use(owned);
    const quantizers = [formats.keys, formats.values].map((format) => keep(quantizerOf(device, shape, format, kind)));
    const [keyPages, valuePages] = quantizers.map((side) =>
      keep(Tensor.empty(device, "u8", [slots * pages, side.pageBytes]))
    );
    const recent = exact ? 0 : RECENT, sinks = exact ? 0 : SINKS, window = exact ? 0 : WINDOW;
    const rows = (count: number, seed: number) => {
      if (count === 0) return null;
      const tensor = keep(Tensor.empty(device, "bf16", [slots, kvHeads, count, headDim]));
      randomNormal(tensor, { seed });
      return tensor;
    };
    const table = Int32Array.from({ length: slots * pages }, (_, i) => i);
    this.layer = keep(
      new KvLayer(device, {
        keys: quantizers[0],
        values: quantizers[1],
        keyPages,
        valuePages,
        keyRecent: rows(recent, 1),
        valueRecent: rows(recent, 2),
        keySinks: rows(sinks, 3),
        valueSinks: rows(sinks, 4),
        pageTable: keep(Tensor.from(device, table, [slots, pages])),
        exactFrom: keep(Tensor.from(device, new Int32Array(slots).fill(Math.max(0, tokens - recent)), [slots])),
        sinks,
        window,
        recent,
      }),
    );
    const chunk = Math.min(tokens, 4096);
    using keys = Tensor.empty(device, "f32", [chunk, kvHeads * headDim]);
    using values = Tensor.empty(device, "f32", [chunk, kvHeads * headDim]);
    using zeros = Tensor.zeros(device, "i32", [chunk]);
    using positions = Tensor.empty(device, "i32", [chunk]);
    for (let begin = 0; begin < tokens; begin += chunk) {
      const count = Math.min(chunk, tokens - begin);
      randomNormal(keys, { seed: 10 + begin });
      randomNormal(values, { seed: 11 + begin });
      positions.write(Int32Array.from({ length: count }, (_, i) => begin + i));
      this.layer.quantize(keys, values, zeros, positions, { rows: count });
    }
    for (const side of [keyPages, valuePages]) {
      const first = side.rows(0, pages);
      for (let slot = 1; slot < slots; slot++) side.rows(slot * pages, pages).copyFrom(first);
    }
    const coded = exact ? tokens : Math.max(0, tokens - SINKS - WINDOW);
    this.bytes = coded * (quantizers[0].pageBytes + quantizers[1].pageBytes) / PAGE_TOKENS +
      (tokens - coded) * kvHeads * headDim * 2 * 2;
  }

  /** Frees it. */
  [Symbol.dispose](): void {
    this.#owned.dispose();
  }
}

/**
 * Stores `tokens` random tokens in `count` new sequences of a cache, without a model: keys and values are encoded as decoding
 * would, every token into memory of its own.
 */
export function fillCache(device: Device, cache: KvCache, count: number, tokens: number): Sequence[] {
  const width = cache.shape.kvHeads * cache.shape.headDim, chunk = Math.min(tokens, 8192);
  using keys = Tensor.empty(device, "f32", [chunk, width]);
  using values = Tensor.empty(device, "f32", [chunk, width]);
  using slots = Tensor.empty(device, "i32", [chunk]);
  using positions = Tensor.from(device, Int32Array.from({ length: tokens }, (_, i) => i));
  randomNormal(keys, { seed: 1 });
  randomNormal(values, { seed: 2 });
  return Array.from({ length: count }, () => {
    const sequence = cache.sequence();
    sequence.extend(tokens);
    sequence.expose();
    slots.write(new Int32Array(chunk).fill(sequence.slot));
    for (const layer of cache.layers) {
      for (let first = 0; first < tokens; first += chunk) {
        const rows = Math.min(chunk, tokens - first);
        layer.quantize(keys, values, slots, positions.rows(first, rows), { rows });
      }
    }
    return sequence;
  });
}
