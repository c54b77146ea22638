/**
 * Arrays on a device.
 *
 * @module
 */
import { type Device, type NativePointer, type Recorded, type Resource, VecInferError } from "./device.ts";
import { runtime } from "./ffi/library.ts";
import { VI_BF16, VI_F16, VI_F32, VI_I32, VI_PACKED_ROWS, VI_Q4_0, VI_Q4_1, VI_Q8_0, VI_U8 } from "./ffi/symbols.ts";

/** Element types of weights in blocks of 32 that share a scale, as GGUF names them. Only `pack` writes and `linear` reads them. */
export type PackedDType = "q8_0" | "q4_0" | "q4_1";

/** Element types. Activations are f32, weights bf16 or packed, ids and positions i32. */
export type DType = "f32" | "bf16" | "f16" | "i32" | "u8" | PackedDType;

/** Host arrays that tensors are read to and written from; bf16 and f16 are bits in a Uint16Array. */
export type HostArray = Float32Array | Int32Array | Uint16Array | Uint8Array;

/** Elements of a block of a packed type. */
export const BLOCK_ELEMENTS = 32;
/** Rows of a panel of a packed tensor; views begin at a multiple of it. */
export const PACKED_ROWS: number = VI_PACKED_ROWS;

/** The library's number and the bytes of an element of each type; of a packed one a 32nd of a block's. */
export const dtypes: Readonly<Record<DType, { readonly code: number; readonly bytes: number }>> = {
  f32: { code: VI_F32, bytes: 4 },
  bf16: { code: VI_BF16, bytes: 2 },
  f16: { code: VI_F16, bytes: 2 },
  i32: { code: VI_I32, bytes: 4 },
  u8: { code: VI_U8, bytes: 1 },
  q8_0: { code: VI_Q8_0, bytes: 34 / BLOCK_ELEMENTS },
  q4_0: { code: VI_Q4_0, bytes: 18 / BLOCK_ELEMENTS },
  q4_1: { code: VI_Q4_1, bytes: 20 / BLOCK_ELEMENTS },
};

/** Whether a type is of packed weights. */
export function isPacked(dtype: DType): dtype is PackedDType {
  return dtype === "q8_0" || dtype === "q4_0" || dtype === "q4_1";
}

/** Bytes of `length` rows of `width` elements; packed rows are filled up to whole panels. */
export function byteLengthOf(dtype: DType, length: number, width: number): number {
  const rows = isPacked(dtype) ? Math.ceil(length / PACKED_ROWS) * PACKED_ROWS : length;
  return rows * width * dtypes[dtype].bytes;
}

/** A host array of `length` zeros for a type. */
function hostArray(dtype: DType, length: number): HostArray {
  switch (dtype) {
    case "f32":
      return new Float32Array(length);
    case "i32":
      return new Int32Array(length);
    case "u8":
      return new Uint8Array(length);
    default:
      return new Uint16Array(length);
  }
}

/** Whether a host array has the elements of a type. */
function fits(array: HostArray, dtype: DType): boolean {
  switch (dtype) {
    case "f32":
      return array instanceof Float32Array;
    case "i32":
      return array instanceof Int32Array;
    case "u8":
      return array instanceof Uint8Array;
    default:
      return array instanceof Uint16Array;
  }
}

function dtypeOf(array: HostArray): DType {
  if (array instanceof Float32Array) return "f32";
  if (array instanceof Int32Array) return "i32";
  return array instanceof Uint8Array ? "u8" : "bf16";
}

/** What an array is, whatever properties of these names it was given. */
const intrinsic = (name: "buffer" | "byteOffset" | "byteLength") =>
  Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), name)!.get!;
const bufferOf = intrinsic("buffer"), offsetOf = intrinsic("byteOffset"), lengthOf = intrinsic("byteLength");

/** The bytes of a host array of `length` elements of a type, not copied. Throws where it has others than it says. */
function bytesOf(call: string, array: HostArray, dtype: DType, length: number): Uint8Array {
  const bytes: number = lengthOf.call(array), expected = length * dtypes[dtype].bytes;
  if (bytes === expected) return new Uint8Array(bufferOf.call(array), offsetOf.call(array), bytes);
  throw refuse(`${call}: the array says that it has ${length} elements, ${expected} bytes, and has ${bytes}`);
}

