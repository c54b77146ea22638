/** The cache of one layer. @module */
import type { Device, NativePointer, Recorded, Resource, VecInferError } from "../device.ts";
import { VI_PAGE_TOKENS } from "../ffi/symbols.ts";
import type { Tensor } from "../tensor.ts";
import {
  expectInteger,
  expectRows,
  expectSize,
  expectStrided,
  mismatch,
  optional,
  type StrideOptions,
} from "./check.ts";
import { expectQuantizer, type Quantizer } from "./quantizer.ts";

/** Tokens of a page. */
export const PAGE_TOKENS: number = VI_PAGE_TOKENS;

/** The memory of a {@linkcode KvLayer}. All of it must outlive the layer. */
export interface KvLayerOptions {
  /** How keys are kept. */
  readonly keys: Quantizer;
  /** How values are kept. */
  readonly values: Quantizer;
  /** u8 [pageCount, keys.pageBytes]; null for a layer with a sliding window. */
  readonly keyPages: Tensor | null;
  /** u8 [pageCount, values.pageBytes]; null for a layer with a sliding window. */
  readonly valuePages: Tensor | null;
  /** The newest keys, bf16 [slots, kvHeads, recent, headDim]; null where recent is 0. */
  readonly keyRecent?: Tensor | null;
  /** The newest values, bf16 [slots, kvHeads, recent, headDim]; null where recent is 0. */
  readonly valueRecent?: Tensor | null;
  /** The first keys, bf16 [slots, kvHeads, sinks, headDim]; null where sinks is 0. */
  readonly keySinks?: Tensor | null;
  /** The first values, bf16 [slots, kvHeads, sinks, headDim]; null where sinks is 0. */
  readonly valueSinks?: Tensor | null;
  /** Which page holds tokens 64 i to 64 i + 63 of a slot: i32 [slots, maxPages]; null for a layer with a sliding window. */
  readonly pageTable: Tensor | null;
  /** The lowest position whose row in the ring of newest tokens is valid: i32 [slots]. */
  readonly exactFrom: Tensor;
  /** First positions that are read exactly. */
  readonly sinks: number;
  /** Newest positions that are read exactly; at most `recent`. Of a layer with a sliding window: all that are read. */
  readonly window: number;
  /** Rows of the ring of newest tokens. */
  readonly recent: number;
}

/** Options of {@linkcode KvLayer.ropeQuantize}. */
export interface RopeQuantizeOptions extends StrideOptions {
  /** Query heads, from the start of each row; by default all of `queries`. */
  readonly heads?: number;
}

/**
 * Keys and values of one layer for several sequences: pages of codes, and first and newest tokens in bf16. A layer with a sliding
 * window has the newest tokens alone: no pages, no sinks, and quantizers of 16 bits, which say no more than its sizes.
 */
export class KvLayer implements Disposable, Recorded {
  /** The device it belongs to. */
  readonly device: Device;
  /** Key/value heads. */
  readonly kvHeads: number;
  /** Channels of a head. */
  readonly headDim: number;
  /** Sequences. */
  readonly slots: number;
  /** Pages of a sequence at most; 0 of a layer with a sliding window. */
  readonly maxPages: number;
  /** Newest positions that a layer with a sliding window reads; 0 of one that reads all. */
  readonly slidingWindow: number;
  readonly #resource: Resource;
  readonly #parts: readonly Recorded[];
  #seen: number;

  /** Binds memory to a layer. */
  constructor(device: Device, options: KvLayerOptions) {
    const { keys, values, keyPages, valuePages, pageTable, exactFrom, sinks, window, recent } = options;
    const { keyRecent, valueRecent, keySinks, valueSinks } = options;
    const op = "KvLayer", { kvHeads, headDim } = keys;
    const pageCount = keyPages?.length ?? 0, slots = exactFrom.length, maxPages = pageTable?.width ?? 0;
    expectQuantizer(op, "keys", keys, device);
    expectQuantizer(op, "values", values, device);
    if (values.kvHeads !== kvHeads || values.headDim !== headDim) {
      const expected = `${kvHeads} heads of ${headDim} channels, as the keys`;
      throw mismatch(op, "values", expected, `${values.kvHeads} of ${values.headDim}`);
    }
    expectInteger(op, "sinks", sinks);
    expectInteger(op, "recent", recent);
    expectInteger(op, "window", window, 0, recent);
    if (keyPages && valuePages && pageTable) {
      expectRows(op, "keyPages", keyPages, device, "u8", pageCount, keys.pageBytes);
      expectRows(op, "valuePages", valuePages, device, "u8", pageCount, values.pageBytes);
      expectRows(op, "pageTable", pageTable, device, "i32", slots, maxPages);
    } else if (keyPages || valuePages || pageTable) {
      throw mismatch(
        op,
        "keyPages, valuePages and pageTable",
        "all three, or none for a sliding window",
        "some of them",
      );
    }
    expectSize(op, "exactFrom", exactFrom, device, "i32", slots);
    const exact = [
      ["keyRecent", keyRecent, recent],
      ["valueRecent", valueRecent, recent],
      ["keySinks", keySinks, sinks],
      ["valueSinks", valueSinks, sinks],
    ] as const;
    for (const [name, tensor, rows] of exact) {
      const size = slots * kvHeads * rows * headDim;
      if (tensor) expectSize(op, name, tensor, device, "bf16", size);
      else if (size > 0) throw mismatch(op, name, `bf16 [${slots}, ${kvHeads}, ${rows}, ${headDim}]`, "none");
    }
    this.device = device;
    this.kvHeads = kvHeads;
    this.headDim = headDim;
    this.slots = slots;
    this.maxPages = maxPages;
    this.slidingWindow = maxPages === 0 ? window : 0;
    const out = new Uint8Array(8);
    const status = device.native.vi_kv_layer_create(
      device.context,
      out,
      keys.pointer,
      values.pointer,
      optional(keyPages),
      optional(valuePages),
      optional(keyRecent),
      optional(valueRecent),
      optional(keySinks),
      optional(valueSinks),
      optional(pageTable),
      exactFrom.pointer,
      pageCount,
      slots,
      maxPages,
      sinks,
      window,
      recent,
    );
    device.check("vi_kv_layer_create", status);
    this.#resource = device.adopt(this, out, "vi_kv_layer_destroy", "KvLayer");
    const tensors = [keyPages, valuePages, keyRecent, valueRecent, keySinks, valueSinks, pageTable, exactFrom];
    this.#parts = [keys, values, ...tensors.filter((tensor) => tensor !== null && tensor !== undefined)];
    this.#seen = device.disposals;
  }

