/** How one side of a cache layer, keys or values, is kept. @module */
import type { Device, NativePointer, Recorded, Resource, VecInferError } from "../device.ts";
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectSize, expectStrided, mismatch, optional, type StrideOptions } from "./check.ts";

/** Options of {@linkcode Quantizer}. */
export interface QuantizerOptions {
  /** Key/value heads. */
  readonly kvHeads: number;
  /** Channels of a head, 64 or 128. */
  readonly headDim: number;
  /** Channels of a sub-vector: 2, 4 or 8; 1 for bf16. */
  readonly subDim: number;
  /** Bits of a code: with subDim 2: 8; 4: 6, 8, 10, 12; 8: 8, 12; 1: 16, which keeps bf16 and has no codebook. */
  readonly bits: number;
  /** f32 [codebookHeads, codebookParts, 2^bits, subDim]; copied. */
  readonly codebooks?: Tensor | null;
  /** 1, or one a KV head; by default the codebooks' first dimension. */
  readonly codebookHeads?: number;
  /** 1, or headDim / subDim: one a sub-vector, as MILLION and CQ have them. Default 1. */
  readonly codebookParts?: number;
  /** Smooth factors, f32 [kvHeads, headDim]; copied. */
  readonly smooth?: Tensor | null;
  /**
   * A fitted transform in place of smooth factors and Hadamard, f32 [3, kvHeads, headDim, headDim]; copied. A vector x becomes the
   * row vector x M with M of the direction (forward, query, inverse) and KV head; see `vi_quantizer_matrices` in
   * `cuda/include/vecinfer.h`.
   */
  readonly matrices?: Tensor | null;
  /** Whether the transform has the Walsh-Hadamard matrix. Default false. */
  readonly hadamard?: boolean;
  /** Whether each vector keeps a scale of 8 bits. Default false. */
  readonly tokenScale?: boolean;
}

/** Options of {@linkcode Quantizer.transform}. */
export interface TransformOptions extends StrideOptions {
  /** Heads, a multiple of the KV heads; by default all of `x`. */
  readonly heads?: number;
}

/** "forward": x~ = (x / smooth) H, for keys or values. "query": (x * smooth) H. "inverse": back from x~. Of a quantizer with matrices: x times the one of the direction. */
export type TransformDirection = "forward" | "query" | "inverse";

const directions: Record<TransformDirection, number> = { forward: 0, query: 1, inverse: 2 };

/** Transform, codebooks and token scale of keys or values: VecInfer, arXiv 2510.06175. */
export class Quantizer implements Disposable, Recorded {
  /** The device it belongs to. */
  readonly device: Device;
  /** Key/value heads. */
  readonly kvHeads: number;
  /** Channels of a head. */
  readonly headDim: number;
  /** Channels of a sub-vector. */
  readonly subDim: number;
  /** Bits of a code. */
  readonly bits: number;
  /** Codebooks: 1 or one a KV head; 0 without codebook. */
  readonly codebookHeads: number;
  /** Codebooks a head: 1 or one a sub-vector; 0 without codebook. */
  readonly codebookParts: number;
  /** Bytes of a page of all KV heads: 64 tokens. */
  readonly pageBytes: number;
  readonly #resource: Resource;