function refuse(message: string): VecInferError {
  return new VecInferError("INVALID_ARGUMENT", message);
}

/**
 * An array on a device, row-major: `length` rows (the first dimension) of `width` elements (the others), `stride`
 * elements apart. A tensor owns its memory; a view shares that of the tensor it was made from and keeps it alive.
 */
export class Tensor implements Disposable, Recorded {
  /** The device whose memory it is in. */
  readonly device: Device;
  /** Element type. */
  readonly dtype: DType;
  /** Dimensions, outermost first. */
  readonly shape: readonly number[];
  /** Elements. */
  readonly size: number;
  /** Rows: the first dimension. */
  readonly length: number;
  /** Elements of a row: the product of the other dimensions. */
  readonly width: number;
  /** Distance between rows in elements; more than `width` only in views of columns. */
  readonly stride: number;
  /** Elements from the first to the last, those between strided rows included. */
  readonly extent: number;
  readonly #resource: Resource;
  readonly #pointer: NativePointer;
  /** Keeps the owner of the memory from being collected; undefined in the owner. */
  readonly #owner: Tensor | undefined;

  private constructor(
    device: Device,
    dtype: DType,
    shape: readonly number[],
    from: { name?: string; tensor?: Tensor; offset?: number; stride?: number },
  ) {
    this.device = device;
    this.dtype = dtype;
    this.shape = shape;
    this.size = sizeOf(dtype, shape);
    if (isPacked(dtype) && (shape.length !== 2 || shape[1] % BLOCK_ELEMENTS !== 0)) {
      throw refuse(`Tensor: ${dtype} needs rows of a multiple of ${BLOCK_ELEMENTS}, found the shape [${shape}]`);
    }
    this.length = shape.length === 0 ? 1 : shape[0];
    this.width = this.size / this.length;
    this.stride = from.stride ?? this.width;
    this.extent = (this.length - 1) * this.stride + this.width;
    const tensor = from.tensor;
    if (tensor === undefined) {
      const name = from.name === undefined ? `Tensor ${this}` : `Tensor ${from.name} ${this}`;
      this.#resource = device.allocate(this, this.byteLength, name);
      this.#pointer = this.#resource.pointer;
    } else {
      this.#owner = tensor.#owner ?? tensor;
      this.#resource = tensor.#resource;
      const offset = (from.offset ?? 0) * dtypes[dtype].bytes;
      this.#pointer = offset === 0 ? tensor.#pointer : runtime.offset(tensor.#pointer, offset);
      if (!this.alive) throw this.disposedError();
    }
  }

  /** Allocates a tensor; its contents are undefined. `name` is for messages. Throws VecInferError (OUT_OF_MEMORY). */
  static empty(device: Device, dtype: DType, shape: readonly number[], name?: string): Tensor {
    return new Tensor(device, dtype, [...shape], { name });
  }

  /** Allocates a tensor of zeros. Throws VecInferError (OUT_OF_MEMORY). */
  static zeros(device: Device, dtype: DType, shape: readonly number[], name?: string): Tensor {
    return Tensor.empty(device, dtype, shape, name).fill(0);
  }

  /**
   * Copies host values to a new tensor. `shape` is by default [values.length]; `dtype` that of the array, where numbers
   * are f32 and a Uint16Array holds the bits of bf16. A Float32Array or numbers may become bf16 or f16, rounded to nearest even.
   */
  static from(
    device: Device,
    values: HostArray | readonly number[],
    shape: readonly number[] = [values.length],
    dtype: DType = ArrayBuffer.isView(values) ? dtypeOf(values) : "f32",
    name?: string,
  ): Tensor {
    const size = sizeOf(dtype, shape);
    if (size !== values.length) {
      throw refuse(`Tensor.from: shape [${shape}] has ${size} elements, values ${values.length}`);
    }
    const tensor = Tensor.empty(device, dtype, shape, name);
    try {
      tensor.write(values);
    } catch (error) {
      tensor[Symbol.dispose]();
      throw error;
    }
    return tensor;
  }