  /** The handle, for ops. Throws VecInferError (DISPOSED), also where its memory was disposed before it. */
  get pointer(): NativePointer {
    if (this.#seen !== this.device.disposals) {
      if (!this.alive) throw this.disposedError();
      this.#seen = this.device.disposals;
    }
    if (this.device.recording !== null) this.device.recording.add(this);
    return this.#resource.pointer;
  }

  /** False after dispose of it or of its memory. */
  get alive(): boolean {
    return this.#resource.alive && this.#parts.every((part) => part.alive);
  }

  /** The error for a use after dispose. */
  disposedError(): VecInferError {
    const gone = this.#resource.alive ? this.#parts.find((part) => !part.alive) : undefined;
    return gone?.disposedError() ?? this.#resource.disposed();
  }

  /**
   * Encodes and stores keys (after RoPE) and values, f32 [rows, kvHeads, headDim] with one stride: row r is position
   * positions[r] of slot slots[r], both i32 [rows]. Rows of a slot that go to the ring must span `recent` positions at most.
   */
  quantize(keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, options: StrideOptions = {}): void {
    const { device } = this, { rows = keys.length, stride = keys.stride } = options;
    const op = "KvLayer.quantize", width = this.kvHeads * this.headDim;
    expectInteger(op, "rows", rows);
    expectStrided(op, "keys", keys, device, rows, width, stride);
    expectStrided(op, "values", values, device, rows, width, stride);
    expectRows(op, "slots", slots, device, "i32", rows, 1);
    expectRows(op, "positions", positions, device, "i32", rows, 1);
    const status = device.native.vi_quantize(
      device.context,
      this.pointer,
      keys.pointer,
      values.pointer,
      slots.pointer,
      positions.pointer,
      rows,
      stride,
    );
    if (status !== 0) device.check("vi_quantize", status);
  }

  /**
   * Rotates queries, f32 [rows, heads, headDim], in place and keys, as {@linkcode rope} does, then stores those keys and
   * the values as {@linkcode KvLayer.quantize}: one pass between a decode step's products and its attention. queries,
   * keys and values have one row stride, frequencies are f32 [headDim / 2]. What stands in `keys` afterwards is undefined.
   */
  ropeQuantize(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    options: RopeQuantizeOptions = {},
  ): void {
    const { device, headDim } = this, { rows = keys.length, stride = keys.stride } = options;
    const { heads = queries.width / headDim } = options;
    const op = "KvLayer.ropeQuantize", width = this.kvHeads * headDim;
    expectInteger(op, "rows", rows);
    expectInteger(op, "heads", heads, 1);
    expectStrided(op, "queries", queries, device, rows, heads * headDim, stride);
    expectStrided(op, "keys", keys, device, rows, width, stride);
    expectStrided(op, "values", values, device, rows, width, stride);
    expectRows(op, "slots", slots, device, "i32", rows, 1);
    expectRows(op, "positions", positions, device, "i32", rows, 1);
    expectSize(op, "frequencies", frequencies, device, "f32", headDim / 2);
    const status = device.native.vi_rope_quantize(
      device.context,
      this.pointer,
      queries.pointer,
      keys.pointer,
      values.pointer,
      slots.pointer,
      positions.pointer,
      frequencies.pointer,
      rows,
      heads,
      stride,
    );
    if (status !== 0) device.check("vi_rope_quantize", status);
  }

  /**
   * Reads positions first to first + rows - 1 of a slot back from the pages, transforms undone. keys and values f32
   * [rows, kvHeads, headDim]; rows is by default that of `keys`. A layer with a sliding window has no pages: INVALID_ARGUMENT.
   */
  dequantize(keys: Tensor, values: Tensor, slot: number, first: number, rows: number = keys.length): void {
    const { device } = this, op = "KvLayer.dequantize", width = this.kvHeads * this.headDim;
    if (this.maxPages === 0) throw mismatch(op, "layer", "one with pages", "one with a sliding window, which has none");
    expectInteger(op, "slot", slot, 0, this.slots - 1);
    expectInteger(op, "first", first);
    expectInteger(op, "rows", rows, 0, Math.max(0, this.maxPages * VI_PAGE_TOKENS - first));
    expectRows(op, "keys", keys, device, "f32", rows, width);
    expectRows(op, "values", values, device, "f32", rows, width);
    const { native, context } = device;
    const status = native.vi_dequantize(context, keys.pointer, values.pointer, this.pointer, slot, first, rows);
    if (status !== 0) device.check("vi_dequantize", status);
  }

  /** Frees the handle; the memory stays with its owners. */
  [Symbol.dispose](): void {
    this.#resource.free();
  }
}

/** Requires a layer of the op's device. */
export function expectLayer(op: string, layer: KvLayer, device: Device): void {
  if (layer.device === device) return;
  throw mismatch(op, "layer", `a KvLayer on the op's ${device.name}`, `one on another Device, ${layer.device.name}`);
}