  /**
   * Makes a quantizer. Throws VecInferError: UNSUPPORTED for a head dimension that the library has no code for, INVALID_ARGUMENT for codes it
   * does not know, and for matrices beside smooth factors, Hadamard or 16 bits.
   */
  constructor(device: Device, options: QuantizerOptions) {
    const { kvHeads, headDim, subDim, bits, codebooks, smooth, matrices } = options;
    const { hadamard = false, tokenScale = false } = options;
    const op = "Quantizer", { native } = device, out = new Uint8Array(8);
    const { codebookHeads = codebooks?.length ?? 0, codebookParts = 1 } = options;
    expectInteger(op, "kvHeads", kvHeads, 1);
    expectInteger(op, "headDim", headDim, 1);
    expectInteger(op, "subDim", subDim, 1, 16);
    expectInteger(op, "bits", bits, 1, 16);
    expectInteger(op, "codebookHeads", codebookHeads);
    expectInteger(op, "codebookParts", codebookParts);
    const size = codebookHeads * codebookParts * 2 ** bits * subDim;
    if (codebooks) expectSize(op, "codebooks", codebooks, device, "f32", size);
    if (smooth) expectSize(op, "smooth", smooth, device, "f32", kvHeads * headDim);
    if (matrices) expectSize(op, "matrices", matrices, device, "f32", 3 * kvHeads * headDim * headDim);
    this.device = device;
    this.kvHeads = kvHeads;
    this.headDim = headDim;
    this.subDim = subDim;
    this.bits = bits;
    this.codebookHeads = codebooks ? codebookHeads : 0;
    this.codebookParts = codebooks ? codebookParts : 0;
    const status = native.vi_quantizer_create(
      device.context,
      out,
      optional(codebooks),
      optional(smooth),
      kvHeads,
      headDim,
      subDim,
      bits,
      codebookHeads,
      codebookParts,
      Number(hadamard),
      Number(tokenScale),
    );
    device.check("vi_quantizer_create", status);
    this.#resource = device.adopt(this, out, "vi_quantizer_destroy", "Quantizer");
    if (matrices) {
      const given = native.vi_quantizer_matrices(device.context, this.pointer, matrices.pointer);
      if (given !== 0) {
        this.#resource.free();
        device.check("vi_quantizer_matrices", given);
      }
    }
    device.check("vi_page_bytes", native.vi_page_bytes(device.context, out, this.pointer));
    this.pageBytes = Number(new DataView(out.buffer).getBigInt64(0, true));
  }

  /** The handle, for ops. Throws VecInferError (DISPOSED). */
  get pointer(): NativePointer {
    if (!this.#resource.alive) throw this.disposedError();
    if (this.device.recording !== null) this.device.recording.add(this);
    return this.#resource.pointer;
  }

  /** False after dispose. */
  get alive(): boolean {
    return this.#resource.alive;
  }

  /** The error for a use after dispose. */
  disposedError(): VecInferError {
    return this.#resource.disposed();
  }

  /** Writes the codebooks as attention reads them, perhaps rounded, to `out`, f32 [codebookHeads, codebookParts, 2^bits, subDim]. */
  codebook(out: Tensor): void {
    const { device, codebookHeads, codebookParts, bits, subDim } = this;
    const size = codebookHeads * codebookParts * 2 ** bits * subDim;
    expectSize("Quantizer.codebook", "out", out, device, "f32", size);
    const { native, context } = device;
    device.check("vi_quantizer_codebook", native.vi_quantizer_codebook(context, out.pointer, this.pointer));
  }

  /** Applies the transform to x, f32 [rows, heads, headDim]. out has x's shape and stride, and may be x. */
  transform(out: Tensor, x: Tensor, direction: TransformDirection, options: TransformOptions = {}): void {
    const { device, headDim } = this, op = "Quantizer.transform";
    const { rows = x.length, stride = x.stride, heads = x.width / headDim } = options;
    if (!Object.hasOwn(directions, direction)) {
      throw mismatch(op, "direction", '"forward", "query" or "inverse"', `"${direction}"`);
    }
    expectInteger(op, "rows", rows);
    expectInteger(op, "heads", heads, 1);
    expectStrided(op, "x", x, device, rows, heads * headDim, stride);
    expectStrided(op, "out", out, device, rows, heads * headDim, stride);
    const { native, context } = device;
    const status = native.vi_transform(
      context,
      out.pointer,
      x.pointer,
      this.pointer,
      directions[direction],
      rows,
      heads,
      stride,
    );
    if (status !== 0) device.check("vi_transform", status);
  }

  /** Frees the quantizer. Layers made with it go first. */
  [Symbol.dispose](): void {
    this.#resource.free();
  }
}

/** Requires a quantizer of the op's device. */
export function expectQuantizer(op: string, argument: string, quantizer: Quantizer, device: Device): void {
  if (quantizer.device === device) return;
  throw mismatch(
    op,
    argument,
    `a Quantizer on the op's ${device.name}`,
    `one on another Device, ${quantizer.device.name}`,
  );
}