  /** Bytes of its elements; a packed tensor's rows are filled up to whole panels. */
  get byteLength(): number {
    return byteLengthOf(this.dtype, this.length, this.width);
  }

  /** The address, for ops. Throws VecInferError (DISPOSED). */
  get pointer(): NativePointer {
    if (!this.#resource.alive) throw this.disposedError();
    if (this.device.recording !== null) this.device.recording.add(this);
    return this.#pointer;
  }

  /** False once its memory was freed. */
  get alive(): boolean {
    return this.#resource.alive;
  }

  /** Whether its rows follow each other without gaps. */
  get contiguous(): boolean {
    return this.stride === this.width;
  }

  /** The error for a use after dispose. */
  disposedError(): VecInferError {
    return this.#resource.disposed();
  }

  /** A view of the same elements in another shape. */
  view(shape: readonly number[]): Tensor {
    this.#requirePlain("view");
    if (sizeOf(this.dtype, shape) !== this.size) {
      throw refuse(`view: [${shape}] has not the ${this.size} elements of ${this}`);
    }
    return new Tensor(this.device, this.dtype, [...shape], { tensor: this });
  }

  /** A view of rows `begin` to `begin + count - 1`; of a packed tensor from a multiple of {@linkcode PACKED_ROWS} on. */
  rows(begin: number, count: number): Tensor {
    requireRange("rows", begin, count, this.length, this);
    if (isPacked(this.dtype) && begin % PACKED_ROWS !== 0) {
      throw refuse(`rows: ${this} can be cut at multiples of ${PACKED_ROWS} rows, not at ${begin}`);
    }
    const { device, dtype, stride } = this;
    return new Tensor(device, dtype, [count, ...this.shape.slice(1)], { tensor: this, offset: begin * stride, stride });
  }

  /** A view [length, count] of elements `begin` to `begin + count - 1` of every row, with this tensor's stride. */
  columns(begin: number, count: number): Tensor {
    requireRange("columns", begin, count, this.width, this);
    this.#requireUnpacked("columns");
    const { device, dtype, stride } = this;
    return new Tensor(device, dtype, [this.length, count], { tensor: this, offset: begin, stride });
  }

  /**
   * Copies host values to the elements from `offset` on. f32, i32 and u8 take arrays of their own type, bf16 and f16 bits
   * in a Uint16Array or a Float32Array that is rounded to nearest even; all take numbers. Returns the tensor.
   */
  write(values: HostArray | readonly number[], offset: number = 0): this {
    this.#requirePlain("write");
    if (!Number.isInteger(offset) || offset < 0 || offset + values.length > this.size) {
      throw refuse(`write: ${values.length} values from element ${offset} on do not fit ${this}`);
    }
    if (values.length === 0) return this;
    const { device, dtype } = this, half = dtype === "bf16" || dtype === "f16";
    if (half && !(values instanceof Uint16Array)) {
      using wide = Tensor.from(device, values instanceof Float32Array ? values : Float32Array.from(values));
      const { pointer } = offset === 0 ? this : new Tensor(device, dtype, [values.length], { tensor: this, offset });
      const { code } = dtypes[dtype];
      device.check(
        "vi_convert",
        device.native.vi_convert(device.context, pointer, wide.pointer, code, VI_F32, wide.size),
      );
      return this;
    }
    let array = values as HostArray;
    if (!ArrayBuffer.isView(values)) (array = hostArray(dtype, values.length)).set(values);
    if (!fits(array, dtype)) throw refuse(`write: ${array.constructor.name} has not the elements of ${this}`);
    const bytes = bytesOf("write", array, dtype, values.length);
    const { pointer } = this, to = offset === 0 ? pointer : runtime.offset(pointer, offset * dtypes[dtype].bytes);
    const status = device.native.vi_copy_to_device(device.context, to, bytes, bytes.length);
    if (status !== 0) device.check("vi_copy_to_device", status);
    return this;
  }

  /** Waits and copies the elements to a host array: `into`, or a new one of this type (bits for bf16 and f16). */
  read<T extends HostArray = HostArray>(into?: T): T {
    this.#requireUnpacked("read");
    const array = into ?? hostArray(this.dtype, this.size);
    if (!fits(array, this.dtype) || array.length !== this.size) {
      throw refuse(`read: ${array.constructor.name} of ${array.length} has not the elements of ${this}`);
    }
    const { device, width, stride, extent } = this;
    const whole = this.contiguous ? array : hostArray(this.dtype, extent);
    const bytes = bytesOf("read", whole, this.dtype, this.contiguous ? this.size : extent);
    const status = device.native.vi_copy_to_host(device.context, bytes, this.pointer, bytes.length);
    if (status !== 0) device.check("vi_copy_to_host", status);
    if (whole !== array) {
      for (let row = 0; row < this.length; row++) {
        array.set(whole.subarray(row * stride, row * stride + width), row * width);
      }
    }
    return array as T;
  }

  /** Waits and returns the elements as f32, whatever the type. */
  toFloat32(): Float32Array {
    if (this.dtype === "f32") return this.read<Float32Array>();
    if (this.dtype === "i32" || this.dtype === "u8") return Float32Array.from(this.read());
    this.#requirePlain("toFloat32");
    const { device, size } = this;
    using wide = Tensor.empty(device, "f32", [size]);
    const { code } = dtypes[this.dtype];
    device.check(
      "vi_convert",
      device.native.vi_convert(device.context, wide.pointer, this.pointer, VI_F32, code, size),
    );
    return wide.read<Float32Array>();
  }

  /** Copies the elements of a tensor of the same type, size and device. Returns the tensor. */
  copyFrom(source: Tensor): this {
    const { device } = this;
    this.#requirePlain("copyFrom");
    source.#requirePlain("copyFrom");
    if (source.dtype !== this.dtype || source.size !== this.size || source.device !== device) {
      throw refuse(`copyFrom: ${source} on ${source.device.name} can't be copied to ${this} on ${device.name}`);
    }
    device.check("vi_copy", device.native.vi_copy(device.context, this.pointer, source.pointer, this.byteLength));
    return this;
  }

  /** Sets every element. Inside a recorded graph only 0, and any value for u8. Returns the tensor. */
  fill(value: number): this {
    const { device } = this;
    this.#requirePlain("fill");
    if (value !== 0 && this.dtype !== "u8") return this.write(new Array<number>(this.size).fill(value));
    device.check("vi_fill", device.native.vi_fill(device.context, this.pointer, value, this.byteLength));
    return this;
  }

  /** Type and shape, e.g. "f32 [2, 64]". */
  toString(): string {
    return `${this.dtype} [${this.shape.join(", ")}]`;
  }

  #requireUnpacked(call: string): void {
    if (isPacked(this.dtype)) {
      throw refuse(`${call}: ${this} is in the library's own order; only rows can be taken of it`);
    }
  }

