/** What keys, values and queries are multiplied by before they are coded and compared. @module */
import type { Device, NativePointer, Recorded, Resource, VecInferError } from "../device.ts";
import { VI_TRANSFORM_FORWARD, VI_TRANSFORM_INVERSE, VI_TRANSFORM_QUERY } from "../ffi/symbols.ts";
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectSize, expectStrided, mismatch, optional, type StrideOptions } from "./check.ts";

/** Options of {@linkcode Transform}: smooth factors, Hadamard or both; or matrices in their place. With none of them it changes nothing. */
export interface TransformOptions {
  /** Key/value heads. */
  readonly kvHeads: number;
  /** Channels of a head: 64, 128 or 256. */
  readonly headDim: number;
  /** Smooth factors, f32 [kvHeads, headDim]; copied. */
  readonly smooth?: Tensor | null;
  /** Whether the vectors are multiplied by the orthonormal Walsh-Hadamard matrix. Default false. */
  readonly hadamard?: boolean;
  /**
   * A fitted transform, f32 [3, kvHeads, headDim, headDim]; copied. A vector x becomes the row vector x M with M of the direction
   * (forward, query, inverse) and KV head; see `vi_transform_create` in `cuda/include/vecinfer.h`.
   */
  readonly matrices?: Tensor | null;
}

/** Options of {@linkcode Transform.apply}. */
export interface TransformApplyOptions extends StrideOptions {
  /** Heads, a multiple of the KV heads; by default all of `x`. */
  readonly heads?: number;
}

/** "forward": x~ = (x / smooth) H, for keys or values. "query": (x * smooth) H. "inverse": back from x~. With matrices: x times the one of the direction. */
export type TransformDirection = "forward" | "query" | "inverse";

const directions: Record<TransformDirection, number> = {
  forward: VI_TRANSFORM_FORWARD,
  query: VI_TRANSFORM_QUERY,
  inverse: VI_TRANSFORM_INVERSE,
};

/** The transform of one side's vectors: VecInfer, arXiv 2510.06175. */
export class Transform implements Disposable, Recorded {
  /** The device it belongs to. */
  readonly device: Device;
  /** Key/value heads. */
  readonly kvHeads: number;
  /** Channels of a head. */
  readonly headDim: number;
  readonly #resource: Resource;

  /**
   * Makes a transform. Throws VecInferError: UNSUPPORTED for a head dimension that the library has no code for, INVALID_ARGUMENT for
   * matrices beside smooth factors or Hadamard and, on the CPU, for numbers that are not finite.
   */
  constructor(device: Device, options: TransformOptions) {
    const { kvHeads, headDim, smooth, hadamard = false, matrices } = options;
    const op = "Transform", out = new Uint8Array(8);
    expectInteger(op, "kvHeads", kvHeads, 1);
    expectInteger(op, "headDim", headDim, 1);
    if (smooth) expectSize(op, "smooth", smooth, device, "f32", kvHeads * headDim);
    if (matrices) expectSize(op, "matrices", matrices, device, "f32", 3 * kvHeads * headDim * headDim);
    this.device = device;
    this.kvHeads = kvHeads;
    this.headDim = headDim;
    const status = device.native.vi_transform_create(
      device.context,
      out,
      optional(smooth),
      optional(matrices),
      kvHeads,
      headDim,
      Number(hadamard),
    );
    device.check("vi_transform_create", status);
    this.#resource = device.adopt(this, out, "vi_transform_destroy", "Transform");
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

  /** Transforms x, f32 [rows, heads, headDim]. out has x's shape and stride, and may be x. */
  apply(out: Tensor, x: Tensor, direction: TransformDirection, options: TransformApplyOptions = {}): void {
    const { device, headDim } = this, op = "Transform.apply";
    const { rows = x.length, stride = x.stride, heads = x.width / headDim } = options;
    if (!Object.hasOwn(directions, direction)) {
      throw mismatch(op, "direction", '"forward", "query" or "inverse"', `"${direction}"`);
    }
    expectInteger(op, "rows", rows);
    expectInteger(op, "heads", heads, 1);
    expectStrided(op, "x", x, device, rows, heads * headDim, stride);
    expectStrided(op, "out", out, device, rows, heads * headDim, stride);
    const { native, context } = device;
    const status = native.vi_transform_apply(
      context,
      out.pointer,
      x.pointer,
      this.pointer,
      directions[direction],
      rows,
      heads,
      stride,
    );
    if (status !== 0) device.check("vi_transform_apply", status);
  }

  /** Frees the transform. Quantizers made with it keep what it holds. */
  [Symbol.dispose](): void {
    this.#resource.free();
  }
}
