/** How one side of a cache layer, keys or values, is kept. @module */
import type { Device, NativePointer, Recorded, Resource, VecInferError } from "../device.ts";
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectSize, mismatch, optional } from "./check.ts";
import type { Transform } from "./transform.ts";

/** Options of {@linkcode Quantizer}. */
export interface QuantizerOptions {
  /** Key/value heads. */
  readonly kvHeads: number;
  /** Channels of a head: 64, 128 or 256; with 16 bits also 80, 96, 112 or 192. */
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
  /** What vectors are multiplied by before they are coded; default none. May be disposed once the quantizer is made, which keeps what it holds. */
  readonly transform?: Transform | null;
  /** Whether each vector keeps a scale of 8 bits. Default false. */
  readonly tokenScale?: boolean;
}

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
  /** What vectors are multiplied by before they are coded, or null; disposed where its owner disposed it. */
  readonly transform: Transform | null;
  /** Bytes of a page of all KV heads: 64 tokens. */
  readonly pageBytes: number;
  readonly #resource: Resource;

  /**
   * Makes a quantizer. Throws VecInferError: UNSUPPORTED for a head dimension that the library has no code for, INVALID_ARGUMENT for a
   * format it does not know, for a transform of other heads or another device, and for a transform or token scale beside 16 bits.
   */
  constructor(device: Device, options: QuantizerOptions) {
    const { kvHeads, headDim, subDim, bits, codebooks, transform = null, tokenScale = false } = options;
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
    if (transform && transform.device !== device) throw elsewhere(op, "transform", transform, device);
    this.device = device;
    this.kvHeads = kvHeads;
    this.headDim = headDim;
    this.subDim = subDim;
    this.bits = bits;
    this.codebookHeads = codebooks ? codebookHeads : 0;
    this.codebookParts = codebooks ? codebookParts : 0;
    this.transform = transform;
    const status = native.vi_quantizer_create(
      device.context,
      out,
      optional(codebooks),
      transform === null ? null : transform.pointer,
      kvHeads,
      headDim,
      subDim,
      bits,
      codebookHeads,
      codebookParts,
      Number(tokenScale),
    );
    device.check("vi_quantizer_create", status);
    this.#resource = device.adopt(this, out, "vi_quantizer_destroy", "Quantizer");
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

  /** Frees the quantizer. Layers made with it go first. */
  [Symbol.dispose](): void {
    this.#resource.free();
  }
}

function elsewhere(op: string, argument: string, found: Quantizer | Transform, device: Device): VecInferError {
  const kind = found instanceof Quantizer ? "a Quantizer" : "a Transform";
  return mismatch(op, argument, `${kind} on the op's ${device.name}`, `one on another Device, ${found.device.name}`);
}

/** Requires a quantizer of the op's device. */
export function expectQuantizer(op: string, argument: string, quantizer: Quantizer, device: Device): void {
  if (quantizer.device !== device) throw elsewhere(op, argument, quantizer, device);
}