  #requirePlain(call: string): void {
    this.#requireUnpacked(call);
    if (!this.contiguous) {
      throw refuse(`${call}: the rows of ${this} are ${this.stride} elements apart; copy them first`);
    }
  }

  /** Frees the memory, also under its views. In a view this does nothing. */
  [Symbol.dispose](): void {
    if (this.#owner === undefined) this.#resource.free();
  }
}

/** Elements of a shape. Throws where a dimension is not a whole number from 1 on. */
function sizeOf(dtype: DType, shape: readonly number[]): number {
  if (!Object.hasOwn(dtypes, dtype)) {
    throw refuse(`Tensor: there is no dtype "${dtype}"; there are ${Object.keys(dtypes)}`);
  }
  let size = 1;
  for (const dimension of shape) {
    if (!Number.isInteger(dimension) || dimension < 1) {
      throw refuse(`Tensor: shape [${shape}] has the dimension ${dimension}; whole numbers from 1 on are possible`);
    }
    size *= dimension;
  }
  if (!Number.isSafeInteger(size * 4)) throw refuse(`Tensor: shape [${shape}] has more elements than can be counted`);
  return size;
}

function requireRange(call: string, begin: number, count: number, available: number, tensor: Tensor): void {
  if (!Number.isInteger(begin) || !Number.isInteger(count) || begin < 0 || count < 1 || begin + count > available) {
    throw refuse(`${call}: ${count} from ${begin} on are not in ${tensor}, which has ${available}`);
  }
}
